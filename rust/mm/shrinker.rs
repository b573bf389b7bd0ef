// SPDX-License-Identifier: GPL-2.0

//! Shrinkers: what gives memory back when it is short.
//!
//! C header: [`include/linux/shrinker.h`](srctree/include/linux/shrinker.h)

use core::{marker::PhantomData, ptr::NonNull};
use kernel::{
    bindings,
    ffi::c_ulong,
    prelude::*,
    sync::Arc, //
};

/// Objects that can be freed when memory is short.
///
/// Both functions are called in reclaim: they allocate nothing that waits for reclaim, take only
/// locks under which nobody allocates so, and may be called by several CPUs at once.
pub trait Shrink: Send + Sync + 'static {
    /// How many objects could be freed, at some recent time.
    fn count(&self) -> usize;

    /// Frees up to `want` objects, and returns how many it did free.
    fn scan(&self, want: usize) -> usize;
}

/// A shrinker that reclaim calls until this is dropped, which waits for calls that are under way.
///
/// # Invariants
///
/// The pointer is a registered shrinker whose `private_data` is the object that `_object` keeps.
pub struct Registration<T: Shrink> {
    shrinker: NonNull<bindings::shrinker>,
    _object: Arc<T>,
    _t: PhantomData<T>,
}

// SAFETY: A shrinker may be unregistered from any thread, and its object is for all of them.
unsafe impl<T: Shrink> Send for Registration<T> {}
// SAFETY: Nothing is reached through a shared reference.
unsafe impl<T: Shrink> Sync for Registration<T> {}

impl<T: Shrink> Registration<T> {
    /// Registers a shrinker; `name` is for debugfs. Fails with `ENOMEM`. Sleeps.
    pub fn new(name: &CStr, object: Arc<T>) -> Result<Self> {
        // SAFETY: The format takes one C string, which `name` is; it is copied.
        let shrinker =
            unsafe { bindings::shrinker_alloc(0, c"%s".as_char_ptr(), name.as_char_ptr()) };
        let shrinker = NonNull::new(shrinker).ok_or(ENOMEM)?;
        // INVARIANT: Registered below.
        // SAFETY: The shrinker is ours until it is registered. The object is for any thread, and
        // lives until the shrinker is freed, which waits for the last call.
        unsafe {
            let raw = shrinker.as_ptr();
            (*raw).count_objects = Some(Self::count_objects);
            (*raw).scan_objects = Some(Self::scan_objects);
            (*raw).private_data = Arc::as_ptr(&object).cast_mut().cast();
            bindings::shrinker_register(raw);
        }
        Ok(Self {
            shrinker,
            _object: object,
            _t: PhantomData,
        })
    }

    /// # Safety
    ///
    /// `shrinker` must be that of a registration.
    unsafe fn object<'a>(shrinker: *mut bindings::shrinker) -> &'a T {
        // SAFETY: By the type invariants.
        unsafe { &*(*shrinker).private_data.cast() }
    }

    /// # Safety
    ///
    /// To be called by reclaim.
    unsafe extern "C" fn count_objects(
        shrinker: *mut bindings::shrinker,
        _control: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: Reclaim calls with the shrinker that this was set for.
        match unsafe { Self::object(shrinker) }.count() {
            0 => c_ulong::MAX.wrapping_sub(1), // SHRINK_EMPTY
            count => count,
        }
    }

    /// # Safety
    ///
    /// To be called by reclaim.
    unsafe extern "C" fn scan_objects(
        shrinker: *mut bindings::shrinker,
        control: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: Reclaim calls with the shrinker that this was set for, and with a valid control.
        let (object, want) = unsafe { (Self::object(shrinker), (*control).nr_to_scan) };
        let freed = object.scan(want);
        // SAFETY: As above.
        unsafe { (*control).nr_scanned = freed };
        match freed {
            0 => c_ulong::MAX, // SHRINK_STOP
            freed => freed,
        }
    }
}

impl<T: Shrink> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants. This waits for calls that are under way.
        unsafe { bindings::shrinker_free(self.shrinker.as_ptr()) }
    }
}
