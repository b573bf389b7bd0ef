// SPDX-License-Identifier: GPL-2.0

//! The real thing beside the model: every step is done to both, and they are compared.

use super::{Model, Op, Outcome, BLOCK_WORDS, PAGE_WORDS};
use crate::{memory::memfd, random::model::Rights, Map, Rng, NONE, PAGE, RO, RW, SZ_2M};

/// What does the GPU's part. Each call says whether it succeeded; one that fails has done what was
/// before the access that failed.
pub trait Accelerator {
    /// Stores words at addresses.
    fn store(&mut self, stores: &[(u64, u32)]) -> bool;
    /// Adds one to the words at addresses, or subtracts one.
    fn add(&mut self, adds: &[(u64, bool)]) -> bool;
    /// Copies bytes.
    fn copy(&mut self, from: u64, to: u64, length: usize) -> bool;
}

/// A region of real memory with its model.
pub struct Machine<A> {
    region: Map,
    model: Model,
    accelerator: A,
    scratch: Map,
    history: Vec<Op>,
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
        }
    }

    /// Does so many random steps, looks at some memory after each, and at all of it in the end.
    pub fn run(&mut self, steps: u32, rng: &mut Rng) {
        for _ in 0..steps {
            let op = self.model.random_op(rng);
            self.history.push(op.clone());
            self.step(&op);
            for _ in 0..2 {
                let page = rng.below(self.model.len());
                self.look(page, rng.one_in(2));
            }
        }
        for page in 0..self.model.len() {
            self.look(page, false);
        }
    }

    fn step(&mut self, op: &Op) {
        let part = |first: usize, count: usize| self.region.part(first * PAGE, count * PAGE);
        let at = |word: usize| self.region.at(word * 4);
        let before: Vec<u32>;
        let succeeded = match *op {
            Op::Map { first, count, shared } => {
                let place = part(first, count);
                if shared {
                    place.replace_file(&memfd(count * PAGE, 0), RW, libc::MAP_SHARED);
                } else {
                    place.replace_anon(RW);
                }
                true
            }
            Op::Unmap { first, count } => {
                part(first, count).unmap();
                true
            }
            Op::Protect { first, count, rights } => {
                part(first, count).protect(match rights {
                    Rights::None => NONE,
                    Rights::Read => RO,
                    Rights::Write => RW,
                });
                true
            }
            Op::Discard { first, count } => {
                part(first, count).madvise(libc::MADV_DONTNEED);
                true
            }
            Op::Move { first, count, to } => {
                self.move_pages(first, count, to);
                true
            }
            Op::CpuWrite { word, value } => {
                self.region.write(word * 4, value);
                true
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

    /// Compares a page with the model, with the CPU's eyes or the GPU's.
    fn look(&mut self, page: usize, through_gpu: bool) {
        if !self.model.readable(page) {
            return;
        }
        let mut seen = self.region.part(page * PAGE, PAGE);
        if through_gpu {
            let copied = self.accelerator.copy(seen.at(0), self.scratch.at(0), PAGE);
            assert!(copied, "page {page} cannot be read: {}", self.tail());
            seen = self.scratch;
        }
        let wanted = self.model.contents(page).expect("a mapped page");
        for (i, &wanted) in wanted.iter().enumerate() {
            let found = seen.read(i * 4);
            assert!(
                found == wanted,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Accesses the process's own memory as the kernel does it for others: with its rights.
    struct Processor;

    impl Processor {
        fn transfer(address: u64, bytes: &mut [u8], write: bool) -> bool {
            let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let remote = libc::iovec { iov_base: address as *mut _, iov_len: bytes.len() };
            // SAFETY: the local buffer is ours, the remote one is the test's or a bad address.
            let done = unsafe {
                let me = libc::getpid();
                if write {
                    libc::process_vm_writev(me, &local, 1, &remote, 1, 0)
                } else {
                    libc::process_vm_readv(me, &local, 1, &remote, 1, 0)
                }
            };
            done == bytes.len() as isize
        }
    }

    impl Accelerator for Processor {
        fn store(&mut self, stores: &[(u64, u32)]) -> bool {
            stores.iter().all(|&(to, value)| Self::transfer(to, &mut value.to_ne_bytes(), true))
        }

        fn add(&mut self, adds: &[(u64, bool)]) -> bool {
            adds.iter().all(|&(to, up)| {
                let mut word = [0; 4];
                Self::transfer(to, &mut word, false) && {
                    let delta = if up { 1 } else { u32::MAX };
                    word = u32::from_ne_bytes(word).wrapping_add(delta).to_ne_bytes();
                    Self::transfer(to, &mut word, true)
                }
            })
        }

        fn copy(&mut self, from: u64, to: u64, length: usize) -> bool {
            (0..length as u64).step_by(256).all(|offset| {
                let mut block = [0; 256];
                Self::transfer(from + offset, &mut block, false)
                    && Self::transfer(to + offset, &mut block, true)
            })
        }
    }

    #[test]
    fn the_model_is_right_about_the_processor() {
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            Machine::new(40, Processor).run(300, &mut rng);
        }
    }

    /// One that forgets what it should do is found out.
    struct Forgetful(u32);

    impl Accelerator for Forgetful {
        fn store(&mut self, stores: &[(u64, u32)]) -> bool {
            self.0 += 1;
            self.0 > 5 || Processor.store(stores)
        }

        fn add(&mut self, adds: &[(u64, bool)]) -> bool {
            Processor.add(adds)
        }

        fn copy(&mut self, from: u64, to: u64, length: usize) -> bool {
            Processor.copy(from, to, length)
        }
    }

    #[test]
    #[should_panic(expected = "after")]
    fn a_lost_store_is_noticed() {
        Machine::new(16, Forgetful(0)).run(400, &mut Rng::new(3));
    }
}
