// SPDX-License-Identifier: GPL-2.0

//! Bounded retries.
//!
//! Whatever is done again because the CPU changed its mappings is bounded twice, in attempts and in
//! time, however many loops are inside each other: the outermost makes a [`Retry`], and hands its
//! [`Attempt`]s down.

use core::ops::Range;
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    time::msecs_to_jiffies, //
};
use kernel_ext::time::jiffies;

/// How often a fault is tried.
pub const ATTEMPTS: u32 = 64;

/// How long a fault is tried, in milliseconds. As long as HMM waits for one span,
/// `HMM_RANGE_DEFAULT_TIMEOUT`.
pub const TIMEOUT_MS: u32 = 1000;

/// A bounded number of attempts in a bounded time.
#[must_use = "without its attempts nothing is tried"]
pub struct Retry {
    left: u32,
    /// When the first attempt was made, in jiffies.
    begun: usize,
    /// The span around which ranges are kept small, and their largest size in bytes.
    narrow: Option<(usize, usize)>,
}

impl Retry {
    /// [`ATTEMPTS`] attempts in [`TIMEOUT_MS`] milliseconds, whichever ends first. The first attempt
    /// is always made.
    pub fn bounded() -> Self {
        Self {
            left: ATTEMPTS,
            begun: jiffies::now(),
            narrow: None,
        }
    }

    /// The next attempt, or none when attempts or time are spent. (No [`Iterator`]: an attempt
    /// borrows its [`Retry`], so that there is only one at a time.)
    #[expect(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Attempt<'_>> {
        let first = self.left == ATTEMPTS;
        if self.left == 0 || (!first && self.remaining() == 0) {
            kernel_ext::debug!(
                "gave up after {} attempts in {} jiffies",
                ATTEMPTS - self.left,
                jiffies::since(self.begun)
            );
            return None;
        }
        self.left -= 1;
        Some(Attempt { retry: self })
    }

    /// How many attempts were made after the first.
    pub fn retries(&self) -> u32 {
        (ATTEMPTS - self.left).saturating_sub(1)
    }

    /// The error of a loop whose attempts are spent: `EBUSY`, as the C code gives it.
    pub fn spent() -> Error {
        EBUSY
    }

    /// The time left, in jiffies.
    fn remaining(&self) -> usize {
        msecs_to_jiffies(TIMEOUT_MS).saturating_sub(jiffies::since(self.begun))
    }
}

/// One attempt of a [`Retry`].
pub struct Attempt<'a> {
    retry: &'a mut Retry,
}

impl Attempt<'_> {
    /// The time for which a walk that is lost to the CPU is done again, in jiffies, at least 1: what is left,
    /// but no more than a sixteenth of all, so that there is time left for smaller ranges.
    pub fn timeout(&self) -> usize {
        let share = msecs_to_jiffies(TIMEOUT_MS / 16);
        self.retry.remaining().min(share).max(1)
    }

    /// Whether all time is spent, so that there is no further attempt.
    pub(crate) fn is_last(&self) -> bool {
        self.retry.remaining() == 0
    }

    /// Says that the range `span` could not be mapped as a whole, with `EFAULT` or `EPERM`: part of
    /// it may be beyond the end of a file, or have lost its permission. Further attempts for `addr`
    /// use the smallest range there is.
    ///
    /// Returns whether that makes a difference, and so whether to try again.
    #[must_use = "if the range cannot get smaller, trying again gives the same error"]
    pub fn narrow(&mut self, addr: usize, span: Range<usize>) -> bool {
        if span.end.saturating_sub(span.start) <= PAGE_SIZE {
            return false;
        }
        self.retry.narrow = Some((addr, PAGE_SIZE));
        true
    }

    /// The largest size in bytes of a range around `addr`.
    pub fn limit(&self, addr: usize) -> usize {
        match self.retry.narrow {
            Some((at, limit)) if at == addr => limit,
            _ => usize::MAX,
        }
    }
}
