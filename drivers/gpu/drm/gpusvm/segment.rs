// SPDX-License-Identifier: GPL-2.0

//! Device addresses of a range: one entry for each piece that is mapped, not for each page.
//!
//! C: `struct drm_pagemap_addr`, and the `dma_addr` array of `struct drm_gpusvm_pages`. C allocates
//! 16 bytes for every page of a range; here an array has as many entries as the CPU's mapping has
//! blocks. A C driver that walks the array by the orders of its entries, as all do, sees no
//! difference.

use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};
use kernel_ext::{
    alloc::thin_array::ThinArray,
    bindings as ext,
    dma::Direction, //
};

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

    /// What an operation of C's returns that could not map: `DMA_MAPPING_ERROR`.
    pub(crate) fn failed() -> Self {
        Self { addr: !0, bits: 0 }
    }

    /// Whether it is what such an operation returns.
    pub(crate) fn is_failed(&self) -> bool {
        self.addr == !0
    }

    /// Whether it is of system memory.
    #[inline]
    pub(crate) fn is_system(&self) -> bool {
        self.proto() == Protocol::SYSTEM
    }

    /// A C object.
    pub(crate) fn from_raw(raw: ext::drm_pagemap_addr) -> Self {
        // SAFETY: Both are 16 bytes of integers.
        unsafe { core::mem::transmute::<ext::drm_pagemap_addr, Self>(raw) }
    }

    /// The C object.
    pub(crate) fn into_raw(self) -> ext::drm_pagemap_addr {
        // SAFETY: Both are 16 bytes of integers.
        unsafe { core::mem::transmute::<Self, ext::drm_pagemap_addr>(self) }
    }

    /// Device address in bytes; its meaning is that of the protocol.
    #[inline]
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Who understands the address.
    #[inline]
    pub fn proto(&self) -> Protocol {
        Protocol(self.bits & ((1 << PROTO_BITS) - 1))
    }

    /// Log2 of the number of pages.
    #[inline]
    pub fn order(&self) -> u32 {
        ((self.bits >> PROTO_BITS) & ((1 << ORDER_BITS) - 1)) as u32
    }

    /// Size in bytes.
    #[inline]
    pub fn size(&self) -> usize {
        PAGE_SIZE << self.order()
    }

    /// What the device may do with it.
    #[inline]
    pub fn dir(&self) -> Direction {
        // CAST: Two bits.
        Direction::from_raw((self.bits >> (PROTO_BITS + ORDER_BITS)) as i32)
    }
}

/// Memory for the segments of one pages object, in ascending order of CPU address, `dma_addr` of
/// `struct drm_gpusvm_pages`.
///
/// How many of them are initialized is noted in the pages object, and how many there is room for is
/// known to the transaction that maps.
///
/// # Invariants
///
/// Was made for no more than `u32::MAX` segments.
#[repr(transparent)]
pub struct SegmentArray(ThinArray<Segment>);

impl SegmentArray {
    /// Memory for `segments` segments. Fails with `ENOMEM`. May sleep.
    pub fn new(segments: usize) -> Result<Self> {
        // INVARIANT: More are not counted, and refused.
        u32::try_from(segments).map_err(|_| ENOMEM)?;
        Ok(Self(ThinArray::new(segments)?))
    }

    /// The first `count` segments.
    ///
    /// # Safety
    ///
    /// So many must have been added, see [`Appender`].
    #[inline]
    pub unsafe fn first(&self, count: u32) -> &[Segment] {
        // SAFETY: By this function's requirements so many are initialized.
        unsafe { core::slice::from_raw_parts(self.0.as_ptr(), count as usize) }
    }
}

/// Adds segments to an array, and keeps count.
///
/// # Invariants
///
/// `array` was made for `room` segments; no more than that are counted, and the first of the array
/// are initialized, as many as are counted.
pub struct Appender<'a> {
    array: &'a mut SegmentArray,
    room: usize,
    count: &'a mut u32,
    read_only: &'a mut bool,
}

impl<'a> Appender<'a> {
    /// Adds to `array` behind its first `count` segments. `read_only` is set when one is added that
    /// may not be written.
    ///
    /// # Safety
    ///
    /// The array must have been made for `room` segments, and its first `count` have been added.
    #[inline]
    pub unsafe fn new(
        array: &'a mut SegmentArray,
        room: usize,
        count: &'a mut u32,
        read_only: &'a mut bool,
    ) -> Self {
        // INVARIANT: By this function's requirements.
        Self {
            array,
            room,
            count,
            read_only,
        }
    }

    /// Whether there is no room for another segment.
    #[inline]
    pub fn is_full(&self) -> bool {
        *self.count as usize >= self.room
    }

    /// Adds a segment that is mapped now. Fails with `ENOSPC` when there is no room.
    #[inline]
    pub fn push(&mut self, segment: Segment) -> Result {
        if self.is_full() {
            return Err(ENOSPC);
        }
        // SAFETY: By the type invariants there is memory for it.
        unsafe {
            self.array
                .0
                .as_ptr()
                .add(*self.count as usize)
                .write(segment)
        };
        *self.read_only |= segment.dir() != Direction::Bidirectional;
        // INVARIANT: One more is initialized. The sum is at most `room`, for which an array was made,
        // and so a `u32`.
        *self.count += 1;
        Ok(())
    }
}
