// SPDX-License-Identifier: GPL-2.0

//! Pages that an access is expected of: a fault on them was serviced, and its access is to be tried again.
//!
//! A driver that takes such a page away before that has made the fault worthless. What is noted here tells
//! it, like the accessed bit of a page-table entry, whether the access was made. It is no more than a hint:
//! there is room for few pages, a later one takes the place of an earlier one, and any access to the page
//! counts.

use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Relaxed}, //
};

/// How many pages are noted at most.
const SLOTS: usize = 16;

/// No page: page numbers are smaller.
const NONE: u64 = u64::MAX;

/// The pages, by their numbers.
pub(super) struct Expected([Atomic<u64>; SLOTS]);

impl Expected {
    pub(super) fn new() -> Self {
        Self([const { Atomic::new(NONE) }; SLOTS])
    }

    fn slot(&self, page: u64) -> &Atomic<u64> {
        // In bounds: a remainder of the number of slots.
        &self.0[(page % SLOTS as u64) as usize]
    }

    /// From now on an access to the page is expected.
    pub(super) fn note(&self, page: u64) {
        self.slot(page).store(page, Relaxed);
    }

    /// The page was accessed.
    pub(super) fn met(&self, page: u64) {
        let slot = self.slot(page);
        if slot.load(Relaxed) == page {
            slot.store(NONE, Relaxed);
        }
    }

    /// Whether an access to the page is expected still.
    pub(super) fn has(&self, page: u64) -> bool {
        self.slot(page).load(Relaxed) == page
    }
}

#[kunit_tests(vxe_gpu_expected)]
mod tests {
    use super::*;

    #[test]
    fn an_access_meets_what_was_expected() {
        let expected = Expected::new();
        assert!(!expected.has(0) && !expected.has(7));
        expected.note(7);
        expected.note(8);
        // One that is as good as any, but for its number.
        expected.met(7 + SLOTS as u64);
        assert!(expected.has(7) && expected.has(8));
        expected.met(7);
        assert!(!expected.has(7) && expected.has(8));
    }

    #[test]
    fn the_last_one_counts() {
        let expected = Expected::new();
        expected.note(7);
        expected.note(7 + SLOTS as u64);
        assert!(!expected.has(7) && expected.has(7 + SLOTS as u64));
    }
}
