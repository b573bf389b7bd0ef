// SPDX-License-Identifier: GPL-2.0

//! Tests what runs random sequences, with the processor in the GPU's place. The sequences fork, so
//! it is a program with one thread: locks that another one holds at that moment (of a stream, of the
//! panic hook) stay locked in the child for ever.

use std::{
    panic::{catch_unwind, AssertUnwindSafe},
    process::ExitCode,
};
use vxe_uapi::{
    random::{Accelerator, Machine, Op, Verdict},
    Rng,
};

fn main() -> ExitCode {
    let tests: [(&str, fn()); 3] = [
        ("the_model_is_right_about_the_processor", the_model_is_right_about_the_processor),
        ("a_gpu_that_leaves_ends_the_sequence", a_gpu_that_leaves_ends_the_sequence),
        ("a_lost_store_is_noticed", a_lost_store_is_noticed),
    ];
    let mut code = ExitCode::SUCCESS;
    for (name, test) in tests {
        let passed = catch_unwind(test).is_ok();
        // As the standard test harness has it.
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            code = ExitCode::FAILURE;
        }
    }
    code
}

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
    fn store(&mut self, stores: &[(u64, u32)]) -> Verdict {
        let mut stores = stores.iter();
        stores.all(|&(to, value)| Self::transfer(to, &mut value.to_ne_bytes(), true)).into()
    }

    fn add(&mut self, adds: &[(u64, bool)]) -> Verdict {
        let mut adds = adds.iter();
        let all = adds.all(|&(to, up)| {
            let mut word = [0; 4];
            Self::transfer(to, &mut word, false) && {
                let delta = if up { 1 } else { u32::MAX };
                word = u32::from_ne_bytes(word).wrapping_add(delta).to_ne_bytes();
                Self::transfer(to, &mut word, true)
            }
        });
        all.into()
    }

    fn copy(&mut self, from: u64, to: u64, length: usize) -> Verdict {
        let mut offsets = (0..length as u64).step_by(256);
        let all = offsets.all(|offset| {
            let mut block = [0; 256];
            Self::transfer(from + offset, &mut block, false)
                && Self::transfer(to + offset, &mut block, true)
        });
        all.into()
    }
}

fn the_model_is_right_about_the_processor() {
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        Machine::new(40, Processor).run(300, &mut rng);
    }
}

/// One that forgets what it should do is found out.
struct Forgetful(u32);

impl Accelerator for Forgetful {
    fn store(&mut self, stores: &[(u64, u32)]) -> Verdict {
        self.0 += 1;
        if self.0 > 5 {
            Verdict::Done
        } else {
            Processor.store(stores)
        }
    }

    fn add(&mut self, adds: &[(u64, bool)]) -> Verdict {
        Processor.add(adds)
    }

    fn copy(&mut self, from: u64, to: u64, length: usize) -> Verdict {
        Processor.copy(from, to, length)
    }
}

/// One that is taken away in the middle of a store, and for good.
struct Leaving(u32);

impl Accelerator for Leaving {
    fn store(&mut self, stores: &[(u64, u32)]) -> Verdict {
        self.0 = self.0.saturating_sub(1);
        match self.0 {
            0 => {
                Processor.store(&stores[..stores.len() / 2]);
                Verdict::Gone
            }
            _ => Processor.store(stores),
        }
    }

    fn add(&mut self, adds: &[(u64, bool)]) -> Verdict {
        Processor.add(adds)
    }

    fn copy(&mut self, from: u64, to: u64, length: usize) -> Verdict {
        match self.0 {
            0 => Verdict::Gone,
            _ => Processor.copy(from, to, length),
        }
    }
}

fn a_gpu_that_leaves_ends_the_sequence() {
    let mut machine = Machine::new(16, Leaving(4));
    let done = machine.run(400, &mut Rng::new(3));
    assert!(done < 400, "{done} steps");
    assert!(matches!(machine.gone(), Some(Op::GpuStore(_))));
}

fn a_lost_store_is_noticed() {
    let machine = Machine::new(16, Forgetful(0));
    let run = AssertUnwindSafe(|| { machine }.run(400, &mut Rng::new(3)));
    let panic = catch_unwind(run).expect_err("nobody noticed");
    let message = panic.downcast_ref::<String>().expect("a message");
    assert!(message.contains("after"), "{message}");
}
