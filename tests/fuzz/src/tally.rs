// SPDX-License-Identifier: GPL-2.0

//! What all processes count together, and the programs that are worth to be changed, in memory that
//! they share.

use crate::id::{Id, MAX_MUTATIONS};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicU8, Ordering::Relaxed};
use vxe_uapi::{Map, Rng};

/// More calls than there are descriptions.
pub const MAX_CALLS: usize = 256;
/// Modules whose coverage is told apart.
pub const MODULES: usize = 4;
/// Bytes of text that a module may have.
pub const MAX_TEXT: usize = 1 << 24;
const CORPUS: usize = 1024;

/// Errors that are told apart.
pub const ERRORS: usize = 135;

/// How often a call was made, how often it did not fail, and how often it did with each errno.
pub struct Made {
    pub all: AtomicU64,
    pub well: AtomicU64,
    pub errors: [AtomicU32; ERRORS],
}

impl Made {
    /// The errors, the most frequent one first.
    pub fn errors(&self) -> Vec<(i32, u32)> {
        let counts = self.errors.iter().enumerate().map(|(e, n)| (e as i32, n.load(Relaxed)));
        let mut errors: Vec<_> = counts.filter(|(_, n)| *n > 0).collect();
        errors.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        errors
    }
}

struct Kept {
    /// How many mutations there are, plus 1; 0: nothing here.
    length: AtomicU32,
    index: AtomicU64,
    mutations: [AtomicU32; MAX_MUTATIONS],
}

/// The counters. All zeroes is their start.
pub struct Tally {
    /// The number of the next new program.
    pub next: AtomicU64,
    pub programs: AtomicU64,
    /// Programs that were killed as their plan was.
    pub killed: AtomicU64,
    /// Programs that took longer than they may.
    pub timed_out: AtomicU64,
    /// Programs that did not die.
    pub hung: AtomicU64,
    /// Errors that no program should see.
    pub strange_errors: AtomicU64,
    pub rebinds: AtomicU64,
    pub calls: [Made; MAX_CALLS],
    /// Places in the text of modules that were reached.
    pub covered: AtomicU64,
    pub coverage: [[AtomicU8; MAX_TEXT / 8]; MODULES],
    kept_count: AtomicU64,
    kept: [Kept; CORPUS],
}

impl Tally {
    /// Counters that child processes share.
    pub fn shared() -> &'static Self {
        let memory = Map::shared(size_of::<Self>().next_multiple_of(vxe_uapi::PAGE));
        // SAFETY: the pages are never unmapped, zeroes are counters, and they are atomic.
        unsafe { &*std::ptr::with_exposed_provenance::<Self>(memory.start()) }
    }

    /// Notes that a place was reached; says whether it is new.
    pub fn cover(&self, module: usize, offset: usize) -> bool {
        let Some(byte) = self.coverage[module].get(offset / 8) else { return false };
        let bit = 1 << (offset % 8);
        if byte.load(Relaxed) & bit != 0 || byte.fetch_or(bit, Relaxed) & bit != 0 {
            return false;
        }
        self.covered.fetch_add(1, Relaxed);
        true
    }

    /// Keeps a program, for others to begin with.
    pub fn keep(&self, id: &Id) {
        let number = self.kept_count.fetch_add(1, Relaxed) as usize % CORPUS;
        let kept = &self.kept[number];
        kept.length.store(0, Relaxed);
        kept.index.store(id.index, Relaxed);
        for (to, from) in kept.mutations.iter().zip(&id.mutations) {
            to.store(*from, Relaxed);
        }
        kept.length.store(id.mutations.len() as u32 + 1, Relaxed);
    }

    /// How many were kept.
    pub fn kept_count(&self) -> u64 {
        self.kept_count.load(Relaxed)
    }

    /// One that was kept, if there is any. Whatever is read while another process keeps one there is
    /// the name of a program as well.
    pub fn any_kept(&self, seed: u64, rng: &mut Rng) -> Option<Id> {
        let count = (self.kept_count() as usize).min(CORPUS);
        if count == 0 {
            return None;
        }
        let kept = &self.kept[rng.below(count)];
        let length = (kept.length.load(Relaxed) as usize).checked_sub(1)?.min(MAX_MUTATIONS);
        let mutations = kept.mutations[..length].iter().map(|m| m.load(Relaxed)).collect();
        Some(Id { seed, index: kept.index.load(Relaxed), mutations })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back() {
        let tally = Tally::shared();
        let mut rng = Rng::new(1);
        assert!(tally.any_kept(7, &mut rng).is_none());
        let id = Id { seed: 7, index: 3, mutations: vec![1, 2] };
        tally.keep(&id);
        assert_eq!(tally.any_kept(7, &mut rng), Some(id));
    }

    #[test]
    fn a_place_is_new_once() {
        let tally = Tally::shared();
        assert!(tally.cover(1, 77) && !tally.cover(1, 77) && tally.cover(2, 77));
        assert!(!tally.cover(1, MAX_TEXT));
        assert_eq!(tally.covered.load(Relaxed), 2);
    }
}
