// SPDX-License-Identifier: GPL-2.0

//! References to modules, and to a DRM device with the module of its driver.
//!
//! C headers: [`include/linux/module.h`](srctree/include/linux/module.h),
//! [`include/drm/drm_drv.h`](srctree/include/drm/drm_drv.h)

use crate::drm::device::DrmDevice;
use core::ptr::NonNull;
use kernel::{
    bindings,
    prelude::*,
    sync::aref::ARef, //
};

/// Keeps a module from being unloaded. There is none that could not be taken.
///
/// # Invariants
///
/// None, for code that is built in, or a module of which this owns a reference.
pub struct ModuleRef(Option<NonNull<bindings::module>>);

// SAFETY: References to modules may be given back in any context.
unsafe impl Send for ModuleRef {}
// SAFETY: Nothing is reached through a shared reference.
unsafe impl Sync for ModuleRef {}

impl ModuleRef {
    /// Takes a reference to a module; a null pointer stands for the kernel itself.
    ///
    /// Fails with `ENODEV` if the module is on its way out, and has taken nothing then.
    ///
    /// # Safety
    ///
    /// `module` must be null, or a module that exists during the call.
    pub unsafe fn try_get(module: *mut bindings::module) -> Result<Self> {
        // SAFETY: By this function's requirements.
        if !unsafe { bindings::try_module_get(module) } {
            return Err(ENODEV);
        }
        // INVARIANT: The reference that was just taken, if there is a module.
        Ok(Self(NonNull::new(module)))
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        if let Some(module) = self.0 {
            // SAFETY: By the type invariants.
            unsafe { bindings::module_put(module.as_ptr()) }
        }
    }
}

/// Keeps a DRM device, and the module of its driver.
///
/// Giving up the device may run its driver's code, and sleep. So this is dropped in process context
/// only, and never where that code might wait for whoever drops it.
pub struct DrmHold {
    // The order of the fields is the order in which they go: the device's end is the driver's code.
    drm: ARef<DrmDevice>,
    _module: ModuleRef,
}

impl DrmHold {
    /// Fails with `ENODEV` if the driver's module is on its way out; nothing is held then.
    pub fn new(drm: &DrmDevice) -> Result<Self> {
        // SAFETY: The device keeps its driver, which keeps its file operations; the module is
        // there, as part of it is what the caller calls from or has been bound to.
        let module = unsafe { ModuleRef::try_get(drm.module()) }?;
        Ok(Self {
            drm: drm.into(),
            _module: module,
        })
    }

    /// The device.
    pub fn drm(&self) -> &DrmDevice {
        &self.drm
    }
}
