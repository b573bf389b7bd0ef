// SPDX-License-Identifier: GPL-2.0

//! Contents of memory that differ from word to word.

use crate::{Map, SZ_2M};

/// What a test puts at an offset, to find it there again.
pub const fn pattern(offset: usize) -> u32 {
    (offset as u32).wrapping_mul(0x9e37_79b1) ^ 0x5eed
}

/// Private memory at a multiple of 2 MiB, with nothing mapped around it, that the CPU has filled with the
/// [`pattern`].
#[track_caller]
pub fn filled(length: usize) -> Map {
    let map = Map::aligned(length, SZ_2M);
    map.fill(pattern);
    map
}
