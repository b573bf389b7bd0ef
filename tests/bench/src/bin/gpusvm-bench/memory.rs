// SPDX-License-Identifier: GPL-2.0

//! Memory to be measured with: slots of one size, each a mapping of its own.

use crate::{counter, Outcome};
use std::{io, ptr};

/// Size of a page.
pub const PAGE: usize = if cfg!(page_64k) { 64 << 10 } else { 4 << 10 };
/// Size of a middle chunk.
pub const SZ_64K: usize = 64 << 10;
/// Size of the largest chunk, and of a huge page.
pub const SZ_2M: usize = 2 << 20;

/// The span of a notifier of the benchmark's driver: 512 MiB, as xe has it.
pub const NOTIFIER: usize = 512 << 20;

/// What pages a mapping may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Small ones only.
    Small,
    /// Huge ones wherever they fit.
    Huge,
}

/// Addresses of this process that nothing else is in, from which slots are cut. They are never
/// looked at as anything but bytes that others may change, and unmapped when this is dropped.
pub struct Arena {
    start: usize,
    length: usize,
    whole: (usize, usize),
}

impl Arena {
    /// Reserves `length` bytes, aligned to `align`, without memory behind them.
    pub fn reserve(length: usize, align: usize) -> Outcome<Self> {
        let room = length + align;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a free address disturbs nobody.
        let p = unsafe { libc::mmap(ptr::null_mut(), room, libc::PROT_NONE, flags, -1, 0) };
        if p == libc::MAP_FAILED {
            return Err(format!("mmap of {room:#x} bytes: {}", io::Error::last_os_error()).into());
        }
        let start = (p as usize).next_multiple_of(align);
        Ok(Self { start, length, whole: (p as usize, room) })
    }

    /// Where it starts.
    pub const fn start(&self) -> usize {
        self.start
    }

    /// Memory for `count` slots of `size` bytes, `stride` apart. With `stride` above `size` each
    /// slot is a mapping of its own, otherwise all of them are one.
    pub fn slots(&self, count: usize, size: usize, stride: usize, kind: Kind) -> Outcome<Slots> {
        assert!(size <= stride && count * stride <= self.length, "the arena is too small");
        let slots = Slots { start: self.start, count, stride };
        if size == stride {
            map(self.start, count * stride, kind)?;
        } else {
            for slot in slots.addresses() {
                map(slot, size, kind)?;
            }
        }
        Ok(slots)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the addresses are ours, and nobody borrows from them.
        unsafe { libc::munmap(self.whole.0 as *mut _, self.whole.1) };
    }
}

/// Maps fresh memory in an arena.
fn map(addr: usize, length: usize, kind: Kind) -> Outcome<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the addresses are an arena's, which nobody borrows from.
    let p = unsafe { libc::mmap(addr as *mut _, length, protection, flags, -1, 0) };
    let advice = match kind {
        Kind::Small => libc::MADV_NOHUGEPAGE,
        Kind::Huge => libc::MADV_HUGEPAGE,
    };
    // SAFETY: as above.
    if p == libc::MAP_FAILED || unsafe { libc::madvise(p, length, advice) } != 0 {
        return Err(format!("mapping {length:#x} bytes: {}", io::Error::last_os_error()).into());
    }
    Ok(())
}

/// Slots of an arena.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    start: usize,
    count: usize,
    stride: usize,
}

impl Slots {
    /// The addresses of the slots.
    pub fn addresses(self) -> impl Iterator<Item = usize> {
        (0..self.count).map(move |i| self.start + i * self.stride)
    }

    /// The addresses, two by two.
    pub fn pairs(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.count / 2).map(move |i| {
            let first = self.start + 2 * i * self.stride;
            (first, first + self.stride)
        })
    }
}

/// Writes to each page of `size` bytes from `addr`, in an arena's slot.
pub fn touch(addr: usize, size: usize) {
    for page in (addr..addr + size).step_by(PAGE) {
        // SAFETY: the addresses are a slot's, mapped for writing, and nobody borrows from them.
        unsafe { ptr::write_volatile(page as *mut u8, 1) };
    }
}

/// Reads the first byte at `addr`, in an arena's slot.
pub fn peek(addr: usize) {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(addr as *const u8) };
}

/// Writes to the byte at `addr`, in an arena's slot, and says what that cost.
pub fn poke(empty: u64, addr: usize) -> u64 {
    // SAFETY: as above.
    counter::cost(empty, || unsafe { ptr::write_volatile(addr as *mut u8, 2) })
}

/// Gives the pages of `size` bytes from `addr` back, and says what that cost.
pub fn discard(empty: u64, addr: usize, size: usize) -> u64 {
    // SAFETY: the addresses are a slot's, and nobody borrows from them.
    counter::cost(empty, || unsafe {
        libc::madvise(addr as *mut _, size, libc::MADV_DONTNEED);
    })
}

/// Unmaps a slot, and says what that cost.
pub fn unmap(empty: u64, addr: usize, size: usize) -> u64 {
    // SAFETY: as above.
    counter::cost(empty, || unsafe {
        libc::munmap(addr as *mut _, size);
    })
}
