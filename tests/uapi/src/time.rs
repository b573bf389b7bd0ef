// SPDX-License-Identifier: GPL-2.0

//! Deadlines that mean the same on a machine that is late for everything.

use std::{
    path::Path,
    time::{Duration, Instant},
};

/// What a sleep of a millisecond takes on a machine that is busy with this test alone.
const ORDINARY_SLEEP: Duration = Duration::from_millis(10);

/// Whether the kernel checks all that it does, and takes several times longer for it: a test that needs
/// large numbers can use smaller ones. Such are kernels with lockdep and those with KCSAN.
pub fn is_debug_kernel() -> bool {
    ["/proc/lockdep", "/sys/module/kcsan"].iter().any(|path| Path::new(path).exists())
}

/// Fails the subtest if something took longer than `limit`, or as many times longer as a short
/// sleep now takes longer than it should: an emulated machine whose host is busy is not to blame. Prints how
/// long it was.
#[track_caller]
pub fn expect_prompt(what: &str, took: Duration, limit: Duration) {
    println!("{what}: {took:?}");
    if took < limit {
        return;
    }
    let lateness = lateness();
    assert!(
        took.as_secs_f64() < limit.as_secs_f64() * lateness,
        "{what} took {took:?}, more than {limit:?}, and the machine is only {lateness:.1} times slow"
    );
}

/// How many times slower than an ordinary machine this one is at the moment.
fn lateness() -> f64 {
    const ROUNDS: u32 = 10;
    let start = Instant::now();
    for _ in 0..ROUNDS {
        std::thread::sleep(Duration::from_millis(1));
    }
    (start.elapsed() / ROUNDS).div_duration_f64(ORDINARY_SLEEP).max(1.0)
}

/// Calls something that must not take longer than `limit`, as [`expect_prompt`] has it.
#[track_caller]
pub fn promptly<T>(what: &str, limit: Duration, call: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = call();
    expect_prompt(what, start.elapsed(), limit);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quick_is_prompt() {
        assert_eq!(promptly("nothing", Duration::from_secs(1), || 3), 3);
        assert!(lateness() >= 1.0);
    }

    #[test]
    #[should_panic(expected = "more than")]
    fn what_is_slow_is_not() {
        expect_prompt("an hour", Duration::from_secs(3600), Duration::from_millis(1));
    }
}
