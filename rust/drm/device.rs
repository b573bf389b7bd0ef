// SPDX-License-Identifier: GPL-2.0

//! A DRM device of any driver, in Rust or C, and counted references to it.
//!
//! The end of a DRM device is code of its driver. So who has a counted reference keeps the driver's module
//! as well: that is a [`DrmRef`]. A [`DeviceOnly`] does not, and is for who knows that the module stays.
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

/// A `struct drm_device`, borrowed from who keeps it.
///
/// The core maps memory for such a device without knowing its driver, and on kernels that have DRM
/// as a module, where `kernel::drm` does not exist.
#[repr(transparent)]
pub struct DrmDevice(Opaque<bindings::drm_device>);

// SAFETY: A DRM device may be used and released from any thread.
unsafe impl Send for DrmDevice {}
// SAFETY: What is reached through a shared reference is refcounting and immutable fields.
unsafe impl Sync for DrmDevice {}

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

/// A counted reference to a DRM device, which does not keep the module of its driver.
///
/// # Invariants
///
/// One reference to the device is owned.
pub struct DeviceOnly(NonNull<DrmDevice>);

// SAFETY: A DRM device may be used and released from any thread.
unsafe impl Send for DeviceOnly {}
// SAFETY: A shared reference gives access to a shared `DrmDevice` only, which is for any thread.
unsafe impl Sync for DeviceOnly {}

impl DeviceOnly {
    /// # Safety
    ///
    /// The reference must be dropped in process context, and while the module of the device's driver is
    /// there.
    pub unsafe fn new(drm: &DrmDevice) -> Self {
        // SAFETY: A shared reference says that the count is not zero.
        unsafe { bindings::drm_dev_get(drm.as_raw()) };
        // INVARIANT: The reference that was just taken.
        Self(NonNull::from(drm))
    }

    /// Takes a reference over.
    ///
    /// # Safety
    ///
    /// `drm` must be a DRM device of which the caller gives up a reference; and as for [`new`](Self::new).
    pub unsafe fn from_raw(drm: NonNull<bindings::drm_device>) -> Self {
        // INVARIANT: By this function's requirements.
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
        // SAFETY: By the type invariants the reference is owned; `new()`'s caller has seen to the context and
        // to the module.
        unsafe { bindings::drm_dev_put(self.as_raw()) }
    }
}

/// A counted reference to a DRM device, which also keeps the module of its driver from being unloaded.
///
/// Giving up the device may run its driver's code, and sleep. So this is dropped in process context
/// only, and never where that code might wait for whoever drops it.
pub struct DrmRef {
    // The order of the fields is the order in which they go: the device's end is the driver's code.
    drm: DeviceOnly,
    _module: ModuleRef,
}

impl DrmRef {
    /// Fails with `ENODEV` if the driver's module is on its way out; nothing is held then. Does not sleep.
    pub fn new(drm: &DrmDevice) -> Result<Self> {
        // SAFETY: The device keeps its driver, which keeps its file operations. The module is there: the device
        // is borrowed from who keeps that, too, or is part of it, or unbinds the device before it goes.
        let module = unsafe { ModuleRef::try_get(drm.module()) }?;
        Ok(Self {
            // SAFETY: The module is kept until the reference is gone; the context is up to who drops `Self`.
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
