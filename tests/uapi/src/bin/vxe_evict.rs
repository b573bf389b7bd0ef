// SPDX-License-Identifier: GPL-2.0

//! Buffers in device memory make room for others: they move to system memory, come back when the GPU uses
//! them, and have their contents wherever they are.

use std::{
    cell::Cell,
    os::fd::AsFd,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};
use vxe_client::{sys, Bind, Bo, Device, Error, Vm};
use vxe_uapi::{
    cgroup::{Cgroup, Region},
    contents::{filled, pattern},
    env::iterations,
    failure::{Failures, Kind},
    gpu::{works, FAR},
    process::{fork, Child, Link},
    sysfs::{is_end, Provider, Slot},
    vram::{self, counted, resident, try_buffer},
    Buffer, Gpu, Map, Program, Stop, MIDDLE, PAGE, SZ_2M,
};

/// How much memory the device has.
const ROOM_MB: usize = 16;
const ROOM: usize = ROOM_MB << 20;

/// The device's memory, and either.
const VRAM: u32 = 1 << 1;
const BOTH: u32 = VRAM | 1;

/// A device with little memory of its own, which is removed when this goes.
struct Small {
    device: Option<Device>,
    provider: Option<Provider>,
}

impl Small {
    fn new() -> Self {
        let provider = Provider::load(ROOM_MB);
        let device = provider.slot().open();
        assert_eq!(vram::region(&device).total_size, ROOM as u64);
        Self { device: Some(device), provider: Some(provider) }
    }

    fn device(&self) -> &Device {
        self.device.as_ref().expect("the device")
    }

    fn slot(&self) -> &'static Slot {
        self.provider.as_ref().expect("the provider").slot()
    }

    /// Ends it, when nothing else is in use.
    fn remove(mut self) {
        drop(self.device.take());
        self.provider.take().expect("the provider").remove();
    }
}

/// The contents of buffer number `i`.
const fn value(i: usize, offset: usize) -> u32 {
    pattern(offset) ^ ((i as u32) << 24)
}

/// Where buffer number `i` is bound.
const fn at(i: usize) -> u64 {
    FAR + i as u64 * (1 << 30)
}

#[track_caller]
fn refused<T>(errno: i32, what: &str, result: Result<T, Error>) {
    assert_eq!(result.map(|_| ()).map_err(|e| e.errno()), Err(errno), "{what}");
}

#[track_caller]
fn bind(vm: &Vm, bo: &Bo, i: usize) {
    vm.bind(&[Bind::bo(bo, 0, at(i), bo.size() as u64)]).expect("a bind");
}

/// A buffer with contents, number `i`, that is bound.
#[track_caller]
fn made(vm: &Vm, i: usize, size: usize, placement: u32) -> Buffer {
    let bo = Bo::create(vm.device(), size, placement, None).expect("a buffer");
    bind(vm, &bo, i);
    let buffer = Buffer::of(bo);
    buffer.memory().fill(|offset| value(i, offset));
    buffer
}

/// A GPU with a VM without faults.
fn without_faults(device: &Device) -> Gpu {
    let vm = Vm::with_flags(device, sys::DRM_XE_VM_CREATE_FLAG_LR_MODE).expect("a VM");
    let gpu = Gpu::on_vm(&vm);
    for area in gpu.areas() {
        vm.bind(&[Bind::userptr(area.at(0), area.at(0), area.len() as u64)]).expect("a bind");
    }
    gpu
}

