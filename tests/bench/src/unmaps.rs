// SPDX-License-Identifier: GPL-2.0

//! What the process pays for the GPU when it changes its own mappings.

use crate::{
    faults::Store,
    figures::{timed, Figures},
};
use vxe_uapi::{Gpu, Map, MIDDLE, PAGE, SZ_2M};

const SAMPLES: usize = 9;

/// What the GPU has to do with the memory.
#[derive(Clone, Copy)]
enum Gpus {
    /// It has it mapped.
    Mapped,
    /// It has mapped something near, so that it is told of the change, and misses.
    Near,
    /// Nothing.
    Nothing,
}

pub fn measure(gpu: &Gpu, figures: &mut Figures) {
    let store = Store::new(gpu);
    for (size_name, size, huge) in
        [("4 KiB", PAGE, false), ("64 KiB", MIDDLE, false), ("2 MiB huge", SZ_2M, true)]
    {
        for (gpus_name, gpus) in
            [("the GPU has mapped", Gpus::Mapped), ("the GPU has nothing of", Gpus::Nothing)]
        {
            let samples = (0..SAMPLES)
                .map(|_| {
                    let map = prepared(gpu, &store, size, huge, gpus);
                    timed(|| map.unmap())
                })
                .collect();
            figures.add(&format!("munmap: {size_name} that {gpus_name}"), None, samples);
        }
    }
    for (name, gpus) in [
        ("invalidation that hits", Gpus::Mapped),
        ("invalidation that misses", Gpus::Near),
        ("no invalidation", Gpus::Nothing),
    ] {
        let samples = (0..SAMPLES)
            .map(|_| {
                let map = prepared(gpu, &store, PAGE, false, gpus);
                timed(|| map.madvise(libc::MADV_DONTNEED))
            })
            .collect();
        figures.add(&format!("MADV_DONTNEED: 4 KiB, {name}"), None, samples);
    }
}

/// Memory that the CPU has touched, and the GPU as asked for.
fn prepared(gpu: &Gpu, store: &Store, size: usize, huge: bool, gpus: Gpus) -> Map {
    // The driver watches a much larger area than a chunk around what it mirrors, if not all of it.
    const FAR: usize = 1 << 30;
    let align = if matches!(gpus, Gpus::Nothing) { FAR } else { SZ_2M };
    let map = Map::aligned(size, align);
    if huge {
        map.madvise(libc::MADV_HUGEPAGE);
    }
    (0..size).step_by(PAGE).for_each(|page| map.write(page, 1));
    match gpus {
        Gpus::Mapped => _ = store.run(gpu, map.at(0)),
        Gpus::Near => {
            let near = Map::existing(map.start() + size + PAGE, PAGE).replace_anon(vxe_uapi::RW);
            store.run(gpu, near.at(0));
        }
        Gpus::Nothing => {}
    }
    map
}
