// SPDX-License-Identifier: GPL-2.0

//! What a fault of the GPU costs: what a job takes that faults, less what one takes that does not.

use crate::figures::{timed, Figures};
use vxe_client::{Bind, Commands, ExecQueue, Vm};
use vxe_uapi::{Gpu, Map, MIDDLE, PAGE, SZ_2M};

const SAMPLES: usize = 9;

/// A batch of one store that is written once and run often.
pub struct Store {
    batch: Map,
}

impl Store {
    /// A batch that the GPU has mapped.
    pub fn new(gpu: &Gpu) -> Self {
        let store = Self { batch: Map::aligned(PAGE, SZ_2M) };
        let target = Map::anon(PAGE);
        for _ in 0..3 {
            store.run(gpu, target.at(0));
        }
        store
    }

    /// What a store to an address takes.
    pub fn run(&self, gpu: &Gpu, address: u64) -> u64 {
        let mut commands = Commands::new();
        commands.store(address, 1).end();
        for (i, &dword) in commands.dwords().iter().enumerate() {
            self.batch.write(i * 4, dword);
        }
        timed(|| gpu.submit_and_wait(self.batch.at(0)).expect("a store"))
    }

    /// What it takes where the GPU has the page.
    pub fn without_fault(&self, gpu: &Gpu) -> u64 {
        let target = Map::anon(PAGE);
        self.run(gpu, target.at(0));
        let mut samples: Vec<_> = (0..SAMPLES).map(|_| self.run(gpu, target.at(0))).collect();
        samples.sort_unstable();
        samples[SAMPLES / 2]
    }
}

/// How the memory is before the GPU touches it.
#[derive(Clone, Copy)]
enum Before {
    Untouched,
    Present,
    Huge,
}

pub fn measure(gpu: &Gpu, figures: &mut Figures) {
    let store = Store::new(gpu);
    let target = Map::anon(PAGE);
    store.run(gpu, target.at(0));
    let plain = (0..SAMPLES).map(|_| store.run(gpu, target.at(0))).collect();
    let plain = figures.add("job: one store, submitted and waited for", None, plain);

    for (what, size, before) in [
        ("4 KiB, first touch", PAGE, Before::Untouched),
        ("4 KiB, present", PAGE, Before::Present),
        ("64 KiB, first touch", MIDDLE, Before::Untouched),
        ("64 KiB, present", MIDDLE, Before::Present),
        ("2 MiB of small pages, present", SZ_2M, Before::Present),
        ("2 MiB huge, present", SZ_2M, Before::Huge),
    ] {
        let samples = (0..SAMPLES)
            .map(|_| {
                let map = prepared(size, before);
                store.run(gpu, map.at(size / 2))
            })
            .collect();
        figures.add_less(&format!("fault: {what}"), None, samples, plain);
    }

    let upgrades = (0..SAMPLES)
        .map(|_| {
            let map = Map::aligned(PAGE, MIDDLE);
            gpu.copy(map.part(0, 256), target.part(0, 256));
            store.run(gpu, map.at(0))
        })
        .collect();
    figures.add_less("fault: 4 KiB, read before, now written", None, upgrades, plain);

    prefetches(gpu, figures, &store);
    objects(gpu, figures);
}

fn prepared(size: usize, before: Before) -> Map {
    let map = Map::aligned(size, SZ_2M);
    if matches!(before, Before::Huge) {
        map.madvise(libc::MADV_HUGEPAGE);
    }
    if !matches!(before, Before::Untouched) {
        (0..size).step_by(PAGE).for_each(|page| map.write(page, 1));
    }
    map
}

/// A prefetch finds the range and sees that it is valid, as a fault would that came too late.
fn prefetches(gpu: &Gpu, figures: &mut Figures, store: &Store) {
    for (what, size) in [("4 KiB", PAGE), ("64 KiB", MIDDLE), ("2 MiB", SZ_2M)] {
        let map = prepared(size, Before::Huge);
        store.run(gpu, map.at(0));
        let prefetch = [Bind::prefetch(map.at(0), size as u64, 0)];
        let call = || {
            // SAFETY: there is no fence.
            timed(|| unsafe { gpu.vm().bind_async(&prefetch, None, &[]) }.expect("a prefetch"))
        };
        call();
        let samples = (0..SAMPLES).map(|_| call()).collect();
        figures.add(&format!("prefetch: {what} that is valid"), None, samples);
    }
}

fn objects(gpu: &Gpu, figures: &mut Figures) {
    let device = gpu.device();
    let vms = (0..SAMPLES).map(|_| timed(|| Vm::new(device).expect("a VM"))).collect();
    figures.add("ioctl: VM_CREATE", None, vms);
    let queue = || timed(|| ExecQueue::new(gpu.vm()).expect("a queue"));
    figures.add("ioctl: EXEC_QUEUE_CREATE", None, (0..SAMPLES).map(|_| queue()).collect());
}
