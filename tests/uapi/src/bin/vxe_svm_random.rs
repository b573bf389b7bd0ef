// SPDX-License-Identifier: GPL-2.0

//! Random sequences of mmap, munmap, mprotect, mremap, madvise, CPU writes and GPU work, checked
//! against a model. `VXE_SEED` repeats one.

use std::process::ExitCode;
use vxe_uapi::{
    env::iterations,
    random::{Gpus, Machine},
    Gpu, Program, Rng, PAGE, SZ_2M,
};

fn one(pages: usize, steps: u32) {
    let mut rng = Rng::from_environment();
    Machine::new(pages, Gpus::new(vec![Gpu::new()])).run(iterations(steps), &mut rng);
}

/// Two VMs take turns on the same memory.
fn two_vms() {
    let mut rng = Rng::from_environment();
    let gpus = Gpus::new(vec![Gpu::new(), Gpu::new()]);
    Machine::new(48, gpus).run(iterations(120), &mut rng);
}

/// Threads with a sequence each, in one VM.
fn threads() {
    let mut rng = Rng::from_environment();
    let main = Gpu::new();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let mut rng = Rng::new(rng.next_u64());
            let mut machine = Machine::new(40, Gpus::new(vec![main.another()]));
            scope.spawn(move || _ = machine.run(iterations(60), &mut rng));
        }
    });
}

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_svm_random",
        "Random sequences of what a process and its GPU do to memory, against a model.",
    );
    p.subtest("few-pages", "within two small chunks", || one(24, 200));
    p.subtest("one-chunk", "within a large chunk", || one(SZ_2M / PAGE, 120));
    p.subtest("many-chunks", "over several large chunks", || one(5 * SZ_2M / 2 / PAGE, 80));
    p.subtest("two-vms", "two VMs take turns", two_vms);
    p.subtest("threads", "several sequences at once", threads);
    p.main()
}
