// SPDX-License-Identifier: GPL-2.0

//! MADVISE says of buffers whether their contents are needed; those that are not go when device memory is short.

use std::{process::ExitCode, thread};
use vxe_client::{sys, Bind, Bo, Device, Error, Vm};
use vxe_uapi::{
    contents::pattern,
    env::iterations,
    gpu::{device, FAR},
    process::fork,
    vram::{self, evict_all, Hogs},
    Gpu, Map, Program, Stop, MIDDLE, PAGE, SZ_2M,
};

const LENGTH: u64 = MIDDLE as u64;

/// Where the second VMA of a buffer is.
const OTHER: u64 = FAR + SZ_2M as u64;

#[track_caller]
fn refused<T>(errno: i32, what: &str, result: Result<T, Error>) {
    assert_eq!(result.map(|_| ()).map_err(|e| e.errno()), Err(errno), "{what}");
}

fn try_bind(vm: &Vm, bo: &Bo, at: u64) -> Result<(), Error> {
    vm.bind(&[Bind::bo(bo, 0, at, bo.size() as u64)])
}

#[track_caller]
fn bind(vm: &Vm, bo: &Bo, at: u64) {
    try_bind(vm, bo, at).expect("a bind");
}

/// Says whether the contents at an address are needed; answers whether they are there.
#[track_caller]
fn set_needed(vm: &Vm, at: u64, needed: bool) -> bool {
    vm.set_needed(at, LENGTH, needed).expect("advice")
}

/// Buffers that take all the device memory that can be had.
fn take_all(device: &Device) -> Hogs {
    let mut hogs = Hogs::new();
    hogs.add_all(device, PAGE);
    hogs
}

/// Each kind of buffers: system memory, and the device's if it has any.
fn placements(device: &Device) -> Vec<u32> {
    let regions = device.memory_regions().expect("the regions");
    regions.iter().map(|region| 1 << region.instance).collect()
}

/// Whether reading a word ends a process with SIGBUS.
fn is_sigbus(word: Map) -> bool {
    let status = fork(|_| _ = word.read(0)).wait();
    libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS
}

/// What is not needed is not used anew, by nobody; once needed again it is, with its contents.
fn refusals() {
    let device = device();
    for placement in placements(&device) {
        let mut gpu = Gpu::on_device(&device);
        let vm = gpu.vm().clone();
        let bo = Bo::create(&device, MIDDLE, placement, None).expect("a buffer");
        let mapping = bo.map().expect("a mapping");
        let memory = Map::existing(mapping.as_ptr() as usize, MIDDLE);
        // The last page is accessed by nobody yet.
        memory.part(0, MIDDLE - PAGE).fill(pattern);
        bind(&vm, &bo, FAR);
        gpu.store(FAR, 1);
        // Bound, and not mapped yet.
        bind(&vm, &bo, OTHER);
        assert!(set_needed(&vm, OTHER, false), "one of two does not need it");
        bo.map().expect("a mapping");
        assert!(set_needed(&vm, FAR, false), "the other neither");

        refused(libc::EBUSY, "a bind", try_bind(&vm, &bo, FAR + 2 * SZ_2M as u64));
        refused(libc::EBUSY, "a bind in its own place", try_bind(&vm, &bo, FAR));
        refused(libc::EBUSY, "a mapping", bo.map());
        refused(libc::EBUSY, "an export", bo.export());
        for region in [0, 1] {
            let prefetch = Bind::prefetch(FAR, LENGTH, region);
            refused(libc::EBUSY, "a prefetch", vm.bind(&[prefetch]));
        }
        assert!(is_sigbus(memory.part(MIDDLE - PAGE, 4)), "a page that was not accessed before");
        gpu.expect_fault("not mapped before", |c| _ = c.store(OTHER, 1));
        // What was mapped may go on for a while.
        gpu.store(FAR, 2);
        bo.mmap_offset().expect("an offset");

        assert!(set_needed(&vm, OTHER, true), "needed again");
        gpu.store(OTHER, 3);
        memory.expect_word("stored", 0, 3);
        assert_eq!(memory.part(MIDDLE - PAGE, 4).read(0), 0, "the last page");
        bo.map().expect("a mapping");
        bind(&vm, &bo, FAR + 2 * SZ_2M as u64);
        memory.part(4, MIDDLE - PAGE - 4).expect("kept", |o| pattern(o + 4));
    }
}

