// SPDX-License-Identifier: GPL-2.0

//! The pages of a device's memory that are in a block: no page may be in two.
//!
//! A provider is safe code. If it returned a page twice, two folios would use the same page at once.
//!
//! A claim passes the page's `struct page` and contents from the thread that released the page to the thread that
//! claims it, possibly on another CPU; the provider need not synchronize the two. So a release has release semantics
//! and a claim has acquire semantics: the new owner sees all writes of the old one, and none comes later.

use kernel::{
    prelude::*,
    sync::atomic::{Acquire, Atomic, Relaxed, Release}, //
};

const BITS: usize = usize::BITS as usize;

/// A bit for each page.
pub(crate) struct Claims(KVVec<Atomic<usize>>);

impl Claims {
    /// Creates a set in which no page is claimed. Fails with `ENOMEM`.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        let words = pages.div_ceil(BITS);
        let mut bits = KVVec::with_capacity(words, GFP_KERNEL)?;
        for word in 0..words {
            // Pages of the last word that do not exist are claimed for good.
            let left = pages - word * BITS;
            let absent = if left < BITS { usize::MAX << left } else { 0 };
            bits.push(Atomic::new(absent), GFP_KERNEL)?;
        }
        Ok(Self(bits))
    }

    /// Sets or clears the bits `mask` of a word. Fails with `EINVAL` unless all of them have the other value.
    fn flip(&self, word: usize, mask: usize, set: bool) -> Result {
        let word = self.0.get(word).ok_or(EINVAL)?;
        let mut old = word.load(Relaxed);
        loop {
            if old & mask != if set { 0 } else { mask } {
                return Err(EINVAL);
            }
            let done = if set {
                word.cmpxchg(old, old ^ mask, Acquire)
            } else {
                // Between this release and a later claim of the same bit, other threads may release and claim other
                // bits of the word. All of these are read-modify-write operations, so the claim still synchronizes with
                // this release.
                word.cmpxchg(old, old ^ mask, Release)
            };
            match done {
                Ok(_) => return Ok(()),
                Err(now) => old = now,
            }
        }
    }

    /// Flips the bits of `pages`, run by run, where a run is within one word. In case of an error, returns how many
    /// have been flipped.
    fn flip_all(&self, pages: &[usize], set: bool) -> Result<(), usize> {
        let mut done = 0;
        for run in pages.chunk_by(|a, b| a.checked_add(1) == Some(*b) && b % BITS != 0) {
            let Some(first) = run.first() else { continue };
            let mask = (usize::MAX >> (BITS - run.len())) << (first % BITS);
            self.flip(first / BITS, mask, set).map_err(|_| done)?;
            done += run.len();
        }
        Ok(())
    }

    /// Claims all of `pages`. If a page is in it twice, is claimed already, or does not exist, claims none and fails
    /// with `EINVAL`.
    pub(crate) fn claim(&self, pages: &[usize]) -> Result {
        self.flip_all(pages, true).map_err(|done| {
            self.release(pages.get(..done).unwrap_or_default());
            EINVAL
        })
    }

    /// Releases pages that were claimed.
    pub(crate) fn release(&self, pages: &[usize]) {
        kernel::warn_on!(self.flip_all(pages, false).is_err());
    }
}
