// SPDX-License-Identifier: GPL-2.0

//! Thrashing: a range migrates to the device again soon after the CPU migrated it back.
//!
//! The first time, the range gets a *timeslice* on the device, for which a CPU fault on it waits;
//! the second time, a longer one. The third time the range is *pinned* in system memory, which both
//! the CPU and the GPU can access. After that it migrates and is pinned in turns, for a longer time
//! each. All times are in milliseconds.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::msecs_to_jiffies, //
};

/// The first and the longest timeslice.
pub(super) const TIMESLICE_MS: u32 = 5;
const MAX_TIMESLICE_MS: u32 = 40;

/// A migration within this time of the last one, or within this multiple of its duration, is
/// thrashing. The duration counts because a range that takes long to migrate must also be used for
/// long.
const WINDOW_MS: u32 = 250;
const WINDOW_MIGRATIONS: u32 = 16;

/// How often a range thrashes before it is pinned.
const THRESHOLD: u32 = 3;

/// For how long a range is pinned the first time: this time, or this multiple of the duration of
/// the last migration. Then the maximum.
const PIN_MS: u32 = 50;
const PIN_MIGRATIONS: u32 = 8;
const MAX_PIN_MS: u32 = 3200;

/// The maximum that is recorded as the duration of a migration.
const MAX_MIGRATION_MS: u32 = 400;

/// The history of a range's migrations to the device. Changed under the SVM lock.
pub(super) struct Thrashing {
    /// How often the range thrashed in a row.
    count: Atomic<u32>,
    /// The duration of the last migration, at least 1; 0 if there was none.
    took_ms: Atomic<u32>,
    /// The time of the last migration, or until when the range is pinned, in jiffies.
    since: Atomic<usize>,
}

/// Returns `ms` doubled `times` times, up to `max`, which must be at most 64 times `ms`.
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

    /// Returns how often the range thrashed in a row.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Relaxed)
    }

    /// Returns whether the range never migrated.
    pub(super) fn is_new(&self) -> bool {
        self.took_ms.load(Relaxed) == 0
    }

    /// Returns until when a pinned range is pinned, in jiffies.
    pub(super) fn pinned_until(&self) -> usize {
        self.since.load(Relaxed)
    }

    /// Records a migration that ended at `now`, in jiffies, after `took_ms` milliseconds.
    pub(super) fn migrated(&self, now: usize, took_ms: u64) {
        let took_ms = u32::try_from(took_ms).unwrap_or(MAX_MIGRATION_MS);
        let took_ms = took_ms.clamp(1, MAX_MIGRATION_MS);
        self.took_ms.store(took_ms, Relaxed);
        self.since.store(now, Relaxed);
    }

    /// Returns the timeslice of a range that is to migrate at `now`, in jiffies; `None` if it is
    /// pinned instead.
    pub(super) fn timeslice(&self, now: usize) -> Option<u32> {
        let since = now.wrapping_sub(self.since.load(Relaxed));
        let took_ms = self.took_ms.load(Relaxed);
        // A time in the future appears as one long ago, since jiffies wrap around.
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

    /// Simulates GPU faults `every` so many milliseconds, with a CPU that migrates the range back
    /// after each, from shortly before jiffies wrap around. Returns how many faults migrated, and
    /// the longest time for which the range was pinned.
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
        // After a quiet time the history is forgotten.
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

    /// The GPU cannot use the range during a slow migration either.
    #[test]
    fn a_range_that_migrates_slowly_thrashes_as_well() {
        let every = WINDOW_MS + MAX_MIGRATION_MS;
        let (migrations, pinned) = fault(&Thrashing::new(), 40, every, MAX_MIGRATION_MS);
        assert!(migrations < 12);
        assert_eq!(pinned, msecs_to_jiffies(MAX_PIN_MS));
    }
}
