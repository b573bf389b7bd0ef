// SPDX-License-Identifier: GPL-2.0

//! RAM that backs the memory of a software device.
//!
//! The memory has its own addresses from 0 on. Only pages that were granted can be accessed. The
//! RAM of a page is allocated at its first grant, and kept, so a large memory takes only the RAM
//! that was used.
//!
//! Accesses never sleep, unless documented otherwise. They fail with:
//!
//! - `ENXIO` when the address is beyond the end,
//! - `EINVAL` when the access would cross a page, or is not aligned as its operation requires,
//! - `ESTALE` when the page is not granted.

use crate::{
    dma_memory::{DmaMemory, LocalMapping},
    sysinfo::total_ram, //
};
use core::{ops::Range, ptr::NonNull};
use kernel::{
    alloc::{
        flags::__GFP_NOWARN,
        Flags, //
    },
    dma::DmaAddress,
    page::{Page, PAGE_SIZE},
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full, Relaxed, Release},
        SetOnce, //
    },
};

/// Bytes of a page, as a difference of addresses.
const PAGE: u64 = PAGE_SIZE as u64;

/// A page of the device.
struct Frame {
    /// The RAM of the page, from its first grant on.
    ram: SetOnce<Page>,
    /// Whether the page is granted.
    granted: Atomic<bool>,
}

/// The sizes of all memories together, in bytes.
static ALL: Atomic<u64> = Atomic::new(0);

/// A part of [`ALL`], given back when this is dropped.
struct Reserved(u64);

impl Reserved {
    /// Fails with `ENOMEM` if the machine has less RAM than all memories together: a program that
    /// fills them would take all of it.
    fn new(size: u64) -> Result<Self> {
        let before = ALL.fetch_add(size, Relaxed);
        // Dropped on failure.
        let reserved = Self(size);
        let all = before.checked_add(size).ok_or(ENOMEM)?;
        (all <= total_ram()).then_some(reserved).ok_or(ENOMEM)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _ = ALL.fetch_sub(self.0, Relaxed);
    }
}

/// The memory of a device.
pub struct DeviceRam {
    frames: KVVec<Frame>,
    _reserved: Reserved,
}

