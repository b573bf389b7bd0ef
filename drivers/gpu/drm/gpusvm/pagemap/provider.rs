// SPDX-License-Identifier: GPL-2.0

//! Device memory of Rust drivers: what a driver implements, and what it gets.
//!
//! A driver implements [`Provider`] for what stands behind one device's memory, and makes a
//! [`DeviceMemory`] of it. Then [`DeviceMemory::populate`] moves parts of a process there, and
//! [`Block::evict`] takes the memory of an allocation back.

mod block;
mod cache;
mod device_memory;
mod inner;

pub use block::Block;
pub use cache::DeviceMemoryCache;
pub use device_memory::DeviceMemory;

use super::{
    copy_mapping::is_mapped,
    to_device::AllocRequest, //
};
use crate::segment::{Protocol, Segment};
use core::ptr::NonNull;
use kernel::{
    bindings::page,
    device::Device,
    prelude::*,
    sync::Arc, //
};
use kernel_ext::{
    dma::Direction,
    mm::zone_device, //
};

/// The memory of one device.
///
/// Memory is named by *device pages*: its pages, numbered from 0.
pub trait Provider: Send + Sync + Sized + 'static {
    /// Some device pages that are in use together. Dropped in process context, when no page of a
    /// process is there any more and all [`Block`]s are gone.
    type Memory: Send + Sync + 'static;

    /// Allocates memory for a migration, if that is to be had without waiting: no room has to be made, no page of
    /// RAM be reclaimed, and nobody be asked. None otherwise. Its contents need not be defined.
    ///
    /// Called with pages of a process isolated, so that its threads wait for them, and the mmap lock of it held
    /// for reading: what is allocated for it is allocated with `GFP_NOWAIT`, and no lock is taken under which
    /// somebody waits.
    ///
    /// Without this function there is none, and each migration collects its pages twice: once to see how
    /// many they are.
    fn try_allocate(&self, request: &AllocRequest<'_>) -> Option<Self::Memory> {
        let _ = request;
        None
    }

    /// Allocates memory for a migration; may [evict](Block::evict) for that, and wait. Its contents need not
    /// be defined. What is there of the process when this returns may be less than was asked for, and be
    /// elsewhere.
    ///
    /// Called with no page isolated, and no lock held but those of the driver's own caller. But who
    /// moves memory to a device by [`Pagemap::populate`](super::Pagemap::populate), and C code does, holds the
    /// mmap lock of the process for reading: so this must take no mmap lock, nor touch user memory. Accounted
    /// memory is charged to the process that the migration is for.
    fn allocate(&self, request: &AllocRequest<'_>) -> Result<Self::Memory>;

    /// The device page that number `index` of an allocation is at; of as many as were requested. A
    /// page is in one allocation at a time, and once; one that is not, or is not there at all, is
    /// refused.
    fn page(memory: &Self::Memory, index: usize) -> usize;

    /// Copies and clears, and waits for the end of that. Called with pages of processes isolated, and mostly with
    /// the mmap lock of one of them held for reading: must take no mmap lock, nor touch user memory.
    fn copy(&self, copy: &Copy<'_>) -> Result;

    /// Maps device pages for a device, its own or another, until [`unmap`](Self::unmap). The
    /// protocol says what the address means to that device, and is not
    /// [`SYSTEM`](Protocol::SYSTEM). Called under the notifier lock, or for a copy to these pages: must
    /// not sleep for long, nor allocate. Errors come out as `EFAULT`, or leave those pages where they
    /// are.
    fn map(&self, request: &MapRequest<'_>) -> Result<(u64, Protocol)>;

    /// Undoes [`map`](Self::map), once for each that succeeded, under the same conditions.
    fn unmap(&self, device: &Device, segment: &Segment) {
        let _ = (device, segment);
    }

    /// Pages of a process are in this memory. A driver that evicts keeps the handle until
    /// [`detached`](Self::detached), which comes after this.
    fn attached(&self, handle: Arc<Block<Self>>) {
        drop(handle);
    }

    /// No page of a process is in this memory any more, or none ever was, if the migration failed.
    fn detached(&self, memory: &Self::Memory) {
        let _ = memory;
    }
}

/// Something to do in a [`struct@Copy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyOp {
    /// Copy between device pages and RAM, or from device pages to those of another device.
    Copy {
        /// The first device page.
        page: usize,
        /// The other side: as many pages, contiguous on both. RAM, if its protocol is
        /// [`SYSTEM`](Protocol::SYSTEM); else what the [`map`](Provider::map) of the other device's
        /// provider has for this device.
        other: Segment,
    },
    /// Clear device pages.
    Clear {
        /// The first device page.
        page: usize,
        /// How many.
        pages: usize,
    },
}

/// What is to be copied, all in one direction.
pub struct Copy<'a> {
    to_device: bool,
    base: usize,
    pages: &'a [*mut page],
    others: &'a [Segment],
}

impl Copy<'_> {
    /// Whether device memory is written; else it is read.
    pub fn is_to_device(&self) -> bool {
        self.to_device
    }

    /// The pieces, in the order of their addresses.
    pub fn ops(&self) -> impl Iterator<Item = CopyOp> + '_ {
        self.pages
            .iter()
            .zip(self.others)
            .filter_map(move |(page, other)| {
                let first = NonNull::new(*page)?;
                // SAFETY: The page is one of a folio that the migration holds.
                let (page, order) = unsafe {
                    (
                        zone_device::frame_of(first) - self.base,
                        zone_device::order_of(first),
                    )
                };
                Some(if is_mapped(other) {
                    CopyOp::Copy {
                        page,
                        other: *other,
                    }
                } else {
                    CopyOp::Clear {
                        page,
                        pages: 1 << order,
                    }
                })
            })
    }
}

/// What is to be mapped for a device.
pub struct MapRequest<'a> {
    /// The device, which may be the memory's own.
    pub device: &'a Device,
    /// Whether it is.
    pub is_own: bool,
    /// The first device page.
    pub page: usize,
    /// Log2 of the number of pages.
    pub order: u32,
    /// What the device may do with them.
    pub dir: Direction,
}
