// SPDX-License-Identifier: GPL-2.0

//! Pseudo-random numbers, the same in each run.

/// A xorshift generator.
pub(crate) struct Random(u64);

impl Random {
    /// Returns a generator. `seed` must not be 0.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number below `bound`, which must not be 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        // CAST: The remainder is below `bound`.
        (self.next() % bound as u64) as usize
    }

    /// Returns a random number of 64 bits.
    pub(crate) fn any(&mut self) -> u64 {
        self.next()
    }

    /// Returns a random boolean.
    pub(crate) fn flip(&mut self) -> bool {
        self.next() & 1 != 0
    }
}
