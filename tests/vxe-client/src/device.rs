// SPDX-License-Identifier: GPL-2.0

//! The device: an open file of a DRM node whose driver is `xe`.

use crate::{request, sys, Error, Request, Result};
use std::{
    fs::{File, OpenOptions},
    os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd},
    path::Path,
    sync::{
        atomic::{AtomicI32, Ordering},
        Arc,
    },
};

/// An open Xe device. Clones share the open file, which closes with the last of them.
///
/// What is made from a device (VMs, queues, buffers) holds a clone and calls through it.
#[derive(Clone)]
pub struct Device {
    file: Arc<DeviceFile>,
}

struct DeviceFile {
    /// The descriptor, or -1 once closed.
    fd: AtomicI32,
}

impl Drop for DeviceFile {
    fn drop(&mut self) {
        close(self.fd.swap(-1, Ordering::Relaxed));
    }
}

fn close(fd: RawFd) {
    if fd >= 0 {
        // SAFETY: the descriptor was this file's own, and its owner has just given it up.
        unsafe { libc::close(fd) };
    }
}

impl Device {
    /// Opens the first node in `/dev/dri` whose driver is named `xe`: primary nodes first, then
    /// render nodes.
    ///
    /// # Errors
    ///
    /// ENODEV when there is none.
    pub fn open() -> Result<Self> {
        let primary = (0..16).map(|n| format!("/dev/dri/card{n}"));
        let render = (128..144).map(|n| format!("/dev/dri/renderD{n}"));
        for path in primary.chain(render) {
            if let Ok(device) = Self::open_path(path) {
                return Ok(device);
            }
        }
        Err(Error::new("open of an xe node in /dev/dri", libc::ENODEV))
    }

    /// Opens the render node of the first Xe device.
    ///
    /// # Errors
    ///
    /// ENODEV when there is none.
    pub fn open_render() -> Result<Self> {
        (128..144)
            .find_map(|n| Self::open_path(format!("/dev/dri/renderD{n}")).ok())
            .ok_or(Error::new("open of an xe render node in /dev/dri", libc::ENODEV))
    }

    /// Opens one node.
    ///
    /// # Errors
    ///
    /// What `open(2)` says, or ENODEV if the driver of the node is not `xe`.
    pub fn open_path(path: impl AsRef<Path>) -> Result<Self> {
        let file: File = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| Error::new("open", e.raw_os_error().unwrap_or(libc::EIO)))?;
        let device = Self::from_fd(file.into());
        if device.driver_name()? == "xe" {
            Ok(device)
        } else {
            Err(Error::new("open of an xe node", libc::ENODEV))
        }
    }

    /// Takes over a descriptor that is already open (passed from another process, say).
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { file: Arc::new(DeviceFile { fd: AtomicI32::new(fd.into_raw_fd()) }) }
    }

    /// The name that the driver gives in DRM_IOCTL_VERSION.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn driver_name(&self) -> Result<String> {
        let mut name = [0u8; 32];
        let mut version = sys::drm_version {
            name: name.as_mut_ptr().cast(),
            name_len: name.len() as _,
            ..Default::default()
        };
        // SAFETY: the kernel writes at most `name_len` bytes to `name`.
        unsafe { self.call(&request::VERSION, &mut version) }?;
        let length = (version.name_len as usize).min(name.len());
        Ok(String::from_utf8_lossy(&name[..length]).into_owned())
    }

    /// Calls an ioctl with an argument of the caller's making: the way to say what the safe
    /// wrapper does not let one say.
    ///
    /// # Safety
    ///
    /// As for [`Request::call`].
    pub unsafe fn call<T>(&self, request: &Request<T>, argument: &mut T) -> Result<()> {
        // SAFETY: the caller's promise is the very one that is asked for.
        unsafe { request.call(self.as_raw_fd(), argument) }
    }

    /// Closes the file now, whatever is still alive on it; all later calls fail with EBADF.
    ///
    /// # Safety
    ///
    /// No other thread may be about to use the descriptor's number, which the next file opened
    /// may get. No user mapping or job of this device may be relied upon any more.
    pub unsafe fn close(&self) {
        close(self.file.fd.swap(-1, Ordering::Relaxed));
    }

    /// The minor number of the node: the name of its directory in debugfs.
    ///
    /// # Errors
    ///
    /// What `fstat(2)` says.
    pub fn minor(&self) -> Result<u32> {
        let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
        // SAFETY: `fstat` writes one `stat`, and zeroes are one as well.
        let stat = unsafe {
            if libc::fstat(self.as_raw_fd(), stat.as_mut_ptr()) != 0 {
                return Err(Error::last("fstat"));
            }
            stat.assume_init()
        };
        Ok(libc::minor(stat.st_rdev))
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.file.fd.load(Ordering::Relaxed)
    }
}
