// SPDX-License-Identifier: GPL-2.0

//! What all processes count together, in memory that they share.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use vxe_igt::{Map, PAGE};

/// The counters.
#[derive(Default)]
pub struct Tally {
    /// Sequences that ended well.
    pub sequences: AtomicU64,
    /// Steps in them.
    pub steps: AtomicU64,
    /// Sequences that ended early as their device was taken away.
    pub cut_short: AtomicU64,
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

    /// Notes a sequence that ended well, after so many of the steps that it was to do.
    pub fn add(&self, steps: u32, wanted: u32) {
        self.sequences.fetch_add(1, Relaxed);
        self.steps.fetch_add(steps.into(), Relaxed);
        if steps < wanted {
            self.cut_short.fetch_add(1, Relaxed);
        }
    }
}
