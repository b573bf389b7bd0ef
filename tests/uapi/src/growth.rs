// SPDX-License-Identifier: GPL-2.0

//! How the time that something takes grows with its size.

use std::time::{Duration, Instant};

/// How much larger the larger of two sizes is.
const FACTOR: usize = 4;

/// By how much more the time may grow: for the logarithm, caches, and a machine that is busy with other
/// things. What is quadratic takes `FACTOR` times more.
const MORE: f64 = 2.2;

/// How often a growth is measured before it is believed.
const ROUNDS: u32 = 5;

/// Fails the subtest if the time that `run` takes grows faster than its size. Each time `prepare` makes what
/// it works on, of so many pieces.
///
/// Of each size the shortest time counts, as what else goes on in the machine only adds to it.
#[track_caller]
pub fn expect_linear<T>(
    what: &str,
    size: usize,
    prepare: impl Fn(usize) -> T,
    run: impl Fn(&mut T),
) {
    let time = |size| {
        let mut object = prepare(size);
        let start = Instant::now();
        run(&mut object);
        start.elapsed()
    };
    let (mut small, mut large) = (Duration::MAX, Duration::MAX);
    let mut growth = f64::INFINITY;
    for _ in 0..ROUNDS {
        small = small.min(time(size));
        large = large.min(time(FACTOR * size));
        growth = large.div_duration_f64(small) / FACTOR as f64;
        if growth < MORE {
            // What grows as n^x: x.
            let exponent = large.div_duration_f64(small).ln() / (FACTOR as f64).ln();
            println!(
                "{what}: {small:?} for {size}, {large:?} for {}, exponent {exponent:.2}",
                FACTOR * size
            );
            return;
        }
    }
    panic!(
        "{what}: {small:?} for {size}, {large:?} for {}: {growth:.1} times as long for each",
        FACTOR * size
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(steps: &mut usize) {
        std::thread::sleep(Duration::from_micros(*steps as u64));
    }

    #[test]
    fn what_is_linear_passes() {
        expect_linear("linear", 5_000, |size| size, work);
    }

    #[test]
    #[should_panic(expected = "as long for each")]
    fn what_is_quadratic_does_not() {
        expect_linear("quadratic", 40, |size| size * size, work);
    }
}
