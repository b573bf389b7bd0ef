// SPDX-License-Identifier: GPL-2.0

//! The real thing beside the model: every step is done to both, and they are compared.

use super::{Hint, HintCounts, Model, Op, Outcome, BLOCK_WORDS, PAGE_WORDS};
use crate::{
    memory::memfd, process::fork, random::model::Rights, Map, Rng, NONE, PAGE, RO, RW, SZ_2M,
};

/// What became of the GPU's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of it was done.
    Done,
    /// An access failed; what was before it is done.
    Failed,
    /// The GPU was taken away, and nobody knows how far it came. It did nothing else.
    Gone,
}

impl From<bool> for Verdict {
    fn from(succeeded: bool) -> Self {
        if succeeded {
            Self::Done
        } else {
            Self::Failed
        }
    }
}

/// What does the GPU's part.
pub trait Accelerator {
    /// Stores words at addresses.
    fn store(&mut self, stores: &[(u64, u32)]) -> Verdict;
    /// Adds one to the words at addresses, or subtracts one.
    fn add(&mut self, adds: &[(u64, bool)]) -> Verdict;
    /// Copies bytes.
    fn copy(&mut self, from: u64, to: u64, length: usize) -> Verdict;
    /// Takes advice on bytes at an address, or cannot.
    fn advise(&mut self, _start: u64, _length: usize, _hint: Hint) -> Verdict {
        Verdict::Failed
    }
}

/// A region of real memory with its model.
pub struct Machine<A> {
    region: Map,
    model: Model,
    accelerator: A,
    scratch: Map,
    history: Vec<Op>,
    hints: HintCounts,
    /// The step during which the GPU was taken away.
    gone: Option<Op>,
}

impl<A: Accelerator> Machine<A> {
    /// A region of so many pages, at the start of a large chunk.
    pub fn new(pages: usize, accelerator: A) -> Self {
        let region = Map::reserve(pages * PAGE, SZ_2M);
        region.unmap();
        Self {
            region,
            model: Model::new(pages),
            accelerator,
            scratch: Map::anon(PAGE),
            history: Vec::new(),
            hints: HintCounts::default(),
            gone: None,
        }
    }

    /// Does so many random steps, looks at some memory after each, and at all of it in the end. Ends
    /// early when the GPU is taken away. Says how many steps were done.
    pub fn run(&mut self, steps: u32, rng: &mut Rng) -> u32 {
        let mut done = 0;
        while done < steps && self.gone.is_none() {
            let op = self.model.random_op(rng);
            self.history.push(op.clone());
            self.step(&op);
            done += 1;
            for _ in 0..2 {
                let page = rng.below(self.model.len());
                self.look(page, rng.one_in(2));
            }
        }
        for page in 0..self.model.len() {
            self.look(page, false);
        }
        done
    }

    /// The step during which the GPU was taken away.
    pub const fn gone(&self) -> Option<&Op> {
        self.gone.as_ref()
    }

    /// What became of the advice that was given. Advice to a GPU that was taken away does not count.
    pub const fn hints(&self) -> &HintCounts {
        &self.hints
    }

