// SPDX-License-Identifier: GPL-2.0

//! The bus of the device: all that the GPU reaches, it reaches from here, by device addresses.
//!
//! This is the only place of the GPU that touches memory. It is as strict as hardware with an honest IOMMU: an access to memory that the device has no business
//! with fails, and is logged, a few times at least, since only a driver that lost track of its mappings
//! can cause it.
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

/// An address as the device puts it on its bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// System memory, by an address that the DMA API mapped for the device.
    System(DmaAddress),
    /// The device's own memory, by its address there.
    Vram(u64),
    /// The memory of another device, or its own, by an address of the fabric.
    Peer(u64),
}

impl Target {
    /// The same kind of memory, at another address.
    #[inline]
    fn with(self, addr: u64) -> Self {
        match self {
            Target::System(_) => Target::System(addr),
            Target::Vram(_) => Target::Vram(addr),
            Target::Peer(_) => Target::Peer(addr),
        }
    }

    /// The address, in whatever memory.
    #[inline]
    pub fn addr(self) -> u64 {
        match self {
            Target::System(addr) | Target::Vram(addr) | Target::Peer(addr) => addr,
        }
    }

    /// The address `bytes` further on, in the same memory; it wraps around.
    #[inline]
    pub fn offset(self, bytes: u64) -> Self {
        self.with(self.addr().wrapping_add(bytes))
    }

    /// The address `bytes` further on, unless that would wrap around.
    #[inline]
    pub fn checked_offset(self, bytes: u64) -> Option<Self> {
        Some(self.with(self.addr().checked_add(bytes)?))
    }

    /// Whether the address is a multiple of `size`.
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

/// The port of one device to all memory that it can reach. All its address spaces share it.
///
/// Accesses lie within one page. They fail as [`DmaMemory`] says for system memory, and
/// [`DeviceRam`] for that of devices.
pub struct Bus {
    dev: ARef<device::Device>,
    system: DmaMemory,
    vram: Option<Arc<DeviceRam>>,
}

impl Bus {
    /// The bus of `dev`, which has memory of its own or not. When the device is unbound from its
    /// driver, accesses to system memory begin to fail with `ENODEV`, and none is in flight any more.
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

    /// Runs `f` with the memory of a device, and the place in it that `at` is. Fails with `ENXIO`
    /// where there is none, and with `EOPNOTSUPP` for system memory.
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
            // SAFETY: Addresses come from the page tables of this device, into which its driver puts
            // what the DMA API mapped for it.
            Target::System(addr) => unsafe { self.system.read(addr, buf) },
            _ => self.with_ram(at, |ram, addr| ram.read(addr, buf)),
        };
        self.check(at, done)
    }

    /// Writes all of `data`. Not atomic.
    pub fn write(&self, at: Target, data: &[u8]) -> Result {
        let done = match at {
            // SAFETY: Addresses come from the page tables of this device, into which its driver puts
            // what the DMA API mapped for it, and marks as writable what may be written; that is
            // memory of user programs, which no Rust reference covers.
            Target::System(addr) => unsafe { self.system.write(addr, data) },
            _ => self.with_ram(at, |ram, addr| ram.write(addr, data)),
        };
        self.check(at, done)
    }

    /// Stores a 32-bit value at once. The address must be aligned.
    pub fn store_u32(&self, at: Target, value: u32) -> Result {
        let done = match at {
            // SAFETY: As for `write`: an address from the page tables of this device, marked as
            // writable by its driver, of memory that no Rust reference covers.
            Target::System(addr) => unsafe { self.system.store_u32(addr, value) },
            _ => self.with_ram(at, |ram, addr| ram.store_u32(addr, value)),
        };
        self.check(at, done)
    }

    /// Stores a 64-bit value at once. The address must be aligned.
    pub fn store_u64(&self, at: Target, value: u64) -> Result {
        let done = match at {
            // SAFETY: As for `write`: an address from the page tables of this device, marked as
            // writable by its driver, of memory that no Rust reference covers.
            Target::System(addr) => unsafe { self.system.store_u64(addr, value) },
            _ => self.with_ram(at, |ram, addr| ram.store_u64(addr, value)),
        };
        self.check(at, done)
    }

    /// Adds `delta` to a 32-bit value, wrapping, atomically towards GPU and CPUs; returns what it
    /// was. The address must be aligned.
    pub fn fetch_add_u32(&self, at: Target, delta: u32) -> Result<u32> {
        let done = match at {
            // SAFETY: As for `write`: an address from the page tables of this device, marked as
            // writable by its driver, of memory that no Rust reference covers.
            Target::System(addr) => unsafe { self.system.fetch_add_u32(addr, delta) },
            _ => self.with_ram(at, |ram, addr| ram.fetch_add_u32(addr, delta)),
        };
        self.check(at, done)
    }

    /// Copies `len` bytes, within a page on both sides. Not atomic. Fails with `EOPNOTSUPP` for two
    /// places in system memory, or in peers'.
    pub fn copy(&self, from: Target, to: Target, len: usize) -> Result {
        let done = match (from, to) {
            (Target::System(_), Target::System(_)) | (Target::Peer(_), Target::Peer(_)) => {
                Err(EOPNOTSUPP)
            }
            (Target::System(from), to) => self.with_ram(to, |ram, to| {
                // SAFETY: The driver gives the copy engine what the DMA API mapped for this device.
                unsafe { ram.copy_from_dma(to, &self.system, from, len) }
            }),
            (from, Target::System(to)) => self.with_ram(from, |ram, from| {
                // SAFETY: As above, and mapped for the device to write; what is copied to is memory
                // of user programs, or on its way there, which no Rust reference covers.
                unsafe { ram.copy_to_dma(from, &self.system, to, len) }
            }),
            (from, to) => self.with_ram(from, |source, from| {
                self.with_ram(to, |ram, to| ram.copy_from(to, source, from, len))
            }),
        };
        self.check(from, done)
    }

    /// Writes `len` zeros, within a page of a device's memory. Fails with `EOPNOTSUPP` for system
    /// memory.
    pub fn clear(&self, at: Target, len: usize) -> Result {
        let done = self.with_ram(at, |ram, addr| ram.clear(addr, len));
        self.check(at, done)
    }

    /// Logs an access that failed if the driver is to blame: not when the device is gone, or a
    /// program has the GPU use memory that software cannot reach in the GPU's place.
    fn check<T>(&self, at: Target, done: Result<T>) -> Result<T> {
        done.inspect_err(|err| {
            if ![ENODEV, EIO].contains(err) {
                dev_err_ratelimited(&self.dev, fmt!("GPU access to {at} refused: {err:?}"));
            }
        })
    }
}