/// More buffers than fit are made, and used by GPU and CPU in turns.
fn beyond(faults: bool, placement: u32) {
    const SIZE: usize = 3 << 20;
    const COUNT: usize = 2 * ROOM / SIZE;
    let small = Small::new();
    let gpu = if faults { Gpu::on_device(small.device()) } else { without_faults(small.device()) };
    let to = Map::shared(SIZE);
    if !faults {
        let bind = Bind::userptr(to.at(0), to.at(0), SIZE as u64);
        gpu.vm().bind(&[bind]).expect("a bind");
    }
    let mut buffers = Vec::new();
    let counts = counted(small.device(), || {
        for i in 0..COUNT {
            buffers.push(made(gpu.vm(), i, SIZE, placement));
        }
        for round in 1..=2u32 {
            let there = resident(small.device());
            assert!((1..=ROOM).contains(&there), "{there} bytes are in the device's memory");
            for (i, buffer) in buffers.iter().enumerate() {
                gpu.increment(at(i) + 8);
                buffer.memory().expect_word("counted", 8, value(i, 8).wrapping_add(round));
                gpu.run(|c| _ = c.copy(at(i), to.at(0), SIZE));
                let count = |o| if o == 8 { round } else { 0 };
                to.expect("what the GPU has", |o| value(i, o).wrapping_add(count(o)));
                buffer.memory().expect("what the CPU has", |o| value(i, o).wrapping_add(count(o)));
            }
        }
    });
    let (count, kib) = (counts["bo_evict_count"], counts["bo_evict_kb"]);
    println!("{count} evictions of {kib} KiB");
    assert!(count >= (COUNT - ROOM / SIZE) as u64, "evictions: {counts:?}");
    drop((buffers, gpu));
    assert_eq!(resident(small.device()), 0);
    small.remove();
}

/// Buffers are evicted and come back while threads of the CPU write to them.
fn cpu_mapping() {
    const SIZE: usize = 6 << 20;
    let small = Small::new();
    let gpu = Gpu::on_device(small.device());
    let buffers: Vec<_> = (0..4).map(|i| made(gpu.vm(), i, SIZE, VRAM)).collect();
    let done = Stop::new();
    let written = thread::scope(|s| {
        let stop = done.on_drop();
        let writers: Vec<_> = buffers
            .iter()
            .map(|buffer| {
                let (memory, done) = (buffer.memory(), &done);
                s.spawn(move || {
                    let mut round = 0u32;
                    while !done.is_set() {
                        round += 1;
                        for page in (0..SIZE).step_by(SIZE / 16) {
                            memory.write(page + 4, round);
                        }
                        for page in (0..SIZE).step_by(SIZE / 16) {
                            memory.expect_word("just written", page + 4, round);
                        }
                    }
                    round
                })
            })
            .collect();
        let rounds = iterations(10);
        for _ in 0..rounds {
            for i in 0..buffers.len() {
                gpu.increment(at(i) + 8);
            }
        }
        drop(stop);
        let written: Vec<_> = writers.into_iter().map(|w| w.join().expect("a writer")).collect();
        for (i, buffer) in buffers.iter().enumerate() {
            buffer.memory().expect_word("the GPU's", 8, value(i, 8).wrapping_add(rounds));
        }
        written
    });
    println!("{written:?} rounds of the CPU");
    for (i, (buffer, &rounds)) in buffers.iter().zip(&written).enumerate() {
        buffer.memory().expect("all else", |o| match o {
            8 => value(i, 8).wrapping_add(iterations(10)),
            o if o % (SIZE / 16) == 4 => rounds,
            o => value(i, o),
        });
    }
    drop((buffers, gpu));
    small.remove();
}

/// What may be in system memory is used there while there is no room, and comes back when there is.
fn either_placement() {
    const SIZE: usize = 6 << 20;
    let small = Small::new();
    let device = small.device();
    let gpu = Gpu::on_device(device);
    let buffer = made(gpu.vm(), 0, SIZE, BOTH);
    gpu.increment(at(0));
    assert_eq!(resident(device), SIZE, "it is in the device's memory");
    let hog = try_buffer(device, ROOM).expect("a buffer that takes all");
    assert_eq!(resident(device), ROOM, "only the other one is");
    let counts = counted(device, || gpu.increment(at(0)));
    assert_eq!(counts["bo_evict_count"], 0, "evictions for it: {counts:?}");
    assert_eq!(resident(device), ROOM, "only the other one is");
    drop(hog);
    assert_eq!(resident(device), 0, "it is in system memory");
    // The next fault brings it back.
    gpu.vm().bind(&[Bind::bo(buffer.bo(), 0, at(1), SIZE as u64)]).expect("a bind");
    gpu.increment(at(1));
    assert_eq!(resident(device), SIZE, "it is back");
    gpu.increment(at(0));
    buffer.memory().expect("all", |o| value(0, o).wrapping_add(if o == 0 { 4 } else { 0 }));
    drop((buffer, gpu));
    small.remove();
}

