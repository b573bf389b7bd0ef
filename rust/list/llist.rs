// SPDX-License-Identifier: GPL-2.0

//! A list without a lock, for handing objects over to somebody who takes all there are.
//!
//! Adding never waits and never fails, so that it may be done in any context.
//!
//! C header: [`include/linux/llist.h`](srctree/include/linux/llist.h)

use core::{
    marker::PhantomData,
    ptr::{self, NonNull}, //
};
use kernel::sync::atomic::{Acquire, Atomic, Relaxed, Release};

/// An object that has room for its place in a [`LockFreeList`].
///
/// # Safety
///
/// `next()` must return a pointer to a field of the object, always the same, that nobody else uses
/// while the object is in a list.
pub unsafe trait Linked {
    /// Where the object after this one is kept. No reference to the object is made.
    fn next(this: NonNull<Self>) -> *mut *mut Self;
}

/// A list of objects that were handed over and that nobody took yet, the last one first.
///
/// # Invariants
///
/// The objects in the list are valid, and their places in it are the list's alone.
pub struct LockFreeList<T: Linked> {
    first: Atomic<*mut T>,
}

impl<T: Linked> LockFreeList<T> {
    /// An empty list.
    pub const fn new() -> Self {
        Self {
            first: Atomic::new(ptr::null_mut()),
        }
    }

    /// Adds an object; true if the list was empty.
    ///
    /// # Safety
    ///
    /// The object must be in no list, and stay valid until it has been taken.
    pub unsafe fn push(&self, object: NonNull<T>) -> bool {
        let place = T::next(object);
        let mut first = self.first.load(Relaxed);
        loop {
            // SAFETY: The place is the list's, by this function's requirements.
            unsafe { place.write(first) };
            match self.first.cmpxchg(first, object.as_ptr(), Release) {
                Ok(_) => return first.is_null(),
                Err(now) => first = now,
            }
        }
    }

    /// Takes all objects, the last one first.
    pub fn take_all(&self) -> Taken<T> {
        let mut next = ptr::null_mut();
        if !self.is_empty() {
            next = self.first.xchg(ptr::null_mut(), Acquire);
        }
        // INVARIANT: Nobody else knows these objects as part of a list any more.
        Taken {
            next,
            _objects: PhantomData,
        }
    }

    /// Whether there was nothing in the list, at some recent time.
    pub fn is_empty(&self) -> bool {
        self.first.load(Relaxed).is_null()
    }
}

impl<T: Linked> Default for LockFreeList<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The objects that were in a list. Who has them has what was handed over: dropping this without
/// going through it forgets them.
///
/// # Invariants
///
/// `next` is null or a valid object, and so are those after it.
#[must_use = "the objects were handed over"]
pub struct Taken<T: Linked> {
    next: *mut T,
    _objects: PhantomData<*mut T>,
}

impl<T: Linked> Iterator for Taken<T> {
    type Item = NonNull<T>;

    fn next(&mut self) -> Option<NonNull<T>> {
        let object = NonNull::new(self.next)?;
        // The place is read before the object is given out, which may be its end.
        // SAFETY: By the type invariants.
        self.next = unsafe { T::next(object).read() };
        Some(object)
    }
}