impl DeviceRam {
    /// Creates a memory of `size` bytes, which takes little RAM yet. Sleeps.
    ///
    /// Fails with `EINVAL` unless `size` is a multiple of the page size, and `ENOMEM`, also if all
    /// memories, of all modules, would be larger together than the machine's RAM.
    pub fn new(size: u64) -> Result<Self> {
        if size % PAGE != 0 {
            return Err(EINVAL);
        }
        let reserved = Reserved::new(size)?;
        let count = usize::try_from(size / PAGE)?;
        let mut frames = KVVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            let frame = Frame {
                ram: SetOnce::new(),
                granted: Atomic::new(false),
            };
            frames.push(frame, GFP_KERNEL)?;
        }
        Ok(Self {
            frames,
            _reserved: reserved,
        })
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        // Cannot overflow: the size was passed to `new()`.
        self.frames.len() as u64 * PAGE
    }

    /// Returns the frames of a span of pages. Fails with `EINVAL` and `ENXIO`.
    fn frames(&self, span: &Range<u64>) -> Result<&[Frame]> {
        if span.start % PAGE != 0 || span.end % PAGE != 0 {
            return Err(EINVAL);
        }
        let start = usize::try_from(span.start / PAGE).map_err(|_| ENXIO)?;
        let end = usize::try_from(span.end / PAGE).map_err(|_| ENXIO)?;
        self.frames.get(start..end).ok_or(ENXIO)
    }

    /// Grants access to the pages of `span`, which keep their previous content. RAM that they still
    /// need is allocated with `flags`.
    ///
    /// The caller must not grant a page twice. Fails with `ENOMEM`, or with `EINTR` if the caller
    /// is killed, and then grants no page; with `EINVAL` unless `span` consists of pages, and
    /// `ENXIO`.
    pub fn grant(&self, span: Range<u64>, flags: Flags) -> Result {
        let frames = self.frames(&span)?;
        for frame in frames {
            if frame.ram.as_ref().is_none() {
                let page = Page::alloc_page(flags | __GFP_ZERO | __GFP_NOWARN)?;
                // Cannot be set already: only one caller at a time is granted this page.
                frame.ram.populate(page);
                kernel_ext::sched::check_killed()?;
            }
        }
        for frame in frames {
            frame.granted.store(true, Release);
        }
        Ok(())
    }

    /// Revokes the access to the pages of `span`, if they are granted.
    pub fn revoke(&self, span: Range<u64>) {
        for frame in self.frames(&span).unwrap_or(&[]) {
            frame.granted.store(false, Release);
        }
    }

    /// Returns the RAM of the page at `addr` while it is granted, for a CPU mapping, which the
    /// caller must unmap before the page is revoked. Fails with `ENXIO` and `ESTALE`.
    pub fn page(&self, addr: u64) -> Result<&Page> {
        let index = usize::try_from(addr / PAGE).map_err(|_| ENXIO)?;
        let frame = self.frames.get(index).ok_or(ENXIO)?;
        if !frame.granted.load(Acquire) {
            return Err(ESTALE);
        }
        frame.ram.as_ref().ok_or(ESTALE)
    }

    /// Calls `f` with a pointer to the `len` bytes at `addr`, which are RAM of this memory, aligned
    /// as `addr` is. The pointer is valid only within `f`, which must not sleep.
    fn with<R>(&self, addr: u64, len: usize, f: impl FnOnce(*mut u8) -> R) -> Result<R> {
        // CAST: A remainder of the page size.
        let offset = (addr % PAGE) as usize;
        if len > PAGE_SIZE - offset {
            return Err(EINVAL);
        }
        let page = NonNull::new(self.page(addr)?.as_ptr()).ok_or(ESTALE)?;
        let mapped = LocalMapping::new(page);
        // SAFETY: The page is mapped, and `offset` is within it.
        Ok(f(unsafe { mapped.as_ptr().add(offset) }))
    }

    /// As [`Self::with`], for a `T` at an aligned address.
    fn with_aligned<T, R>(&self, addr: u64, f: impl FnOnce(*mut T) -> R) -> Result<R> {
        // CAST: Alignments are small.
        if addr % align_of::<T>() as u64 != 0 {
            return Err(EINVAL);
        }
        self.with(addr, size_of::<T>(), |ptr| f(ptr.cast()))
    }

    /// Reads `buf.len()` bytes at `addr`. Not atomic.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Result {
        self.with(addr, buf.len(), |from| {
            // SAFETY: `from` is valid for this many bytes; `buf` is not in a page of the device.
            unsafe { copy(buf.as_mut_ptr(), from, buf.len()) }
        })
    }

    /// Writes `data` at `addr`. Not atomic.
    pub fn write(&self, addr: u64, data: &[u8]) -> Result {
        self.with(addr, data.len(), |to| {
            // SAFETY: `to` is valid for this many bytes, and no reference covers it; `data` is not
            // in a page of the device.
            unsafe { copy(to, data.as_ptr(), data.len()) }
        })
    }

    /// Writes `len` zeros at `addr`. Not atomic.
    pub fn clear(&self, addr: u64, len: usize) -> Result {
        self.with(addr, len, |to| {
            // SAFETY: `to` is valid for this many bytes, and no reference covers it.
            unsafe { to.write_bytes(0, len) }
        })
    }

    /// Loads the 32-bit value at `addr` in a single access, before all later accesses.
    pub fn load_u32(&self, addr: u64) -> Result<u32> {
        self.with_aligned(addr, |from: *mut u32| {
            // SAFETY: `from` is aligned and valid; all concurrent accesses are atomic, or not made
            // by Rust code.
            unsafe { Atomic::from_ptr(from) }.load(Acquire)
        })
    }

    /// Stores a 32-bit `value` at `addr` in a single access, after all earlier accesses.
    pub fn store_u32(&self, addr: u64, value: u32) -> Result {
        self.with_aligned(addr, |to: *mut u32| {
            // SAFETY: `to` is aligned and valid; all concurrent accesses are atomic, or not made by
            // Rust code.
            unsafe { Atomic::from_ptr(to) }.store(value, Release)
        })
    }

    /// Stores a 64-bit `value` at `addr` in a single access, after all earlier accesses.
    pub fn store_u64(&self, addr: u64, value: u64) -> Result {
        self.with_aligned(addr, |to: *mut u64| {
            // SAFETY: As in `store_u32`.
            unsafe { Atomic::from_ptr(to) }.store(value, Release)
        })
    }

    /// Adds `delta` to the 32-bit value at `addr`, wrapping, and returns the old value. Atomic
    /// towards CPUs as well.
    pub fn fetch_add_u32(&self, addr: u64, delta: u32) -> Result<u32> {
        self.with_aligned(addr, |to: *mut u32| {
            // SAFETY: As in `store_u32`.
            unsafe { Atomic::from_ptr(to) }.fetch_add(delta, Full)
        })
    }

    /// Copies `len` bytes from `addr` in `from`, which may be this memory, to `to`. Not atomic.
    ///
    /// Fails with `EINVAL` also if both spans overlap.
    pub fn copy_from(&self, to: u64, from: &DeviceRam, addr: u64, len: usize) -> Result {
        if core::ptr::eq(self, from) && to.abs_diff(addr) < len as u64 {
            return Err(EINVAL);
        }
        from.with(addr, len, |from| {
            self.with(to, len, |to| {
                // SAFETY: Both are valid for this many bytes, and were checked not to overlap.
                unsafe { copy(to, from, len) }
            })
        })?
    }

    /// Copies `len` bytes at the DMA address `addr` to `to`. Not atomic.
    ///
    /// # Safety
    ///
    /// As for [`DmaMemory::read`].
    pub unsafe fn copy_from_dma(
        &self,
        to: u64,
        from: &DmaMemory,
        addr: DmaAddress,
        len: usize,
    ) -> Result {
        from.with_readable(addr, len, |from| {
            self.with(to, len, |to| {
                // SAFETY: Both are valid for this many bytes. They do not overlap: other devices may
                // map pages of the device's memory for DMA, but the driver copies to and from
                // addresses of system memory only.
                unsafe { copy(to, from, len) }
            })
        })?
    }

    /// Copies `len` bytes at `from` to the DMA address `addr`. Not atomic.
    ///
    /// # Safety
    ///
    /// As for [`DmaMemory::write`].
    pub unsafe fn copy_to_dma(
        &self,
        from: u64,
        to: &DmaMemory,
        addr: DmaAddress,
        len: usize,
    ) -> Result {
        self.with(from, len, |from| {
            to.with_writable(addr, len, |to| {
                // SAFETY: As in `copy_from_dma`.
                unsafe { copy(to, from, len) }
            })
        })?
    }

    /// Returns how many bytes of RAM are allocated.
    pub fn allocated(&self) -> u64 {
        let allocated = self
            .frames
            .iter()
            .filter(|frame| frame.ram.as_ref().is_some());
        allocated.count() as u64 * PAGE
    }

    /// Returns how many bytes are granted.
    pub fn granted(&self) -> u64 {
        let granted = self
            .frames
            .iter()
            .filter(|frame| frame.granted.load(Relaxed));
        granted.count() as u64 * PAGE
    }
}