/// One job uses two buffers that do not both fit.
fn take_turns() {
    const SIZE: usize = 10 << 20;
    const LENGTH: usize = 8 * PAGE;
    let small = Small::new();
    let gpu = Gpu::on_device(small.device());
    let buffers = [0, 1].map(|i| made(gpu.vm(), i, SIZE, VRAM));
    let start = Instant::now();
    gpu.run(|c| _ = c.copy(at(0), at(1), LENGTH));
    println!("{} pages in {:?}", LENGTH / PAGE, start.elapsed());
    buffers[0].memory().expect("the source", |o| value(0, o));
    buffers[1].memory().expect("the copy", |o| value(usize::from(o >= LENGTH), o));
    drop((buffers, gpu));
    small.remove();
}

/// A process uses a buffer without a pause, which takes all the memory: another one's comes nevertheless.
fn in_use() {
    let small = Small::new();
    let slot = small.slot();
    let child = fork(move |link| {
        let device = slot.open();
        let vm = Vm::mirrored(&device).expect("a VM");
        let bo = try_buffer(&device, ROOM).expect("a buffer that takes all");
        vm.bind(&[Bind::bo(&bo, 0, at(1), PAGE as u64)]).expect("a bind");
        link.send(0);
        let mut uses = 0;
        while !link.has_word() {
            // While the other one is there, this one may find no room.
            let _ = vm.bind(&[Bind::prefetch(at(1), PAGE as u64, 1)]);
            uses += 1;
        }
        link.receive();
        link.send(uses);
    });
    child.link().receive();
    let gpu = Gpu::on_device(small.device());
    let buffer = made(gpu.vm(), 0, ROOM / 2, VRAM);
    let rounds = iterations(12);
    for _ in 0..rounds {
        gpu.increment(at(0));
        thread::sleep(Duration::from_millis(20));
    }
    child.link().send(0);
    println!("{} uses meanwhile", child.link().receive());
    child.expect_success();
    buffer.memory().expect("all", |o| value(0, o).wrapping_add(if o == 0 { rounds } else { 0 }));
    drop((buffer, gpu));
    small.remove();
}

/// Several queues and VMs work on more than fits, at the same time.
fn jobs() {
    const SIZE: usize = 3 << 20;
    const EACH: usize = 3;
    let small = Small::new();
    let rounds = iterations(12);
    thread::scope(|s| {
        for t in 0..4 {
            let device = small.device();
            s.spawn(move || {
                let gpu = if t % 2 == 0 { Gpu::on_device(device) } else { without_faults(device) };
                let buffers: Vec<_> = (0..EACH)
                    .map(|i| {
                        let placement = if i == 0 { BOTH } else { VRAM };
                        made(gpu.vm(), t * EACH + i, SIZE, placement)
                    })
                    .collect();
                for _ in 0..rounds {
                    gpu.run(|c| {
                        for i in 0..EACH {
                            for page in (0..SIZE).step_by(SIZE / 8) {
                                c.increment(at(t * EACH + i) + page as u64);
                            }
                        }
                    });
                }
                for (i, buffer) in buffers.iter().enumerate() {
                    let count = |o: usize| if o % (SIZE / 8) == 0 { rounds } else { 0 };
                    buffer
                        .memory()
                        .expect("all", |o| value(t * EACH + i, o).wrapping_add(count(o)));
                }
            });
        }
    });
    small.remove();
}

/// Processes with files of their own take turns.
fn processes() {
    const SIZE: usize = 5 << 20;
    let small = Small::new();
    let rounds = iterations(6);
    let children: Vec<_> = (0..2)
        .map(|child| {
            let slot = small.slot();
            fork(move |_| {
                let device = slot.open();
                let gpu = Gpu::on_device(&device);
                let buffers: Vec<_> =
                    (0..2).map(|i| made(gpu.vm(), child * 2 + i, SIZE, VRAM)).collect();
                for _ in 0..rounds {
                    for i in 0..2 {
                        gpu.increment(at(child * 2 + i));
                    }
                }
                for (i, buffer) in buffers.iter().enumerate() {
                    buffer.memory().expect("its own", |o| {
                        value(child * 2 + i, o).wrapping_add(if o == 0 { rounds } else { 0 })
                    });
                }
            })
        })
        .collect();
    children.into_iter().for_each(Child::expect_success);
    assert_eq!(vram::region(small.device()).used, 0, "all is given back");
    small.remove();
}

