// SPDX-License-Identifier: GPL-2.0

//! What threads of the kernel do for a process: faults are serviced, and fences of binds are written. And
//! pages that cannot be mapped for the device, whoever maps them.
//!
//! A failure there is nobody's return value. A fault may be tried again, or its job may fail; what may not
//! be is that memory is not as it was, or that the VM is of no use any more.

use crate::{call, one_bind, State};
use std::time::Instant;
use vxe_client::{request, Bind, Error, Fence, Wait};
use vxe_igt::{
    contents::pattern,
    failure::{Failures, Kind, Met},
    gpu::{PATIENCE, PATIENCE_TIME},
    memory::memfd,
    vram::keep_out,
    Gpu, Map, PAGE, RW, SZ_2M, SZ_64K,
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
        let map = Map::aligned(SZ_64K, SZ_2M);
        if !moves {
            map.replace_file(&memfd(SZ_64K, 0), RW, libc::MAP_SHARED);
            keep_out(&gpu);
        }
        map.fill(pattern);
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

/// The value of a bind's fence cannot be written: what was bound is, nobody is told, and who waits has a
/// time-out.
pub fn bind_fence() {
    let gpu = Gpu::new();
    let (device, vm) = (gpu.device(), gpu.vm());
    let failures = Failures::below(MODULE, Kind::Copy);
    let place = Map::reserve(SZ_64K, SZ_2M);
    let words = Map::shared(PAGE);
    let next = std::cell::Cell::new(0);
    let mut unwritten = 0;
    failures.each(
        || {
            let fence = Fence { address: words.at(next.get()), value: 1 };
            next.set(next.get() + 8);
            let sync = Box::new([fence.to_sync()]);
            let mut args = one_bind(vm, &Bind::unmap(place.at(0), place.len() as u64));
            (args.num_syncs, args.syncs) = (1, sync.as_ptr() as u64);
            (args, sync, fence)
        },
        |(args, _, fence)| {
            let done = call(device, &request::VM_BIND, args);
            // The worker's copy is the last: it fails, or the word is written.
            let (word, start) = (Map::existing(fence.address as usize, 8), Instant::now());
            while done.is_ok() && word.read(0) == 0 && !failures.has_failed() {
                assert!(start.elapsed() < PATIENCE_TIME, "neither written nor failed");
                std::thread::yield_now();
            }
            done
        },
        |(_, _, fence), error| {
            let word = Map::existing(fence.address as usize, 8);
            match error {
                Some(e) => assert_eq!(e.errno(), libc::EFAULT, "{e}"),
                None if word.read(0) == 0 => {
                    unwritten += 1;
                    let wait = Wait::equal(fence.address, 1, vxe_client::Timeout::ms(50));
                    let waited = device.wait_user_fence(&wait).map_err(|e| e.errno());
                    assert_eq!(waited.map(|_| ()), Err(libc::ETIME), "the wait for it");
                }
                None => {
                    let wait = Wait::equal(fence.address, 1, PATIENCE);
                    device.wait_user_fence(&wait).expect("the fence");
                }
            }
            gpu.run(|c| _ = c.noop());
        },
    );
    assert_eq!(unwritten, 1, "copies of the worker that failed");
}