/// Copies memory that other threads and CPUs may access concurrently.
///
/// # Safety
///
/// `to` must be valid for writing `len` bytes, `from` for reading them, and they must not overlap.
unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: By this function's requirements.
    unsafe { crate::bindings::memcpy(to.cast(), from.cast(), len) }
}

#[kunit_tests(vxe_sim_device_ram)]
mod tests {
    use super::*;

    /// Returns an error to fail the test, so that it cleans up: a failed assertion would not.
    fn check(holds: bool) -> Result {
        holds.then_some(()).ok_or(EIO)
    }

    #[test]
    fn only_what_was_given_is_reached() -> Result {
        let ram = DeviceRam::new(4 * PAGE)?;
        check(ram.size() == 4 * PAGE && ram.allocated() == 0)?;
        check(ram.store_u32(PAGE, 1) == Err(ESTALE))?;
        ram.grant(PAGE..3 * PAGE, GFP_KERNEL)?;
        check(ram.allocated() == 2 * PAGE && ram.granted() == 2 * PAGE)?;
        ram.store_u32(PAGE, 7)?;
        check(ram.fetch_add_u32(PAGE, 2) == Ok(7))?;
        check(ram.store_u32(0, 1) == Err(ESTALE))?;
        check(ram.store_u32(3 * PAGE, 1) == Err(ESTALE))?;
        check(ram.store_u32(4 * PAGE, 1) == Err(ENXIO))?;
        check(ram.store_u64(u64::MAX - 7, 1) == Err(ENXIO))?;
        ram.revoke(PAGE..2 * PAGE);
        check(ram.clear(PAGE, 4) == Err(ESTALE))?;
        check(ram.page(PAGE).is_err() && ram.page(2 * PAGE).is_ok())?;
        // RAM and its content are kept.
        ram.grant(PAGE..2 * PAGE, GFP_KERNEL)?;
        check(ram.fetch_add_u32(PAGE, 0) == Ok(9) && ram.allocated() == 2 * PAGE)
    }

    #[test]
    fn accesses_stay_within_a_page() -> Result {
        let ram = DeviceRam::new(2 * PAGE)?;
        ram.grant(0..2 * PAGE, GFP_KERNEL)?;
        let mut four = [0; 4];
        check(ram.read(PAGE - 4, &mut four).is_ok())?;
        check(ram.read(PAGE - 3, &mut four) == Err(EINVAL))?;
        check(ram.write(PAGE - 3, &four) == Err(EINVAL))?;
        check(ram.load_u32(2) == Err(EINVAL))?;
        check(ram.store_u32(2, 1) == Err(EINVAL))?;
        check(ram.store_u64(4, 1) == Err(EINVAL))?;
        check(ram.grant(1..PAGE, GFP_KERNEL) == Err(EINVAL))?;
        check(ram.grant(0..3 * PAGE, GFP_KERNEL) == Err(ENXIO))?;
        check(DeviceRam::new(PAGE + 1).is_err())
    }

    #[test]
    fn pieces_are_copied_and_cleared() -> Result {
        let (a, b) = (DeviceRam::new(2 * PAGE)?, DeviceRam::new(PAGE)?);
        a.grant(0..2 * PAGE, GFP_KERNEL)?;
        b.grant(0..PAGE, GFP_KERNEL)?;
        a.write(8, &[1, 2, 3, 4])?;
        a.copy_from(PAGE, &a, 8, 4)?;
        b.copy_from(16, &a, PAGE, 4)?;
        let mut four = [0; 4];
        b.read(16, &mut four)?;
        check(four == [1, 2, 3, 4])?;
        check(a.copy_from(10, &a, 8, 4) == Err(EINVAL))?;
        b.clear(17, 2)?;
        b.read(16, &mut four)?;
        check(four == [1, 0, 0, 4])
    }
}
