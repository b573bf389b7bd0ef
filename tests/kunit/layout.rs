// SPDX-License-Identifier: GPL-2.0

//! Tests that flags and segments have the layout of C's bit-fields.

use crate::random::Random;
use gpusvm::{layout, segment::Segment, Protocol};
use kernel::prelude::*;
use kernel_ext::{bindings::drm_pagemap_addr, dma::Direction};

#[kunit_tests(gpusvm_layout)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_cs_bit_fields() -> Result {
        ensure_eq!(layout::check_bit_fields(), Ok(()));
        Ok(())
    }

    #[test]
    fn a_segment_is_read_by_c_as_it_was_written() -> Result {
        let mut random = Random::new(0xfeed_5eed);
        for order in 0..52 {
            for dir in [Direction::Bidirectional, Direction::ToDevice] {
                let addr = random.any();
                let segment = Segment::new(addr, Protocol::SYSTEM, order, dir);
                // SAFETY: Both are 16 bytes of integers.
                let c = unsafe { core::mem::transmute::<Segment, drm_pagemap_addr>(segment) };
                ensure_eq!(c.addr, addr);
                ensure_eq!(c.order() as u32, order);
                ensure_eq!(c.dir() as i32, dir.raw());
                ensure_eq!(c.proto(), 0);
            }
        }
        Ok(())
    }

    #[test]
    fn a_segment_is_read_here_as_c_wrote_it() -> Result {
        let mut random = Random::new(0xfeed_5eed);
        for order in 0..52 {
            for dir in [Direction::Bidirectional, Direction::ToDevice] {
                let addr = random.any();
                let mut c = drm_pagemap_addr {
                    addr,
                    ..Default::default()
                };
                // A random protocol of a driver, which has 54 bits.
                c.set_proto(random.any() >> 10);
                c.set_order(u64::from(order));
                // CAST: Enum values are small.
                c.set_dir(dir.raw() as u64);
                let is_system = c.proto() == 0;
                // SAFETY: Both are 16 bytes of integers.
                let segment = unsafe { core::mem::transmute::<drm_pagemap_addr, Segment>(c) };
                ensure_eq!(segment.addr(), addr);
                ensure_eq!(segment.order(), order);
                ensure_eq!(segment.dir(), dir);
                ensure_eq!(segment.proto() == Protocol::SYSTEM, is_system);
                // A segment built from its parts is equal to the original.
                let again = Segment::new(segment.addr(), segment.proto(), order, dir);
                ensure_eq!(again, segment);
            }
        }
        Ok(())
    }
}
