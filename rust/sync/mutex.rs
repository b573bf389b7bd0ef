// SPDX-License-Identifier: GPL-2.0

//! Killable and interruptible acquisition of a mutex.
//!
//! C header: [`include/linux/mutex.h`](srctree/include/linux/mutex.h)

use crate::bindings as ext;
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    sync::{
        lock::{mutex::MutexBackend, Guard},
        Mutex, //
    },
};

/// Returns the C object.
pub fn as_raw<T>(mutex: &Mutex<T>) -> *mut bindings::mutex {
    // `Lock` is `repr(C)`, and its first field is the C lock; `Lock::from_raw()` relies on that,
    // too.
    core::ptr::from_ref(mutex).cast_mut().cast()
}

/// Takes a mutex. Fails with `EINTR` if the calling thread is killed while it waits. C:
/// `mutex_lock_killable()`.
pub fn lock_killable<T>(mutex: &Mutex<T>) -> Result<Guard<'_, T, MutexBackend>> {
    // SAFETY: The mutex is initialized.
    to_result(unsafe { ext::mutex_lock_killable(as_raw(mutex)) })?;
    // SAFETY: The mutex was just locked, and a mutex's guard has no state.
    Ok(unsafe { Guard::new(mutex, ()) })
}

/// Takes a mutex. Fails with `EINTR` if a signal arrives while the calling thread waits. C:
/// `mutex_lock_interruptible()`.
pub fn lock_interruptible<T>(mutex: &Mutex<T>) -> Result<Guard<'_, T, MutexBackend>> {
    // SAFETY: The mutex is initialized.
    to_result(unsafe { ext::mutex_lock_interruptible(as_raw(mutex)) })?;
    // SAFETY: The mutex was just locked, and a mutex's guard has no state.
    Ok(unsafe { Guard::new(mutex, ()) })
}
