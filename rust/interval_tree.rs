// SPDX-License-Identifier: GPL-2.0

//! Interval trees with a list beside them, for iteration in order.
//!
//! The tree finds the intervals that overlap a span in logarithmic time; the list finds the next
//! interval in constant time. Intervals in one tree of this project never overlap each other, so
//! that both have the same order.
//!
//! C header: [`include/linux/interval_tree.h`](srctree/include/linux/interval_tree.h)

use crate::list;
use core::{cell::UnsafeCell, ops::Range, ptr};
use kernel::{
    bindings,
    ffi::c_ulong,
    interop::list::CListHead,
    prelude::*, //
};

/// An interval and its place in a tree and a list.
///
/// It has the layout of a `struct interval_tree_node` followed by a `struct list_head`, as
/// `struct drm_gpusvm_notifier` and `struct drm_gpusvm_range` have them.
///
/// # Invariants
///
/// The node is linked in the tree exactly when it is linked in the list.
#[repr(C)]
#[pin_data]
pub struct Node {
    itree: UnsafeCell<bindings::interval_tree_node>,
    #[pin]
    entry: CListHead,
}

impl Node {
    /// Returns an unlinked node for `span`, whose end is exclusive and must be above its start.
    #[inline]
    pub fn new(span: Range<usize>) -> impl PinInit<Self> {
        let itree = bindings::interval_tree_node {
            start: span.start as c_ulong,
            last: span.end.wrapping_sub(1) as c_ulong,
            ..Default::default()
        };
        pin_init!(Self {
            itree: UnsafeCell::new(itree),
            entry <- CListHead::new(),
        })
    }

    /// Sets the span of a node that is in no tree.
    #[inline]
    pub fn set_span(&mut self, span: Range<usize>) {
        let itree = self.itree.get_mut();
        itree.start = span.start as c_ulong;
        itree.last = span.end.wrapping_sub(1) as c_ulong;
    }

    /// Returns the first address, in bytes.
    pub fn start(&self) -> usize {
        // SAFETY: `start` is written only while nobody else knows the node.
        unsafe { (*self.itree.get()).start }
    }

    /// Returns the end, exclusive, in bytes; 0 if the interval includes the last address.
    pub fn end(&self) -> usize {
        // SAFETY: As above.
        unsafe { (*self.itree.get()).last }.wrapping_add(1)
    }

    fn from_itree(itree: *mut bindings::interval_tree_node) -> *mut Node {
        // `itree` is the first field.
        const { assert!(core::mem::offset_of!(Node, itree) == 0) };
        itree.cast()
    }

    /// Returns the node that `entry` is part of.
    ///
    /// # Safety
    ///
    /// `entry` must be the `entry` field of a [`Node`].
    unsafe fn from_entry(entry: &CListHead) -> *mut Node {
        let offset = core::mem::offset_of!(Node, entry);
        // SAFETY: By this function's requirements.
        unsafe { ptr::from_ref(entry).byte_sub(offset).cast_mut().cast() }
    }
}

/// The root of an interval tree, and the head of the list beside it.
///
/// It has the layout of a `struct rb_root_cached` followed by a `struct list_head`.
///
/// # Invariants
///
/// Tree and list hold the same nodes, in the same order.
#[repr(C)]
#[pin_data]
pub struct Tree {
    root: UnsafeCell<bindings::rb_root_cached>,
    #[pin]
    list: CListHead,
}

impl Tree {
    /// Returns an empty tree.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            root: UnsafeCell::new(Default::default()),
            list <- CListHead::new(),
        })
    }

    /// Returns whether the tree is empty.
    ///
    /// # Safety
    ///
    /// No other thread may change the tree meanwhile.
    pub unsafe fn is_empty(&self) -> bool {
        // SAFETY: By this function's requirements.
        unsafe { (*self.root.get()).rb_root.rb_node.is_null() }
    }

    /// Returns the lowest node that overlaps `span` (end exclusive), or null.
    ///
    /// # Safety
    ///
    /// No other thread may change the tree meanwhile.
    pub unsafe fn first(&self, span: Range<usize>) -> *mut Node {
        if span.start >= span.end {
            return ptr::null_mut();
        }
        // SAFETY: By this function's requirements the tree is stable.
        Node::from_itree(unsafe {
            bindings::interval_tree_iter_first(
                self.root.get(),
                span.start as c_ulong,
                (span.end - 1) as c_ulong,
            )
        })
    }

    /// Returns the node after `node` in ascending order, or null.
    ///
    /// # Safety
    ///
    /// `node` must be linked in this tree, and no other thread may change the tree meanwhile.
    pub unsafe fn next(&self, node: *mut Node) -> *mut Node {
        // SAFETY: `node` is linked, so that its list pointers are valid.
        let next = unsafe { (*node).entry.next() };
        if *next == self.list {
            return ptr::null_mut();
        }
        // SAFETY: All entries of the list, except its head, are `entry` fields of nodes.
        unsafe { Node::from_entry(next) }
    }

    /// Links `node`.
    ///
    /// # Safety
    ///
    /// `node` must be pinned, not linked in any tree, overlap no node of this tree, and stay valid
    /// until it is removed. No other thread may read or change the tree meanwhile.
    pub unsafe fn insert(&self, node: *mut Node) {
        // SAFETY: The caller guarantees exclusive access to tree, list and node. By the type
        // invariants the predecessor in the tree is linked in the list.
        unsafe {
            bindings::interval_tree_insert((*node).itree.get(), self.root.get());
            let prev = bindings::rb_prev(&raw const (*(*node).itree.get()).rb);
            let place = if prev.is_null() {
                &self.list
            } else {
                let itree = prev.byte_sub(core::mem::offset_of!(bindings::interval_tree_node, rb));
                &(*Node::from_itree(itree.cast())).entry
            };
            list::add_behind(place, &(*node).entry);
        }
    }

    /// Unlinks `node`.
    ///
    /// # Safety
    ///
    /// `node` must be linked in this tree. No other thread may read or change the tree meanwhile.
    pub unsafe fn remove(&self, node: *mut Node) {
        // SAFETY: The caller guarantees exclusive access to tree, list and node.
        unsafe {
            bindings::interval_tree_remove((*node).itree.get(), self.root.get());
            list::del(&(*node).entry);
        }
    }
}