/// Who makes room dies in the middle of that: nothing is lost.
fn killed() {
    const SIZE: usize = 256 << 10;
    const COUNT: usize = ROOM / SIZE;
    let small = Small::new();
    let device = small.device();
    let gpu = Gpu::on_device(device);
    let buffers: Vec<_> = (0..COUNT).map(|i| made(gpu.vm(), i, SIZE, VRAM)).collect();
    let evicted = || vram::counter(device, "bo_evict_count");
    for _ in 0..iterations(4) {
        let before = evicted();
        let slot = small.slot();
        let child = fork(|link| {
            drop(try_buffer(&slot.open(), ROOM));
            let _ = link.try_receive();
        });
        vram::soon("buffers go", || evicted() > before);
        child.signal(libc::SIGKILL);
        child.wait();
        println!("{} of {COUNT} buffers went", evicted() - before);
        for i in 0..COUNT {
            gpu.increment(at(i));
        }
        vram::soon("all are back", || resident(device) == ROOM);
    }
    let rounds = iterations(4);
    for (i, buffer) in buffers.iter().enumerate() {
        let count = |o| if o == 0 { rounds } else { 0 };
        buffer.memory().expect("all", |o| value(i, o).wrapping_add(count(o)));
    }
    drop((buffers, gpu));
    small.remove();
}

/// A child in a group of its own.
#[track_caller]
fn fork_into(group: &Cgroup, body: impl FnOnce(&Link)) -> Child {
    let child = fork(|link| {
        link.receive();
        body(link);
    });
    group.add(child.pid());
    child.link().send(0);
    child
}

/// Who is at his limit evicts what is his, and nobody else's; a lower limit evicts, too.
fn limits() {
    // A subtest that is skipped leaves no module behind.
    let group = Cgroup::new("its");
    let small = Small::new();
    let device = small.device();
    let memory = Region::of(device);
    group.limit(&memory, 4 * SZ_2M);
    let gpu = Gpu::on_device(device);
    let ours = made(gpu.vm(), 0, 2 * SZ_2M, VRAM);
    gpu.increment(at(0));
    let slot = small.slot();
    let child = fork_into(&group, |link| {
        let device = slot.open();
        let gpu = Gpu::on_device(&device);
        let buffers: Vec<_> = (1..4).map(|i| made(gpu.vm(), i, SZ_2M + SZ_2M / 2, VRAM)).collect();
        for round in 1..4u32 {
            for (i, buffer) in buffers.iter().enumerate() {
                gpu.increment(at(i + 1));
                buffer.memory().expect_word("counted", 0, value(i + 1, 0).wrapping_add(round));
            }
        }
        assert_eq!(resident(&device), 3 * SZ_2M, "two of them");
        link.send(0);
        link.receive();
        assert_eq!(resident(&device), 3 * SZ_2M / 2, "one of them");
        for (i, buffer) in buffers.iter().enumerate() {
            let count = |o| if o == 0 { 3 } else { 0 };
            buffer.memory().expect("all", |o| value(i + 1, o).wrapping_add(count(o)));
        }
        link.send(0);
        link.receive();
    });
    child.link().receive();
    assert!(group.peak(&memory) <= 4 * SZ_2M as u64, "beyond the limit");
    assert_eq!(group.current(&memory), 3 * SZ_2M as u64, "charged");
    assert_eq!(resident(device), 2 * SZ_2M, "another group's");
    group.limit(&memory, 2 * SZ_2M);
    assert_eq!(group.current(&memory), 3 * SZ_2M as u64 / 2, "charged after the limit was lowered");
    child.link().send(0);
    child.link().receive();
    assert_eq!(resident(device), 2 * SZ_2M, "another group's");
    child.link().send(0);
    child.expect_success();
    group.expect_nothing(&memory);
    ours.memory().expect("ours", |o| value(0, o).wrapping_add(u32::from(o == 0)));
    drop((ours, gpu));
    small.remove();
}

