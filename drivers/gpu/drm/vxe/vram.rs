// SPDX-License-Identifier: GPL-2.0

//! The memory of a device: who has which part of it.
//!
//! It belongs to the board, bound or not: what was allocated stays its owner's when the device is
//! unbound, and is not given to anybody else when it is bound again.
//!
//! Lock order: the allocator's own mutex is a leaf, but for memory that is allocated under it.

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

/// The unit in which it is given out, in bytes.
const PAGE: u64 = PAGE_SIZE as u64;

/// The memory of a device.
pub(crate) struct Vram {
    ram: Arc<DeviceRam>,
    buddy: GpuBuddy,
}

impl Vram {
    /// A memory of `size` bytes, all of it free.
    ///
    /// Fails with `EINVAL` unless that is a number of large pages, and `ENOMEM`.
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

    /// What the bus reaches.
    pub(crate) fn ram(&self) -> &Arc<DeviceRam> {
        &self.ram
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.ram.size()
    }

    /// How much of it is allocated, in bytes.
    pub(crate) fn used(&self) -> u64 {
        self.size().saturating_sub(self.buddy.avail())
    }

    /// Allocates `size` bytes, in as few pieces as there are. What is in them is what whoever had
    /// them before left there. RAM for it is allocated as `flags` say, but for little that the kernel's allocator
    /// needs.
    ///
    /// Fails with `EINTR` for a caller who is killed, with `ENOSPC` if there is not so much left, with
    /// `EINVAL` for no number of pages, and with `ENOMEM`, also if there is no RAM to stand for so much.
    pub(crate) fn allocate(self: &Arc<Self>, size: u64, flags: Flags) -> Result<Allocation> {
        self.allocate_aligned(size, Alignment::new::<PAGE_SIZE>(), flags)
    }

    /// Allocates a large page, as [`allocate`](Self::allocate). Fails with `ENOSPC` and `ENOMEM`.
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
            // Nothing that others give up helps.
            return Err(ENOMEM);
        }
        let mode = GpuBuddyAllocMode::Simple;
        let blocks = self
            .buddy
            .alloc_blocks(mode, size, align, GpuBuddyAllocFlags::default());
        let blocks = KBox::pin_init(blocks, flags)?;
        // The RAM stays the device's, whoever has it.
        let account = GFP_KERNEL_ACCOUNT & !GFP_KERNEL;
        let mut allocation = Allocation {
            vram: self.clone(),
            extents: KVVec::new(),
            blocks,
        };
        for block in allocation.blocks.iter() {
            let (start, len) = (block.offset(), block.size());
            match allocation.extents.last_mut() {
                Some(last) if last.end() == start => last.len += len,
                _ => allocation.extents.push(Extent { start, len }, flags)?,
            }
            // What was not given is not taken back either, in effect.
            self.ram.give(start..start + len, flags & !account)?;
        }
        Ok(allocation)
    }
}

/// A contiguous piece of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Its address.
    pub(crate) start: u64,
    /// In bytes; whole pages.
    pub(crate) len: u64,
}

impl Extent {
    /// Where it ends. Does not overflow: it is within the memory.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Where the GPU reaches it.
    pub(crate) fn target(&self) -> Target {
        Target::Vram(self.start)
    }
}

/// A part of a device's memory; dropping it gives it back. Sleeps then.
pub(crate) struct Allocation {
    vram: Arc<Vram>,
    extents: KVVec<Extent>,
    // Dropped after nobody reaches the memory any more.
    blocks: Pin<KBox<AllocatedBlocks>>,
}

impl Allocation {
    /// Its pieces, in order: neighbours are not adjacent.
    pub(crate) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// How much it is, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).sum()
    }

    /// The address of the byte at `offset`, if it has so many.
    pub(crate) fn addr(&self, mut offset: u64) -> Option<u64> {
        for extent in &self.extents {
            if offset < extent.len {
                return Some(extent.start + offset);
            }
            offset -= extent.len;
        }
        None
    }

    /// The RAM that stands for the page with this number, as long as the allocation lives.
    pub(crate) fn page(&self, index: usize) -> Option<&Page> {
        let offset = u64::try_from(index).ok()?.checked_mul(PAGE)?;
        self.vram.ram.page(self.addr(offset)?).ok()
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        for extent in &self.extents {
            self.vram.ram.take_back(extent.start..extent.end());
        }
    }
}
