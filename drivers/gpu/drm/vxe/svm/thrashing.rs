// SPDX-License-Identifier: GPL-2.0

//! Thrashing: a range has to migrate to the device again soon after it did, as the CPU took it back.
//!
//! First it gets a *timeslice* on the device, for which a CPU that touches it waits; a longer one the second time.
//! The third time it is *pinned* in system memory, which CPU and GPU both reach. After that it migrates and is pinned
//! in turns, each time for longer. All times are in milliseconds.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::msecs_to_jiffies, //
};

/// The first timeslice, and the longest.
pub(super) const TIMESLICE_MS: u32 = 5;
const MAX_TIMESLICE_MS: u32 = 40;

/// How soon is thrashing; or so many times what the last migration took: one that was worth it is over then.
const WINDOW_MS: u32 = 250;
const WINDOW_MIGRATIONS: u32 = 16;

/// How often a range thrashes before it is pinned.
const THRESHOLD: u32 = 3;

/// For how long a range is pinned first, or so many times what the last migration took; and at most.
const PIN_MS: u32 = 50;
const PIN_MIGRATIONS: u32 = 8;
const MAX_PIN_MS: u32 = 3200;

/// No migration is taken to need longer.
const MAX_MIGRATION_MS: u32 = 400;

/// What is known of the migrations of a range to the device. Changed under the SVM lock.
pub(super) struct Thrashing {
    /// How often in a row it thrashed.
    count: Atomic<u32>,
    /// How long the last migration took, at least 1; 0 if there was none.
    took_ms: Atomic<u32>,
    /// When that was, or until when the range is pinned, in jiffies.
    since: Atomic<usize>,
}

/// `ms`, doubled so many times, up to `max`, which is 64 times as much at most.
pub(super) fn doubled(ms: u32, times: u32, max: u32) -> u32 {
    (ms << times.min(6)).min(max)
}

impl Thrashing {
    pub(super) fn new() -> Self {
        Self {
            count: Atomic::new(0),
            took_ms: Atomic::new(0),
            since: Atomic::new(0),
        }
    }

    /// How often in a row the range thrashed.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Relaxed)
    }

    /// Whether the range never migrated.
    pub(super) fn is_new(&self) -> bool {
        self.took_ms.load(Relaxed) == 0
    }

    /// Until when a pinned range is, in jiffies.
    pub(super) fn pinned_until(&self) -> usize {
        self.since.load(Relaxed)
    }

    /// The range migrated at the time `now`, in jiffies.
    pub(super) fn migrated(&self, now: usize, took_ms: u64) {
        let took_ms = u32::try_from(took_ms).unwrap_or(MAX_MIGRATION_MS);
        let took_ms = took_ms.clamp(1, MAX_MIGRATION_MS);
        self.took_ms.store(took_ms, Relaxed);
        self.since.store(now, Relaxed);
    }

    /// The timeslice of a range that is to migrate at the time `now`, in jiffies; none if it is pinned instead.
    pub(super) fn timeslice(&self, now: usize) -> Option<u32> {
        let since = now.wrapping_sub(self.since.load(Relaxed));
        let took_ms = self.took_ms.load(Relaxed);
        // A time to come is one long ago, by the clock that wraps around.
        if !self.is_new() && since > usize::MAX / 2 {
            return None;
        }
        let window = msecs_to_jiffies(WINDOW_MS.max(took_ms * WINDOW_MIGRATIONS));
        if self.is_new() || since > window {
            self.count.store(0, Relaxed);
            return Some(0);
        }
        let count = self.count().saturating_add(1);
        self.count.store(count, Relaxed);
        if count < THRESHOLD || (count - THRESHOLD) % 2 != 0 {
            return Some(doubled(TIMESLICE_MS, count - 1, MAX_TIMESLICE_MS));
        }
        let first = PIN_MS.max(took_ms * PIN_MIGRATIONS);
        let pin = msecs_to_jiffies(doubled(first, (count - THRESHOLD) / 2, MAX_PIN_MS));
        self.since.store(now.wrapping_add(pin), Relaxed);
        None
    }
}

#[cfg(CONFIG_KUNIT = "y")]
#[kunit_tests(vxe_thrashing)]
mod tests {
    use super::*;

    /// Has the GPU fault `every` so many milliseconds, beside a CPU that takes the range back, from a time at which the
    /// clock wraps around soon. Returns how many faults migrated, and for how long the range was pinned at most.
    fn fault(range: &Thrashing, faults: u32, every: u32, took: u32) -> (u32, usize) {
        let (mut now, mut migrations, mut pinned) = (usize::MAX - 2, 0, 0);
        for _ in 0..faults {
            if let Some(ms) = range.timeslice(now) {
                assert!(ms <= MAX_TIMESLICE_MS);
                now = now.wrapping_add(msecs_to_jiffies(took));
                range.migrated(now, took.into());
                migrations += 1;
            } else {
                pinned = pinned.max(range.pinned_until().wrapping_sub(now));
            }
            now = now.wrapping_add(msecs_to_jiffies(every));
        }
        // When it has calmed down, all is forgotten.
        let later = msecs_to_jiffies(MAX_PIN_MS + WINDOW_MIGRATIONS * (took + WINDOW_MS));
        assert_eq!(range.timeslice(now.wrapping_add(later)), Some(0));
        assert_eq!(range.count(), 0);
        (migrations, pinned)
    }

    #[test]
    fn a_range_that_seldom_migrates_does_not_thrash() {
        assert_eq!(fault(&Thrashing::new(), 10, 2 * WINDOW_MS, 0), (10, 0));
    }

    #[test]
    fn a_range_that_thrashes_is_pinned_for_longer_each_time() {
        let (migrations, pinned) = fault(&Thrashing::new(), 200, 50, 0);
        assert!((8..=20).contains(&migrations));
        assert_eq!(pinned, msecs_to_jiffies(MAX_PIN_MS));
    }

    /// Where a migration takes long, so does the way back.
    #[test]
    fn a_range_that_migrates_slowly_thrashes_as_well() {
        let every = WINDOW_MS + MAX_MIGRATION_MS;
        let (migrations, pinned) = fault(&Thrashing::new(), 40, every, MAX_MIGRATION_MS);
        assert!(migrations < 12);
        assert_eq!(pinned, msecs_to_jiffies(MAX_PIN_MS));
    }
}
