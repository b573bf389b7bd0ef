// SPDX-License-Identifier: GPL-2.0

//! What the module and the program say to each other, from the module's source.

#[allow(clippy::all)]
#[path = "../../../kernel/abi.rs"]
mod shared;

pub use shared::*;
