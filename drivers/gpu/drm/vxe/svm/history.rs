// SPDX-License-Identifier: GPL-2.0

//! The guard against thrashing: what is known of a range's way to and fro, and what follows from it.
//!
//! A range that has to come to the device again soon after it came may stay for longer each time, as far
//! as the CPU goes; and if that does not help it is left in system memory, where both reach it, for a time
//! that grows, too. Both times are capped. What is soon depends on what a move costs: one that is worth
//! it is long over before the next.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::msecs_to_jiffies, //
};

/// How long an atomic, or a range that came back once, may stay on the device at least, in
/// milliseconds. Doubled with each time more.
pub(super) const STAY_MS: u32 = 5;

/// No range may stay for longer, in milliseconds.
const MAX_STAY_MS: u32 = 40;

/// A range that has to come again within this time bounces, in milliseconds.
const WINDOW_MS: u32 = 250;

/// Or within as many times the time that it took to come.
const WINDOW_MOVES: u32 = 16;

/// A range that bounces so often is left in system memory.
const PATIENCE: u32 = 3;

/// How long that is at first, in milliseconds. Doubled with each time more.
const LEAVE_MS: u32 = 50;

/// Or as many times the time that it took to come.
const LEAVE_MOVES: u32 = 8;

/// No range is taken to need longer to come, in milliseconds.
const MAX_MOVE_MS: u32 = 400;

/// No range is left there for longer, in milliseconds.
const MAX_LEAVE_MS: u32 = 3200;

/// What is known of a range's way to and fro. Changed under the SVM lock.
pub(crate) struct History {
    /// When the range came to the device last, or may come again, in jiffies; if it ever did.
    settled: Atomic<usize>,
    came: Atomic<bool>,
    /// How long that took, in milliseconds.
    took: Atomic<u32>,
    /// How often in a row it had to come again soon.
    bounces: Atomic<u32>,
}

/// What becomes of a range that should move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It moves, and may stay for so many milliseconds.
    Move(u32),
    /// It is left in system memory for so many milliseconds, from now on.
    Leave(u32),
    /// It is left in system memory still.
    Left,
}

/// `first`, doubled `times` times, but not more than `max`.
pub(super) fn growing(first: u32, times: u32, max: u32) -> u32 {
    first
        .checked_shl(times)
        .filter(|grown| grown >> times == first)
        .map_or(max, |grown| grown.min(max))
}

impl History {
    pub(super) fn new() -> Self {
        Self {
            settled: Atomic::new(0),
            came: Atomic::new(false),
            took: Atomic::new(0),
            bounces: Atomic::new(0),
        }
    }

    /// How often the range had to come again soon.
    pub(super) fn bounces(&self) -> u32 {
        self.bounces.load(Relaxed)
    }

    /// Decides at the time `now`, in jiffies, for a range that has to come.
    pub(super) fn decide(&self, now: usize) -> Verdict {
        if !self.has_come() {
            return Verdict::Move(0);
        }
        // A time to come is one long ago, by the clock that wraps around.
        let since = now.wrapping_sub(self.settled.load(Relaxed));
        if since > usize::MAX / 2 {
            return Verdict::Left;
        }
        let took = self.took.load(Relaxed).min(MAX_MOVE_MS);
        if since > msecs_to_jiffies(WINDOW_MS.max(took * WINDOW_MOVES)) {
            self.bounces.store(0, Relaxed);
            return Verdict::Move(0);
        }
        let bounces = self.bounces().saturating_add(1);
        self.bounces.store(bounces, Relaxed);
        // Once left alone, it gets one more chance each time.
        if bounces >= PATIENCE && (bounces - PATIENCE) % 2 == 0 {
            let ms = growing(
                LEAVE_MS.max(took * LEAVE_MOVES),
                (bounces - PATIENCE) / 2,
                MAX_LEAVE_MS,
            );
            self.settled
                .store(now.wrapping_add(msecs_to_jiffies(ms)), Relaxed);
            return Verdict::Leave(ms);
        }
        Verdict::Move(growing(STAY_MS, bounces - 1, MAX_STAY_MS))
    }

