// SPDX-License-Identifier: GPL-2.0

//! The bus of the device: all memory accesses of the GPU, by device addresses.
//!
//! This is the only part of the GPU that accesses memory. It is as strict as hardware behind an
//! IOMMU: an access to memory that is not mapped for the device fails. Such failures are logged,
//! rate-limited, since only a driver that lost track of its mappings can cause them.
//!
//! There are no locks. Accesses never sleep.

use crate::{
    device_ram::DeviceRam,
    dma_memory::DmaMemory,
    fabric,
    print::dev_err_ratelimited, //
};
use kernel::{
    device::{self, Bound},
    dma::DmaAddress,
    fmt,
    prelude::*,
    sync::{aref::ARef, Arc}, //
};

/// An address on the device's bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// System memory, at an address that the DMA API mapped for the device.
    System(DmaAddress),
    /// The device's own memory, at an address in that memory.
    Vram(u64),
    /// The memory of another device, or its own, at an address of the fabric.
    Peer(u64),
}

impl Target {
    /// Where reads give zeros and writes have no effect; aligned to pages of any size.
    pub const NULL: Self = Target::Peer(fabric::NULL);

    /// Returns whether reads give zeros and writes have no effect.
    #[inline]
    fn is_null(self) -> bool {
        matches!(self, Target::Peer(addr) if addr >= fabric::NULL)
    }

    /// Returns an address in the same memory.
    #[inline]
    fn with(self, addr: u64) -> Self {
        match self {
            Target::System(_) => Target::System(addr),
            Target::Vram(_) => Target::Vram(addr),
            Target::Peer(_) => Target::Peer(addr),
        }
    }

    /// Returns the address, without the kind of memory.
    #[inline]
    pub fn addr(self) -> u64 {
        match self {
            Target::System(addr) | Target::Vram(addr) | Target::Peer(addr) => addr,
        }
    }

    /// Returns the target `bytes` further on in the same memory; wraps around.
    #[inline]
    pub fn offset(self, bytes: u64) -> Self {
        self.with(self.addr().wrapping_add(bytes))
    }

    /// Returns the target `bytes` further on, unless that wraps around.
    #[inline]
    pub fn checked_offset(self, bytes: u64) -> Option<Self> {
        Some(self.with(self.addr().checked_add(bytes)?))
    }

    /// Returns whether the address is a multiple of `size`.
    #[inline]
    pub fn is_aligned(self, size: u64) -> bool {
        self.addr().checked_rem(size) == Some(0)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::System(addr) => f.write_fmt(fmt!("system {addr:#x}")),
            Target::Vram(addr) => f.write_fmt(fmt!("vram {addr:#x}")),
            Target::Peer(addr) => f.write_fmt(fmt!("peer {addr:#x}")),
        }
    }
}

/// A device's access to all memory that it can reach. All its address spaces share it.
///
/// Accesses lie within one page. They fail as [`DmaMemory`] does for system memory, and as
/// [`DeviceRam`] does for device memory.
pub struct Bus {
    dev: ARef<device::Device>,
    system: DmaMemory,
    vram: Option<Arc<DeviceRam>>,
}

impl Bus {
    /// Creates the bus of `dev`, with the device's own memory if it has any. Unbinding the device
    /// from its driver waits for accesses to system memory in flight; later ones fail with
    /// `ENODEV`.
    ///
    /// Fails with `ENOMEM`. May sleep.
    pub fn new(dev: &device::Device<Bound>, vram: Option<Arc<DeviceRam>>) -> Result<Arc<Self>> {
        let bus = Self {
            dev: dev.into(),
            system: DmaMemory::new(dev)?,
            vram,
        };
        Ok(Arc::new(bus, GFP_KERNEL)?)
    }

    /// Calls `f` with the device memory of `at` and the offset in it. Fails with `ENXIO` if there
    /// is no such memory, and with `EOPNOTSUPP` for system memory.
    fn with_ram<R>(&self, at: Target, f: impl FnOnce(&DeviceRam, u64) -> Result<R>) -> Result<R> {
        match at {
            Target::System(_) => Err(EOPNOTSUPP),
            Target::Vram(addr) => f(self.vram.as_deref().ok_or(ENXIO)?, addr),
            Target::Peer(addr) => fabric::with(addr, f)?,
        }
    }

    /// Reads `buf.len()` bytes. Not atomic.
    pub fn read(&self, at: Target, buf: &mut [u8]) -> Result {
        let done = match at {
            // SAFETY: The address comes from the page tables of this device, and its driver only
            // enters addresses there that the DMA API mapped for the device.
            Target::System(addr) => unsafe { self.system.read(addr, buf) },
            _ if at.is_null() => {
                buf.fill(0);
                Ok(())
            }
            _ => self.with_ram(at, |ram, addr| ram.read(addr, buf)),
        };
        self.check(at, done)
    }