/// What is evicted is charged to who made it. Who has no memory left keeps his buffers where they are, and
/// nobody is killed.
fn memory() {
    const SIZE: usize = ROOM / 2;
    let group = Cgroup::with_memory("its", 24 << 20);
    let small = Small::new();
    let device = small.device();
    let slot = small.slot();
    let child = fork_into(&group, |link| {
        let device = slot.open();
        let gpu = Gpu::on_device(&device);
        let buffer = made(gpu.vm(), 0, SIZE, VRAM);
        link.send(0);
        link.receive();
        gpu.increment(at(0));
        let map = filled(18 << 20);
        link.send(0);
        link.receive();
        assert_eq!(resident(&device), SIZE, "it stayed");
        gpu.increment(at(0));
        map.expect("the process's", pattern);
        buffer.memory().expect("all", |o| value(0, o).wrapping_add(if o == 0 { 2 } else { 0 }));
    });
    child.link().receive();
    let before = group.memory();
    let hog = try_buffer(device, ROOM).expect("a buffer that takes all");
    let charged = group.memory().saturating_sub(before);
    assert!(charged >= SIZE as u64 - (1 << 20), "{charged} bytes are charged");
    drop(hog);
    child.link().send(0);
    child.link().receive();
    refused(libc::ENOMEM, "a buffer that takes all", try_buffer(device, ROOM));
    drop(try_buffer(device, ROOM - SIZE).expect("a buffer that takes the rest"));
    child.link().send(0);
    child.expect_success();
    assert_eq!(group.oom_kills(), 0, "who was killed");
    small.remove();
}

/// The owner is stopped: its jobs go on, in system memory if its cgroup cannot be charged.
fn stopped() {
    const SIZE: usize = 10 << 20;
    let small = Small::new();
    let slot = small.slot();
    let child = fork(|link| {
        let device = slot.open();
        let gpu = Gpu::on_device(&device);
        let buffer = made(gpu.vm(), 0, SIZE, VRAM);
        let go = Buffer::new(&gpu, PAGE);
        gpu.vm().bind(&[Bind::bo(go.bo(), 0, at(1), PAGE as u64)]).expect("a bind");
        link.send(0);
        link.receive();
        let job = gpu.start(|c| {
            for page in (0..SIZE).step_by(MIDDLE) {
                c.increment(at(0) + page as u64);
            }
            c.store(at(1), 7);
        });
        job.expect("a job").wait().expect("the job");
        buffer.memory().expect("all", |o| value(0, o).wrapping_add(u32::from(o % MIDDLE == 0)));
    });
    child.link().receive();
    let hog = try_buffer(small.device(), ROOM).expect("a buffer that takes all");
    child.link().send(0);
    child.stop();
    thread::sleep(Duration::from_millis(300));
    child.go_on();
    child.expect_success();
    drop(hog);
    small.remove();
}

/// The device is unbound while buffers move: nobody waits for ever, and all memory is given back.
fn unbound() {
    const SIZE: usize = 3 << 20;
    let small = Small::new();
    for _ in 0..iterations(4) {
        let slot = small.slot();
        slot.bind();
        let child = fork(|link| {
            let device = slot.open();
            let gpu = Gpu::on_device(&device);
            let count = 2 * ROOM / SIZE;
            let mut buffers = Vec::new();
            let mut told = false;
            for i in (0..count).cycle() {
                let used = if buffers.len() < count {
                    Bo::create(&device, SIZE, VRAM, None).and_then(|bo| {
                        gpu.vm().bind(&[Bind::bo(&bo, 0, at(i), SIZE as u64)])?;
                        buffers.push(bo);
                        Ok(())
                    })
                } else {
                    gpu.try_run(|c| _ = c.increment(at(i)))
                };
                match used {
                    Ok(()) => {}
                    Err(e) if is_end(&e) || e.errno() == libc::ENOMEM => break,
                    Err(e) => panic!("{e}"),
                }
                if !told && buffers.len() == count {
                    link.send(0);
                    told = true;
                }
            }
        });
        child.link().receive();
        thread::sleep(Duration::from_millis(20));
        small.slot().unbind();
        let mapped = slot.dma_mappings().unwrap_or_default();
        assert!(mapped.is_empty(), "mapped for DMA: {}", mapped.join("\n"));
        child.expect_success();
    }
    small.slot().bind();
    works(&small.slot().open(), "bound again");
    small.remove();
}

