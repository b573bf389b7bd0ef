// SPDX-License-Identifier: GPL-2.0

//! Buffer objects.

use crate::{request, sys, Device, Mapping, Result, Vm};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A buffer object: memory that the driver allocates, named by a handle of the file.
///
/// Dropping it closes the handle; where it is bound, it stays.
pub struct Bo {
    device: Device,
    handle: u32,
    size: usize,
}

impl Bo {
    /// A buffer in system memory.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn system(device: &Device, size: usize) -> Result<Self> {
        Self::create(device, size, 1, None)
    }

    /// A buffer in one of the memory regions whose instances `placement` has as bits; private to a
    /// VM if one is given.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn create(device: &Device, size: usize, placement: u32, vm: Option<&Vm>) -> Result<Self> {
        Self::with_flags(device, size, placement, vm, 0)
    }

    /// The same, with `DRM_XE_GEM_CREATE_FLAG_*`.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn with_flags(
        device: &Device,
        size: usize,
        placement: u32,
        vm: Option<&Vm>,
        flags: u32,
    ) -> Result<Self> {
        let vram = placement & !1 != 0;
        let mut create = sys::drm_xe_gem_create {
            size: size as u64,
            placement,
            flags,
            vm_id: vm.map_or(0, Vm::id),
            cpu_caching: if vram {
                sys::DRM_XE_GEM_CPU_CACHING_WC as u16
            } else {
                sys::DRM_XE_GEM_CPU_CACHING_WB as u16
            },
            ..Default::default()
        };
        // SAFETY: creating a buffer touches no memory of the process.
        unsafe { device.call(&request::GEM_CREATE, &mut create) }?;
        Ok(Self { device: device.clone(), handle: create.handle, size })
    }

    /// The buffer of a dma-buf, which some device exported.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn import(device: &Device, buffer: BorrowedFd<'_>, size: usize) -> Result<Self> {
        let mut prime = sys::drm_prime_handle { fd: buffer.as_raw_fd(), ..Default::default() };
        // SAFETY: the call only fills in its argument.
        unsafe { device.call(&request::PRIME_FD_TO_HANDLE, &mut prime) }?;
        Ok(Self { device: device.clone(), handle: prime.handle, size })
    }

    /// Exports it as a dma-buf.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn export(&self) -> Result<OwnedFd> {
        let mut prime = sys::drm_prime_handle {
            handle: self.handle,
            flags: (libc::O_CLOEXEC | libc::O_RDWR) as u32,
            ..Default::default()
        };
        // SAFETY: the call only fills in its argument.
        unsafe { self.device.call(&request::PRIME_HANDLE_TO_FD, &mut prime) }?;
        // SAFETY: the descriptor is new and ours.
        Ok(unsafe { OwnedFd::from_raw_fd(prime.fd) })
    }

    /// The handle.
    pub const fn handle(&self) -> u32 {
        self.handle
    }

    /// The size in bytes.
    pub const fn size(&self) -> usize {
        self.size
    }

    /// The offset to give to `mmap(2)` of the device.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn mmap_offset(&self) -> Result<u64> {
        let mut offset = sys::drm_xe_gem_mmap_offset { handle: self.handle, ..Default::default() };
        // SAFETY: the call only fills in its argument.
        unsafe { self.device.call(&request::GEM_MMAP_OFFSET, &mut offset) }?;
        Ok(offset.offset)
    }

    /// Maps the whole buffer.
    ///
    /// # Errors
    ///
    /// What the ioctl and `mmap(2)` say.
    pub fn map(&self) -> Result<Mapping> {
        let offset = self.mmap_offset()?;
        // SAFETY: the device's descriptor is open as long as `self` holds the device; should it
        // have been closed by force, `mmap` fails.
        let file = unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd().max(0)) };
        Mapping::map(
            self.size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            Some((file, offset as i64)),
        )
    }
}

impl Drop for Bo {
    fn drop(&mut self) {
        let mut close = sys::drm_gem_close { handle: self.handle, ..Default::default() };
        // SAFETY: the handle is ours. That it fails on a closed device is as good.
        let _ = unsafe { self.device.call(&request::GEM_CLOSE, &mut close) };
    }
}