    /// Writes all of `data`. Not atomic.
    pub fn write(&self, at: Target, data: &[u8]) -> Result {
        let done = match at {
            // SAFETY: The address comes from the page tables of this device, and its driver only
            // enters addresses there that the DMA API mapped for the device, as writable only if
            // the device may write. It is memory of user programs, which no Rust reference covers.
            Target::System(addr) => unsafe { self.system.write(addr, data) },
            _ if at.is_null() => Ok(()),
            _ => self.with_ram(at, |ram, addr| ram.write(addr, data)),
        };
        self.check(at, done)
    }

    /// Loads a 32-bit value in a single access. The address must be aligned.
    pub fn load_u32(&self, at: Target) -> Result<u32> {
        let done = match at {
            // SAFETY: As in `read`.
            Target::System(addr) => unsafe { self.system.load_u32(addr) },
            _ if at.is_null() => Ok(0),
            _ => self.with_ram(at, |ram, addr| ram.load_u32(addr)),
        };
        self.check(at, done)
    }

    /// Stores a 32-bit value in a single access. The address must be aligned.
    pub fn store_u32(&self, at: Target, value: u32) -> Result {
        let done = match at {
            // SAFETY: As in `write`.
            Target::System(addr) => unsafe { self.system.store_u32(addr, value) },
            _ if at.is_null() => Ok(()),
            _ => self.with_ram(at, |ram, addr| ram.store_u32(addr, value)),
        };
        self.check(at, done)
    }

    /// Stores a 64-bit value in a single access. The address must be aligned.
    pub fn store_u64(&self, at: Target, value: u64) -> Result {
        let done = match at {
            // SAFETY: As in `write`.
            Target::System(addr) => unsafe { self.system.store_u64(addr, value) },
            _ if at.is_null() => Ok(()),
            _ => self.with_ram(at, |ram, addr| ram.store_u64(addr, value)),
        };
        self.check(at, done)
    }

    /// Adds `delta` to a 32-bit value, wrapping, atomically towards GPU and CPUs. Returns the old
    /// value. The address must be aligned.
    pub fn fetch_add_u32(&self, at: Target, delta: u32) -> Result<u32> {
        let done = match at {
            // SAFETY: As in `write`.
            Target::System(addr) => unsafe { self.system.fetch_add_u32(addr, delta) },
            _ if at.is_null() => Ok(0),
            _ => self.with_ram(at, |ram, addr| ram.fetch_add_u32(addr, delta)),
        };
        self.check(at, done)
    }

    /// Copies `len` bytes, within a page on both sides. Not atomic. Fails with `EOPNOTSUPP` for a
    /// copy within system memory, or between peers.
    pub fn copy(&self, from: Target, to: Target, len: usize) -> Result {
        let done = match (from, to) {
            (Target::System(_), Target::System(_)) | (Target::Peer(_), Target::Peer(_)) => {
                Err(EOPNOTSUPP)
            }
            (Target::System(from), to) => self.with_ram(to, |ram, to| {
                // SAFETY: The driver passes addresses to the copy engine that the DMA API mapped
                // for this device.
                unsafe { ram.copy_from_dma(to, &self.system, from, len) }
            }),
            (from, Target::System(to)) => self.with_ram(from, |ram, from| {
                // SAFETY: As above, and the mapping allows the device to write. The memory belongs
                // to a user program, or is allocated for one, so no Rust reference covers it.
                unsafe { ram.copy_to_dma(from, &self.system, to, len) }
            }),
            (from, to) => self.with_ram(from, |source, from| {
                self.with_ram(to, |ram, to| ram.copy_from(to, source, from, len))
            }),
        };
        self.check(from, done)
    }

    /// Writes `len` zeros within a page of device memory. Fails with `EOPNOTSUPP` for system
    /// memory.
    pub fn clear(&self, at: Target, len: usize) -> Result {
        let done = self.with_ram(at, |ram, addr| ram.clear(addr, len));
        self.check(at, done)
    }

    /// Logs a failed access if it indicates a bug of the driver. `ENODEV` does not (the device is
    /// gone), nor does `EIO` (a program made the GPU use memory that only real hardware can
    /// access).
    fn check<T>(&self, at: Target, done: Result<T>) -> Result<T> {
        done.inspect_err(|err| {
            if ![ENODEV, EIO].contains(err) {
                dev_err_ratelimited(&self.dev, fmt!("GPU access to {at} refused: {err:?}"));
            }
        })
    }
}
