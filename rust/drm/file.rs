// SPDX-License-Identifier: GPL-2.0

//! Open files of DRM devices, of whatever driver.
//!
//! C header: [`include/drm/drm_file.h`](srctree/include/drm/drm_file.h)

use crate::drm::device::DrmDevice;
use core::ptr;
use kernel::{
    bindings,
    fs::file::LocalFile,
    prelude::*,
    sync::aref::ARef, //
};

/// An open file of a DRM device. It keeps the device, and the module of its driver.
///
/// # Invariants
///
/// The file is one that `drm_open()` opened.
pub struct OpenFile(ARef<LocalFile>);

impl OpenFile {
    /// The file that the calling process has as `fd`.
    ///
    /// Fails with `ENOENT` if it has none, or that is of no DRM device. A driver that has an `ioctl`
    /// operation of its own is not recognized.
    pub fn from_fd(fd: u32) -> Result<Self> {
        let file = LocalFile::fget(fd).map_err(|_| ENOENT)?;
        // SAFETY: An open file has operations, which do not change.
        let ioctl = unsafe { (*(*file.as_ptr()).f_op).unlocked_ioctl };
        let drm_ioctl: unsafe extern "C" fn(_, _, _) -> _ = bindings::drm_ioctl;
        if !ioctl.is_some_and(|ioctl| ptr::fn_addr_eq(ioctl, drm_ioctl)) {
            return Err(ENOENT);
        }
        // INVARIANT: `drm_ioctl()` is for such files only.
        Ok(Self(file))
    }

    /// The device.
    pub fn device(&self) -> &DrmDevice {
        // SAFETY: By the type invariants the private data is a `drm_file`, whose minor and device
        // stay until the file is released, which is after this.
        unsafe {
            let file: *const bindings::drm_file = (*self.0.as_ptr()).private_data.cast();
            DrmDevice::from_raw((*(*file).minor).dev)
        }
    }
}
