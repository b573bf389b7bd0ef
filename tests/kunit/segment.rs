// SPDX-License-Identifier: GPL-2.0

//! Arrays of segments: how many there may be, and what they take.

use gpusvm::{
    segment::{Segment, SegmentArray},
    Protocol, //
};
use kernel::{page::PAGE_SIZE, prelude::*};
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

#[kunit_tests(gpusvm_segment)]
mod tests {
    use super::*;

    #[test]
    fn an_array_holds_what_it_was_made_for_and_no_more() -> Result {
        // The largest comes from vmalloc().
        for capacity in [1, 2, 3, 64, 512, 513, 40000] {
            let mut array = SegmentArray::new(capacity)?;
            ensure_eq!(array.capacity(), capacity);
            ensure!(array.mapped().is_empty());
            for index in 0..capacity {
                array.push(segment(index))?;
                ensure_eq!(array.mapped().len(), index + 1);
            }
            ensure_eq!(array.push(segment(capacity)), Err(ENOSPC));
            ensure_eq!(array.mapped().len(), capacity);
            for (index, mapped) in array.mapped().iter().enumerate() {
                ensure_eq!(*mapped, segment(index));
            }
        }
        Ok(())
    }

    #[test]
    fn a_cleared_array_is_used_again() -> Result {
        let mut array = SegmentArray::new(4)?;
        for _ in 0..3 {
            for index in 0..4 {
                array.push(segment(index + 1))?;
            }
            ensure_eq!(array.push(segment(9)), Err(ENOSPC));
            array.clear();
            ensure!(array.mapped().is_empty());
            ensure_eq!(array.capacity(), 4);
        }
        Ok(())
    }

    #[test]
    fn memory_is_in_proportion_to_segments() -> Result {
        // 2 MiB in one piece: two entries of 16 bytes, where one for each page takes 8 KiB.
        ensure_eq!(SegmentArray::new(1)?.memory(), 32);
        for segments in [2, 16, 512] {
            ensure_eq!(SegmentArray::new(segments)?.memory(), 16 * (segments + 1));
        }
        Ok(())
    }

    #[test]
    fn impossible_sizes_are_refused() -> Result {
        ensure_eq!(SegmentArray::new(usize::MAX).err(), Some(ENOMEM));
        ensure_eq!(SegmentArray::new(usize::MAX / 16).err(), Some(ENOMEM));
        let mut none = SegmentArray::new(0)?;
        ensure_eq!(none.capacity(), 0);
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