/// Pages of processes and buffers make room for each other, whoever was used least recently.
fn with_pages() {
    let small = Small::new();
    let device = small.device();
    let gpu = Gpu::on_device(device);
    let size = ROOM / 4;
    let buffers: Vec<_> = (0..4).map(|i| made(gpu.vm(), i, size, VRAM)).collect();
    for i in [1, 0, 2, 3] {
        gpu.vm().bind(&[Bind::unmap(at(i), size as u64)]).expect("an unbind");
        bind(gpu.vm(), buffers[i].bo(), i);
        gpu.increment(at(i));
    }
    assert_eq!(resident(device), ROOM, "all buffers are there");
    thread::sleep(Duration::from_millis(300));
    // Pages take the place of the second buffer.
    let map = filled(SZ_2M);
    let counts = counted(device, || {
        vram::soon("the pages are there", || {
            vram::prefetch(&gpu, map) && vram::in_device(&gpu, map) == map.len()
        });
    });
    assert_eq!(counts["bo_evict_count"], 1, "evictions: {counts:?}");
    assert_eq!(resident(device), ROOM - size, "the other buffers are there");
    // A use of all buffers but the second evicts none; the second takes the place of the pages.
    thread::sleep(Duration::from_millis(300));
    let counts = counted(device, || {
        gpu.increment(at(1));
    });
    assert!(counts["svm_evict_count"] + counts["bo_evict_count"] >= 1, "evictions: {counts:?}");
    for i in [0, 1, 2, 3] {
        gpu.increment(at(i));
    }
    gpu.increment(map.at(0));
    map.expect("the pages", |o| pattern(o).wrapping_add(u32::from(o == 0)));
    for (i, buffer) in buffers.iter().enumerate() {
        let count = |o| if o == 0 { 2 + u32::from(i == 1) } else { 0 };
        buffer.memory().expect("a buffer", |o| value(i, o).wrapping_add(count(o)));
    }
    drop((buffers, gpu));
    map.unmap();
    small.remove();
}

/// The least recently used buffer goes first.
fn order() {
    let small = Small::new();
    let device = small.device();
    let gpu = Gpu::on_device(device);
    let size = ROOM / 4;
    let files: Vec<_> = (0..4).map(|_| small.slot().open()).collect();
    let buffers: Vec<_> =
        files.iter().map(|file| Bo::create(file, size, VRAM, None).expect("a buffer")).collect();
    let vms: Vec<_> = files.iter().map(|file| Vm::new(file).expect("a VM")).collect();
    // A bind is a use.
    for i in [2, 0, 3, 1] {
        let bind = Bind::bo(&buffers[i], 0, at(i), size as u64).immediate();
        vms[i].bind(&[bind]).expect("a bind");
    }
    let mut more = Vec::new();
    for i in [2, 0, 3, 1] {
        assert_eq!(resident(&files[i]), size, "{i} is there");
        more.push(try_buffer(device, size).expect("one more"));
        assert_eq!(resident(&files[i]), 0, "{i} is evicted");
    }
    drop((more, vms, buffers, files, gpu));
    small.remove();
}

/// What nobody needs is purged before anything is evicted.
fn purge_first() {
    let small = Small::new();
    let device = small.device();
    let gpu = Gpu::on_device(device);
    let size = ROOM / 2;
    let kept = made(gpu.vm(), 0, size, VRAM);
    let unneeded = made(gpu.vm(), 1, size, VRAM);
    assert_eq!(gpu.vm().set_needed(at(1), size as u64, false), Ok(true));
    let counts = counted(device, || drop(try_buffer(device, size).expect("one more")));
    assert_eq!(counts["bo_evict_count"], 0, "evictions: {counts:?}");
    assert_eq!(gpu.vm().set_needed(at(1), size as u64, true), Ok(false), "it was purged");
    let counts = counted(device, || drop(try_buffer(device, ROOM).expect("one more")));
    assert_eq!(counts["bo_evict_count"], 1, "evictions: {counts:?}");
    // Of what is in system memory nothing is purged.
    assert_eq!(gpu.vm().set_needed(at(0), size as u64, false), Ok(true));
    drop(try_buffer(device, ROOM).expect("one more"));
    assert_eq!(gpu.vm().set_needed(at(0), size as u64, true), Ok(true));
    gpu.increment(at(0));
    kept.memory().expect("kept", |o| value(0, o).wrapping_add(u32::from(o == 0)));
    drop((kept, unneeded, gpu));
    small.remove();
}

