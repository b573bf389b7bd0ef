// SPDX-License-Identifier: GPL-2.0

//! The bus of the device: all that the GPU reaches, it reaches from here, by device addresses.
//!
//! This is the only place of the GPU that touches memory, and so its only unsafe code. It is as
//! strict as hardware with an honest IOMMU: an access to memory that the device has no business
//! with fails, and is logged, since only a driver that lost track of its mappings can cause it.
//!
//! There are no locks. Accesses never sleep.

use kernel::{
    device::{self, Bound},
    dma::DmaAddress,
    fmt,
    prelude::*,
    sync::{aref::ARef, Arc}, //
};
use kernel_ext::phys::DmaMemory;

/// An address as the device puts it on its bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// System memory, by an address that the DMA API mapped for the device.
    System(DmaAddress),
}

impl Target {
    /// The address `bytes` further on, in the same memory; it wraps around.
    pub(super) fn offset(self, bytes: u64) -> Self {
        match self {
            Target::System(addr) => Target::System(addr.wrapping_add(bytes)),
        }
    }

    /// The address `bytes` further on, unless that would wrap around.
    pub(super) fn checked_offset(self, bytes: u64) -> Option<Self> {
        match self {
            Target::System(addr) => addr.checked_add(bytes).map(Target::System),
        }
    }

    /// Whether the address is a multiple of `size`.
    pub(super) fn is_aligned(self, size: u64) -> bool {
        match self {
            Target::System(addr) => addr % size == 0,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::System(addr) => f.write_fmt(fmt!("system {addr:#x}")),
        }
    }
}

/// The port of one device to all memory that it can reach. All its address spaces share it.
///
/// Accesses lie within one page. They fail as [`DmaMemory`] says.
pub(crate) struct Bus {
    dev: ARef<device::Device>,
    system: DmaMemory,
}

impl Bus {
    /// The bus of `dev`. When the device is unbound from its driver, accesses begin to fail with
    /// `ENODEV`, and none is in flight any more.
    ///
    /// Fails with `ENOMEM`. May sleep.
    pub(crate) fn new(dev: &device::Device<Bound>) -> Result<Arc<Self>> {
        let bus = Self {
            dev: dev.into(),
            system: DmaMemory::new(dev)?,
        };
        Ok(Arc::new(bus, GFP_KERNEL)?)
    }

    /// Reads `buf.len()` bytes. Not atomic.
    pub(super) fn read(&self, at: Target, buf: &mut [u8]) -> Result {
        let Target::System(addr) = at;
        // SAFETY: Addresses come from the page tables of this device, into which its driver puts
        // what the DMA API mapped for it.
        let done = unsafe { self.system.read(addr, buf) };
        self.check(at, done)
    }

    /// Writes all of `data`. Not atomic.
    pub(super) fn write(&self, at: Target, data: &[u8]) -> Result {
        let Target::System(addr) = at;
        // SAFETY: Addresses come from the page tables of this device, into which its driver puts
        // what the DMA API mapped for it, and marks as writable what may be written; that is
        // memory of user programs, which no Rust reference covers.
        let done = unsafe { self.system.write(addr, data) };
        self.check(at, done)
    }

    /// Stores a 32-bit value at once. The address must be aligned.
    pub(super) fn store_u32(&self, at: Target, value: u32) -> Result {
        let Target::System(addr) = at;
        // SAFETY: As for `write`: an address from the page tables of this device, marked as
        // writable by its driver, of memory that no Rust reference covers.
        let done = unsafe { self.system.store_u32(addr, value) };
        self.check(at, done)
    }

    /// Stores a 64-bit value at once. The address must be aligned.
    pub(super) fn store_u64(&self, at: Target, value: u64) -> Result {
        let Target::System(addr) = at;
        // SAFETY: As for `write`: an address from the page tables of this device, marked as
        // writable by its driver, of memory that no Rust reference covers.
        let done = unsafe { self.system.store_u64(addr, value) };
        self.check(at, done)
    }

    /// Adds `delta` to a 32-bit value, wrapping, atomically towards GPU and CPUs; returns what it
    /// was. The address must be aligned.
    pub(super) fn fetch_add_u32(&self, at: Target, delta: u32) -> Result<u32> {
        let Target::System(addr) = at;
        // SAFETY: As for `write`: an address from the page tables of this device, marked as
        // writable by its driver, of memory that no Rust reference covers.
        let done = unsafe { self.system.fetch_add_u32(addr, delta) };
        self.check(at, done)
    }

    /// Logs an access that failed if the driver is to blame: not when the device is gone, or a
    /// program has the GPU use memory that software cannot reach in the GPU's place.
    fn check<T>(&self, at: Target, done: Result<T>) -> Result<T> {
        done.inspect_err(|err| {
            if ![ENODEV, EIO].contains(err) {
                dev_err!(self.dev, "GPU access to {at} refused: {err:?}\n");
            }
        })
    }
}
