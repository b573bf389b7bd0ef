// SPDX-License-Identifier: GPL-2.0

//! A device's own memory, which is plain memory of the kernel, and how much is copied there and back.
//!
//! Nothing of it costs anything but the copies, as far as that can be: memory is given out one after
//! the other, and all of it is free again when none is in use.

use crate::clock;
use gpusvm::{
    pagemap::{
        provider::{Block, Copy, CopyOp, DeviceMemory, MapRequest, Provider},
        to_device::AllocRequest, //
    },
    segment::Segment,
    DrmDevice,
    Protocol, //
};
use kernel::{
    device::{self, Bound},
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        new_mutex,
        Arc,
        Mutex, //
    }, //
};
use kernel_ext::mm::zone_device::HUGE_PAGES;
use vxe_sim::dma_memory::DmaMemory;

/// How addresses of this memory are told from others.
const PROTOCOL: Protocol = Protocol::driver(1);

/// What was copied, or cleared.
#[derive(Clone, Copy, Default)]
pub(crate) struct Copied {
    /// What that cost.
    pub(crate) cost: u64,
    /// How much was copied, in bytes.
    pub(crate) bytes: u64,
}

/// What is in use.
#[derive(Default)]
struct Use {
    next: usize,
    allocations: usize,
}

/// What allocations refer to.
#[pin_data]
struct Shared {
    #[pin]
    used: Mutex<Use>,
    pages: usize,
}

type Blocks = KVec<Arc<Block<Vram>>>;

/// The provider.
pub(crate) struct Vram {
    shared: Arc<Shared>,
    port: DmaMemory,
    bytes: Pin<KBox<Mutex<KVVec<u8>>>>,
    blocks: Pin<KBox<Mutex<Blocks>>>,
    cost: Atomic<u64>,
    copied: Atomic<u64>,
}

/// An allocation: so many pages in a row.
pub(crate) struct Memory {
    shared: Arc<Shared>,
    first: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut used = self.shared.used.lock();
        used.allocations -= 1;
        if used.allocations == 0 {
            used.next = 0;
        }
    }
}

impl Vram {
    /// Memory of `size` bytes, for a device that is `parent` to the bus.
    pub(crate) fn new(
        drm: &DrmDevice,
        parent: &device::Device<Bound>,
        size: usize,
    ) -> Result<DeviceMemory<Self>> {
        let bytes = KVVec::from_elem(0, size, GFP_KERNEL)?;
        let shared = pin_init!(Shared {
            used <- new_mutex!(Use::default(), "gpusvm_bench.used"),
            pages: size / PAGE_SIZE,
        });
        let vram = Self {
            shared: Arc::pin_init(shared, GFP_KERNEL)?,
            port: DmaMemory::new(parent)?,
            bytes: KBox::pin_init(new_mutex!(bytes, "gpusvm_bench.bytes"), GFP_KERNEL)?,
            // There are not more than one for each of the smallest chunks.
            blocks: KBox::pin_init(
                new_mutex!(
                    KVec::with_capacity(1024, GFP_KERNEL)?,
                    "gpusvm_bench.blocks"
                ),
                GFP_KERNEL,
            )?,
            cost: Atomic::new(0),
            copied: Atomic::new(0),
        };
        DeviceMemory::new(drm, size, None, vram)
    }

    /// What was copied since this was last called.
    pub(crate) fn take_copied(&self) -> Copied {
        Copied {
            cost: self.cost.xchg(0, Relaxed),
            bytes: self.copied.xchg(0, Relaxed),
        }
    }

    /// One of the allocations that pages of a process are in.
    pub(crate) fn handle(&self) -> Option<Arc<Block<Self>>> {
        self.blocks.lock().last().cloned()
    }
}

impl Provider for Vram {
    type Memory = Memory;

    fn try_allocate(&self, request: &AllocRequest<'_>) -> Option<Memory> {
        self.allocate(request).ok()
    }

    fn allocate(&self, request: &AllocRequest<'_>) -> Result<Memory> {
        let whole = request.orders().any(|order| order != 0);
        let align = if whole { HUGE_PAGES } else { 1 };
        let mut used = self.shared.used.lock();
        let first = used.next.next_multiple_of(align);
        let end = first.checked_add(request.pages()).ok_or(ENOSPC)?;
        if end > self.shared.pages {
            return Err(ENOSPC);
        }
        used.next = end;
        used.allocations += 1;
        drop(used);
        Ok(Memory {
            shared: self.shared.clone(),
            first,
        })
    }

    fn page(memory: &Memory, index: usize) -> usize {
        memory.first + index
    }

    fn copy(&self, copy: &Copy<'_>) -> Result {
        let mut memory = self.bytes.lock();
        let begin = clock::now();
        let mut copied = 0;
        for piece in copy.ops() {
            let (first, pages) = match piece {
                CopyOp::Copy { page, other } => (page, 1 << other.order()),
                CopyOp::Clear { page, pages } => (page, pages),
            };
            let start = first * PAGE_SIZE;
            let bytes = memory
                .get_mut(start..start + pages * PAGE_SIZE)
                .ok_or(EINVAL)?;
            let CopyOp::Copy { other, .. } = piece else {
                bytes.fill(0);
                continue;
            };
            copied += bytes.len() as u64;
            let addresses = (other.addr()..).step_by(PAGE_SIZE);
            for (page, addr) in bytes.chunks_exact_mut(PAGE_SIZE).zip(addresses) {
                if copy.is_to_device() {
                    // SAFETY: The RAM is mapped for this device.
                    unsafe { self.port.read(addr, page) }?;
                } else {
                    // SAFETY: The RAM is mapped for this device.
                    unsafe { self.port.write(addr, page) }?;
                }
            }
        }
        self.cost
            .fetch_add(clock::now().wrapping_sub(begin), Relaxed);
        self.copied.fetch_add(copied, Relaxed);
        Ok(())
    }

    fn map(&self, request: &MapRequest<'_>) -> Result<(u64, Protocol)> {
        match request.is_own {
            // CAST: An address in the memory.
            true => Ok(((request.page * PAGE_SIZE) as u64, PROTOCOL)),
            false => Err(EOPNOTSUPP),
        }
    }

    fn unmap(&self, _device: &device::Device, _segment: &Segment) {}

    fn attached(&self, handle: Arc<Block<Self>>) {
        // What there is no room for cannot be evicted, which fails the measurement.
        let _ = self.blocks.lock().push_within_capacity(handle);
    }

    fn detached(&self, memory: &Memory) {
        let mut blocks = self.blocks.lock();
        let place = blocks
            .iter()
            .position(|handle| core::ptr::eq(handle.memory(), memory));
        let handle = place.and_then(|place| blocks.remove(place).ok());
        drop(blocks);
        drop(handle);
    }
}
