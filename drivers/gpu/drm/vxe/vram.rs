// SPDX-License-Identifier: GPL-2.0

//! The allocator of a device's memory.
//!
//! The memory belongs to the board, not to the binding: an allocation outlives unbind, and its
//! memory is not allocated again when the device is bound anew.
//!
//! Lock order: the allocator's mutex is a leaf, except that its holder allocates memory.

use crate::gpu::Target;
use kernel::{
    alloc::Flags,
    gpu::buddy::{
        AllocatedBlocks,
        GpuBuddy,
        GpuBuddyAllocFlags,
        GpuBuddyAllocMode,
        GpuBuddyParams, //
    },
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*,
    ptr::Alignment,
    sizes::SZ_2M,
    sync::Arc, //
};
use vxe_sim::device_ram::DeviceRam;

/// The unit of allocation, in bytes.
const PAGE: u64 = PAGE_SIZE as u64;

/// The memory of a device.
pub(crate) struct Vram {
    ram: Arc<DeviceRam>,
    buddy: GpuBuddy,
}

impl Vram {
    /// Creates a memory of `size` bytes.
    ///
    /// Fails with `EINVAL` unless `size` is a positive multiple of the large page, and with
    /// `ENOMEM`.
    pub(crate) fn new(size: u64) -> Result<Arc<Self>> {
        // CAST: Widens.
        if size == 0 || size % SZ_2M as u64 != 0 {
            return Err(EINVAL);
        }
        let vram = Self {
            ram: Arc::new(DeviceRam::new(size)?, GFP_KERNEL)?,
            buddy: GpuBuddy::new(GpuBuddyParams {
                base_offset: 0,
                size,
                chunk_size: Alignment::new::<PAGE_SIZE>(),
            })?,
        };
        Ok(Arc::new(vram, GFP_KERNEL)?)
    }

    /// Returns the RAM that backs the memory, as the bus accesses it.
    pub(crate) fn ram(&self) -> &Arc<DeviceRam> {
        &self.ram
    }

    /// Returns the size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.ram.size()
    }

    /// Returns the number of allocated bytes.
    pub(crate) fn used(&self) -> u64 {
        self.size().saturating_sub(self.buddy.avail())
    }

    /// Allocates `size` bytes in as few pieces as possible. The memory holds what its previous user
    /// wrote. The RAM that backs it is allocated with `flags`; the buddy allocator's own small
    /// allocations are not.
    ///
    /// Fails with `EINTR` if the caller is killed, `ENOSPC` without enough free memory, `EINVAL`
    /// unless `size` is a positive multiple of the page size, and `ENOMEM`, also if `size` exceeds
    /// the memory.
    pub(crate) fn allocate(self: &Arc<Self>, size: u64, flags: Flags) -> Result<Allocation> {
        self.allocate_aligned(size, Alignment::new::<PAGE_SIZE>(), flags)
    }

    /// Allocates a large page, as [`allocate`](Self::allocate) does. Fails with `ENOSPC` and
    /// `ENOMEM`.
    pub(crate) fn allocate_large(self: &Arc<Self>, flags: Flags) -> Result<Allocation> {
        self.allocate_aligned(SZ_2M as u64, Alignment::new::<SZ_2M>(), flags)
    }

    fn allocate_aligned(
        self: &Arc<Self>,
        size: u64,
        align: Alignment,
        flags: Flags,
    ) -> Result<Allocation> {
        if size == 0 || size % PAGE != 0 {
            return Err(EINVAL);
        }
        if size > self.size() {
            // No eviction can help.
            return Err(ENOMEM);
        }
        let mode = GpuBuddyAllocMode::Simple;
        let blocks = self
            .buddy
            .alloc_blocks(mode, size, align, GpuBuddyAllocFlags::default());
        let blocks = KBox::pin_init(blocks, flags)?;
        // The RAM belongs to the device, so it is not charged to the caller's memory cgroup.
        let account = GFP_KERNEL_ACCOUNT & !GFP_KERNEL;
        let mut allocation = Allocation {
            vram: self.clone(),
            extents: KVVec::new(),
            offsets: KVVec::new(),
            blocks,
        };
        let mut offset = 0;
        for block in allocation.blocks.iter() {
            let (start, len) = (block.offset(), block.size());
            match allocation.extents.last_mut() {
                Some(last) if last.end() == start => last.len += len,
                _ => {
                    allocation.extents.push(Extent { start, len }, flags)?;
                    allocation.offsets.push(offset, flags)?;
                }
            }
            offset += len;
            // On failure, dropping `allocation` takes back extents that were not given too, which
            // is harmless.
            self.ram.grant(start..start + len, flags & !account)?;
        }
        Ok(allocation)
    }
}

/// A contiguous piece of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The start address.
    pub(crate) start: u64,
    /// The length in bytes, a multiple of the page size.
    pub(crate) len: u64,
}

impl Extent {
    /// Returns the end. Does not overflow: the extent lies within the memory.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Returns the bus target of the extent's start.
    pub(crate) fn target(&self) -> Target {
        Target::Vram(self.start)
    }
}

/// An allocation of a device's memory. Dropping it frees the memory; the drop may sleep.
pub(crate) struct Allocation {
    vram: Arc<Vram>,
    extents: KVVec<Extent>,
    /// Where each extent begins in the allocation.
    offsets: KVVec<u64>,
    // Freed last, when no mapping or copy uses the memory any more.
    blocks: Pin<KBox<AllocatedBlocks>>,
}

impl Allocation {
    /// Returns the extents in order. Neighbours in the slice are not adjacent in memory.
    pub(crate) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Returns the size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).sum()
    }

    /// Returns the address of the byte at `offset`, if the allocation is that large.
    pub(crate) fn addr(&self, offset: u64) -> Option<u64> {
        let index = self
            .offsets
            .partition_point(|start| *start <= offset)
            .checked_sub(1)?;
        let extent = self.extents.get(index)?;
        // Does not underflow: the extent begins at or before the offset.
        let within = offset - self.offsets.get(index)?;
        (within < extent.len).then_some(extent.start + within)
    }

    /// Returns the RAM page that backs page `index` of the allocation.
    pub(crate) fn page(&self, index: usize) -> Option<&Page> {
        let offset = u64::try_from(index).ok()?.checked_mul(PAGE)?;
        self.vram.ram.page(self.addr(offset)?).ok()
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        for extent in &self.extents {
            self.vram.ram.revoke(extent.start..extent.end());
        }
    }
}
