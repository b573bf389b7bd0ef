// SPDX-License-Identifier: GPL-2.0

//! The GPU's part of a sequence, done by one GPU or by several in turn.

use super::{Accelerator, Hint, Verdict};
use crate::Gpu;
use std::os::fd::AsRawFd;
use vxe_client::{Advice, AtomicAccess, Bind, Commands, Location, Migrate};

/// GPUs that take turns.
pub struct Gpus {
    gpus: Vec<Gpu>,
    turn: usize,
}

impl Gpus {
    /// These, of which there must be one at least.
    pub const fn new(gpus: Vec<Gpu>) -> Self {
        Self { gpus, turn: 0 }
    }

    fn next(&mut self) -> &mut Gpu {
        self.turn = (self.turn + 1) % self.gpus.len();
        &mut self.gpus[self.turn]
    }

    fn run(&mut self, build: impl FnOnce(&mut Commands)) -> Verdict {
        let gpu = self.next();
        let Err(e) = gpu.try_run(build) else {
            return Verdict::Done;
        };
        // A device that is taken away may have banned the queue first.
        let verdict = match e.errno() {
            libc::ENODEV => return Verdict::Gone,
            libc::EIO | libc::ECANCELED => gpu.try_renew(),
            _ => panic!("{e}"),
        };
        match (verdict, e.errno()) {
            (Ok(()), libc::EIO) => Verdict::Failed,
            (Err(e), _) if e.errno() == libc::ENODEV => Verdict::Gone,
            (Ok(()), _) => panic!("{e}"),
            (Err(e), _) => panic!("a queue after a ban: {e}"),
        }
    }
}

impl Accelerator for Gpus {
    fn store(&mut self, stores: &[(u64, u32)]) -> Verdict {
        self.run(|c| stores.iter().for_each(|&(to, value)| _ = c.store(to, value)))
    }

    fn add(&mut self, adds: &[(u64, bool)]) -> Verdict {
        self.run(|c| {
            for &(to, up) in adds {
                if up {
                    c.increment(to)
                } else {
                    c.decrement(to)
                };
            }
        })
    }

    fn copy(&mut self, from: u64, to: u64, length: usize) -> Verdict {
        self.run(|c| _ = c.copy(from, to, length))
    }

    fn advise(&mut self, start: u64, length: usize, hint: Hint) -> Verdict {
        let other = self.next().device().as_raw_fd();
        let vm = self.next().vm();
        let length = length as u64;
        let prefetch = |region| vm.bind(&[Bind::prefetch(start, length, region)]);
        let advise = |advice| vm.madvise(start, length, advice);
        let prefer = |location| advise(Advice::Preferred(location, Migrate::AllPages));
        let done = match hint {
            Hint::Prefetch => prefetch(-1),
            Hint::PrefetchSystem => prefetch(0),
            Hint::PrefetchDevice => prefetch(1),
            Hint::PreferDevice => prefer(Location::Local),
            Hint::PreferOther => prefer(Location::Device { fd: other, region: 1 }),
            Hint::PreferSystem => prefer(Location::System),
            Hint::AtomicDevice => advise(Advice::Atomic(AtomicAccess::Device)),
        };
        match done {
            Ok(()) => Verdict::Done,
            Err(e) if e.errno() == libc::ENODEV => Verdict::Gone,
            Err(_) => Verdict::Failed,
        }
    }
}
