// SPDX-License-Identifier: GPL-2.0

//! Lists of GEM objects that do not keep them alive, in an order that the driver gives.
//!
//! # Locking
//!
//! The list's mutex is a leaf: its holder neither sleeps nor drops a reference to an object.

use crate::bindings as ext;
use core::ptr::NonNull;
use kernel::{
    bindings,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        new_mutex,
        Mutex, //
    }, //
};

/// The memory for an object's place in a list.
pub struct Room {
    object: RBTreeNodeReservation<u64, NonNull<bindings::drm_gem_object>>,
    number: RBTreeNodeReservation<usize, u64>,
}

impl Room {
    /// Allocates the memory, charged to the caller's memory cgroup. Fails with `ENOMEM`.
    pub fn new() -> Result<Self> {
        Ok(Self {
            object: RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?,
            number: RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?,
        })
    }
}

/// Objects in the order of their numbers.
#[pin_data]
pub(crate) struct GemList {
    #[pin]
    inner: Mutex<Inner>,
}

/// # Invariants
///
/// Each object is one that is not freed: it leaves the list before. `numbers` has the number of
/// each object by its address.
struct Inner {
    objects: RBTree<u64, NonNull<bindings::drm_gem_object>>,
    numbers: RBTree<usize, u64>,
}

// SAFETY: Objects may be used by any thread; the list's lock protects the trees.
unsafe impl Send for GemList {}
// SAFETY: As above.
unsafe impl Sync for GemList {}

impl GemList {
    /// Creates an empty list. Fails with `ENOMEM`.
    pub(crate) fn new() -> Result<Pin<KBox<Self>>> {
        let list = pin_init!(Self {
            inner <- new_mutex!(
                Inner {
                    objects: RBTree::new(),
                    numbers: RBTree::new(),
                },
                "vxe_sim::GemList"
            ),
        });
        KBox::pin_init(list, GFP_KERNEL)
    }

    /// Adds an object that is not in the list. No other object may have the number.
    ///
    /// # Safety
    ///
    /// The caller has a reference to the object, and the function that frees the object calls
    /// [`remove`](Self::remove) before it does.
    pub(crate) unsafe fn insert(
        &self,
        object: NonNull<bindings::drm_gem_object>,
        number: u64,
        room: Room,
    ) {
        let mut inner = self.inner.lock();
        // INVARIANT: By this function's requirements. An object that has the same number would leave
        // the tree here, never stay in it without being found by `remove()`.
        inner.objects.insert(room.object.into_node(number, object));
        inner
            .numbers
            .insert(room.number.into_node(object.as_ptr().addr(), number));
    }

    /// Gives an object another number, if it is in the list. No other object may have it.
    pub(crate) fn renumber(&self, object: NonNull<bindings::drm_gem_object>, to: u64) {
        let mut inner = self.inner.lock();
        let Some(number) = inner.numbers.get_mut(&object.as_ptr().addr()) else {
            return;
        };
        let from = core::mem::replace(number, to);
        if let Some(node) = inner.objects.remove_node(&from) {
            // INVARIANT: The object was in the tree.
            let node = node.into_reservation().into_node(to, object);
            inner.objects.insert(node);
        }
    }

    /// Removes an object, if it is in the list, and returns the memory of its place.
    pub(crate) fn remove(&self, object: NonNull<bindings::drm_gem_object>) -> Option<Room> {
        let mut inner = self.inner.lock();
        let key = object.as_ptr().addr();
        let number = *inner.numbers.get(&key)?;
        Some(Room {
            number: inner.numbers.remove_node(&key)?.into_reservation(),
            object: inner.objects.remove_node(&number)?.into_reservation(),
        })
    }

    /// Returns the first object whose number is at least `number`, with its number and a reference.
    /// Skips objects that are being freed.
    pub(crate) fn first_from(
        &self,
        mut number: u64,
    ) -> Option<(u64, NonNull<bindings::drm_gem_object>)> {
        let inner = self.inner.lock();
        loop {
            let cursor = inner.objects.cursor_lower_bound(&number)?;
            let (&found, &object) = cursor.current();
            // SAFETY: By the type invariant the object is not freed, as it leaves the list before,
            // which takes the lock.
            if unsafe { ext::gem_get_unless_zero(object.as_ptr()) } {
                return Some((found, object));
            }
            number = found.wrapping_add(1);
        }
    }
}
