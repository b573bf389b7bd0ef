// SPDX-License-Identifier: GPL-2.0

//! The fabric over which software devices access each other's memory.
//!
//! Each device memory on the fabric has a [`Window`], a span of fabric addresses. Accesses through
//! a window are as strict as those to [`DeviceRam`]; an address outside of all windows is `ENXIO`.
//! All drivers, in all modules, share one fabric.
//!
//! # Locking
//!
//! A spinlock protects the table of windows, and is held during an access. It is a leaf.

use crate::device_ram::DeviceRam;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// The most windows.
const WINDOWS: usize = 32;

/// Log2 of the size of a window in bytes. The first window starts at this size, so 0 is in none.
const SHIFT: u32 = 40;

/// Addresses from here on have no memory: reads give zeros and writes have no effect. They are
/// beyond all windows, and for the bus of each device only.
pub(crate) const NULL: u64 = 1 << 62;

const _: () = assert!(((WINDOWS as u64 + 1) << SHIFT) <= NULL);

type Table = [Option<Arc<DeviceRam>>; WINDOWS];

kernel::sync::global_lock! {
    // SAFETY: `init()` is called at module load, before any use.
    unsafe(uninit) static TABLE: SpinLock<Table> = [const { None }; WINDOWS];
}

/// Initialises the table.
///
/// # Safety
///
/// The caller must call this once, at module load.
pub unsafe fn init() {
    // SAFETY: By this function's requirements.
    unsafe { TABLE.init() };
}

/// The fabric addresses of a device memory. After the drop, the memory cannot be accessed over the
/// fabric, and no access is in flight.
///
/// # Invariants
///
/// The table's entry with this index belongs to this window.
pub struct Window(usize);

impl Window {
    /// Creates a window to `ram`. Fails with `ENOSPC` without a free window, and `EINVAL` for a
    /// memory larger than a window.
    pub fn new(ram: Arc<DeviceRam>) -> Result<Self> {
        if ram.size() > 1 << SHIFT {
            return Err(EINVAL);
        }
        let mut table = TABLE.lock();
        let mut slots = table.iter_mut().enumerate();
        let (index, slot) = slots.find(|(_, slot)| slot.is_none()).ok_or(ENOSPC)?;
        *slot = Some(ram);
        // INVARIANT: The entry was unused.
        Ok(Self(index))
    }

    /// Returns the fabric address of the byte at `offset` of the memory.
    pub fn addr(&self, offset: u64) -> u64 {
        // Does not overflow: there are few windows, and offsets are smaller than a window.
        ((self.0 as u64 + 1) << SHIFT).wrapping_add(offset)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let ram = TABLE.lock().get_mut(self.0).and_then(Option::take);
        // Maybe the last reference, so drop it without the lock.
        drop(ram);
    }
}

/// Calls `f` with the device memory at a fabric address, and the offset in it. `f` must neither
/// sleep nor use the fabric. Fails with `ENXIO` without a window at the address.
pub fn with<R>(addr: u64, f: impl FnOnce(&DeviceRam, u64) -> R) -> Result<R> {
    let index = (addr >> SHIFT).checked_sub(1).ok_or(ENXIO)?;
    let index = usize::try_from(index).map_err(|_| ENXIO)?;
    let table = TABLE.lock();
    let ram = table.get(index).and_then(Option::as_ref).ok_or(ENXIO)?;
    Ok(f(ram, addr & ((1 << SHIFT) - 1)))
}

#[kunit_tests(vxe_sim_fabric)]
mod tests {
    use super::*;
    use kernel::page::PAGE_SIZE;

    fn check(holds: bool) -> Result {
        holds.then_some(()).ok_or(EIO)
    }

    #[test]
    fn each_window_shows_its_memory() -> Result {
        let page = PAGE_SIZE as u64;
        let a = Arc::new(DeviceRam::new(page)?, GFP_KERNEL)?;
        let b = Arc::new(DeviceRam::new(2 * page)?, GFP_KERNEL)?;
        let (at_a, at_b) = (Window::new(a.clone())?, Window::new(b.clone())?);
        check(at_a.addr(0) != at_b.addr(0) && at_a.addr(0) != 0)?;
        let is_at = |addr, memory: &Arc<DeviceRam>, place| {
            with(addr, |ram, offset| {
                core::ptr::eq(ram, &**memory) && offset == place
            })
        };
        check(is_at(at_b.addr(page + 8), &b, page + 8)?)?;
        check(is_at(at_a.addr(0), &a, 0)?)?;
        let gone = at_a.addr(0);
        drop(at_a);
        let is_nowhere = |addr| with(addr, |_, _| ()) == Err(ENXIO);
        check(is_nowhere(gone) && is_nowhere(0) && is_nowhere(u64::MAX))?;
        check(is_at(at_b.addr(0), &b, 0)?)
    }
}
