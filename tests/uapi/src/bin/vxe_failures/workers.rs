// SPDX-License-Identifier: GPL-2.0

//! What threads of the kernel do for a process: faults are serviced. And pages that cannot be mapped for the
//! device, whoever maps them.
//!
//! A failure there is nobody's return value. A fault may be tried again, or its job may fail; what may not
//! be is that memory is not as it was, or that the VM is of no use any more.

use crate::State;
use vxe_client::{Bind, Error};
use vxe_uapi::{
    contents::pattern,
    failure::{Failures, Kind, Met},
    memory::memfd,
    vram::keep_out,
    Gpu, Map, MIDDLE, PAGE, RW, SZ_2M,
};

/// The module in whose code failures are.
const MODULE: &str = "vxe";

/// The functions of the core that map pages, and what each returns when it cannot. `-1` is no address. (Pages
/// are linked to IOVAs for devices behind an IOMMU alone; vxe's are not.)
pub const MAPPINGS: [(&str, u64); 2] =
    [("kext_dma_map_page", u64::MAX), ("kext_dma_iova_try_alloc", 0)];

/// Memory of a kind that moves to the device, and of one that stays.
struct Memory {
    gpu: Gpu,
    map: Map,
}

impl Memory {
    fn new(moves: bool) -> Self {
        let gpu = Gpu::new();
        let map = Map::aligned(MIDDLE, SZ_2M);
        if !moves {
            map.replace_file(&memfd(MIDDLE, 0), RW, libc::MAP_SHARED);
            keep_out(&gpu);
        }
        map.fill(pattern);
        // Its fence and its batches are there: that a wait for the fence can read it is no part of this.
        gpu.run(|c| _ = c.noop());
        Self { gpu, map }
    }

    /// The GPU counts in its second page.
    fn count(&self) -> vxe_client::Result<()> {
        self.gpu.try_run(|c| _ = c.increment(self.map.at(PAGE)))
    }

    /// It is as it was, but for how often it was counted in.
    #[track_caller]
    fn expect(&self, counts: u32) {
        self.map.expect("the memory", |o| pattern(o).wrapping_add(u32::from(o == PAGE) * counts));
    }

    /// What became of a job: it counted, or it failed before it did, or behind that. The VM is good for
    /// another, which counts.
    #[track_caller]
    fn check(mut self, error: Option<Error>) {
        let counts = match error {
            Some(_) => u32::from(self.map.read(PAGE) != pattern(PAGE)),
            None => 1,
        };
        self.expect(counts);
        if let Some(e) = error {
            let known = [libc::EIO, libc::ECANCELED, libc::ENOMEM].contains(&e.errno());
            assert!(known, "after a failure: {e}");
            let state = State::of(self.gpu.vm());
            self.gpu.renew();
            self.count().expect("a job, without a failure");
            self.expect(counts + 1);
            assert_eq!(State::of(self.gpu.vm()), state, "VMAs");
        }
    }
}

/// Each allocation for a job that faults, by whoever makes it.
pub fn fault(kind: Kind) {
    let mut all = Met::default();
    for moves in [false, true] {
        let failures = Failures::below(MODULE, kind);
        let met = failures.each(|| Memory::new(moves), |memory| memory.count(), Memory::check);
        println!("{met}");
        all += met;
    }
    assert!(kind == Kind::Page || all.failures > 0, "only {all}");
}

/// A mapping for the device fails, in a fault or a prefetch.
pub fn dma(function: &'static str, value: u64, prefetch: bool) {
    let failures = Failures::of_function(function, value);
    let mut all = Met::default();
    for moves in [false, true] {
        let call = |memory: &mut Memory| {
            if prefetch {
                let (start, length) = (memory.map.at(0), memory.map.len() as u64);
                memory.gpu.vm().bind(&[Bind::prefetch(start, length, -1)])
            } else {
                memory.count()
            }
        };
        let met = failures.each(
            || Memory::new(moves),
            call,
            |memory, error| {
                if prefetch {
                    memory.expect(0);
                    memory.count().expect("a job, without a failure");
                    memory.expect(1);
                } else {
                    memory.check(error);
                }
            },
        );
        println!("{met}");
        all += met;
    }
    assert!(all.failures > 0, "nothing was mapped by {function}");
}
