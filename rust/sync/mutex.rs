// SPDX-License-Identifier: GPL-2.0

//! Waiting for a mutex in ways that a signal ends.
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

/// The C object.
pub fn as_raw<T>(mutex: &Mutex<T>) -> *mut bindings::mutex {
    // `Lock` is `repr(C)`, and its first field is the C lock: `Lock::from_raw()` rests on the same.
    core::ptr::from_ref(mutex).cast_mut().cast()
}

/// Takes a mutex. Fails with `EINTR` if the caller is killed before it has it.
pub fn lock_killable<T>(mutex: &Mutex<T>) -> Result<Guard<'_, T, MutexBackend>> {
    // SAFETY: The mutex is initialized.
    to_result(unsafe { ext::mutex_lock_killable(as_raw(mutex)) })?;
    // SAFETY: The mutex was just locked, and a mutex's guard has no state.
    Ok(unsafe { Guard::new(mutex, ()) })
}

/// Takes a mutex. Fails with `EINTR` if a signal for the caller comes before it has it.
pub fn lock_interruptible<T>(mutex: &Mutex<T>) -> Result<Guard<'_, T, MutexBackend>> {
    // SAFETY: The mutex is initialized.
    to_result(unsafe { ext::mutex_lock_interruptible(as_raw(mutex)) })?;
    // SAFETY: The mutex was just locked, and a mutex's guard has no state.
    Ok(unsafe { Guard::new(mutex, ()) })
}
