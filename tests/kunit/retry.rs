// SPDX-License-Identifier: GPL-2.0

//! Tests of the bounds of retries, in attempts and in time.

use gpusvm::{
    retry::{ATTEMPTS, TIMEOUT_MS},
    Retry, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    time::{delay::fsleep, msecs_to_jiffies, Delta},
};

fn sleep_ms(ms: u32) {
    fsleep(Delta::from_millis(i64::from(ms)));
}

#[kunit_tests(gpusvm_retry)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_bounded() -> Result {
        let mut retry = Retry::bounded();
        ensure_eq!(retry.retries(), 0);
        let mut attempts = 0;
        while retry.next().is_some() {
            attempts += 1;
            ensure!(attempts <= ATTEMPTS);
            ensure_eq!(retry.retries(), attempts - 1);
        }
        // The attempts take no time here, so that only their number ends the loop.
        ensure_eq!(attempts, ATTEMPTS);
        ensure!(retry.next().is_none());
        ensure_eq!(retry.retries(), ATTEMPTS - 1);
        ensure_eq!(Retry::spent(), EBUSY);
        Ok(())
    }

    #[test]
    fn time_is_bounded() -> Result {
        let mut retry = Retry::bounded();
        let first = retry.next().ok_or(EINVAL)?.timeout();
        ensure!(first <= msecs_to_jiffies(TIMEOUT_MS));
        sleep_ms(TIMEOUT_MS / 4);
        let second = retry.next().ok_or(EINVAL)?.timeout();
        // The first attempt's duration is subtracted from the time for the next.
        ensure!(second <= msecs_to_jiffies(TIMEOUT_MS - TIMEOUT_MS / 4));
        sleep_ms(TIMEOUT_MS);
        ensure!(retry.next().is_none());
        Ok(())
    }

    #[test]
    fn the_first_attempt_is_always_made() -> Result {
        let mut retry = Retry::bounded();
        sleep_ms(TIMEOUT_MS + 50);
        let attempt = retry.next().ok_or(EINVAL)?;
        // HMM does not accept a time-out of 0.
        ensure_eq!(attempt.timeout(), 1);
        ensure!(retry.next().is_none());
        Ok(())
    }

    #[test]
    fn ranges_are_narrowed_once_and_for_one_address() -> Result {
        let mut retry = Retry::bounded();
        let mut attempt = retry.next().ok_or(EINVAL)?;
        ensure_eq!(attempt.limit(0x1234), usize::MAX);
        ensure!(attempt.narrow(0x1234, 0..PAGE_SIZE * 16));
        ensure_eq!(attempt.limit(0x1234), PAGE_SIZE);
        ensure_eq!(attempt.limit(0x2234), usize::MAX);
        // The limit holds for later attempts, too.
        let mut attempt = retry.next().ok_or(EINVAL)?;
        ensure_eq!(attempt.limit(0x1234), PAGE_SIZE);
        // A range of a page cannot get smaller: another attempt is useless.
        ensure!(!attempt.narrow(0x1234, PAGE_SIZE..2 * PAGE_SIZE));
        ensure!(!attempt.narrow(0x1234, PAGE_SIZE..PAGE_SIZE));
        Ok(())
    }
}