/// A part of what is not needed is unbound; the rest is as before.
fn partial_unbind() {
    let gpu = Gpu::new();
    for placement in placements(gpu.device()) {
        let vm = gpu.vm();
        let bo = Bo::create(gpu.device(), MIDDLE, placement, Some(vm)).expect("a buffer");
        bind(vm, &bo, FAR);
        gpu.store(FAR + LENGTH - 4, 5);
        set_needed(vm, FAR, false);
        vm.bind(&[Bind::unmap(FAR, PAGE as u64)]).expect("an unbind of a part");
        refused(libc::EBUSY, "a bind", try_bind(vm, &bo, OTHER));
        vm.bind(&[Bind::unmap(FAR, LENGTH)]).expect("an unbind of all");
        refused(libc::EBUSY, "a bind when nothing is bound", try_bind(vm, &bo, OTHER));
        // Who asks, for what no VMA is of?
        assert!(set_needed(vm, FAR, true), "nothing is bound");
        refused(libc::EBUSY, "a bind", try_bind(vm, &bo, OTHER));
    }
}

/// A buffer in device memory, bound, with contents, in the process's memory, too.
fn scene(gpu: &Gpu, at: u64) -> (Bo, vxe_client::Mapping) {
    let bo = vram::buffer(gpu.device(), MIDDLE);
    let mapping = bo.map().expect("a mapping");
    Map::existing(mapping.as_ptr() as usize, MIDDLE).fill(pattern);
    bind(gpu.vm(), &bo, at);
    gpu.increment(at);
    (bo, mapping)
}

#[track_caller]
fn expect_contents(mapping: &vxe_client::Mapping) {
    let memory = Map::existing(mapping.as_ptr() as usize, MIDDLE);
    memory.expect("contents", |o| pattern(o) + u32::from(o == 0));
}

/// What was found in system memory, where it stays, is purged when it is not needed any more in the device's.
fn found_elsewhere() {
    let gpu = Gpu::new();
    let vm = gpu.vm();
    let (bo, _mapping) = scene(&gpu, FAR);
    bind(vm, &bo, OTHER);
    evict_all(gpu.device());
    assert!(set_needed(vm, FAR, false) && set_needed(vm, OTHER, false));
    drop(take_all(gpu.device()));
    assert!(set_needed(vm, OTHER, true), "it was not in the way");
    gpu.increment(OTHER);
    vm.bind(&[Bind::unmap(OTHER, LENGTH)]).expect("an unbind");
    drop(take_all(gpu.device()));
    assert!(!set_needed(vm, FAR, true), "it is not purged");
}

/// What was purged is gone: for the CPU, for all VMs, and for good.
fn purged() {
    let mut gpu = Gpu::new();
    let other = gpu.another();
    let (bo, mapping) = scene(&gpu, FAR);
    let memory = Map::existing(mapping.as_ptr() as usize, MIDDLE);
    let kept = scene(&gpu, OTHER);
    let vm = gpu.vm().clone();
    let free = vram::region(gpu.device()).total_size - vram::region(gpu.device()).used;
    assert!(set_needed(&vm, FAR, false), "not yet purged");
    let hogs = take_all(gpu.device());
    let taken = hogs.size();
    assert!(taken as u64 >= free + LENGTH, "{taken} bytes were had of {free} and {LENGTH}");
    // The GPU may still have had it in its TLB.
    gpu.expect_fault("a store", |c| _ = c.store(FAR, 7));
    assert!(is_sigbus(memory), "the CPU's mapping");
    for needed in [false, true, false, true] {
        assert!(!set_needed(&vm, FAR, needed), "purged once and for all");
    }
    refused(libc::EINVAL, "a bind", try_bind(&vm, &bo, FAR));
    refused(libc::EINVAL, "a bind elsewhere", try_bind(&vm, &bo, FAR + 2 * SZ_2M as u64));
    refused(libc::EINVAL, "a mapping", bo.map());
    refused(libc::EINVAL, "an export", bo.export());
    refused(libc::EINVAL, "a prefetch", vm.bind(&[Bind::prefetch(FAR, LENGTH, 1)]));
    bo.mmap_offset().expect("an offset");
    drop(hogs);
    gpu.expect_fault("there is memory again", |c| _ = c.store(FAR, 7));
    assert!(is_sigbus(memory), "the CPU's mapping");
    expect_contents(&kept.1);
    other.increment(OTHER + 4);
    vm.bind(&[Bind::unmap(FAR, LENGTH)]).expect("an unbind");
    drop(bo);
    // No page of it is another's.
    let hogs = take_all(gpu.device());
    assert!(is_sigbus(memory), "the mapping of a closed buffer");
    drop(hogs);
}

