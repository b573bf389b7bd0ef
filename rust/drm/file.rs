// SPDX-License-Identifier: GPL-2.0

//! Open files of DRM devices of any driver.
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

/// An open file of a DRM device. It holds references to the device and to the driver's module.
///
/// # Invariants
///
/// The file was opened by `drm_open()`.
pub struct OpenFile(ARef<LocalFile>);

impl OpenFile {
    /// Returns the file of the descriptor `fd` of the calling process.
    ///
    /// Fails with `ENOENT` if there is none, or if it is not a file of a DRM device. A file of a
    /// driver that replaces `drm_ioctl()` with a function of its own is not recognized.
    pub fn from_fd(fd: u32) -> Result<Self> {
        let file = LocalFile::fget(fd).map_err(|_| ENOENT)?;
        // SAFETY: An open file always has file operations, which do not change.
        let ioctl = unsafe { (*(*file.as_ptr()).f_op).unlocked_ioctl };
        let drm_ioctl: unsafe extern "C" fn(_, _, _) -> _ = bindings::drm_ioctl;
        if !ioctl.is_some_and(|ioctl| ptr::fn_addr_eq(ioctl, drm_ioctl)) {
            return Err(ENOENT);
        }
        // INVARIANT: Only files opened by `drm_open()` have `drm_ioctl()`.
        Ok(Self(file))
    }

    /// Returns the device.
    pub fn device(&self) -> &DrmDevice {
        // SAFETY: By the type invariants the private data is a `drm_file`. Its minor and device
        // exist until the file is released, and `self` holds a reference to the file.
        unsafe {
            let file: *const bindings::drm_file = (*self.0.as_ptr()).private_data.cast();
            DrmDevice::from_raw((*(*file).minor).dev)
        }
    }
}
