// SPDX-License-Identifier: GPL-2.0

//! The location of a buffer's memory on the bus.

use crate::{
    gpu::Target,
    vram::Allocation, //
};
use kernel::prelude::*;
use vxe_sim::system_pages;

/// A contiguous piece of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// The offset in the buffer, in bytes.
    offset: u64,
    /// The bus target.
    pub(crate) target: Target,
    /// The length in bytes, a multiple of the page size.
    pub(crate) len: u64,
}

impl Segment {
    /// Returns the end offset. Does not overflow: buffers are in memory.
    fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// The segments of a buffer, in order.
pub(crate) struct Segments {
    list: KVVec<Segment>,
    size: u64,
}

impl Segments {
    /// Creates an empty list.
    pub(super) fn new() -> Self {
        Self {
            list: KVVec::new(),
            size: 0,
        }
    }

    /// Creates the segments of device memory. Fails with `ENOMEM`.
    pub(super) fn of(allocation: &Allocation) -> Result<Self> {
        let mut segments = Self::new();
        for extent in allocation.extents() {
            segments.add(extent.target(), extent.len)?;
        }
        Ok(segments)
    }

    /// Adds the next segment. Fails with `ENOMEM`.
    pub(super) fn add(&mut self, target: Target, len: u64) -> Result {
        let segment = Segment {
            offset: self.size,
            target,
            len,
        };
        self.list.push(segment, system_pages::flags())?;
        // Does not overflow: the sum is the size of memory.
        self.size += len;
        Ok(())
    }

    /// Returns the segments from the one with the byte at `offset`, and the offset in that segment.
    /// Empty if the segments end before `offset`.
    pub(crate) fn starting_at(&self, offset: u64) -> (&[Segment], u64) {
        let first = self.list.partition_point(|segment| segment.end() <= offset);
        let rest = self.list.get(first..).unwrap_or(&[]);
        let skip = rest.first().map_or(0, |segment| offset - segment.offset);
        (rest, skip)
    }

    /// Returns the target of the byte at `offset`, and how many bytes are contiguous from there on.
    pub(super) fn target(&self, offset: u64) -> Option<(Target, u64)> {
        let (segments, skip) = self.starting_at(offset);
        let segment = segments.first()?;
        Some((segment.target.offset(skip), segment.len - skip))
    }

    /// Returns the size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }
}
