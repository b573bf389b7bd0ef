// SPDX-License-Identifier: GPL-2.0

//! Reader/writer semaphores.
//!
//! C header: [`include/linux/rwsem.h`](srctree/include/linux/rwsem.h)

use crate::bindings;
use kernel::{
    prelude::*,
    sync::LockClassKey,
    types::{NotThreadSafe, Opaque}, //
};

/// A semaphore that many readers or one writer hold. Holders may sleep.
///
/// It has the layout of `struct rw_semaphore`, and contains no data: the field that has this type
/// documents what it protects.
#[repr(transparent)]
pub struct RwSemaphore(Opaque<kernel::bindings::rw_semaphore>);

// SAFETY: A semaphore may be used and released from any thread.
unsafe impl Send for RwSemaphore {}
// SAFETY: All operations of a semaphore may run concurrently.
unsafe impl Sync for RwSemaphore {}

impl RwSemaphore {
    /// Initializes a semaphore of the lock class `key`, as `init_rwsem()` does.
    pub fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        let init = Opaque::ffi_init(move |slot| {
            // SAFETY: `slot` is valid and pinned memory for a semaphore; `name` and `key` are
            // static.
            unsafe { kernel::bindings::__init_rwsem(slot, name.as_char_ptr(), key.as_ptr()) }
        });
        // SAFETY: `Self` is a transparent wrapper of the type that `init` initializes.
        unsafe { pin_init::cast_pin_init(init) }
    }

    fn as_raw(&self) -> *mut kernel::bindings::rw_semaphore {
        self.0.get()
    }

    /// Teaches lockdep that reclaim takes this semaphore, so that it reports an allocation with
    /// reclaim under the semaphore when it first happens, and not only when memory is short.
    pub fn prime_reclaim(&self) {
        // SAFETY: The semaphore is initialized.
        unsafe { bindings::rwsem_prime_reclaim(self.as_raw()) }
    }

    /// Takes the semaphore for reading. May sleep.
    pub fn read(&self) -> ReadGuard<'_> {
        // SAFETY: The semaphore is initialized.
        unsafe { kernel::bindings::down_read(self.as_raw()) };
        ReadGuard {
            sem: self,
            _nts: NotThreadSafe,
        }
    }

    /// Takes the semaphore for writing. May sleep.
    pub fn write(&self) -> WriteGuard<'_> {
        // SAFETY: The semaphore is initialized.
        unsafe { kernel::bindings::down_write(self.as_raw()) };
        WriteGuard {
            sem: self,
            _nts: NotThreadSafe,
        }
    }

    /// Takes the semaphore for writing if it is free. Never sleeps.
    pub fn try_write(&self) -> Option<WriteGuard<'_>> {
        // SAFETY: The semaphore is initialized.
        let taken = unsafe { kernel::bindings::down_write_trylock(self.as_raw()) };
        // `then_some()` would create a guard, and drop it, also when the semaphore was not taken.
        (taken != 0).then(|| WriteGuard {
            sem: self,
            _nts: NotThreadSafe,
        })
    }

    /// Warns on a debug kernel unless the caller holds the semaphore for reading or for writing.
    pub fn assert_held(&self) {
        // SAFETY: The semaphore is initialized.
        unsafe { bindings::rwsem_assert_held(self.as_raw()) }
    }

    /// Warns on a debug kernel unless the caller holds the semaphore for writing.
    pub fn assert_held_write(&self) {
        // SAFETY: The semaphore is initialized.
        unsafe { bindings::rwsem_assert_held_write(self.as_raw()) }
    }
}

/// Holds a [`RwSemaphore`] for reading until it is dropped.
#[must_use = "the semaphore is released when the guard is dropped"]
pub struct ReadGuard<'a> {
    sem: &'a RwSemaphore,
    _nts: NotThreadSafe,
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: While the guard exists this thread holds the semaphore for reading.
        unsafe { kernel::bindings::up_read(self.sem.as_raw()) }
    }
}

/// Holds a [`RwSemaphore`] for writing until it is dropped.
#[must_use = "the semaphore is released when the guard is dropped"]
pub struct WriteGuard<'a> {
    sem: &'a RwSemaphore,
    _nts: NotThreadSafe,
}

impl Drop for WriteGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: While the guard exists this thread holds the semaphore for writing.
        unsafe { kernel::bindings::up_write(self.sem.as_raw()) }
    }
}
