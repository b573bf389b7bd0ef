// SPDX-License-Identifier: GPL-2.0

//! What should be in memory, and who may do what to it: no system call, no GPU.

use crate::Rng;

/// Words in a page.
pub const PAGE_WORDS: usize = crate::PAGE / 4;
/// Words in the unit of a GPU copy.
pub const BLOCK_WORDS: usize = 64;

/// What a process may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    None,
    Read,
    Write,
}

/// A mapped page.
#[derive(Clone, Debug)]
struct Page {
    rights: Rights,
    /// Of a memory file: discarding it loses nothing.
    shared: bool,
    words: Box<[u32]>,
}

/// Advice to the driver that changes where memory is, and nothing in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Map it for the GPU before it is needed, where it should live.
    Prefetch,
    /// The same, in system memory.
    PrefetchSystem,
    /// The same, in the GPU's memory.
    PrefetchDevice,
    /// It should live in the GPU's memory.
    PreferDevice,
    /// It should live in the memory of another GPU.
    PreferOther,
    /// It should live in system memory.
    PreferSystem,
    /// The GPU may do atomics.
    AtomicDevice,
}

impl Hint {
    /// How many there are.
    pub const COUNT: usize = 7;

    /// All of them, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Prefetch,
        Self::PrefetchSystem,
        Self::PrefetchDevice,
        Self::PreferDevice,
        Self::PreferOther,
        Self::PreferSystem,
        Self::AtomicDevice,
    ];
}

/// How often advice was given, and how often it was taken, by the hint's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HintCounts {
    /// How often it was given.
    pub given: [u64; Hint::COUNT],
    /// How often it was taken.
    pub taken: [u64; Hint::COUNT],
}

impl HintCounts {
    /// Counts advice that was given.
    pub fn add(&mut self, hint: Hint, taken: bool) {
        self.given[hint as usize] += 1;
        self.taken[hint as usize] += u64::from(taken);
    }
}

/// One step of a sequence. Pages and words are counted from the start of the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fresh memory, in place of what is there.
    Map { first: usize, count: usize, shared: bool },
    /// Nothing, in place of what is there.
    Unmap { first: usize, count: usize },
    /// Other rights for pages that are all mapped.
    Protect { first: usize, count: usize, rights: Rights },
    /// MADV_DONTNEED on pages that are all mapped.
    Discard { first: usize, count: usize },
    /// Pages that are all mapped go elsewhere, in place of what is there.
    Move { first: usize, count: usize, to: usize },
    /// Advice on pages, mapped or not.
    Advise { first: usize, count: usize, hint: Hint },
    /// A child process looks at pages that it inherits, and writes to those that are private.
    Fork { first: usize, count: usize },
    /// The CPU writes a word of a writable page.
    CpuWrite { word: usize, value: u32 },
    /// The GPU stores words.
    GpuStore(Vec<(usize, u32)>),
    /// The GPU adds one (true) to words, or subtracts one.
    GpuAdd(Vec<(usize, bool)>),
    /// The GPU copies blocks; source and target do not overlap.
    GpuCopy { from: usize, to: usize, blocks: usize },
}

/// What must come of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeds, and the model knows the result.
    Done,
    /// It fails, and the model knows what was done until then.
    Failed,
    /// It fails, and each of these words is as it was, or has this value.
    FailedSomewhere(Vec<(usize, u32)>),
}

/// The model of a region.
pub struct Model {
    pages: Vec<Option<Page>>,
}

impl Model {
    /// A region in which nothing is mapped.
    pub fn new(pages: usize) -> Self {
        Self { pages: vec![None; pages] }
    }

