// SPDX-License-Identifier: GPL-2.0

//! How much of what is closed goes at once.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// How many ranges and VMAs whoever closes VMs takes out himself: what is left is for workers, so that it takes
/// a few milliseconds, however many VMs there are and whatever is in them. All VMs that go with a file have one
/// of these.
pub(crate) struct AtOnce(Atomic<usize>);

impl AtOnce {
    const PIECES: usize = 2048;

    /// Nothing was taken out yet.
    pub(crate) fn new() -> Self {
        Self(Atomic::new(Self::PIECES))
    }

    /// Whether one more may be taken out now. To be asked by one thread at a time.
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
        let at_once = AtOnce::new();
        let taken = (0..2 * AtOnce::PIECES).filter(|_| at_once.take()).count();
        assert_eq!(taken, AtOnce::PIECES);
        assert!(!at_once.take());
    }
}
