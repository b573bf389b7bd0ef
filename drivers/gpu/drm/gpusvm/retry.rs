// SPDX-License-Identifier: GPL-2.0

//! Bounded retries.
//!
//! A fault starts over when the CPU changes its mappings meanwhile. A [`Retry`] bounds that, in
//! attempts and in time, for all nested loops together: the outermost loop creates it, and passes
//! its [`Attempt`]s to the functions that it calls.

use core::ops::Range;
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    time::msecs_to_jiffies, //
};
use kernel_ext::time::jiffies;

/// The number of attempts for a fault.
pub const ATTEMPTS: u32 = 64;

/// The time for the attempts of a fault, in milliseconds: as long as HMM waits for one span
/// (`HMM_RANGE_DEFAULT_TIMEOUT`).
pub const TIMEOUT_MS: u32 = 1000;

/// A bounded number of attempts in a bounded time.
#[must_use = "a `Retry` does nothing until its attempts are taken"]
pub struct Retry {
    left: u32,
    /// The time of the first attempt, in jiffies.
    begun: usize,
    /// The address around which ranges are kept small, and their largest size in bytes.
    narrow: Option<(usize, usize)>,
}

impl Retry {
    /// Allows [`ATTEMPTS`] attempts in [`TIMEOUT_MS`] milliseconds, whichever ends first. The first
    /// attempt is always made.
    pub fn bounded() -> Self {
        Self {
            left: ATTEMPTS,
            begun: jiffies::now(),
            narrow: None,
        }
    }

    /// Returns the next attempt, or none when attempts or time are spent. (This is no [`Iterator`]:
    /// an attempt borrows its [`Retry`], so that there is only one at a time.)
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

    /// Returns the number of attempts after the first.
    pub fn retries(&self) -> u32 {
        (ATTEMPTS - self.left).saturating_sub(1)
    }

    /// Returns the error of a loop whose attempts are spent: `EBUSY`, as in C.
    pub fn spent() -> Error {
        EBUSY
    }

    /// Returns the time left, in jiffies.
    fn remaining(&self) -> usize {
        msecs_to_jiffies(TIMEOUT_MS).saturating_sub(jiffies::since(self.begun))
    }
}

/// One attempt of a [`Retry`].
pub struct Attempt<'a> {
    retry: &'a mut Retry,
}

impl Attempt<'_> {
    /// Returns the time, in jiffies, for which a walk of the CPU's page tables is repeated when the
    /// CPU changes its mappings: the time that is left, at most a sixteenth of [`TIMEOUT_MS`], so
    /// that there is time for attempts with smaller ranges, and at least 1.
    pub fn timeout(&self) -> usize {
        let share = msecs_to_jiffies(TIMEOUT_MS / 16);
        self.retry.remaining().min(share).max(1)
    }

    /// Returns whether all time is spent, so that there is no further attempt.
    pub(crate) fn is_last(&self) -> bool {
        self.retry.remaining() == 0
    }

    /// Keeps ranges small in further attempts for `addr`, as the range `span` could not be mapped
    /// as a whole, with `EFAULT` or `EPERM`: part of it may be beyond the end of a file, or have
    /// lost its permission.
    ///
    /// Returns whether `span` is larger than the smallest range, so that another attempt makes
    /// sense.
    #[must_use = "if the range cannot get smaller, trying again gives the same error"]
    pub fn narrow(&mut self, addr: usize, span: Range<usize>) -> bool {
        if span.end.saturating_sub(span.start) <= PAGE_SIZE {
            return false;
        }
        self.retry.narrow = Some((addr, PAGE_SIZE));
        true
    }

    /// Returns the largest size, in bytes, of a range around `addr`.
    pub fn limit(&self, addr: usize) -> usize {
        match self.retry.narrow {
            Some((at, limit)) if at == addr => limit,
            _ => usize::MAX,
        }
    }
}
