// SPDX-License-Identifier: GPL-2.0

//! DRM devices of any driver, in Rust or C, and counted references to them.
//!
//! The release of a DRM device runs code of its driver. So the holder of a counted reference must
//! also keep the driver's module loaded: [`DrmRef`] does. [`DeviceOnly`] does not, and is for
//! callers that know that the module stays.
//!
//! C headers: [`include/drm/drm_device.h`](srctree/include/drm/drm_device.h),
//! [`include/drm/drm_drv.h`](srctree/include/drm/drm_drv.h)

use crate::module::ModuleRef;
use core::{
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    ffi::c_int,
    prelude::*,
    types::{NotThreadSafe, Opaque}, //
};

/// A borrowed `struct drm_device`.
///
/// It serves code that does not know the device's driver, and works on kernels with DRM as a
/// module, where `kernel::drm` does not exist.
#[repr(transparent)]
pub struct DrmDevice(Opaque<bindings::drm_device>);

// SAFETY: A DRM device may be used and released from any thread.
unsafe impl Send for DrmDevice {}
// SAFETY: A shared reference gives access to the refcount and to immutable fields only.
unsafe impl Sync for DrmDevice {}

impl DrmDevice {
    /// Converts a pointer to a C device to a reference.
    ///
    /// # Safety
    ///
    /// `ptr` must be a DRM device with at least one reference during `'a`.
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::drm_device) -> &'a Self {
        // SAFETY: By this function's requirements; the wrapper is transparent.
        unsafe { &*ptr.cast() }
    }

    /// Returns the C object.
    pub fn as_raw(&self) -> *mut bindings::drm_device {
        self.0.get()
    }

    /// Returns the device for DMA, `drm->dev`, which lives as long as the DRM device.
    pub fn dma_device(&self) -> *mut bindings::device {
        // SAFETY: `dev` is written when the DRM device is created only.
        unsafe { (*self.as_raw()).dev }
    }

    /// Returns the module of the device's driver. Null if the driver is built in, or has no file
    /// operations, which name the module.
    pub fn module(&self) -> *mut bindings::module {
        // SAFETY: `driver` is written when the DRM device is created only; the driver and its file
        // operations are constant.
        unsafe {
            let driver = (*self.as_raw()).driver;
            (*driver)
                .fops
                .as_ref()
                .map_or(core::ptr::null_mut(), |fops| fops.owner)
        }
    }

    /// Enters a critical section in which the device is not unplugged; returns `None` if it was
    /// unplugged already. C: `drm_dev_enter()`.
    ///
    /// `drm_dev_unplug()` waits for the end of the section, so it must be short.
    pub fn enter(&self) -> Option<Entered> {
        let mut index = 0;
        // SAFETY: The device is valid.
        let entered = unsafe { bindings::drm_dev_enter(self.as_raw(), &mut index) };
        // INVARIANT: `index` was set by `drm_dev_enter()`.
        // `then_some()` would create the guard, and drop it, also when the section was not entered.
        entered.then(|| Entered {
            index,
            _nts: NotThreadSafe,
        })
    }
}

/// A counted reference to a DRM device, which does not hold a reference to the driver's module.
///
/// # Invariants
///
/// Owns one reference to the device.
pub struct DeviceOnly(NonNull<DrmDevice>);

// SAFETY: A DRM device may be used and released from any thread.
unsafe impl Send for DeviceOnly {}
// SAFETY: A shared reference gives access to a shared `DrmDevice` only, which is `Sync`.
unsafe impl Sync for DeviceOnly {}

impl DeviceOnly {
    /// Takes a reference to `drm`.
    ///
    /// # Safety
    ///
    /// The result must be dropped in process context, and while the module of the device's driver
    /// is loaded.
    pub unsafe fn new(drm: &DrmDevice) -> Self {
        // SAFETY: The refcount is not zero during the life of the reference `drm`.
        unsafe { bindings::drm_dev_get(drm.as_raw()) };
        // INVARIANT: Owns the reference taken above.
        Self(NonNull::from(drm))
    }

    /// Takes over a reference of the caller.
    ///
    /// # Safety
    ///
    /// The caller must own a reference to `drm`, and give it up; and as for [`new`](Self::new).
    pub unsafe fn from_raw(drm: NonNull<bindings::drm_device>) -> Self {
        // INVARIANT: The caller gives up its reference.
        Self(drm.cast())
    }
}

impl Deref for DeviceOnly {
    type Target = DrmDevice;

    fn deref(&self) -> &DrmDevice {
        // SAFETY: By the type invariants.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for DeviceOnly {
    fn drop(&mut self) {
        // SAFETY: By the type invariants `self` owns the reference; the caller of `new()`
        // guarantees the context and the module.
        unsafe { bindings::drm_dev_put(self.as_raw()) }
    }
}

/// A counted reference to a DRM device, and to the module of its driver.
///
/// Dropping the last reference to the device runs the driver's code, which may sleep. So this must
/// be dropped in process context, and never where the driver's code might wait for the thread that
/// drops it.
pub struct DrmRef {
    // The device is declared, and so dropped, before the module: its release is code of the driver.
    drm: DeviceOnly,
    _module: ModuleRef,
}

impl DrmRef {
    /// Takes the references. Fails with `ENODEV` if the driver's module is being unloaded. Does not
    /// sleep.
    pub fn new(drm: &DrmDevice) -> Result<Self> {
        // SAFETY: The device references its driver and so the file operations. The module exists
        // during the call: the owner of the device, from which `drm` is borrowed, holds a reference
        // to it, is part of it, or unbinds the device before the module is unloaded.
        let module = unsafe { ModuleRef::try_get(drm.module()) }?;
        Ok(Self {
            // SAFETY: `_module` is dropped after the device. The documentation of `DrmRef` requires
            // process context for its drop.
            drm: unsafe { DeviceOnly::new(drm) },
            _module: module,
        })
    }
}

impl Deref for DrmRef {
    type Target = DrmDevice;

    fn deref(&self) -> &DrmDevice {
        &self.drm
    }
}

/// A critical section in which the device is not unplugged.
///
/// # Invariants
///
/// `index` was set by a `drm_dev_enter()` of this thread.
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
    /// Returns the DRM device of a Rust driver.
    pub fn of<T: kernel::drm::Driver, C: kernel::drm::DeviceContext>(
        drm: &kernel::drm::Device<T, C>,
    ) -> &Self {
        let ptr: *const kernel::drm::Device<T, C> = drm;
        // SAFETY: `kernel::drm::Device` is `repr(C)` and its first field is the `drm_device`. Its
        // accessor for that is private to the kernel crate; its `from_raw()` reverses this cast,
        // which the debug build checks below.
        let this: &Self = unsafe { &*ptr.cast() };
        debug_assert!(core::ptr::eq(
            // SAFETY: `this` is the `drm_device` in `drm`.
            unsafe { kernel::drm::Device::<T, C>::from_raw(this.as_raw()) },
            drm
        ));
        this
    }
}
