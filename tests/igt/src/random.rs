// SPDX-License-Identifier: GPL-2.0

//! Random sequences of what a process and its GPU do to memory, checked against a pure model.

mod machine;
mod model;

pub use machine::{Accelerator, Machine};
pub use model::{Model, Op, Outcome, BLOCK_WORDS, PAGE_WORDS};
