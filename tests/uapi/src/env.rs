// SPDX-License-Identifier: GPL-2.0

//! What the environment says about a run.

use crate::time::is_debug_kernel;
use std::time::Duration;

/// A number from the environment.
///
/// # Panics
///
/// If the variable is set to something else.
pub fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => parse(&text).unwrap_or_else(|| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

fn parse(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The number of rounds of a stress loop: `rounds`, times `VXE_ITERATIONS`. Without that it is half of them
/// on a kernel that checks itself, which takes several times as long for each.
///
/// # Panics
///
/// If the variable is set to something that is not a positive number.
pub fn iterations(rounds: u32) -> u32 {
    let factor = match std::env::var("VXE_ITERATIONS") {
        Ok(text) => text
            .parse()
            .ok()
            .filter(|f: &f64| *f > 0.0)
            .unwrap_or_else(|| panic!("VXE_ITERATIONS={text} is not a positive number")),
        Err(_) if is_debug_kernel() => 0.5,
        Err(_) => 1.0,
    };
    scale(rounds, factor)
}

/// How long a loop may take at most that need not do all of its rounds: `most`, or a third of that on a
/// kernel that checks itself and tells more in less. If `VXE_TIMEOUT` is set it has no end, as who gives
/// a subtest its time wants all of it done.
pub fn enough(most: Duration) -> Duration {
    if is_thorough() {
        Duration::MAX
    } else if is_debug_kernel() {
        most / 3
    } else {
        most
    }
}

/// Whether all of a subtest is to be done, however long it takes: `VXE_TIMEOUT` is set.
pub fn is_thorough() -> bool {
    std::env::var_os("VXE_TIMEOUT").is_some()
}

fn scale(rounds: u32, factor: f64) -> u32 {
    ((f64::from(rounds) * factor) as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_may_be_hexadecimal() {
        assert_eq!(parse("0xff"), Some(255));
        assert_eq!(parse("12"), Some(12));
        assert_eq!(parse("x"), None);
    }

    #[test]
    fn a_loop_runs_at_least_once() {
        assert_eq!(scale(100, 0.25), 25);
        assert_eq!(scale(3, 0.01), 1);
        assert_eq!(scale(3, 10.0), 30);
    }
}
