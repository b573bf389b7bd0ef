// SPDX-License-Identifier: GPL-2.0

//! A DRM device of any driver, in Rust or C.
//!
//! C header: [`include/drm/drm_device.h`](srctree/include/drm/drm_device.h)

use core::ptr::NonNull;
use kernel::{
    bindings,
    ffi::c_int,
    sync::aref::AlwaysRefCounted,
    types::{NotThreadSafe, Opaque}, //
};

/// A refcounted `struct drm_device`.
///
/// The core maps memory for such a device without knowing its driver, and on kernels that have DRM
/// as a module, where `kernel::drm` does not exist.
#[repr(transparent)]
pub struct DrmDevice(Opaque<bindings::drm_device>);

// SAFETY: A DRM device may be used and released from any thread.
unsafe impl Send for DrmDevice {}
// SAFETY: What is reached through a shared reference is refcounting and immutable fields.
unsafe impl Sync for DrmDevice {}

// SAFETY: `drm_dev_get()` and `drm_dev_put()` are the reference count of a DRM device.
unsafe impl AlwaysRefCounted for DrmDevice {
    fn inc_ref(&self) {
        // SAFETY: A shared reference says that the count is not zero.
        unsafe { bindings::drm_dev_get(self.0.get()) }
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller gives up a reference that it has.
        unsafe { bindings::drm_dev_put(obj.cast().as_ptr()) }
    }
}

impl DrmDevice {
    /// A reference to a C device.
    ///
    /// # Safety
    ///
    /// `ptr` must be a DRM device with at least one reference during `'a`.
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::drm_device) -> &'a Self {
        // SAFETY: By this function's requirements; the wrapper is transparent.
        unsafe { &*ptr.cast() }
    }

    /// The C object.
    pub fn as_raw(&self) -> *mut bindings::drm_device {
        self.0.get()
    }

    /// The device that DMA goes through: `drm->dev`, which lives as long as the DRM device.
    pub fn dma_device(&self) -> *mut bindings::device {
        // SAFETY: `dev` is written when the DRM device is made, and never after.
        unsafe { (*self.as_raw()).dev }
    }

    /// The module of the device's driver; null if the driver is built in, or has no file operations
    /// that would tell.
    pub fn module(&self) -> *mut bindings::module {
        // SAFETY: `driver` is written when the DRM device is made, and never after; both it and its
        // file operations are constant.
        unsafe {
            let driver = (*self.as_raw()).driver;
            (*driver)
                .fops
                .as_ref()
                .map_or(core::ptr::null_mut(), |fops| fops.owner)
        }
    }

    /// Keeps the device from being unplugged, for a short time; none if it has been.
    ///
    /// While somebody is inside, `drm_dev_unplug()` waits. C: `drm_dev_enter()`.
    pub fn enter(&self) -> Option<Entered> {
        let mut index = 0;
        // SAFETY: The device is valid.
        let entered = unsafe { bindings::drm_dev_enter(self.as_raw(), &mut index) };
        // INVARIANT: `index` is what `drm_dev_enter()` gave.
        // Not `then_some()`: it would make the guard, and drop it, where there must be none.
        entered.then(|| Entered {
            index,
            _nts: NotThreadSafe,
        })
    }
}

/// A device that is not being unplugged while this exists.
///
/// # Invariants
///
/// `index` is what `drm_dev_enter()` gave to this thread.
#[must_use = "the device may be unplugged when this is dropped"]
pub struct Entered {
    index: c_int,
    _nts: NotThreadSafe,
}

impl Drop for Entered {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::drm_dev_exit(self.index) }
    }
}

#[cfg(CONFIG_DRM = "y")]
impl DrmDevice {
    /// The DRM device of a Rust driver.
    pub fn of<T: kernel::drm::Driver, C: kernel::drm::DeviceContext>(
        drm: &kernel::drm::Device<T, C>,
    ) -> &Self {
        let ptr: *const kernel::drm::Device<T, C> = drm;
        // SAFETY: `kernel::drm::Device` is `repr(C)` and its first field is the `drm_device`: its
        // accessor for it is private to the kernel crate, and its `from_raw()` undoes this cast,
        // which the debug build checks.
        let this: &Self = unsafe { &*ptr.cast() };
        debug_assert!(core::ptr::eq(
            // SAFETY: `this` is the `drm_device` in `drm`.
            unsafe { kernel::drm::Device::<T, C>::from_raw(this.as_raw()) },
            drm
        ));
        this
    }
}
