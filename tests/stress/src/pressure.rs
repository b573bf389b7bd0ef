// SPDX-License-Identifier: GPL-2.0

//! Memory pressure: a process that takes memory and gives it back.

use crate::tally::Tally;
use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use vxe_uapi::{Map, Rng, PAGE};

/// Takes up to so many MiB and gives them back, until it is killed.
pub fn run(mib: usize, seed: u64, tally: &Tally) -> ! {
    let mut rng = Rng::new(seed);
    loop {
        let pages = (1 + rng.below(mib)) << 8;
        let memory = Map::anon(pages * PAGE);
        for page in 0..pages {
            memory.write(page * PAGE, 1);
        }
        memory.unmap();
        // Written as an administrator would: all that can be had from shrinkers and caches.
        if rng.one_in(4) {
            let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
        }
        tally.pressure.fetch_add(1, Relaxed);
        std::thread::sleep(Duration::from_millis(rng.below(200) as u64));
    }
}
