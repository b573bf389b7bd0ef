// SPDX-License-Identifier: GPL-2.0

//! Removal: a process that takes devices away from their driver and gives them back.

use crate::tally::Tally;
use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use vxe_uapi::{sysfs::Slot, Rng};

/// Takes a device away every so many milliseconds on average, until it is killed.
pub fn run(every: usize, seed: u64, tally: &Tally) -> ! {
    let mut rng = Rng::new(seed);
    loop {
        std::thread::sleep(Duration::from_millis(rng.below(2 * every) as u64));
        let slots = Slot::all();
        if slots.is_empty() {
            continue;
        }
        let slot = &slots[rng.below(slots.len())];
        slot.unbind();
        tally.removals.fetch_add(1, Relaxed);
        std::thread::sleep(Duration::from_millis(rng.below(200) as u64));
        slot.bind();
    }
}
