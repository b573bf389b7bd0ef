// SPDX-License-Identifier: GPL-2.0

//! How costs grow with the number of ranges in a VM.

use crate::{
    faults::Store,
    figures::{timed, Figures},
};
use std::error::Error;
use vxe_client::Device;
use vxe_uapi::{vram::keep_out, Gpu, Map, MIDDLE, PAGE, RW};

const SAMPLES: usize = 9;

/// Distance between two ranges: with a gap, for each to be a mapping and a chunk of its own.
const STRIDE: usize = 2 * PAGE;

/// Faults in one batch.
const AT_ONCE: usize = 250;

/// Lets a process have so many mappings.
fn allow_mappings(count: usize) -> std::io::Result<()> {
    const LIMIT: &str = "/proc/sys/vm/max_map_count";
    let now: usize = std::fs::read_to_string(LIMIT)?.trim().parse().unwrap_or(0);
    if now < count {
        std::fs::write(LIMIT, count.to_string())?;
    }
    Ok(())
}

/// Measures on a VM of its own, with `ranges` ranges of 4 KiB in it.
pub fn measure(ranges: usize, figures: &mut Figures) -> Result<(), Box<dyn Error>> {
    allow_mappings(2 * ranges + 1000)?;
    let gpu = Gpu::on_device(&Device::open()?);
    keep_out(&gpu);
    let store = Store::new(&gpu);
    // Some more, for the samples: they are taken from all over the room.
    let spare = 4 * SAMPLES;
    let room = Map::reserve((ranges + spare) * STRIDE, MIDDLE);
    let page = |i: usize| Map::existing(room.start() + i * STRIDE, PAGE);
    let step = (ranges + spare) / spare;
    let is_spare = |i: usize| i % step == step / 2 && i / step < spare;
    let used: Vec<usize> = (0..ranges + spare).filter(|&i| !is_spare(i)).take(ranges).collect();
    for &i in &used {
        page(i).replace_anon(RW);
    }
    for some in used.chunks(AT_ONCE) {
        gpu.run(|c| some.iter().for_each(|&i| _ = c.store(page(i).at(0), i as u32)));
    }

    let plain = store.without_fault(&gpu);
    let (mut faults, mut hits, mut misses, mut unmaps) = (vec![], vec![], vec![], vec![]);
    for sample in 0..SAMPLES {
        let mut spares = (0..4).map(|k| page((sample * 4 + k) * step + step / 2));
        let mut fresh = || {
            let map = spares.next().expect("a spare page").replace_anon(RW);
            map.write(0, 1);
            map
        };
        let (a, b, c) = (fresh(), fresh(), fresh());
        faults.push(store.run(&gpu, a.at(0)));
        hits.push(timed(|| a.madvise(libc::MADV_DONTNEED)));
        misses.push(timed(|| b.madvise(libc::MADV_DONTNEED)));
        store.run(&gpu, c.at(0));
        unmaps.push(timed(|| c.unmap()));
    }
    let n = Some(ranges);
    figures.add_less("fault: 4 KiB, present", n, faults, plain);
    figures.add("MADV_DONTNEED: 4 KiB, invalidation that hits", n, hits);
    figures.add("MADV_DONTNEED: 4 KiB, invalidation that misses", n, misses);
    figures.add("munmap: 4 KiB that the GPU has mapped", n, unmaps);
    figures.add("VM: all ranges go with it", n, vec![timed(|| drop(gpu))]);
    room.unmap();
    Ok(())
}
