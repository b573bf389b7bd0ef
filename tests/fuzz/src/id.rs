// SPDX-License-Identifier: GPL-2.0

//! The name of a program, from which all about it follows: `SEED:INDEX`, and a `+NUMBER` for each
//! time that it was changed.

use std::fmt;
use vxe_uapi::Rng;

/// Times that a program is changed at most.
pub const MAX_MUTATIONS: usize = 6;

/// The name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Id {
    pub seed: u64,
    pub index: u64,
    pub mutations: Vec<u32>,
}

impl Id {
    /// The program of a number, unchanged.
    pub const fn new(seed: u64, index: u64) -> Self {
        Self { seed, index, mutations: Vec::new() }
    }

    /// What the generator begins with.
    pub fn first(&self) -> u64 {
        Rng::new(self.seed ^ self.index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next_u64()
    }

    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('+');
        let (seed, index) = match parts.next()?.split_once(':') {
            Some((seed, index)) => (number(seed)?, number(index)?),
            None => return None,
        };
        let mutations: Option<Vec<_>> =
            parts.map(|part| number(part).and_then(|n| n.try_into().ok())).collect();
        Some(Self { seed, index, mutations: mutations? })
    }
}

/// A number, decimal or with `0x`.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}:{}", self.seed, self.index)?;
        self.mutations.iter().try_for_each(|mutation| write!(f, "+{mutation:#x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["0x7:0", "0x7:12+0x5", "0xffffffff:3+0x1+0xffffffff"] {
            assert_eq!(Id::parse(text).unwrap().to_string(), text);
        }
        for text in ["7", "7:", ":1", "7:1+", "7:x", "7:1+0x100000000"] {
            assert!(Id::parse(text).is_none(), "{text}");
        }
    }
}