/// No buffer that is needed anywhere goes: one VMA is enough.
fn protected() {
    let gpu = Gpu::new();
    let device = gpu.device().clone();
    let second = Gpu::on_device(&device);
    let (bo, mapping) = scene(&gpu, FAR);
    bind(second.vm(), &bo, FAR);
    bind(second.vm(), &bo, OTHER);
    for (vm, at) in [(gpu.vm(), FAR), (second.vm(), FAR)] {
        assert!(set_needed(vm, at, false));
        evict_all(&device);
        expect_contents(&mapping);
    }
    second.store(OTHER + 4, pattern(4));
    expect_contents(&mapping);
    // One says so twice, and the last one that needed it takes it back.
    assert!(set_needed(gpu.vm(), FAR, false));
    evict_all(&device);
    expect_contents(&mapping);
    assert!(set_needed(second.vm(), OTHER, false));
    assert!(set_needed(second.vm(), FAR, true), "needed once more");
    evict_all(&device);
    expect_contents(&mapping);
    second.store(OTHER + 4, pattern(4));
    // Nor does unbinding the last VMA that needs it protect it, nor a change of other attributes.
    second.vm().bind(&[Bind::unmap(FAR, LENGTH)]).expect("an unbind");
    second.vm().madvise(OTHER, LENGTH, vxe_client::Advice::Pat(3)).expect("advice");
    evict_all(&device);
    assert!(!set_needed(gpu.vm(), FAR, true), "nobody needed it");
}

/// The one goes first that was the first not to be needed, and no more go than must.
fn in_order() {
    let gpu = Gpu::new();
    let vm = gpu.vm();
    let at = |i: u64| FAR + i * SZ_2M as u64;
    let mut hogs = vram::leave(gpu.device(), 4 * MIDDLE);
    let buffers: Vec<_> = (0..4).map(|i| scene(&gpu, at(i))).collect();
    assert_eq!(vram::resident(gpu.device()), hogs.size() + 4 * MIDDLE, "all are there");
    let order = [2, 0, 3, 1];
    for i in order {
        assert!(set_needed(vm, at(i), false));
    }
    // This one is needed after all, and comes last.
    assert!(set_needed(vm, at(2), true));
    assert!(set_needed(vm, at(2), false));
    for (round, i) in [0, 3, 1, 2].into_iter().enumerate() {
        hogs.add(gpu.device(), MIDDLE).expect("one more");
        assert!(!set_needed(vm, at(i), false), "{i} goes in round {round}");
        for left in [0, 3, 1, 2].into_iter().skip(round + 1) {
            assert!(set_needed(vm, at(left), false), "{left} stays in round {round}");
        }
    }
    refused(libc::ENOMEM, "one more", hogs.add(gpu.device(), MIDDLE));
    drop((buffers, hogs));
}

/// Memory of a process gets room, too.
fn for_processes() {
    let gpu = Gpu::new();
    let hogs = vram::leave(gpu.device(), SZ_2M + MIDDLE);
    let (_bo, _mapping) = scene(&gpu, FAR);
    let big = vram::buffer(gpu.device(), SZ_2M);
    bind(gpu.vm(), &big, OTHER);
    assert!(gpu.vm().set_needed(OTHER, SZ_2M as u64, false).expect("advice"));
    let map = Map::aligned(SZ_2M, SZ_2M);
    map.fill(pattern);
    gpu.increment(map.at(0));
    assert_eq!(vram::in_device(&gpu, map), SZ_2M, "the process's memory is on the device");
    assert!(!gpu.vm().set_needed(OTHER, SZ_2M as u64, true).expect("advice"));
    map.expect("the process's memory", |o| pattern(o) + u32::from(o == 0));
    drop(hogs);
}

