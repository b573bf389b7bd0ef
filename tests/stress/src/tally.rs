// SPDX-License-Identifier: GPL-2.0

//! What all processes count together, in memory that they share.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use vxe_uapi::{
    random::{Hint, HintCounts},
    Map, PAGE,
};

/// The counters.
#[derive(Default)]
pub struct Tally {
    /// Sequences that ended well.
    pub sequences: AtomicU64,
    /// Steps in them.
    pub steps: AtomicU64,
    /// Sequences that ended early as their device was taken away.
    pub cut_short: AtomicU64,
    /// How often each advice was given.
    pub given: [AtomicU64; Hint::COUNT],
    /// How often it was taken.
    pub taken: [AtomicU64; Hint::COUNT],
    /// How often memory was taken and given back.
    pub pressure: AtomicU64,
    /// How often a device was taken away.
    pub removals: AtomicU64,
}

impl Tally {
    /// Counters that child processes share, all 0.
    pub fn shared() -> &'static Self {
        let memory = Map::shared(PAGE);
        // SAFETY: the page is never unmapped, zeroes are counters, and they are atomic.
        unsafe { &*std::ptr::with_exposed_provenance::<Self>(memory.start()) }
    }

    /// Notes a sequence that ended well, after so many of the steps that it was to do, and what became
    /// of the advice in it.
    pub fn add(&self, steps: u32, wanted: u32, hints: &HintCounts) {
        self.sequences.fetch_add(1, Relaxed);
        self.steps.fetch_add(steps.into(), Relaxed);
        if steps < wanted {
            self.cut_short.fetch_add(1, Relaxed);
        }
        for (total, more) in self.given.iter().zip(hints.given) {
            total.fetch_add(more, Relaxed);
        }
        for (total, more) in self.taken.iter().zip(hints.taken) {
            total.fetch_add(more, Relaxed);
        }
    }
}
