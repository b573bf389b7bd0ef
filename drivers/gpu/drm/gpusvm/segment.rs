// SPDX-License-Identifier: GPL-2.0

//! Device addresses of a range: one entry for each contiguous piece that is mapped, not for each
//! page.
//!
//! C: `struct drm_pagemap_addr`, and the `dma_addr` array of `struct drm_gpusvm_pages`. C allocates
//! 16 bytes for every page of a range; here an array has as many entries as the CPU's mapping has
//! blocks. A C driver that walks the array by the orders of its entries, as all do, needs no
//! change.

use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};
use kernel_ext::{
    alloc::thin_array::ThinArray,
    bindings as ext,
    dma::Direction, //
};

/// The kind of a device address, `enum drm_interconnect_protocol`; drivers may define values of
/// their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Protocol(u64);

impl Protocol {
    /// System memory: a DMA address of the device that it was mapped for.
    pub const SYSTEM: Self = Self(ext::drm_interconnect_protocol_DRM_INTERCONNECT_SYSTEM as u64);

    /// A device address whose meaning the driver of the device defines; `n` numbers that driver's
    /// kinds of addresses.
    pub const fn driver(n: u32) -> Self {
        let first = ext::drm_interconnect_protocol_DRM_INTERCONNECT_DRIVER;
        // CAST: A wider type.
        Self(first as u64 + n as u64)
    }
}

const PROTO_BITS: u32 = 54;
const ORDER_BITS: u32 = 8;

/// A contiguous piece of a range, with its device address, `struct drm_pagemap_addr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    addr: u64,
    /// From the lowest bit: 54 bits protocol, 8 bits order, 2 bits direction.
    bits: u64,
}

impl Segment {
    /// Creates a segment of `PAGE_SIZE << order` bytes at the device address `addr`.
    #[inline]
    pub fn new(addr: u64, proto: Protocol, order: u32, dir: Direction) -> Self {
        let order = u64::from(order) & ((1 << ORDER_BITS) - 1);
        Self {
            addr,
            bits: (proto.0 & ((1 << PROTO_BITS) - 1))
                | (order << PROTO_BITS)
                | ((dir.raw() as u64) << (PROTO_BITS + ORDER_BITS)),
        }
    }

    /// Returns the result of a C operation that failed to map: `DMA_MAPPING_ERROR`.
    pub(crate) fn failed() -> Self {
        Self { addr: !0, bits: 0 }
    }

    /// Returns whether a C operation failed to map.
    pub(crate) fn is_failed(&self) -> bool {
        self.addr == !0
    }

    /// Returns whether the segment is system memory.
    #[inline]
    pub(crate) fn is_system(&self) -> bool {
        self.proto() == Protocol::SYSTEM
    }

    /// Converts from the C object.
    pub(crate) fn from_raw(raw: ext::drm_pagemap_addr) -> Self {
        // SAFETY: Both are 16 bytes of integers.
        unsafe { core::mem::transmute::<ext::drm_pagemap_addr, Self>(raw) }
    }

    /// Converts to the C object.
    pub(crate) fn into_raw(self) -> ext::drm_pagemap_addr {
        // SAFETY: Both are 16 bytes of integers.
        unsafe { core::mem::transmute::<Self, ext::drm_pagemap_addr>(self) }
    }

    /// Returns the device address, in bytes; [`proto`](Self::proto) says what it means.
    #[inline]
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Returns the kind of the device address.
    #[inline]
    pub fn proto(&self) -> Protocol {
        Protocol(self.bits & ((1 << PROTO_BITS) - 1))
    }

    /// Returns the base-2 logarithm of the number of pages.
    #[inline]
    pub fn order(&self) -> u32 {
        ((self.bits >> PROTO_BITS) & ((1 << ORDER_BITS) - 1)) as u32
    }

    /// Returns the size in bytes.
    #[inline]
    pub fn size(&self) -> usize {
        PAGE_SIZE << self.order()
    }

    /// Returns the DMA direction, which says whether the device may write.
    #[inline]
    pub fn dir(&self) -> Direction {
        // CAST: The value has two bits.
        Direction::from_raw((self.bits >> (PROTO_BITS + ORDER_BITS)) as i32)
    }
}

/// The memory for the segments of one pages object, in ascending order of CPU address; `dma_addr`
/// of `struct drm_gpusvm_pages`.
///
/// The pages object counts the initialized segments. The transaction that maps knows the capacity.
///
/// # Invariants
///
/// The array was allocated for at most `u32::MAX` segments.
#[repr(transparent)]
pub struct SegmentArray(ThinArray<Segment>);

impl SegmentArray {
    /// Allocates memory for `segments` segments. Fails with `ENOMEM`. May sleep.
    pub fn new(segments: usize) -> Result<Self> {
        // INVARIANT: More than `u32::MAX` segments are refused.
        u32::try_from(segments).map_err(|_| ENOMEM)?;
        Ok(Self(ThinArray::new(segments)?))
    }

    /// Returns the first `count` segments.
    ///
    /// # Safety
    ///
    /// At least `count` segments must have been added, see [`Appender`].
    #[inline]
    pub unsafe fn first(&self, count: u32) -> &[Segment] {
        // SAFETY: The caller guarantees that the first `count` segments are initialized.
        unsafe { core::slice::from_raw_parts(self.0.as_ptr(), count as usize) }
    }
}

/// Appends segments to an array, and counts them.
///
/// # Invariants
///
/// `array` was allocated for `room` segments. `count` is at most `room`, and the first `count`
/// segments are initialized.
pub struct Appender<'a> {
    array: &'a mut SegmentArray,
    room: usize,
    count: &'a mut u32,
    read_only: &'a mut bool,
}

impl<'a> Appender<'a> {
    /// Creates an appender for `array`, of which the first `count` segments are initialized. The
    /// appender sets `read_only` when it appends a segment that the device may not write to.
    ///
    /// # Safety
    ///
    /// The array must have been allocated for `room` segments, and its first `count` must be
    /// initialized.
    #[inline]
    pub unsafe fn new(
        array: &'a mut SegmentArray,
        room: usize,
        count: &'a mut u32,
        read_only: &'a mut bool,
    ) -> Self {
        // INVARIANT: The caller guarantees it.
        Self {
            array,
            room,
            count,
            read_only,
        }
    }

    /// Returns whether there is no room for another segment.
    #[inline]
    pub fn is_full(&self) -> bool {
        *self.count as usize >= self.room
    }

    /// Appends a segment that has just been mapped. Fails with `ENOSPC` if there is no room.
    #[inline]
    pub fn push(&mut self, segment: Segment) -> Result {
        if self.is_full() {
            return Err(ENOSPC);
        }
        // SAFETY: `count` is less than `room`, for which the array was allocated by the type
        // invariants.
        unsafe {
            self.array
                .0
                .as_ptr()
                .add(*self.count as usize)
                .write(segment)
        };
        *self.read_only |= segment.dir() != Direction::Bidirectional;
        // INVARIANT: One more segment is initialized. The sum is at most `room`, for which an array
        // was allocated, and so fits in a `u32`.
        *self.count += 1;
        Ok(())
    }
}
