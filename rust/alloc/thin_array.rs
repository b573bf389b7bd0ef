// SPDX-License-Identifier: GPL-2.0

//! An owned array behind a single pointer.
//!
//! The kernel crate's vectors store their capacity and length, and are three words. A field of a C
//! structure that points to an array is one word; the structure stores the length elsewhere. C code
//! frees such an array by `kvfree()`, which needs no length, and so does [`ThinArray`].
//!
//! C header: [`include/linux/slab.h`](srctree/include/linux/slab.h)

use crate::bindings;
use core::{marker::PhantomData, ptr::NonNull};
use kernel::prelude::*;

/// Memory for an array of `T`. The owner tracks its length, and which entries are initialized.
///
/// # Invariants
///
/// The memory was allocated by `kvmalloc_array()`, and `self` is its only owner.
#[repr(transparent)]
pub struct ThinArray<T: Copy>(NonNull<T>, PhantomData<T>);

// SAFETY: Any thread may free the memory.
unsafe impl<T: Copy + Send> Send for ThinArray<T> {}
// SAFETY: A shared reference gives a pointer only, and no access to the entries.
unsafe impl<T: Copy + Sync> Sync for ThinArray<T> {}

impl<T: Copy> ThinArray<T> {
    /// Allocates memory for `len` entries, not initialized. Fails with `ENOMEM`. May sleep.
    pub fn new(len: usize) -> Result<Self> {
        const {
            assert!(
                align_of::<T>() <= kernel::bindings::ARCH_KMALLOC_MINALIGN,
                "kvmalloc() does not guarantee this alignment"
            );
        }
        // SAFETY: Has no requirements: the product of the arguments is checked for overflow.
        let ptr = unsafe { bindings::kvmalloc_array(len, size_of::<T>()) };
        // INVARIANT: The memory was just allocated.
        let ptr = NonNull::new(ptr.cast()).ok_or(ENOMEM)?;
        Ok(Self(ptr, PhantomData))
    }

    /// Returns a pointer to the first of the entries.
    #[inline]
    pub const fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T: Copy> Drop for ThinArray<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; entries that are `Copy` need no drop.
        unsafe { kernel::bindings::kvfree(self.0.as_ptr().cast()) }
    }
}
