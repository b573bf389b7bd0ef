// SPDX-License-Identifier: GPL-2.0

//! Device addresses of a range: one entry for each piece that is mapped, not for each page.
//!
//! C: `struct drm_pagemap_addr`, and the `dma_addr` array of `struct drm_gpusvm_pages`. C allocates
//! 16 bytes for every page of a range; here an array has as many entries as the CPU's mapping has
//! blocks, and one more in front of them which says how many are mapped. A C driver that walks the
//! array by the orders of its entries, as all do, sees no difference.

use core::ptr::NonNull;
use kernel::{
    alloc::{KVVec, Vec},
    page::PAGE_SIZE,
    prelude::*, //
};
use kernel_ext::{bindings as ext, dma::Direction};

/// Who understands a device address, `enum drm_interconnect_protocol`; drivers may have values of
/// their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Protocol(u64);

impl Protocol {
    /// System memory: a DMA address of the device that it was mapped for.
    pub const SYSTEM: Self = Self(ext::drm_interconnect_protocol_DRM_INTERCONNECT_SYSTEM as u64);

    /// An address that the driver of the device understands; number `n` of as many kinds as that
    /// driver has.
    pub const fn driver(n: u32) -> Self {
        let first = ext::drm_interconnect_protocol_DRM_INTERCONNECT_DRIVER;
        // CAST: A wider type.
        Self(first as u64 + n as u64)
    }
}

const PROTO_BITS: u32 = 54;
const ORDER_BITS: u32 = 8;

/// A piece of a range as the device addresses it, `struct drm_pagemap_addr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    addr: u64,
    /// From the lowest bit: 54 bits protocol, 8 bits order, 2 bits direction.
    bits: u64,
}

impl Segment {
    /// A piece of `PAGE_SIZE << order` bytes at the device address `addr`.
    pub fn new(addr: u64, proto: Protocol, order: u32, dir: Direction) -> Self {
        let order = u64::from(order) & ((1 << ORDER_BITS) - 1);
        Self {
            addr,
            bits: (proto.0 & ((1 << PROTO_BITS) - 1))
                | (order << PROTO_BITS)
                | ((dir.raw() as u64) << (PROTO_BITS + ORDER_BITS)),
        }
    }

    /// What an operation of C's returns that could not map: `DMA_MAPPING_ERROR`.
    pub(crate) fn failed() -> Self {
        Self { addr: !0, bits: 0 }
    }

    /// The C object.
    pub(crate) fn into_raw(self) -> ext::drm_pagemap_addr {
        // SAFETY: Both are 16 bytes of integers.
        unsafe { core::mem::transmute::<Self, ext::drm_pagemap_addr>(self) }
    }

    /// Device address in bytes; its meaning is that of the protocol.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Who understands the address.
    pub fn proto(&self) -> Protocol {
        Protocol(self.bits & ((1 << PROTO_BITS) - 1))
    }

    /// Log2 of the number of pages.
    pub fn order(&self) -> u32 {
        ((self.bits >> PROTO_BITS) & ((1 << ORDER_BITS) - 1)) as u32
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        PAGE_SIZE << self.order()
    }

    /// What the device may do with it.
    pub fn dir(&self) -> Direction {
        // CAST: Two bits.
        Direction::from_raw((self.bits >> (PROTO_BITS + ORDER_BITS)) as i32)
    }
}

/// The segments of one pages object, in ascending order of CPU address.
///
/// # Invariants
///
/// Points to entry 1 of a `KVVec<Segment>` of at least one entry. Of entry 0, `addr` is the capacity
/// of the vector in entries, and `bits` the number of segments that are mapped, which are the first
/// of those that follow and initialized.
#[repr(transparent)]
pub struct SegmentArray(NonNull<Segment>);

// SAFETY: The array owns its memory, which may be used and freed from any thread.
unsafe impl Send for SegmentArray {}
// SAFETY: Nothing changes through a shared reference.
unsafe impl Sync for SegmentArray {}

impl SegmentArray {
    /// Memory for `segments` segments, none of them mapped. Fails with `ENOMEM`. May sleep.
    pub fn new(segments: usize) -> Result<Self> {
        let entries = segments.checked_add(1).ok_or(ENOMEM)?;
        let mut vec = KVVec::<Segment>::with_capacity(entries, GFP_KERNEL)?;
        let header = Segment {
            addr: vec.capacity() as u64,
            bits: 0,
        };
        vec.push(header, GFP_KERNEL)?;
        let (ptr, _, _) = vec.into_raw_parts();
        // INVARIANT: Entry 0 was just written; no segment is mapped.
        // SAFETY: The vector has room for at least entry 0, so that this is at most its end.
        Ok(Self(unsafe { NonNull::new_unchecked(ptr.add(1)) }))
    }

    fn header(&self) -> &Segment {
        // SAFETY: By the type invariants entry 0 is in front of the first segment.
        unsafe { self.0.sub(1).as_ref() }
    }

    fn header_mut(&mut self) -> &mut Segment {
        // SAFETY: By the type invariants entry 0 is in front of the first segment.
        unsafe { self.0.sub(1).as_mut() }
    }

    /// How many segments there is room for.
    pub fn capacity(&self) -> usize {
        (self.header().addr as usize).saturating_sub(1)
    }

    /// The segments that are mapped.
    pub fn mapped(&self) -> &[Segment] {
        // SAFETY: By the type invariants so many segments are initialized.
        unsafe { core::slice::from_raw_parts(self.0.as_ptr(), self.header().bits as usize) }
    }

    /// Adds a segment that is mapped now. Fails with `ENOSPC` when there is no room.
    pub fn push(&mut self, segment: Segment) -> Result {
        let mapped = self.header().bits as usize;
        if mapped >= self.capacity() {
            return Err(ENOSPC);
        }
        // INVARIANT: One segment more is initialized, and counted.
        // SAFETY: There is room for it.
        unsafe { self.0.add(mapped).write(segment) };
        self.header_mut().bits += 1;
        Ok(())
    }

    /// Says that no segment is mapped any more.
    pub fn clear(&mut self) {
        self.header_mut().bits = 0;
    }

    /// What the array takes, in bytes.
    pub fn memory(&self) -> usize {
        self.header().addr as usize * core::mem::size_of::<Segment>()
    }
}

impl Drop for SegmentArray {
    fn drop(&mut self) {
        let capacity = self.header().addr as usize;
        // SAFETY: By the type invariants these are the parts of a vector that nobody else owns;
        // entries need no drop, so that its length does not matter.
        drop(unsafe {
            Vec::<Segment, kernel::alloc::allocator::KVmalloc>::from_raw_parts(
                self.0.as_ptr().sub(1),
                0,
                capacity,
            )
        });
    }
}
