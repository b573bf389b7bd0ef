// SPDX-License-Identifier: GPL-2.0

//! The clock of the GT: the time-stamps that commands store and that programs query.

use kernel::prelude::*;
use vxe_sim::sysinfo::Clock;

/// The reference clock in Hz, that of a Battlemage G21.
pub(crate) const REFERENCE_CLOCK: u32 = 19_200_000;

/// The clock has 12 ticks in as many nanoseconds.
const NS_FOR_12_TICKS: u64 = 625;

const _: () = assert!(12 * 1_000_000_000 / NS_FOR_12_TICKS == REFERENCE_CLOCK as u64);

/// Returns the time in nanoseconds since the system was booted.
pub(crate) fn now_ns() -> u64 {
    u64::try_from(Clock::Monotonic.now_ns()).unwrap_or(0)
}

/// Converts nanoseconds to ticks of the reference clock, rounded down.
pub(crate) fn ticks(ns: u64) -> u64 {
    // Neither overflows: the first product is less than `ns`, the second factor less than 625.
    ns / NS_FOR_12_TICKS * 12 + ns % NS_FOR_12_TICKS * 12 / NS_FOR_12_TICKS
}

/// Returns the time-stamp of an engine: ticks since the system was booted.
pub(crate) fn timestamp() -> u64 {
    ticks(now_ns())
}

#[kunit_tests(vxe_gpu_clock)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_those_of_the_reference_clock() {
        assert_eq!(ticks(0), 0);
        assert_eq!(ticks(52), 0);
        assert_eq!(ticks(53), 1);
        assert_eq!(ticks(1_000_000_000), u64::from(REFERENCE_CLOCK));
        // Does not overflow.
        assert!(ticks(u64::MAX) > ticks(u64::MAX - 53));
    }

    #[test]
    fn time_stamps_advance() {
        let first = timestamp();
        while timestamp() == first {}
        assert!(timestamp() > first);
    }
}
