// SPDX-License-Identifier: GPL-2.0

//! Shrinkers: callbacks by which reclaim frees a subsystem's memory.
//!
//! C header: [`include/linux/shrinker.h`](srctree/include/linux/shrinker.h)

use core::{marker::PhantomData, ptr::NonNull};
use kernel::{
    bindings,
    device::{Bound, Device},
    devres,
    ffi::c_ulong,
    prelude::*,
    sync::Arc, //
};

/// A cache whose objects can be freed when memory is short.
///
/// Reclaim calls both functions, on several CPUs at once. They must not allocate memory with
/// reclaim, and may take only locks whose holders do not allocate memory with reclaim either.
pub trait Shrink: Send + Sync + 'static {
    /// Returns the number of objects that could be freed, at some recent time.
    fn count(&self) -> usize;

    /// Frees up to `want` objects, and returns how many it freed.
    fn scan(&self, want: usize) -> usize;
}

/// Registers a shrinker until `dev` is unbound; debugfs shows `name`. Unbinding waits for calls that run. Fails with
/// `ENOMEM`. Sleeps.
pub fn register_devm<T: Shrink>(dev: &Device<Bound>, name: &CStr, object: Arc<T>) -> Result {
    devres::register(dev, Registration::new(name, object)?, GFP_KERNEL)
}

/// A registered shrinker. Dropping it unregisters it, and waits for calls that run. If it were leaked, reclaim would call
/// code of a module that is unloaded: only devres owns one.
///
/// # Invariants
///
/// The pointer is a registered shrinker whose `private_data` is the object that `_object` keeps.
struct Registration<T: Shrink> {
    shrinker: NonNull<bindings::shrinker>,
    _object: Arc<T>,
    _t: PhantomData<T>,
}

// SAFETY: Any thread may unregister a shrinker, and its object is `Send` and `Sync`.
unsafe impl<T: Shrink> Send for Registration<T> {}
// SAFETY: A shared reference gives access to nothing.
unsafe impl<T: Shrink> Sync for Registration<T> {}

impl<T: Shrink> Registration<T> {
    fn new(name: &CStr, object: Arc<T>) -> Result<Self> {
        // SAFETY: The format takes one C string, which is `name`; it is copied.
        let shrinker =
            unsafe { bindings::shrinker_alloc(0, c"%s".as_char_ptr(), name.as_char_ptr()) };
        let shrinker = NonNull::new(shrinker).ok_or(ENOMEM)?;
        // INVARIANT: `shrinker_register()` is called below.
        // SAFETY: No other code uses the shrinker until it is registered. The object is `Send` and
        // `Sync`, and lives until the shrinker is freed, which waits for the last call.
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

    /// Returns the object of a shrinker.
    ///
    /// # Safety
    ///
    /// `shrinker` must be that of a [`Registration`] of `T`, which must not be dropped during `'a`.
    unsafe fn object<'a>(shrinker: *mut bindings::shrinker) -> &'a T {
        // SAFETY: By the type invariants `private_data` is the object.
        unsafe { &*(*shrinker).private_data.cast() }
    }

    /// The `count_objects` callback.
    ///
    /// # Safety
    ///
    /// Only reclaim may call this.
    unsafe extern "C" fn count_objects(
        shrinker: *mut bindings::shrinker,
        _control: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: Reclaim passes the shrinker for which the callback was set.
        match unsafe { Self::object(shrinker) }.count() {
            0 => c_ulong::MAX.wrapping_sub(1), // SHRINK_EMPTY
            count => count,
        }
    }

    /// The `scan_objects` callback.
    ///
    /// # Safety
    ///
    /// Only reclaim may call this.
    unsafe extern "C" fn scan_objects(
        shrinker: *mut bindings::shrinker,
        control: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: Reclaim passes the shrinker for which the callback was set, and a valid control.
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
        // SAFETY: By the type invariants. The call waits for callbacks that run.
        unsafe { bindings::shrinker_free(self.shrinker.as_ptr()) }
    }
}
