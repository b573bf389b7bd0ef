// SPDX-License-Identifier: GPL-2.0

//! Pages whose fault was serviced, and whose access is yet to be repeated.
//!
//! If a driver invalidates such a page before the access, the fault was serviced in vain. Like the
//! accessed bit of a page-table entry, this list tells the driver whether the access took place. It
//! is only a hint: it has room for few pages, a later page may replace an earlier one, and any
//! access to the page counts.

use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Relaxed}, //
};

/// The most pages in the list.
const SLOTS: usize = 16;

/// No page: page numbers are smaller.
const NONE: u64 = u64::MAX;

/// The pages, by their numbers.
pub(super) struct ExpectedAccesses([Atomic<u64>; SLOTS]);

impl ExpectedAccesses {
    pub(super) fn new() -> Self {
        Self([const { Atomic::new(NONE) }; SLOTS])
    }

    fn slot(&self, page: u64) -> &Atomic<u64> {
        // In bounds: a remainder of the number of slots.
        &self.0[(page % SLOTS as u64) as usize]
    }

    /// Records that an access to the page is expected.
    pub(super) fn add(&self, page: u64) {
        self.slot(page).store(page, Relaxed);
    }

    /// Records an access to the page.
    pub(super) fn accessed(&self, page: u64) {
        let slot = self.slot(page);
        if slot.load(Relaxed) == page {
            slot.store(NONE, Relaxed);
        }
    }

    /// Returns whether an access to the page is still expected.
    pub(super) fn is_expected(&self, page: u64) -> bool {
        self.slot(page).load(Relaxed) == page
    }
}

#[kunit_tests(vxe_gpu_expected)]
mod tests {
    use super::*;

    #[test]
    fn an_access_meets_what_was_expected() {
        let expected = ExpectedAccesses::new();
        assert!(!expected.is_expected(0) && !expected.is_expected(7));
        expected.add(7);
        expected.add(8);
        // Another page in the same slot.
        expected.accessed(7 + SLOTS as u64);
        assert!(expected.is_expected(7) && expected.is_expected(8));
        expected.accessed(7);
        assert!(!expected.is_expected(7) && expected.is_expected(8));
    }

    #[test]
    fn the_last_one_counts() {
        let expected = ExpectedAccesses::new();
        expected.add(7);
        expected.add(7 + SLOTS as u64);
        assert!(!expected.is_expected(7) && expected.is_expected(7 + SLOTS as u64));
    }
}
