// SPDX-License-Identifier: GPL-2.0

//! An ioctl that is under way, and when it may touch what.
//!
//! While a thread holds a [`RegistrationGuard`], `drm_dev_unplug()` waits for it: that of this device,
//! and those of all other DRM devices, which share one SRCU domain. An access to user memory waits for
//! as long as userspace likes (userfaultfd, FUSE). So the two exclude each other: a guard borrows the
//! [`Ioctl`] mutably, and all access to user memory of this driver goes through the `Ioctl`. A handler
//! that holds both at a time does not compile.
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

/// An ioctl that is under way, of the calling thread: its device, its file, and the memory of the
/// process that calls it.
pub(crate) struct Ioctl<'a> {
    dev: &'a IoctlDevice,
    file: &'a DrmFile,
}

impl<'a> Ioctl<'a> {
    /// An ioctl of `file`, which is one of `dev`.
    ///
    /// Fails with `ENODEV` if the device is not registered any more.
    pub(super) fn new(dev: &'a IoctlDevice, file: &'a DrmFile) -> Result<Self> {
        let mut ioctl = Self { dev, file };
        drop(ioctl.registered()?);
        Ok(ioctl)
    }

    /// The device, which may be gone.
    pub(crate) fn dev(&self) -> &'a Device {
        self.dev
    }

    /// The file that the ioctl was called on.
    pub(crate) fn file(&self) -> &'a DrmFile {
        self.file
    }

    /// Keeps the device registered, and bound, as long as the result is there.
    ///
    /// The caller must not sleep without bound meanwhile, nor wait for a lock whose holder does: who
    /// unplugs a DRM device, of whatever driver, waits for the caller. Fails with `ENODEV` if the device
    /// is not registered any more.
    pub(crate) fn registered(&mut self) -> Result<RegistrationGuard<'_, VxeDriver>> {
        self.dev.registration_guard().ok_or(ENODEV)
    }

    /// Reads the structure at the user address `addr`. Sleeps for as long as its page takes. Fails with
    /// `EFAULT`.
    pub(crate) fn read<T: FromBytes>(&mut self, addr: u64) -> Result<T> {
        self.reader(addr, size_of::<T>()).read()
    }

    /// Writes a structure at the user address `addr`. Sleeps for as long as its page takes. Fails with
    /// `EFAULT`, and may have written a part then.
    pub(crate) fn write<T: AsBytes>(&mut self, addr: u64, value: &T) -> Result {
        self.writer(addr, size_of::<T>()).write(value)
    }

    /// Reads the `len` bytes from the user address `addr` on, one structure after the other.
    pub(crate) fn reader(&mut self, addr: u64, len: usize) -> Reader<'_> {
        Reader {
            user: user_slice(addr, len).reader(),
            _ioctl: PhantomData,
        }
    }

    /// Writes the `len` bytes from the user address `addr` on, one structure after the other.
    pub(crate) fn writer(&mut self, addr: u64, len: usize) -> Writer<'_> {
        Writer {
            user: user_slice(addr, len).writer(),
            _ioctl: PhantomData,
        }
    }
}

/// Reads user memory. As long as it exists, its ioctl holds no guard.
pub(crate) struct Reader<'a> {
    user: UserSliceReader,
    _ioctl: PhantomData<&'a mut Ioctl<'a>>,
}

impl Reader<'_> {
    /// Reads the next structure. Sleeps for as long as its page takes. Fails with `EFAULT`, also beyond
    /// the end.
    pub(crate) fn read<T: FromBytes>(&mut self) -> Result<T> {
        self.user.read()
    }
}

/// Writes user memory. As long as it exists, its ioctl holds no guard.
pub(crate) struct Writer<'a> {
    user: UserSliceWriter,
    _ioctl: PhantomData<&'a mut Ioctl<'a>>,
}

impl Writer<'_> {
    /// Writes the next structure. Sleeps for as long as its page takes. Fails with `EFAULT`, also beyond
    /// the end.
    pub(crate) fn write<T: AsBytes>(&mut self, value: &T) -> Result {
        self.user.write(value)
    }

    /// Writes the next bytes. As [`write`](Self::write).
    pub(crate) fn write_bytes(&mut self, bytes: &[u8]) -> Result {
        self.user.write_slice(bytes)
    }
}

/// The `len` bytes from the user address `addr` on.
#[expect(
    clippy::disallowed_methods,
    reason = "the only place where user memory is reached"
)]
fn user_slice(addr: u64, len: usize) -> kernel::uaccess::UserSlice {
    // CAST: Addresses are 64 bits wide on what this driver runs on.
    kernel::uaccess::UserSlice::new(UserPtr::from_addr(addr as usize), len)
}