/// What another device has the addresses of stays where it is; what is only exported does not.
fn pinned() {
    let small = Small::new();
    let device = small.device();
    let gpu = Gpu::on_device(device);
    let size = ROOM / 2;
    let first = Slot::first().open();
    let buffer = made(gpu.vm(), 0, size, VRAM);
    let exported = buffer.bo().export().expect("a dma-buf");
    let hog = try_buffer(device, ROOM).expect("it is only exported");
    assert_eq!(resident(device), ROOM, "the other one is there");
    // In system memory it is pinned there.
    let imported = Bo::import(&first, exported.as_fd(), size).expect("an import");
    let theirs = Gpu::on_device(&first);
    bind(theirs.vm(), &imported, 0);
    theirs.increment(at(0));
    drop(hog);
    gpu.increment(at(0));
    assert_eq!(resident(device), 0, "it is not moved");
    drop(theirs);
    drop(imported);
    vram::soon("it is there again", || {
        gpu.vm().bind(&[Bind::unmap(at(0), size as u64)]).expect("an unbind");
        bind(gpu.vm(), buffer.bo(), 0);
        gpu.increment(at(0) + 4);
        resident(device) == size
    });
    // And now in the device's.
    let imported = Bo::import(&first, exported.as_fd(), size).expect("an import");
    refused(libc::ENOMEM, "a buffer that takes all", try_buffer(device, ROOM));
    drop(imported);
    let word = |o: usize| if o == 0 { 2 } else { 0 };
    buffer.memory().expect("all", |o| match o {
        4 => buffer.memory().read(4),
        o => value(0, o).wrapping_add(word(o)),
    });
    vram::soon("it is not pinned any more", || try_buffer(device, ROOM).is_ok());
    drop((buffer, exported, gpu, first));
    small.remove();
}

/// A buffer without memory at first gets some where it is used first.
fn deferred() {
    const DEFER: u32 = sys::DRM_XE_GEM_CREATE_FLAG_DEFER_BACKING;
    let small = Small::new();
    let device = small.device();
    let gpu = Gpu::on_device(device);
    let size = 4 << 20;
    let make =
        |size, placement| Bo::with_flags(device, size, placement, None, DEFER).expect("a buffer");
    let (by_gpu, by_cpu) = (make(size, VRAM), make(size, VRAM));
    assert_eq!(vram::region(device).used, 0, "none has memory");
    bind(gpu.vm(), &by_gpu, 0);
    bind(gpu.vm(), &by_cpu, 1);
    assert_eq!(vram::region(device).used, 0, "none has memory");
    gpu.increment(at(0));
    assert_eq!(resident(device), size, "the one has");
    let by_cpu = Buffer::of(by_cpu);
    by_cpu.memory().fill(|o| value(1, o));
    assert_eq!(resident(device), size, "the other is in system memory");
    gpu.increment(at(1));
    assert_eq!(resident(device), 2 * size, "both are there");
    by_cpu.memory().expect("the CPU's", |o| value(1, o).wrapping_add(u32::from(o == 0)));
    let by_gpu = Buffer::of(by_gpu);
    by_gpu.memory().expect("the GPU's", |o| u32::from(o == 0));
    // What can never fit says so when it is bound at once.
    let large = make(2 * ROOM, VRAM);
    let at_once = Bind::bo(&large, 0, at(2), large.size() as u64).immediate();
    refused(libc::ENOMEM, "a bind", gpu.vm().bind(&[at_once]));
    let either = make(2 * ROOM, BOTH);
    gpu.vm()
        .bind(&[Bind::bo(&either, 0, at(2), either.size() as u64).immediate()])
        .expect("a bind");
    gpu.increment(at(2));
    drop((either, large, by_gpu, by_cpu, gpu));
    small.remove();
}