    /// Pages in the region.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether it is a region of no pages.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    fn rights(&self, page: usize) -> Rights {
        self.pages[page].as_ref().map_or(Rights::None, |p| p.rights)
    }

    /// Whether a page can be read.
    pub fn readable(&self, page: usize) -> bool {
        self.rights(page) != Rights::None
    }

    /// Whether a page can be written, and nobody else sees it.
    pub fn private(&self, page: usize) -> bool {
        let private = |p: &Page| p.rights == Rights::Write && !p.shared;
        self.pages[page].as_ref().is_some_and(private)
    }

    /// What a mapped page should hold.
    pub fn contents(&self, page: usize) -> Option<&[u32]> {
        self.pages[page].as_ref().map(|p| &*p.words)
    }

    /// Says what the word of a mapped page turned out to be.
    pub fn settle(&mut self, word: usize, value: u32) {
        *self.word(word).expect("a mapped page") = value;
    }

    fn word(&mut self, word: usize) -> Option<&mut u32> {
        let page = self.pages[word / PAGE_WORDS].as_mut()?;
        Some(&mut page.words[word % PAGE_WORDS])
    }

    fn writable_word(&mut self, word: usize) -> Option<&mut u32> {
        match self.rights(word / PAGE_WORDS) {
            Rights::Write => self.word(word),
            _ => None,
        }
    }

    /// Whether a step may write a word: what is in it is unknown if nobody knows how far the step
    /// came.
    pub fn may_write(op: &Op, word: usize) -> bool {
        match *op {
            Op::GpuStore(ref stores) => stores.iter().any(|&(to, _)| to == word),
            Op::GpuAdd(ref adds) => adds.iter().any(|&(to, _)| to == word),
            Op::GpuCopy { to, blocks, .. } => {
                (to * BLOCK_WORDS..(to + blocks) * BLOCK_WORDS).contains(&word)
            }
            _ => false,
        }
    }

    /// A step that makes sense in this state.
    pub fn random_op(&self, rng: &mut Rng) -> Op {
        loop {
            let (first, count) = self.random_range(rng);
            let mapped = self.pages[first..first + count].iter().all(Option::is_some);
            let op = match rng.below(19) {
                0 => Op::Map { first, count, shared: rng.one_in(3) },
                1 if mapped || rng.one_in(4) => Op::Unmap { first, count },
                2 if mapped => {
                    let rights = [Rights::None, Rights::Read, Rights::Write, Rights::Write];
                    Op::Protect { first, count, rights: rights[rng.below(4)] }
                }
                3 if mapped => Op::Discard { first, count },
                4 if mapped => {
                    let to = rng.below(self.len() - count + 1);
                    if to.abs_diff(first) < count {
                        continue;
                    }
                    Op::Move { first, count, to }
                }
                5 | 6 => {
                    let word = self.random_word(rng);
                    if self.rights(word / PAGE_WORDS) != Rights::Write {
                        continue;
                    }
                    Op::CpuWrite { word, value: rng.next_u32() }
                }
                7..=10 => Op::GpuStore(
                    (0..1 + rng.below(12))
                        .map(|_| (self.random_word(rng), rng.next_u32()))
                        .collect(),
                ),
                11..=12 => Op::GpuAdd(
                    (0..1 + rng.below(12))
                        .map(|_| (self.random_word(rng), rng.one_in(2)))
                        .collect(),
                ),
                13..=15 => {
                    let all = self.len() * PAGE_WORDS / BLOCK_WORDS;
                    let blocks = 1 + rng.below(40.min(all / 2));
                    let from = rng.below(all - blocks + 1);
                    let to = rng.below(all - blocks + 1);
                    if from.abs_diff(to) < blocks {
                        continue;
                    }
                    Op::GpuCopy { from, to, blocks }
                }
                16 | 17 => {
                    let hint = Hint::ALL[rng.below(Hint::ALL.len())];
                    Op::Advise { first, count, hint }
                }
                18 if rng.one_in(3) => Op::Fork { first, count },
                _ => continue,
            };
            return op;
        }
    }

    fn random_range(&self, rng: &mut Rng) -> (usize, usize) {
        let first = rng.below(self.len());
        let most = self.len() - first;
        // Mostly a few pages, now and then very many.
        let most = if rng.one_in(4) { most } else { most.min(16) };
        let count = 1 + rng.below(most);
        (first, count)
    }

    /// A word, mostly of a page that can be written: sequences should get somewhere.
    fn random_word(&self, rng: &mut Rng) -> usize {
        let mut page = rng.below(self.len());
        for _ in 0..6 {
            if self.rights(page) == Rights::Write || rng.one_in(60) {
                break;
            }
            page = rng.below(self.len());
        }
        page * PAGE_WORDS + rng.below(PAGE_WORDS)
    }

    /// Does a step, and says what must come of it.
    pub fn apply(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Map { first, count, shared } => {
                let words = vec![0; PAGE_WORDS].into_boxed_slice();
                let page = Page { rights: Rights::Write, shared, words };
                self.pages[first..first + count].fill(Some(page));
            }
            Op::Unmap { first, count } => self.pages[first..first + count].fill(None),
            Op::Protect { first, count, rights } => {
                for page in self.pages[first..first + count].iter_mut().flatten() {
                    page.rights = rights;
                }
            }
            Op::Discard { first, count } => {
                for page in self.pages[first..first + count].iter_mut().flatten() {
                    if !page.shared {
                        page.words.fill(0);
                    }
                }
            }
            Op::Move { first, count, to } => {
                for i in 0..count {
                    self.pages[to + i] = self.pages[first + i].take();
                }
            }
            Op::Advise { .. } | Op::Fork { .. } => {}
            Op::CpuWrite { word, value } => {
                if let Some(w) = self.writable_word(word) {
                    *w = value;
                }
            }
            Op::GpuStore(ref stores) => {
                for &(word, value) in stores {
                    match self.writable_word(word) {
                        Some(w) => *w = value,
                        None => return Outcome::Failed,
                    }
                }
            }
            Op::GpuAdd(ref adds) => {
                for &(word, up) in adds {
                    match self.writable_word(word) {
                        Some(w) if up => *w = w.wrapping_add(1),
                        Some(w) => *w = w.wrapping_sub(1),
                        None => return Outcome::Failed,
                    }
                }
            }
            Op::GpuCopy { from, to, blocks } => return self.copy(from, to, blocks),
        }
        Outcome::Done
    }

    fn copy(&mut self, from: usize, to: usize, blocks: usize) -> Outcome {
        let mut possible = Vec::new();
        let mut all = true;
        for i in 0..blocks * BLOCK_WORDS {
            let (source, target) = (from * BLOCK_WORDS + i, to * BLOCK_WORDS + i);
            let readable = self.readable(source / PAGE_WORDS);
            match (readable, self.writable_word(target).is_some()) {
                (true, true) => {
                    let value = *self.word(source).expect("a readable page");
                    possible.push((target, value));
                }
                _ => all = false,
            }
        }
        if !all {
            return Outcome::FailedSomewhere(possible);
        }
        for (target, value) in possible {
            self.settle(target, value);
        }
        Outcome::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(pages: usize) -> Model {
        let mut m = Model::new(pages);
        assert_eq!(m.apply(&Op::Map { first: 0, count: pages, shared: false }), Outcome::Done);
        m
    }

    #[test]
    fn stores_up_to_the_first_bad_one_are_done() {
        let mut m = mapped(3);
        m.apply(&Op::Protect { first: 1, count: 1, rights: Rights::Read });
        let stores = vec![(5, 1), (PAGE_WORDS + 5, 2), (2 * PAGE_WORDS, 3)];
        assert_eq!(m.apply(&Op::GpuStore(stores)), Outcome::Failed);
        assert_eq!(m.contents(0).map(|w| w[5]), Some(1));
        assert_eq!(m.contents(1).map(|w| w[5]), Some(0));
        assert_eq!(m.contents(2).map(|w| w[0]), Some(0));
    }

    #[test]
    fn a_copy_that_fails_leaves_old_or_new() {
        let mut m = mapped(3);
        m.apply(&Op::GpuStore(vec![(0, 7)]));
        m.apply(&Op::Unmap { first: 2, count: 1 });
        let per_page = PAGE_WORDS / BLOCK_WORDS;
        let copy = Op::GpuCopy { from: 0, to: 2 * per_page - 1, blocks: 2 };
        let Outcome::FailedSomewhere(possible) = m.apply(&copy) else {
            panic!("a copy to nothing succeeded");
        };
        assert_eq!(possible.len(), BLOCK_WORDS);
        assert_eq!(possible[0], (2 * PAGE_WORDS - BLOCK_WORDS, 7));
        assert_eq!(m.contents(1).map(|w| w[PAGE_WORDS - BLOCK_WORDS]), Some(0));
        let copy = Op::GpuCopy { from: 0, to: per_page, blocks: 1 };
        assert_eq!(m.apply(&copy), Outcome::Done);
        assert_eq!(m.contents(1).map(|w| w[0]), Some(7));
    }

    #[test]
    fn moving_takes_contents_and_rights_along() {
        let mut m = mapped(4);
        m.apply(&Op::CpuWrite { word: 9, value: 8 });
        m.apply(&Op::Protect { first: 0, count: 1, rights: Rights::Read });
        m.apply(&Op::Move { first: 0, count: 1, to: 3 });
        assert!(m.contents(0).is_none());
        assert_eq!(m.contents(3).map(|w| w[9]), Some(8));
        assert_eq!(m.apply(&Op::GpuAdd(vec![(3 * PAGE_WORDS, true)])), Outcome::Failed);
    }

    #[test]
    fn discarding_spares_files() {
        let mut m = Model::new(2);
        m.apply(&Op::Map { first: 0, count: 1, shared: true });
        m.apply(&Op::Map { first: 1, count: 1, shared: false });
        m.apply(&Op::GpuStore(vec![(0, 1), (PAGE_WORDS, 1)]));
        m.apply(&Op::Discard { first: 0, count: 2 });
        assert_eq!(m.contents(0).map(|w| w[0]), Some(1));
        assert_eq!(m.contents(1).map(|w| w[0]), Some(0));
    }
}
