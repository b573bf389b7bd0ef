// SPDX-License-Identifier: GPL-2.0

//! Tests of the capacity of arrays of segments, and of their memory.

use gpusvm::{
    segment::{Appender, Segment, SegmentArray},
    Protocol, //
};
use kernel::{bindings, page::PAGE_SIZE, prelude::*};
use kernel_ext::dma::Direction;

fn segment(index: usize) -> Segment {
    let dir = if index % 3 == 0 {
        Direction::ToDevice
    } else {
        Direction::Bidirectional
    };
    // CAST: The index is small.
    let order = index as u32 % 10;
    Segment::new((index as u64) << 21, Protocol::SYSTEM, order, dir)
}

/// An array, with its capacity and its contents' properties.
struct Filled {
    array: SegmentArray,
    room: usize,
    count: u32,
    read_only: bool,
}

impl Filled {
    /// Returns an array with room for `room` segments.
    fn new(room: usize) -> Result<Self> {
        Ok(Self {
            array: SegmentArray::new(room)?,
            room,
            count: 0,
            read_only: false,
        })
    }

    fn appender(&mut self) -> Appender<'_> {
        // SAFETY: The array was allocated for `room` segments, and `count` of them were added.
        unsafe {
            Appender::new(
                &mut self.array,
                self.room,
                &mut self.count,
                &mut self.read_only,
            )
        }
    }

    fn push(&mut self, segment: Segment) -> Result {
        self.appender().push(segment)
    }

    fn segments(&self) -> &[Segment] {
        // SAFETY: `count` segments were added.
        unsafe { self.array.first(self.count) }
    }

    /// Returns the size of the allocation, in bytes.
    fn memory(&self) -> usize {
        // SAFETY: Arrays that are not large are from kmalloc().
        unsafe { bindings::ksize(self.segments().as_ptr().cast()) }
    }
}

#[kunit_tests(gpusvm_segment)]
mod tests {
    use super::*;

    #[test]
    fn an_array_holds_what_it_was_made_for_and_no_more() -> Result {
        // The largest comes from vmalloc().
        for room in [1, 2, 3, 64, 512, 513, 40000] {
            let mut array = Filled::new(room)?;
            ensure!(array.segments().is_empty());
            for index in 0..room {
                ensure!(!array.appender().is_full());
                array.push(segment(index))?;
                ensure_eq!(array.segments().len(), index + 1);
            }
            ensure!(array.appender().is_full());
            ensure_eq!(array.push(segment(room)), Err(ENOSPC));
            ensure_eq!(array.segments().len(), room);
            for (index, added) in array.segments().iter().enumerate() {
                ensure_eq!(*added, segment(index));
            }
        }
        Ok(())
    }

    #[test]
    fn one_hand_adds_what_another_left() -> Result {
        let mut array = Filled::new(4)?;
        for _ in 0..3 {
            for half in [0, 2] {
                let mut appender = array.appender();
                appender.push(segment(half))?;
                appender.push(segment(half + 1))?;
            }
            ensure_eq!(array.push(segment(9)), Err(ENOSPC));
            ensure!(array.segments().iter().copied().eq((0..4).map(segment)));
            // The array is used again.
            array.count = 0;
            ensure!(array.segments().is_empty());
        }
        Ok(())
    }

    #[test]
    fn it_is_noted_that_a_segment_may_not_be_written() -> Result {
        for read_only in 0..8 {
            let mut array = Filled::new(8)?;
            for index in 0..8 {
                let dir = if index == read_only {
                    Direction::ToDevice
                } else {
                    Direction::Bidirectional
                };
                array.push(Segment::new(0, Protocol::SYSTEM, 0, dir))?;
                ensure_eq!(array.read_only, index >= read_only);
            }
        }
        Ok(())
    }

    #[test]
    fn memory_is_in_proportion_to_segments() -> Result {
        // The allocator has slabs of exactly these sizes. 2 MiB in one segment take 16 bytes, and
        // in single pages 8 KiB.
        for segments in [4, 16, 64, 512] {
            ensure_eq!(Filled::new(segments)?.memory(), 16 * segments);
        }
        ensure!(Filled::new(1)?.memory() <= 64);
        Ok(())
    }

    #[test]
    fn impossible_sizes_are_refused() -> Result {
        for segments in [usize::MAX, usize::MAX / 16, u32::MAX as usize + 1] {
            ensure_eq!(SegmentArray::new(segments).err(), Some(ENOMEM));
        }
        let mut none = Filled::new(0)?;
        ensure!(none.segments().is_empty());
        ensure_eq!(none.push(segment(0)), Err(ENOSPC));
        Ok(())
    }

    #[test]
    fn a_segment_knows_its_size() -> Result {
        for order in 0..10 {
            let segment = Segment::new(0, Protocol::SYSTEM, order, Direction::ToDevice);
            ensure_eq!(segment.size(), PAGE_SIZE * (1 << order));
        }
        Ok(())
    }
}