    fn step(&mut self, op: &Op) {
        let part = |first: usize, count: usize| self.region.part(first * PAGE, count * PAGE);
        let at = |word: usize| self.region.at(word * 4);
        let before: Vec<u32>;
        let verdict = match *op {
            Op::Map { first, count, shared } => {
                let place = part(first, count);
                if shared {
                    place.replace_file(&memfd(count * PAGE, 0), RW, libc::MAP_SHARED);
                } else {
                    place.replace_anon(RW);
                }
                Verdict::Done
            }
            Op::Unmap { first, count } => {
                part(first, count).unmap();
                Verdict::Done
            }
            Op::Protect { first, count, rights } => {
                part(first, count).protect(match rights {
                    Rights::None => NONE,
                    Rights::Read => RO,
                    Rights::Write => RW,
                });
                Verdict::Done
            }
            Op::Discard { first, count } => {
                part(first, count).madvise(libc::MADV_DONTNEED);
                Verdict::Done
            }
            Op::Move { first, count, to } => {
                self.move_pages(first, count, to);
                Verdict::Done
            }
            Op::Advise { first, count, hint } => {
                match self.accelerator.advise(part(first, count).at(0), count * PAGE, hint) {
                    // Whatever becomes of it, contents stay what they are.
                    Verdict::Gone => {}
                    verdict => self.hints.add(hint, verdict == Verdict::Done),
                }
                Verdict::Done
            }
            Op::Fork { first, count } => {
                self.fork_and_look(first, count);
                Verdict::Done
            }
            Op::CpuWrite { word, value } => {
                self.region.write(word * 4, value);
                Verdict::Done
            }
            Op::GpuStore(ref stores) => {
                let stores: Vec<_> = stores.iter().map(|&(w, value)| (at(w), value)).collect();
                self.accelerator.store(&stores)
            }
            Op::GpuAdd(ref adds) => {
                let adds: Vec<_> = adds.iter().map(|&(w, up)| (at(w), up)).collect();
                self.accelerator.add(&adds)
            }
            Op::GpuCopy { from, to, blocks } => {
                let (from, to) = (at(from * BLOCK_WORDS), at(to * BLOCK_WORDS));
                self.accelerator.copy(from, to, blocks * BLOCK_WORDS * 4)
            }
        };
        if verdict == Verdict::Gone {
            self.gone = Some(op.clone());
            return;
        }
        let succeeded = verdict == Verdict::Done;
        let expected = self.model.apply(op);
        let wanted = expected == Outcome::Done;
        assert!(
            succeeded == wanted,
            "the GPU {} where it should {}: {}",
            if succeeded { "succeeded" } else { "failed" },
            if wanted { "succeed" } else { "fail" },
            self.tail()
        );
        if let Outcome::FailedSomewhere(possible) = expected {
            before = possible
                .iter()
                .map(|&(word, _)| {
                    let page = self.model.contents(word / PAGE_WORDS).expect("a mapped page");
                    page[word % PAGE_WORDS]
                })
                .collect();
            for (&(word, new), old) in possible.iter().zip(before) {
                let found = self.region.read(word * 4);
                assert!(
                    found == old || found == new,
                    "{found:#x} is neither {old:#x} nor {new:#x}: {}",
                    self.tail()
                );
                self.model.settle(word, found);
            }
        }
    }

    /// Moves mapping by mapping, as `mremap(2)` wants it.
    fn move_pages(&self, first: usize, count: usize, to: usize) {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        for i in 0..count {
            let target = self.region.part((to + i) * PAGE, PAGE);
            self.region.part((first + i) * PAGE, PAGE).remap(PAGE, flags, Some(target));
        }
    }

    /// Has a child process compare pages with the model, and write to those that it has for itself.
    fn fork_and_look(&mut self, first: usize, count: usize) {
        let child = fork(|_| {
            for page in first..first + count {
                self.look(page, false);
                if self.model.private(page) {
                    self.region.write(page * PAGE, 0xc411d);
                }
            }
        });
        child.expect_success();
    }

    /// Compares a page with the model, with the CPU's eyes or the GPU's.
    fn look(&mut self, page: usize, through_gpu: bool) {
        if !self.model.readable(page) {
            return;
        }
        let mut seen = self.region.part(page * PAGE, PAGE);
        if through_gpu {
            match self.accelerator.copy(seen.at(0), self.scratch.at(0), PAGE) {
                Verdict::Done => seen = self.scratch,
                Verdict::Failed => panic!("page {page} cannot be read: {}", self.tail()),
                // The CPU looks instead; what the GPU wrote before is not in doubt.
                Verdict::Gone => self.gone = self.gone.take().or(self.history.last().cloned()),
            }
        }
        let wanted = self.model.contents(page).expect("a mapped page");
        for (i, &wanted) in wanted.iter().enumerate() {
            let found = seen.read(i * 4);
            let unknown = |op| Model::may_write(op, page * PAGE_WORDS + i);
            assert!(
                found == wanted || self.gone.as_ref().is_some_and(unknown),
                "{found:#x} instead of {wanted:#x} in page {page}, word {i}, seen by the {}: {}",
                if through_gpu { "GPU" } else { "CPU" },
                self.tail()
            );
        }
    }

    /// The last steps, for the one who has to find out.
    fn tail(&self) -> String {
        let start = self.history.len().saturating_sub(12);
        let steps = self.history[start..].iter().enumerate();
        let lines: Vec<_> = steps.map(|(i, op)| format!("  {}: {op:?}", start + i)).collect();
        format!("after\n{}", lines.join("\n"))
    }
}
