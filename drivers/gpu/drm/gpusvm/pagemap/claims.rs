// SPDX-License-Identifier: GPL-2.0

//! Which pages of a device's memory are in an allocation: none may be in two.
//!
//! A provider is safe code, and a page that it gives away twice would be two folios at once.
//!
//! A claim hands the page's `struct page` and its contents over, from who released it to who claims it, who may be
//! on another CPU, and have heard of the page by anything, even by a guess. So that the new owner sees all that the
//! old one wrote there, and none of the old one's writes come later, to release has release semantics and to
//! claim acquire semantics.

use kernel::{
    prelude::*,
    sync::atomic::{Acquire, Atomic, Relaxed, Release}, //
};

const BITS: usize = usize::BITS as usize;

/// A bit for each page.
pub(crate) struct Claims(KVVec<Atomic<usize>>);

impl Claims {
    /// No page is claimed. Fails with `ENOMEM`.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        let words = pages.div_ceil(BITS);
        let mut bits = KVVec::with_capacity(words, GFP_KERNEL)?;
        for _ in 0..words {
            bits.push(Atomic::new(0), GFP_KERNEL)?;
        }
        Ok(Self(bits))
    }

    /// Sets or clears bits of a word, all of which must be the other way round.
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
                // Others may release bits of the word and claim some in between: a claim reads from the last
                // of these, and each of them is a read and a write at once, so that what was released before
                // is seen as well.
                word.cmpxchg(old, old ^ mask, Release)
            };
            match done {
                Ok(_) => return Ok(()),
                Err(now) => old = now,
            }
        }
    }

    /// Flips the bits of `pages`, a run of them in one word at a time. Returns how many were, in
    /// case of an error.
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

    /// Claims pages: all of them, or none and fails with `EINVAL`, if one is there twice, is claimed
    /// already, or does not exist.
    pub(crate) fn claim(&self, pages: &[usize]) -> Result {
        self.flip_all(pages, true).map_err(|done| {
            self.release(pages.get(..done).unwrap_or_default());
            EINVAL
        })
    }

    /// Gives up pages that were claimed.
    pub(crate) fn release(&self, pages: &[usize]) {
        kernel::warn_on!(self.flip_all(pages, false).is_err());
    }
}