/// A VM that may not have more than fits is told so by binds that map at once.
fn no_overcommit() {
    let small = Small::new();
    let device = small.device();
    let size = ROOM / 4;
    const FAULTS: u32 = sys::DRM_XE_VM_CREATE_FLAG_LR_MODE | sys::DRM_XE_VM_CREATE_FLAG_FAULT_MODE;
    const NOT_MORE: u32 = FAULTS | sys::DRM_XE_VM_CREATE_FLAG_NO_VM_OVERCOMMIT;
    let others = Bo::create(device, ROOM, VRAM, None).expect("another's buffer");
    for (flags, fits) in
        [(FAULTS, false), (NOT_MORE, true), (sys::DRM_XE_VM_CREATE_FLAG_LR_MODE, true)]
    {
        let vm = Vm::with_flags(device, flags).expect("a VM");
        let mut buffers = Vec::new();
        for i in 0..6 {
            const DEFER: u32 = sys::DRM_XE_GEM_CREATE_FLAG_DEFER_BACKING;
            let bo = Bo::with_flags(device, size, VRAM, Some(&vm), DEFER).expect("a buffer");
            let done = vm.bind(&[Bind::bo(&bo, 0, at(i), size as u64).immediate()]);
            if fits && i >= 4 {
                refused(libc::ENOMEM, "more than fits", done);
            } else {
                done.expect("a bind");
            }
            buffers.push(bo);
        }
        vm.destroy().expect("destroy");
    }
    drop(others);
    small.remove();
}

/// Allocations fail while a buffer is evicted, and when it comes back: it stays where it is.
fn failures(kind: Kind) {
    let failures = Failures::of(kind);
    let small = Small::new();
    let device = small.device();
    let gpu = Gpu::on_device(device);
    let size = ROOM / 2 + PAGE;
    let buffer = made(gpu.vm(), 0, size, VRAM);
    let rounds = Cell::new(0);
    let met = failures.each(
        || {
            gpu.increment(at(0));
            rounds.set(rounds.get() + 1);
            assert_eq!(resident(device), size, "it is there");
            None
        },
        |made| {
            *made = Some(Bo::create(device, size, VRAM, None)?);
            Ok(())
        },
        |made: Option<Bo>, error: Option<Error>| {
            if let Some(e) = error {
                // Without memory for an inode shmem says that there is no space.
                assert!([libc::ENOMEM, libc::ENOSPC].contains(&e.errno()), "{e}");
            }
            drop(made);
            buffer.memory().expect_word("the first", 0, value(0, 0).wrapping_add(rounds.get()));
        },
    );
    println!("{met}");
    let count = |o| if o == 0 { rounds.get() } else { 0 };
    buffer.memory().expect("all", |o| value(0, o).wrapping_add(count(o)));
    drop((buffer, gpu));
    small.remove();
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_evict", "Buffers in device memory make room for others.");
    p.subtest("beyond-faults", "more buffers than fit, in a VM with faults", || beyond(true, VRAM));
    p.subtest("beyond-immediate", "the same in a VM without faults", || beyond(false, VRAM));
    p.subtest("beyond-either", "the same, of buffers that may be anywhere", || beyond(true, BOTH));
    p.subtest("cpu-mapping", "the CPU writes while they move", cpu_mapping);
    p.subtest("either-placement", "used in system memory while there is no room", either_placement);
    p.subtest("in-use", "what is used all the time goes as well", in_use);
    p.subtest("take-turns", "one job uses two that do not both fit", take_turns);
    p.subtest("jobs", "several VMs work on more than fits", jobs);
    p.subtest("processes", "so do several processes", processes);
    p.subtest("killed", "killed while evicting", killed);
    p.subtest("limits", "limits of cgroups", limits);
    p.subtest("memory", "the memory for what is evicted", memory);
    p.subtest("stopped", "the owner is stopped", stopped);
    p.subtest("unbound", "the device is unbound meanwhile", unbound);
    p.subtest("with-pages", "pages of processes and buffers make room for each other", with_pages);
    p.subtest("order", "the least recently used goes first", order);
    p.subtest("purge-first", "what nobody needs goes before", purge_first);
    p.subtest("pinned", "what another device has stays", pinned);
    p.subtest("deferred", "memory at the first use", deferred);
    p.subtest("no-overcommit", "a VM that may not have more than fits", no_overcommit);
    p.subtest("failures-slab", "allocations fail", || failures(Kind::Slab));
    p.subtest("failures-page", "allocations of pages fail", || failures(Kind::Page));
    p.main()
}
