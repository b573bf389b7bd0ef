// SPDX-License-Identifier: GPL-2.0

//! KUnit suites of the GPU as a whole, on real memory.

/// Fails the test by returning an error, so that it cleans up: a failed assertion would not.
macro_rules! check {
    ($condition:expr) => {
        if !$condition {
            pr_err!("line {}: not {}\n", line!(), stringify!($condition));
            return Err(EIO);
        }
    };
}

mod address_space;
mod bench;
mod commands;
mod copy;
mod engine;
