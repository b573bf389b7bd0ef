// SPDX-License-Identifier: GPL-2.0

//! One sequence of random steps: all about it follows from its seed.

use crate::tally::Tally;
use std::time::{Duration, Instant};
use vxe_client::{Device, Error};
use vxe_uapi::{
    gpu::PATIENCE_TIME,
    random::{Gpus, HintCounts, Machine},
    Gpu, Rng,
};

/// How a sequence is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How large its memory is.
    pages: usize,
    /// How many steps are done to it.
    steps: u32,
    /// How many VMs take turns.
    vms: usize,
    /// How many threads do the same, each to memory of its own.
    threads: usize,
}

impl Plan {
    /// The plan of a seed, for no more than `most` pages.
    pub fn random(rng: &mut Rng, most: usize) -> Self {
        let (pages, steps) = match rng.below(8) {
            0 | 1 => (24, 60),
            2..=4 => (200, 50),
            5 | 6 => (600, 40),
            _ => (2600, 20),
        };
        let vms = 1 + rng.below(3);
        let threads = if rng.one_in(3) { 2 + rng.below(2) } else { 1 };
        Self { pages: pages.min(most), steps, vms, threads }
    }
}

/// All Xe devices that are there now.
pub fn devices() -> Vec<Device> {
    (0..16).filter_map(|n| Device::open_path(format!("/dev/dri/card{n}")).ok()).collect()
}

/// The same, when there are any: the last may have been taken away just now.
fn some_devices() -> Vec<Device> {
    let start = Instant::now();
    loop {
        let devices = devices();
        if !devices.is_empty() {
            return devices;
        }
        assert!(start.elapsed() < PATIENCE_TIME, "there is no xe device");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs the sequence of a seed on `most` pages at the most, in a process that is made for it. Panics when
/// memory or the GPU is not as it should be.
pub fn run(seed: u64, most: usize, tally: &'static Tally) {
    let mut rng = Rng::new(seed);
    let plan = Plan::random(&mut rng, most);
    let devices = some_devices();
    std::thread::scope(|scope| {
        for _ in 0..plan.threads {
            let first = rng.below(devices.len());
            let mut rng = Rng::new(rng.next_u64());
            let (plan, devices) = (&plan, &devices);
            scope.spawn(move || {
                let of_turn = |i| &devices[(first + i) % devices.len()];
                let vms = (0..plan.vms).map(|i| Gpu::try_on_device(of_turn(i)));
                match vms.collect::<Result<Vec<_>, Error>>() {
                    Ok(gpus) => {
                        let mut machine = Machine::new(plan.pages, Gpus::new(gpus));
                        let done = machine.run(plan.steps, &mut rng);
                        tally.add(done, plan.steps, machine.hints());
                    }
                    // A device that is taken away at once.
                    Err(e) if e.errno() == libc::ENODEV => {
                        tally.add(0, plan.steps, &HintCounts::default());
                    }
                    Err(e) => panic!("{e}"),
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_the_plan() {
        let plan = |seed| Plan::random(&mut Rng::new(seed), 600);
        assert!((0..100).all(|seed| plan(seed) == plan(seed)));
        assert!((0..100).any(|seed| plan(seed) != plan(seed + 1)));
        assert_eq!((0..100).map(|seed| plan(seed).pages).max(), Some(600));
    }
}
