// SPDX-License-Identifier: GPL-2.0

//! A budget for tearing down VMs.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// How many ranges and VMAs a thread that closes VMs still removes itself. The collection work
/// removes the rest, so that closing takes a few milliseconds, whatever the VMs contain. All VMs of
/// a closed file share one budget.
pub(crate) struct TeardownBudget(Atomic<usize>);

impl TeardownBudget {
    const PIECES: usize = 2048;

    /// Creates an unused budget.
    pub(crate) fn new() -> Self {
        Self(Atomic::new(Self::PIECES))
    }

    /// Takes one range or VMA from the budget. Returns whether there was one left. Called by one
    /// thread at a time.
    pub(super) fn take(&self) -> bool {
        let left = self.0.load(Relaxed);
        self.0.store(left.saturating_sub(1), Relaxed);
        left != 0
    }
}

#[cfg(CONFIG_KUNIT = "y")]
#[kunit_tests(vxe_vm_at_once)]
mod tests {
    use super::*;

    #[test]
    fn it_is_used_up() {
        let budget = TeardownBudget::new();
        let taken = (0..2 * TeardownBudget::PIECES)
            .filter(|_| budget.take())
            .count();
        assert_eq!(taken, TeardownBudget::PIECES);
        assert!(!budget.take());
    }
}
