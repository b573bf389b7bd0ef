// SPDX-License-Identifier: GPL-2.0

//! Random sequences of what a process and its GPU do to memory, checked against a pure model.

mod gpus;
mod machine;
mod model;

pub use gpus::Gpus;
pub use machine::{Accelerator, Machine, Verdict};
pub use model::{Hint, HintCounts, Model, Op, Outcome, BLOCK_WORDS, PAGE_WORDS};