    /// When the range came to the device last, or may come again; in jiffies.
    pub(super) fn settled(&self) -> usize {
        self.settled.load(Relaxed)
    }

    /// Whether the range ever came to the device.
    pub(super) fn has_come(&self) -> bool {
        self.came.load(Relaxed)
    }

    /// The range came to the device at the time `now`, in jiffies, and that took `took` milliseconds.
    pub(super) fn came(&self, now: usize, took: u32) {
        self.took.store(took, Relaxed);
        self.settled.store(now, Relaxed);
        self.came.store(true, Relaxed);
    }
}

#[cfg(CONFIG_KUNIT = "y")]
#[kunit_tests(vxe_history)]
mod tests {
    use super::*;

    /// A time at which the clock wraps around soon.
    const NOW: usize = usize::MAX - 2;

    fn after(ms: u32) -> usize {
        NOW.wrapping_add(msecs_to_jiffies(ms))
    }

    #[test]
    fn times_grow_up_to_a_cap() {
        assert_eq!(growing(5, 0, 40), 5);
        assert_eq!(growing(5, 2, 40), 20);
        assert_eq!(growing(5, 3, 40), 40);
        assert_eq!(growing(5, 4, 40), 40);
        assert_eq!(growing(5, 31, 40), 40);
        assert_eq!(growing(5, 99, 40), 40);
    }

    #[test]
    fn what_comes_seldom_moves() {
        let history = History::new();
        for round in 0..10 {
            let now = after(round * 2 * WINDOW_MS);
            assert_eq!(history.decide(now), Verdict::Move(0));
            history.came(now, 0);
        }
        assert_eq!(history.bounces(), 0);
    }

    #[test]
    fn what_bounces_is_left_for_a_growing_time() {
        let history = History::new();
        let (mut now, mut left, mut longest) = (NOW, 0, 0);
        for _ in 0..60 {
            match history.decide(now) {
                Verdict::Move(ms) => {
                    assert!(ms <= MAX_STAY_MS);
                    history.came(now, 0);
                    now = now.wrapping_add(1);
                }
                Verdict::Leave(ms) => {
                    assert!(ms >= longest && ms <= MAX_LEAVE_MS);
                    (longest, left) = (ms, left + 1);
                    assert_eq!(history.decide(now), Verdict::Left);
                    now = now.wrapping_add(msecs_to_jiffies(ms)).wrapping_add(1);
                }
                // For longer than was said.
                Verdict::Left => assert_eq!(left, 0),
            }
        }
        assert!(left >= 7 && longest == MAX_LEAVE_MS);
        // When it has calmed down, all is forgotten.
        let now = now.wrapping_add(msecs_to_jiffies(2 * WINDOW_MS));
        assert_eq!(history.decide(now), Verdict::Move(0));
    }

    /// Where a move takes long, all does: it is the same to and fro.
    #[test]
    fn what_moves_slowly_bounces_as_well() {
        let history = History::new();
        let (mut ms, mut moves, mut left) = (0, 0, 0);
        for _ in 0..40 {
            match history.decide(after(ms)) {
                Verdict::Move(_) => {
                    moves += 1;
                    ms += MAX_MOVE_MS;
                    history.came(after(ms), MAX_MOVE_MS);
                    ms += WINDOW_MS + MAX_MOVE_MS;
                }
                Verdict::Leave(_) | Verdict::Left => {
                    left += 1;
                    ms += MAX_MOVE_MS / 2;
                }
            }
        }
        assert!(moves < 12 && left > 28);
        // One that stays away for longer has calmed down.
        ms += MAX_LEAVE_MS + (WINDOW_MOVES + 1) * MAX_MOVE_MS;
        assert_eq!(history.decide(after(ms)), Verdict::Move(0));
    }
}