/// Objects are closed while a buffer is not needed, in any order; its memory comes back.
fn closed() {
    let device = device();
    for round in 0..8 {
        let gpu = Gpu::on_device(&device);
        let (bo, mapping) = scene(&gpu, FAR);
        set_needed(gpu.vm(), FAR, false);
        let is_purged = round & 1 != 0;
        if is_purged {
            evict_all(&device);
        }
        let vm = gpu.vm().clone();
        match round / 2 {
            0 => drop((bo, mapping)),
            1 => drop(mapping),
            2 => {
                vm.destroy().expect("destroy");
                evict_all(&device);
                let gone = bo.map();
                assert_eq!(gone.map(drop).map_err(|e| e.errno()), Err(libc::EINVAL));
            }
            _ => drop(gpu),
        }
    }
    let used = || vram::region(&device).used;
    vram::soon("all memory is free", || used() < LENGTH);
}

/// In a VM without faults.
fn long_running() {
    let vm = Vm::with_flags(&device(), sys::DRM_XE_VM_CREATE_FLAG_LR_MODE).expect("a VM");
    let mut gpu = Gpu::on_vm(&vm);
    for area in gpu.areas() {
        vm.bind(&[Bind::userptr(area.at(0), area.at(0), area.len() as u64)]).expect("a bind");
    }
    let (_bo, mapping) = scene(&gpu, FAR);
    set_needed(&vm, FAR, false);
    assert!(set_needed(&vm, FAR, true));
    evict_all(vm.device());
    expect_contents(&mapping);
    gpu.store(FAR, pattern(0) + 1);
    set_needed(&vm, FAR, false);
    evict_all(vm.device());
    gpu.expect_fault("a store", |c| _ = c.store(FAR, 1));
    assert!(!set_needed(&vm, FAR, true));
}

/// Threads say that contents are needed and are not, and others take memory: contents are whole, or gone.
fn race() {
    let device = device();
    let done = Stop::new();
    thread::scope(|s| {
        s.spawn(|| {
            while !done.is_set() {
                evict_all(&device);
            }
        });
        s.spawn(|| {
            let vm = Vm::new(&device).expect("a VM");
            while !done.is_set() {
                let bo = vram::try_buffer(&device, MIDDLE);
                let Ok(bo) = bo else { continue };
                if try_bind(&vm, &bo, FAR).is_ok() {
                    set_needed(&vm, FAR, false);
                }
            }
        });
        let _done = done.on_drop();
        let mut counts = [0; 2];
        for _ in 0..iterations(60) {
            let gpu = Gpu::on_device(&device);
            let vm = gpu.vm();
            let Ok(bo) = vram::try_buffer(&device, MIDDLE) else { continue };
            let Ok(mapping) = bo.map() else { panic!("a mapping of what is needed") };
            Map::existing(mapping.as_ptr() as usize, MIDDLE).fill(pattern);
            bind(vm, &bo, FAR);
            gpu.increment(FAR);
            let mut is_there = true;
            for _ in 0..20 {
                is_there &= set_needed(vm, FAR, false);
                thread::yield_now();
                is_there &= set_needed(vm, FAR, true);
                if !is_there {
                    break;
                }
                expect_contents(&mapping);
            }
            counts[usize::from(is_there)] += 1;
        }
        println!("{} times purged, {} times kept", counts[0], counts[1]);
    });
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_purge", "Buffers whose contents are not needed are purged.");
    p.subtest("refusals", "what is not needed is not used anew", refusals);
    p.subtest("partial-unbind", "a part of it is unbound", partial_unbind);
    p.subtest("found-elsewhere", "what was in system memory", found_elsewhere);
    p.subtest("purged", "what was purged is gone for good", purged);
    p.subtest("protected", "no buffer goes that one VMA needs", protected);
    p.subtest("in-order", "the first not needed goes first", in_order);
    p.subtest("for-processes", "memory of a process gets room", for_processes);
    p.subtest("closed", "objects are closed meanwhile", closed);
    p.subtest("long-running", "a VM without faults", long_running);
    p.subtest("race", "advice and pressure at once", race);
    p.main()
}
