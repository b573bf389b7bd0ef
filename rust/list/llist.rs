// SPDX-License-Identifier: GPL-2.0

//! A lock-free list with many producers, whose consumer takes all entries at once.
//!
//! Adding never waits and never fails, and is allowed in any context.
//!
//! C header: [`include/linux/llist.h`](srctree/include/linux/llist.h)

use core::{
    marker::PhantomData,
    ptr::{self, NonNull}, //
};
use kernel::sync::atomic::{Acquire, Atomic, Relaxed, Release};

/// An object with a field that links it into a [`LockFreeList`].
///
/// # Safety
///
/// `next()` must return a pointer to a field of the object, always the same one, that no other code
/// uses while the object is in a list.
pub unsafe trait Linked {
    /// Returns a pointer to the link to the next object. Must not create a reference to the object.
    fn next(this: NonNull<Self>) -> *mut *mut Self;
}

/// A list of objects, the last one added first.
///
/// # Invariants
///
/// The objects in the list are valid, and only the list accesses their links.
pub struct LockFreeList<T: Linked> {
    first: Atomic<*mut T>,
}

impl<T: Linked> LockFreeList<T> {
    /// Returns an empty list.
    pub const fn new() -> Self {
        Self {
            first: Atomic::new(ptr::null_mut()),
        }
    }

    /// Adds an object; returns true if the list was empty.
    ///
    /// # Safety
    ///
    /// The object must not be in a list, and must stay valid until it has been taken.
    pub unsafe fn push(&self, object: NonNull<T>) -> bool {
        let link = T::next(object);
        let mut first = self.first.load(Relaxed);
        loop {
            // SAFETY: Only the list accesses the link, by this function's requirements.
            unsafe { link.write(first) };
            match self.first.cmpxchg(first, object.as_ptr(), Release) {
                Ok(_) => return first.is_null(),
                Err(now) => first = now,
            }
        }
    }

    /// Removes and returns all objects, the last one added first.
    pub fn take_all(&self) -> Taken<T> {
        let mut next = ptr::null_mut();
        if !self.is_empty() {
            next = self.first.xchg(ptr::null_mut(), Acquire);
        }
        // INVARIANT: The objects were removed from the list, so that only `Taken` accesses their
        // links.
        Taken {
            next,
            _objects: PhantomData,
        }
    }

    /// Returns whether the list was empty at some recent time.
    pub fn is_empty(&self) -> bool {
        self.first.load(Relaxed).is_null()
    }
}

impl<T: Linked> Default for LockFreeList<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The objects that were removed from a list. The code that iterates owns them: dropping this
/// before its end leaks the rest.
///
/// # Invariants
///
/// `next` is null or a valid object, and so are those after it.
#[must_use = "the caller owns the objects"]
pub struct Taken<T: Linked> {
    next: *mut T,
    _objects: PhantomData<*mut T>,
}

impl<T: Linked> Iterator for Taken<T> {
    type Item = NonNull<T>;

    fn next(&mut self) -> Option<NonNull<T>> {
        let object = NonNull::new(self.next)?;
        // The link is read before the object is returned, as the caller may free it.
        // SAFETY: By the type invariants.
        self.next = unsafe { T::next(object).read() };
        Some(object)
    }
}
