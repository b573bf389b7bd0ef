// SPDX-License-Identifier: GPL-2.0

//! Memory for an array, behind a single pointer.
//!
//! The kernel crate's vectors know their capacity and length, and are three words. A field of a C
//! structure that points to an array has room for one; how long the array is, is known elsewhere.
//! C code frees such an array without knowing, by `kvfree()`, and so does this.
//!
//! C header: [`include/linux/slab.h`](srctree/include/linux/slab.h)

use crate::bindings;
use core::{marker::PhantomData, ptr::NonNull};
use kernel::prelude::*;

/// Memory for an array of `T`; what is in it, and how much of it there is, is its owner's to know.
///
/// # Invariants
///
/// Is what `kvmalloc_array()` gave, and is nobody else's.
#[repr(transparent)]
pub struct ThinArray<T: Copy>(NonNull<T>, PhantomData<T>);

// SAFETY: The array owns its memory, which may be freed from any thread.
unsafe impl<T: Copy + Send> Send for ThinArray<T> {}
// SAFETY: A shared reference gives a pointer, and no access.
unsafe impl<T: Copy + Sync> Sync for ThinArray<T> {}

impl<T: Copy> ThinArray<T> {
    /// Memory for `len` entries, not initialized. Fails with `ENOMEM`. May sleep.
    pub fn new(len: usize) -> Result<Self> {
        const {
            assert!(
                align_of::<T>() <= kernel::bindings::ARCH_KMALLOC_MINALIGN,
                "kvmalloc() does not align so far"
            );
        }
        // SAFETY: Allocates, whatever the numbers are; their product is checked.
        let ptr = unsafe { bindings::kvmalloc_array(len, size_of::<T>()) };
        // INVARIANT: It is new.
        let ptr = NonNull::new(ptr.cast()).ok_or(ENOMEM)?;
        Ok(Self(ptr, PhantomData))
    }

    /// The first entry, and those behind it: as many as the array was made for.
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
