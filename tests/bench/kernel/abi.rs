// SPDX-License-Identifier: GPL-2.0

//! What the module and the program say to each other. Both include this file.

/// Name of the device in `/dev`.
pub const DEVICE: &core::ffi::CStr = c"gpusvm_bench";

/// Type and number of the only ioctl; its argument is a [`Request`].
pub const IOCTL: (u32, u32) = (b'|' as u32, 0x60);

/// How many figures an operation may give.
pub const FIGURES: usize = 12;

/// One operation on addresses of the caller, and what it cost.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// One of [`op`].
    pub op: u32,
    /// What the device wants to do with memory: 1 to write, 0 to read.
    pub write: u32,
    /// First address, in bytes.
    pub addr: u64,
    /// Size in bytes; other numbers where said.
    pub size: u64,
    /// Where said.
    pub count: u64,
    /// The figures, in an order that each operation has its own, see [`op`]. Costs are in ticks of
    /// the counter, without that of reading it.
    pub figures: [u64; FIGURES],
    /// How many timer ticks came while the cost was measured, and are part of it.
    pub disturbed: u64,
}

/// Operations.
///
/// All but [`op::OPEN`] need the SVM that `OPEN` makes, and fail with `ENXIO`
/// without it; those that need a range at the address fail with `ENOENT`.
pub mod op {
    /// Makes the SVM of the calling process. `size` is the size of the largest chunk: 4 KiB, 64 KiB
    /// or 2 MiB. Figures: the size in bytes of a range, of a notifier, of a segment.
    pub const OPEN: u32 = 0;
    /// Drops the SVM. Figures: the cost.
    pub const CLOSE: u32 = 1;
    /// Serves a fault at `addr`, as a driver does; ranges may not reach out of `size` bytes from
    /// `addr`. If `count` is not 0 what is there moves to the device's memory first. Figures:
    /// [`super::fault`].
    pub const FAULT: u32 = 2;
    /// What a fault calls, alone: on `size` bytes from `addr`, for which the SVM must have a
    /// notifier. Figures: [`super::callee`].
    pub const CALLEES: u32 = 3;
    /// Looks the range at `addr` up. Figures: the cost with the driver's SVM lock held; the cost
    /// with taking and leaving it.
    pub const FIND: u32 = 4;
    /// Makes a range at `addr`, and removes it. Figures: cost of either.
    pub const INSERT_REMOVE: u32 = 5;
    /// Removes the range at `addr`. Figures: the cost.
    pub const REMOVE: u32 = 6;
    /// Calls the notifier's callback for `size` bytes from `addr`, as the MM does when the CPU
    /// changes its mappings there; for an unmapping if `count` is not 0. Figures: the cost; how
    /// often the driver was told.
    pub const INVALIDATE: u32 = 7;
    /// Makes `count` ranges of the smallest size, each `size` bytes after the last. Figures: the
    /// cost of all.
    pub const FILL: u32 = 8;
    /// Removes the ranges that the CPU unmapped. Figures: the cost; how many they were.
    pub const COLLECT: u32 = 9;
    /// What the kernel itself takes for what the core asks of it. Figures: [`super::service`].
    pub const SERVICES: u32 = 10;
    /// Gives the device memory of its own, `size` bytes, in place of what it has; none for 0. What
    /// moves there needs it, and fails with `ENODEV` without it.
    pub const MEMORY: u32 = 11;
    /// Moves `size` bytes from `addr` to the device's memory. Figures: [`super::migration`].
    pub const POPULATE: u32 = 12;
    /// Brings all that is in the device's memory back. Figures: [`super::migration`].
    pub const EVICT: u32 = 13;
    /// What was copied since this, or another operation that says it, was last called. Figures:
    /// [`super::migration`], without the total.
    pub const COPIED: u32 = 14;
}

/// Figures of [`op::FAULT`].
pub mod fault {
    /// All of it.
    pub const TOTAL: usize = 0;
    /// Taking the SVM lock, and the garbage collector, which finds nothing.
    pub const BEGIN: usize = 1;
    /// `find_or_insert`.
    pub const FIND_OR_INSERT: usize = 2;
    /// `get`: the walk, and mapping for DMA.
    pub const GET: usize = 3;
    /// `commit`: showing the addresses to the driver, which looks at each.
    pub const COMMIT: usize = 4;
    /// Leaving the SVM lock, and freeing what the walk needed.
    pub const END: usize = 5;
    /// Not a cost: how many segments the range has.
    pub const SEGMENTS: usize = 6;
    /// Not a cost: the size of the range in bytes.
    pub const SIZE: usize = 7;
    /// Not a cost: how many page-table walks were done, by a migration as well.
    pub const WALKS: usize = 8;
    /// What copying to the device's memory took.
    pub const COPY: usize = 9;
    /// Not a cost: how much was copied, in bytes.
    pub const COPIED: usize = 10;
}

/// Figures of what moves memory.
pub mod migration {
    /// All of it.
    pub const TOTAL: usize = 0;
    /// What copying and clearing took of that.
    pub const COPY: usize = 1;
    /// Not a cost: how much was copied, in bytes.
    pub const COPIED: usize = 2;
}

/// Figures of [`op::CALLEES`].
pub mod callee {
    /// The walk of the CPU's page tables, with faulting pages in: HMM.
    pub const HMM: usize = 0;
    /// Mapping all that was found for DMA.
    pub const MAP: usize = 1;
    /// Unmapping it, or learning that this device needs none.
    pub const UNMAP: usize = 2;
    /// Not a cost: how many segments that were.
    pub const SEGMENTS: usize = 3;
    /// A second walk of the same, with nothing left to fault in.
    pub const HMM_AGAIN: usize = 4;
}

/// Figures of [`op::SERVICES`].
pub mod service {
    /// A read hold of a free `rw_semaphore`.
    pub const RWSEM_READ: usize = 0;
    /// A write hold of a free `rw_semaphore`.
    pub const RWSEM_WRITE: usize = 1;
    /// Taking the driver's SVM lock, and leaving it.
    pub const SVM_LOCK: usize = 2;
    /// `mmget_not_zero()` and `mmput()`.
    pub const MMGET: usize = 3;
    /// The mmap lock for reading, and looking up the VMA at `addr`.
    pub const VMA_LOOKUP: usize = 4;
    /// Allocating and freeing `size` bytes, not zeroed.
    pub const ALLOC: usize = 5;
}
