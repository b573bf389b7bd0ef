// SPDX-License-Identifier: GPL-2.0

//! Device memory of Rust drivers: the [`Provider`] trait and the types that use it.
//!
//! A driver implements [`Provider`] for the memory of one device, and creates a [`DeviceMemory`] with it.
//! [`DeviceMemory::populate`] migrates parts of a process to that memory. [`Block::evict`] migrates them back and so
//! frees the memory of a block.

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

/// The driver's side of the memory of one device.
///
/// The memory consists of *device pages*, numbered from 0.
pub trait Provider: Send + Sync + Sized + 'static {
    /// The device pages of one block. Dropped in process context, when no page of a process is in the block any more
    /// and the last reference to the [`Block`] is dropped.
    type Memory: Send + Sync + 'static;

    /// Allocates memory for a migration if some is available without waiting: without evicting, without reclaim, and
    /// without waiting for another thread. Returns none otherwise. The contents are undefined.
    ///
    /// Called with pages of a process isolated, for which its threads wait, and with the mmap lock held for reading. So
    /// the provider allocates with `GFP_NOWAIT`, and takes no lock under which another thread may wait.
    ///
    /// The default implementation returns none. Each migration then collects its pages twice: the first time only to
    /// count them.
    fn try_allocate(&self, request: &AllocRequest<'_>) -> Option<Self::Memory> {
        let _ = request;
        None
    }

    /// Allocates memory for a migration; may [evict](Block::evict) and wait. The contents are undefined. When this
    /// returns, the process may have fewer pages than requested, or have them elsewhere.
    ///
    /// Called with no page isolated, and with no locks held but those of the driver itself. But
    /// [`Pagemap::populate`](super::Pagemap::populate) and C code hold the mmap lock of the process for reading. So
    /// this must neither take an mmap lock nor access user memory. Accounted memory is charged to the process whose
    /// pages are to be migrated.
    fn allocate(&self, request: &AllocRequest<'_>) -> Result<Self::Memory>;

    /// Returns the number of the device page at an index of `memory`; indices go up to the number of requested pages.
    /// The core fails the migration if the page does not exist, or is in another block or twice in this one.
    fn page(memory: &Self::Memory, index: usize) -> usize;

    /// Copies and clears device pages, and waits until that is done. Called with pages of processes isolated, and
    /// mostly with the mmap lock of one of them held for reading. Must neither take an mmap lock nor access user
    /// memory.
    fn copy(&self, copy: &Copy<'_>) -> Result;

    /// Maps device pages for a device, its own or another one, until [`unmap`](Self::unmap). Returns the address for
    /// that device, and a protocol other than [`SYSTEM`](Protocol::SYSTEM) that says what the address means. Called
    /// under the notifier lock, or for a copy to these pages: must not sleep for long, nor allocate. If this fails,
    /// mapping a range of a process fails with `EFAULT`, and a copy leaves those pages where they are.
    fn map(&self, request: &MapRequest<'_>) -> Result<(u64, Protocol)>;

    /// Undoes one successful [`map`](Self::map). Called once for each, under the same conditions.
    fn unmap(&self, device: &Device, segment: &Segment) {
        let _ = (device, segment);
    }

    /// Pages of a process are in the block now. A driver that evicts keeps the reference until
    /// [`detached`](Self::detached), which is called after this.
    fn attached(&self, handle: Arc<Block<Self>>) {
        drop(handle);
    }

    /// No page of a process is in the block any more, or none ever was, if the migration failed.
    fn detached(&self, memory: &Self::Memory) {
        let _ = memory;
    }
}

/// One operation of a [`struct@Copy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyOp {
    /// Copy between device pages and system memory, or from device pages to those of another device.
    Copy {
        /// The first device page.
        page: usize,
        /// As many contiguous pages of the other memory. If the protocol is [`SYSTEM`](Protocol::SYSTEM), it is system
        /// memory; otherwise it is what the [`map`](Provider::map) of the other device's provider returned for this
        /// device.
        other: Segment,
    },
    /// Clear device pages.
    Clear {
        /// The first device page.
        page: usize,
        /// The number of pages.
        pages: usize,
    },
}

/// A set of copies in the same direction.
pub struct Copy<'a> {
    to_device: bool,
    base: usize,
    pages: &'a [*mut page],
    others: &'a [Segment],
}

impl Copy<'_> {
    /// Returns whether the copies write to device memory; otherwise they read it.
    pub fn is_to_device(&self) -> bool {
        self.to_device
    }

    /// Returns the operations, in ascending order of addresses.
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

/// A mapping that a provider is to create.
pub struct MapRequest<'a> {
    /// The device, which may be the one that owns the memory.
    pub device: &'a Device,
    /// Whether the device owns the memory.
    pub is_own: bool,
    /// The first device page.
    pub page: usize,
    /// Log2 of the number of pages.
    pub order: u32,
    /// The direction of the device's accesses.
    pub dir: Direction,
}
