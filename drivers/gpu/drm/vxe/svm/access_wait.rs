// SPDX-License-Identifier: GPL-2.0

//! The wait for an access: a page that is mapped for a fault stays mapped until the GPU has accessed
//! it, for some milliseconds at most.
//!
//! The engine repeats its access when the fault is serviced. If a CPU thread keeps changing
//! mappings, the page may be invalidated before that, and the next fault ends the same way. So a
//! range or userptr that was invalidated before the access is protected from its next fault on: the
//! next invalidation waits for the access, or until [`MAX_WAIT_MS`] have passed.
//!
//! An invalidation waits only if the CPU changes mappings of memory that remains. An invalidation
//! for munmap(), one that must not sleep, and the first one after a fault do not wait.

use crate::gpu::AddressSpace;
use kernel::{
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta, //
    }, //
};
use kernel_ext::time::jiffies;

/// The longest wait, in milliseconds from when the page was mapped.
const MAX_WAIT_MS: u32 = 20;

/// How often a waiting invalidation checks for the access, in microseconds.
const POLL_US: i64 = 50;

/// The last fault for which a range was mapped.
pub(crate) struct AccessWait {
    /// The address of the fault until the next invalidation, [`NONE`](Self::NONE) after that.
    addr: Atomic<u64>,
    /// When the range was mapped, in jiffies.
    since: Atomic<usize>,
    /// Whether the next invalidation waits.
    is_due: Atomic<bool>,
}

impl AccessWait {
    const NONE: u64 = u64::MAX;

    pub(crate) fn new() -> Self {
        Self {
            addr: Atomic::new(Self::NONE),
            since: Atomic::new(0),
            is_due: Atomic::new(false),
        }
    }

    /// Records that the range was mapped for a fault at `addr`. `was_lost` tells whether the CPU
    /// invalidated it while that fault was serviced. The notifier lock is held.
    pub(crate) fn begin(&self, aspace: &AddressSpace, addr: u64, was_lost: bool) {
        aspace.expect_access(addr);
        self.since.store(jiffies::now(), Relaxed);
        self.addr.store(addr, Relaxed);
        if was_lost {
            self.is_due.store(true, Relaxed);
        }
    }

    /// Ends the expectation before the range is invalidated. Waits for the access if the wait is due
    /// and the invalidation `can_wait`. The notifier lock is held for writing: no page is mapped
    /// meanwhile.
    pub(crate) fn end(&self, aspace: &AddressSpace, can_wait: bool) {
        let addr = self.addr.xchg(Self::NONE, Relaxed);
        if addr == Self::NONE {
            return;
        }
        let since = self.since.load(Relaxed);
        if can_wait && self.is_due.load(Relaxed) {
            while aspace.expects_access(addr)
                && jiffies::since(since) <= msecs_to_jiffies(MAX_WAIT_MS)
            {
                fsleep(Delta::from_micros(POLL_US));
            }
        }
        self.is_due.store(aspace.expects_access(addr), Relaxed);
    }
}

#[cfg(CONFIG_KUNIT = "y")]
#[kernel::prelude::kunit_tests(vxe_access_wait)]
mod tests {
    use super::*;
    use crate::gpu::{
        Bus,
        PAGE_SIZE, //
    };
    use kernel::{
        device::Bound,
        faux,
        prelude::*,
        time::{
            Instant,
            Monotonic, //
        }, //
    };

    const ADDR: u64 = 1 << 30;

    /// Shorter than the longest wait, and longer than the fastest of several invalidations that do not
    /// wait.
    const WAIT_MS: i64 = MAX_WAIT_MS as i64 / 2;

    /// The events before an invalidation.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Before {
        /// The first fault.
        Fault,
        /// A fault whose range the CPU invalidated while it was serviced.
        LostFault,
        /// A fault whose page was invalidated before its access, and a second fault.
        Faults,
        /// The same, and then the access.
        Access,
    }

    /// Returns whether an invalidation waits after these events.
    fn waits(before: Before, can_wait: bool) -> Result<bool> {
        let device = faux::Registration::new(c"vxe-access-wait-kunit", None)?;
        let faux: &faux::Device<Bound> = device.as_ref();
        let aspace = AddressSpace::new(Bus::new(faux.as_ref(), None)?, 48)?;
        let mut shortest = i64::MAX;
        for _ in 0..5 {
            let wait = AccessWait::new();
            wait.begin(&aspace, ADDR, before == Before::LostFault);
            if matches!(before, Before::Faults | Before::Access) {
                wait.end(&aspace, true);
                wait.begin(&aspace, ADDR, false);
            }
            if before == Before::Access {
                // The GPU's list of expected accesses drops the oldest entry, which has the same
                // effect as its access.
                for page in 1..100 {
                    aspace.expect_access(ADDR + page * PAGE_SIZE);
                }
            }
            let started = Instant::<Monotonic>::now();
            wait.end(&aspace, can_wait);
            shortest = shortest.min(started.elapsed().as_millis());
        }
        Ok(shortest >= WAIT_MS)
    }

    #[test]
    fn an_invalidation_waits_for_an_access_that_was_lost() -> Result {
        assert!(waits(Before::LostFault, true)?);
        assert!(waits(Before::Faults, true)?);
        Ok(())
    }

    #[test]
    fn none_waits_without_need() -> Result {
        assert!(!waits(Before::Fault, true)?);
        assert!(!waits(Before::Access, true)?);
        Ok(())
    }

    #[test]
    fn none_waits_that_may_not() -> Result {
        assert!(!waits(Before::LostFault, false)?);
        assert!(!waits(Before::Faults, false)?);
        Ok(())
    }
}
