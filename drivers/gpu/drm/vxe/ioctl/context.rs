// SPDX-License-Identifier: GPL-2.0

//! The context of an ioctl, which keeps registration guards and access to user memory apart.
//!
//! While a thread holds a [`RegistrationGuard`], `drm_dev_unplug()` waits for it, for this device
//! and for all other DRM devices, which share one SRCU domain. An access to user memory can sleep
//! for as long as userspace holds the page back (userfaultfd, FUSE). So a thread must not do both
//! at a time: a guard borrows the [`Ioctl`] mutably, and all access of this driver to user memory
//! goes through the `Ioctl`. A handler that holds a guard during an access does not compile.
//!
//! `.clippy.toml` forbids `UserSlice` everywhere else in this driver.

use crate::driver::{
    Device,
    DrmFile,
    IoctlDevice,
    VxeDriver, //
};
use core::marker::PhantomData;
use kernel::{
    drm::RegistrationGuard,
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSliceReader,
        UserSliceWriter, //
    }, //
};

/// A running ioctl: its device, its file, and the memory of the calling process.
pub(crate) struct Ioctl<'a> {
    dev: &'a IoctlDevice,
    file: &'a DrmFile,
}

impl<'a> Ioctl<'a> {
    /// Creates the context of an ioctl on `file`, which belongs to `dev`.
    ///
    /// Fails with `ENODEV` if the device is not registered any more.
    pub(super) fn new(dev: &'a IoctlDevice, file: &'a DrmFile) -> Result<Self> {
        let mut ioctl = Self { dev, file };
        drop(ioctl.registered()?);
        Ok(ioctl)
    }

    /// Returns the device, which may be unplugged.
    pub(crate) fn dev(&self) -> &'a Device {
        self.dev
    }

    /// Returns the file that the ioctl was called on.
    pub(crate) fn file(&self) -> &'a DrmFile {
        self.file
    }

    /// Keeps the device registered and bound until the guard is dropped.
    ///
    /// Meanwhile the caller must not sleep without bound, nor wait for a lock whose holder does:
    /// `drm_dev_unplug()` of any DRM device waits for the caller. Fails with `ENODEV` if the device
    /// is not registered any more.
    pub(crate) fn registered(&mut self) -> Result<RegistrationGuard<'_, VxeDriver>> {
        self.dev.registration_guard().ok_or(ENODEV)
    }

    /// Reads the structure at the user address `addr`. Fails with `EFAULT`. Sleeps until the page
    /// is there, which may depend on userspace.
    pub(crate) fn read<T: FromBytes>(&mut self, addr: u64) -> Result<T> {
        self.reader(addr, size_of::<T>()).read()
    }

    /// Writes a structure at the user address `addr`. Fails with `EFAULT`, and may have written a
    /// part then. Sleeps as [`read`](Self::read) does.
    pub(crate) fn write<T: AsBytes>(&mut self, addr: u64, value: &T) -> Result {
        self.writer(addr, size_of::<T>()).write(value)
    }

    /// Returns a reader of consecutive structures in the `len` bytes from the user address `addr`
    /// on.
    pub(crate) fn reader(&mut self, addr: u64, len: usize) -> Reader<'_> {
        Reader {
            user: user_slice(addr, len).reader(),
            _ioctl: PhantomData,
        }
    }

    /// Returns a writer of consecutive structures to the `len` bytes from the user address `addr`
    /// on.
    pub(crate) fn writer(&mut self, addr: u64, len: usize) -> Writer<'_> {
        Writer {
            user: user_slice(addr, len).writer(),
            _ioctl: PhantomData,
        }
    }
}

/// Reads user memory. It borrows the ioctl, which holds no guard meanwhile.
pub(crate) struct Reader<'a> {
    user: UserSliceReader,
    _ioctl: PhantomData<&'a mut Ioctl<'a>>,
}

impl Reader<'_> {
    /// Reads the next structure. Fails with `EFAULT`, also beyond the end. Sleeps as
    /// [`Ioctl::read`] does.
    pub(crate) fn read<T: FromBytes>(&mut self) -> Result<T> {
        self.user.read()
    }
}

/// Writes user memory. It borrows the ioctl, which holds no guard meanwhile.
pub(crate) struct Writer<'a> {
    user: UserSliceWriter,
    _ioctl: PhantomData<&'a mut Ioctl<'a>>,
}

impl Writer<'_> {
    /// Writes the next structure. Fails with `EFAULT`, also beyond the end. Sleeps as
    /// [`Ioctl::read`] does.
    pub(crate) fn write<T: AsBytes>(&mut self, value: &T) -> Result {
        self.user.write(value)
    }

    /// Writes the next bytes. Fails and sleeps as [`write`](Self::write) does.
    pub(crate) fn write_bytes(&mut self, bytes: &[u8]) -> Result {
        self.user.write_slice(bytes)
    }
}

/// Returns the `len` bytes from the user address `addr` on.
#[expect(
    clippy::disallowed_methods,
    reason = "the only place where user memory is reached"
)]
fn user_slice(addr: u64, len: usize) -> kernel::uaccess::UserSlice {
    // CAST: This driver runs on 64-bit architectures only.
    kernel::uaccess::UserSlice::new(UserPtr::from_addr(addr as usize), len)
}
