// SPDX-License-Identifier: GPL-2.0

//! The VMAs of a VM: which do not overlap, and change all together or not at all.
//!
//! A change of several steps is made through [`Changes`], which undoes all of them unless they are
//! committed. What is undone was there before, so that undoing needs no memory.

use super::vma::{Span, Vma};
use core::mem;
use kernel::{
    prelude::*,
    rbtree::{RBTree, RBTreeNode}, //
};

/// The VMAs of a VM, by their first address.
///
/// # Invariants
///
/// The key of each VMA is the start of its span, no span is empty, and no two overlap.
pub(crate) struct VmaMap {
    tree: RBTree<u64, Vma>,
}

impl VmaMap {
    /// No VMAs.
    pub(crate) fn new() -> Self {
        Self {
            tree: RBTree::new(),
        }
    }

    /// The VMA at `addr`.
    pub(crate) fn find(&self, addr: u64) -> Option<&Vma> {
        self.first_from(addr).filter(|vma| vma.span.start <= addr)
    }

    /// The first VMA that ends after `addr`.
    pub(crate) fn first_from(&self, addr: u64) -> Option<&Vma> {
        let next = self.tree.cursor_lower_bound(&addr);
        let before = match &next {
            Some(cursor) => cursor.peek_prev().map(|(key, vma)| (*key, vma.span.end)),
            None => self
                .tree
                .cursor_back()
                .map(|cursor| (*cursor.current().0, cursor.current().1.span.end)),
        };
        let key = match before {
            Some((key, end)) if end > addr => key,
            _ => *next?.current().0,
        };
        self.tree.get(&key)
    }

    /// The VMAs that overlap `span`, in ascending order.
    pub(crate) fn overlapping(&self, span: Span) -> impl Iterator<Item = &Vma> {
        let mut at = span.start;
        core::iter::from_fn(move || {
            let vma = self
                .first_from(at)
                .filter(|vma| vma.span.start < span.end && at < span.end)?;
            at = vma.span.end;
            Some(vma)
        })
    }

    /// All VMAs, in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Vma> {
        self.tree.values()
    }

    /// Begins a change.
    pub(crate) fn change(&mut self) -> Changes<'_> {
        Changes {
            map: self,
            undo: KVec::new(),
        }
    }

    /// Takes all VMAs out.
    pub(crate) fn take(&mut self) -> Self {
        mem::replace(self, Self::new())
    }
}

/// How to undo one step.
enum Undo {
    /// A VMA was inserted at this address, or would have been.
    Inserted(u64),
    /// This was removed; nothing yet if the step was not finished.
    Removed(Option<RBTreeNode<u64, Vma>>),
}

/// A change of a map; undone when dropped.
#[must_use = "a change that is not committed is undone at once"]
pub(crate) struct Changes<'a> {
    map: &'a mut VmaMap,
    undo: KVec<Undo>,
}

/// What a committed change removed. It holds buffers: to be dropped after the GPU has let go of
/// them, and without locks, as the last reference to a buffer frees it.
#[must_use = "buffers must not be dropped before the GPU's mappings of them"]
pub(crate) struct Retired {
    _vmas: KVec<Undo>,
}

impl Changes<'_> {
    /// The map as the change has made it so far.
    pub(crate) fn map(&self) -> &VmaMap {
        self.map
    }

    /// Makes the change last.
    pub(crate) fn commit(mut self) -> Retired {
        Retired {
            _vmas: mem::replace(&mut self.undo, KVec::new()),
        }
    }

    /// Inserts a VMA where there is none. Fails with `EEXIST` where there is, and with `ENOMEM`.
    pub(crate) fn insert(&mut self, vma: Vma) -> Result {
        if vma.span.is_empty() || self.map.overlapping(vma.span.clone()).next().is_some() {
            return Err(EEXIST);
        }
        let key = vma.span.start;
        let node = RBTreeNode::new(key, vma, GFP_KERNEL)?;
        self.undo.push(Undo::Inserted(key), GFP_KERNEL)?;
        // INVARIANT: The VMA is not empty, overlaps no other, and is at its start.
        self.map.tree.insert(node);
        Ok(())
    }

    /// Removes the VMA that starts at `start`, if any.
    fn remove(&mut self, start: u64) -> Result {
        self.undo.push(Undo::Removed(None), GFP_KERNEL)?;
        let node = self.map.tree.remove_node(&start);
        if let Some(Undo::Removed(slot)) = self.undo.last_mut() {
            *slot = node;
        }
        Ok(())
    }

    /// Removes everything in `span`, and splits the VMAs that reach beyond it.
    ///
    /// `each` sees every piece before it goes, and may refuse. Fails with its error and with
    /// `ENOMEM`.
    pub(crate) fn cut(&mut self, span: &Span, mut each: impl FnMut(&Vma) -> Result) -> Result {
        let mut at = span.start;
        while at < span.end {
            let Some(vma) = self
                .map
                .first_from(at)
                .filter(|vma| vma.span.start < span.end)
                .cloned()
            else {
                break;
            };
            if let Some(piece) = vma.part(span) {
                each(&piece)?;
            }
            at = vma.span.end;
            self.remove(vma.span.start)?;
            if let Some(before) = vma.before(span.start) {
                self.insert(before)?;
            }
            if let Some(after) = vma.after(span.end) {
                self.insert(after)?;
            }
        }
        Ok(())
    }

    /// Splits the VMA at `addr`, if there is one and it does not begin there, so that one begins.
    pub(crate) fn split(&mut self, addr: u64) -> Result {
        let Some(vma) = self.map.find(addr).cloned() else {
            return Ok(());
        };
        let (Some(before), Some(after)) = (vma.before(addr), vma.after(addr)) else {
            return Ok(());
        };
        self.remove(vma.span.start)?;
        self.insert(before)?;
        self.insert(after)
    }

    /// Replaces a VMA by one of the same span.
    pub(crate) fn replace(&mut self, vma: Vma) -> Result {
        self.remove(vma.span.start)?;
        self.insert(vma)
    }

    /// The span of `vma`, a mirror yet to be inserted, with those neighbours that it makes one
    /// mirror with.
    pub(crate) fn merged(&self, vma: &Vma) -> Span {
        let mut span = vma.span.clone();
        let before = span.start.checked_sub(1).and_then(|at| self.map.find(at));
        if let Some(before) = before.filter(|before| before.is_like(vma)) {
            span.start = before.span.start;
        }
        if let Some(after) = self.map.find(span.end).filter(|after| after.is_like(vma)) {
            span.end = after.span.end;
        }
        span
    }
}

impl Drop for Changes<'_> {
    fn drop(&mut self) {
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Inserted(start) => drop(self.map.tree.remove_node(&start)),
                // INVARIANT: All that was done since is undone, so that it fits as it did before.
                Undo::Removed(Some(node)) => drop(self.map.tree.insert(node)),
                Undo::Removed(None) => {}
            }
        }
    }
}
