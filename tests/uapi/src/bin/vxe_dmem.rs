// SPDX-License-Identifier: GPL-2.0

//! Device memory is charged to the cgroup of whose it is, and kept within that cgroup's limits.

use std::{
    os::fd::AsRawFd,
    process::ExitCode,
    time::{Duration, Instant},
};
use vxe_client::{Advice, Bind, Bo, Location, Migrate};
use vxe_uapi::{
    cgroup::{Cgroup, Region},
    contents::{filled, pattern},
    env::iterations,
    gpu::{device, FAR},
    process::{fork, Child, Link},
    sysfs::{Provider, Slot},
    time::expect_prompt,
    vram::{bring, buffer, in_device, leave, region, resident, soon, touch, try_buffer},
    Gpu, Map, Program, CHUNK, MIDDLE, PAGE, SZ_2M,
};

/// How much a test works on, unless it says otherwise.
const SIZE: usize = 2 * SZ_2M;

/// How much of the device's memory is in use by anybody.
fn used() -> u64 {
    region(&device()).used
}

/// The device's memory, as cgroups call it.
fn memory() -> Region {
    Region::of(&device())
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

/// A child in a group that has the GPU work on memory, says so, keeps it there until it is told to go on
/// with `then`, and finds all of it as it was.
#[track_caller]
fn worker(group: &Cgroup, size: usize, then: impl FnOnce(&Gpu, Map, &Link)) -> Child {
    let child = fork_into(group, |link| {
        let gpu = Gpu::new();
        let map = filled(size);
        bring(&gpu, map);
        link.send(0);
        link.receive();
        then(&gpu, map, link);
        map.expect("after all", pattern);
    });
    child.link().receive();
    child
}

/// What goes to the device is charged to the cgroup of the process, to the byte, and to no other; when
/// it is unmapped it is charged no more.
fn charged() {
    let (memory, before) = (memory(), used());
    let (group, other) = (Cgroup::new("its"), Cgroup::new("other"));
    let child = fork_into(&group, |link| {
        let gpu = Gpu::new();
        let maps = [filled(SIZE), filled(CHUNK)];
        for map in maps {
            bring(&gpu, map);
        }
        link.send(0);
        link.receive();
        maps.iter().for_each(Map::unmap);
        drop(gpu);
        link.send(0);
        link.receive();
    });
    child.link().receive();
    let charged = group.current(&memory);
    assert!(charged >= (SIZE + CHUNK) as u64, "only {charged:#x} bytes are charged");
    assert_eq!(charged, used() - before, "what is charged, and what is used");
    assert_eq!(other.current(&memory), 0, "charged to another");
    child.link().send(0);
    child.link().receive();
    // What is left is where batches were.
    let rest = || group.current(&memory);
    soon("less is charged", || rest() < SZ_2M as u64);
    child.link().send(0);
    child.expect_success();
    group.expect_nothing(&memory);
    soon("all is free", || used() == before);
}

/// The end of a process is the end of its charges, be it killed in the middle of its work.
fn end(killed: bool) {
    let (memory, group) = (memory(), Cgroup::new("its"));
    for _ in 0..iterations(4) {
        let child = worker(&group, SIZE, |gpu, map, _| {
            if killed {
                loop {
                    touch(gpu, map);
                    map.write(0, map.read(0));
                }
            }
        });
        assert!(group.current(&memory) >= SIZE as u64);
        child.link().send(0);
        if killed {
            std::thread::sleep(Duration::from_millis(30));
            child.kill();
        } else {
            child.expect_success();
        }
        group.expect_nothing(&memory);
    }
}

/// A process becomes another program: what it had is charged no more, and nobody waits for anybody.
fn exec() {
    let (memory, group) = (memory(), Cgroup::new("its"));
    let child = worker(&group, SIZE, |gpu, _, _| {
        let args = [c"true".as_ptr(), std::ptr::null()];
        // SAFETY: the descriptor is open: the VM is there as long as the program. The arguments end with
        // a null pointer, and are strings.
        unsafe {
            libc::dup(gpu.device().as_raw_fd());
            libc::execv(c"/bin/true".as_ptr(), args.as_ptr());
        }
        panic!("exec: {}", std::io::Error::last_os_error());
    });
    child.link().send(0);
    child.expect_success();
    group.expect_nothing(&memory);
}

/// The CPU takes the memory back: it is charged no more.
fn back() {
    let (memory, group) = (memory(), Cgroup::new("its"));
    let child = worker(&group, SIZE, |_, map, link| {
        map.expect("what comes back", pattern);
        link.receive();
    });
    let charged = group.current(&memory);
    assert!(charged >= SIZE as u64, "only {charged:#x} bytes are charged");
    child.link().send(0);
    soon("less is charged", || group.current(&memory) + SIZE as u64 <= charged);
    child.link().send(0);
    child.expect_success();
}

/// A process moves to another cgroup: what it gets from then on is charged there.
fn moves() {
    let memory = memory();
    let (a, b) = (Cgroup::new("a"), Cgroup::new("b"));
    let child = fork_into(&a, |link| {
        let gpu = Gpu::new();
        let first = filled(SIZE);
        bring(&gpu, first);
        link.send(0);
        link.receive();
        let second = filled(SIZE);
        bring(&gpu, second);
        link.send(0);
        link.receive();
        first.expect("the first", pattern);
        link.send(0);
        link.receive();
        second.expect("the second", pattern);
    });
    child.link().receive();
    let before = a.current(&memory);
    assert_eq!(b.current(&memory), 0);
    b.add(child.pid());
    child.link().send(0);
    child.link().receive();
    let (in_a, in_b) = (a.current(&memory), b.current(&memory));
    assert!(in_a <= before, "{in_a:#x} bytes instead of {before:#x} in the cgroup that it left");
    assert!(in_a >= SIZE as u64, "only {in_a:#x} bytes in the cgroup that it left");
    assert!(in_b >= SIZE as u64, "only {in_b:#x} bytes in the cgroup that it is in");
    child.link().send(0);
    child.link().receive();
    soon("less is charged", || a.current(&memory) + SIZE as u64 <= in_a);
    child.link().send(0);
    child.expect_success();
    a.expect_nothing(&memory);
    b.expect_nothing(&memory);
}

/// A child has its parent's VM, in another cgroup: who pays is the parent. It goes; what the child has
/// of it stays charged to it, until nobody has it.
fn forked() {
    let memory = memory();
    let (a, b) = (Cgroup::new("parent"), Cgroup::new("child"));
    let (to_child, from_child) = Link::pair();
    let parent = fork_into(&a, |link| {
        let gpu = Gpu::new();
        let map = filled(SIZE);
        let child = fork(|_| {
            from_child.receive();
            // The VM mirrors the parent.
            let wanted = Bind::prefetch(map.at(0), map.len() as u64, 1);
            gpu.vm().bind(&[wanted]).expect("a prefetch for the owner");
            from_child.send(0);
            from_child.receive();
            map.expect("the child's", pattern);
            from_child.send(0);
            from_child.receive();
        });
        link.send(child.pid() as u64);
        std::mem::forget(child);
        // Awake: one that sleeps is not asked to pay.
        while !link.has_word() {
            std::thread::yield_now();
        }
        link.receive();
    });
    let child = parent.link().receive() as libc::pid_t;
    b.add(child);
    to_child.send(0);
    to_child.receive();
    let charged = a.current(&memory);
    assert!(charged >= SIZE as u64, "only {charged:#x} bytes are charged to the VM's owner");
    assert_eq!(b.current(&memory), 0, "charged to who used it");
    parent.link().send(0);
    parent.expect_success();
    let left = a.current(&memory);
    assert!(left >= SIZE as u64, "only {left:#x} bytes are charged, with the child having them");
    to_child.send(0);
    to_child.receive();
    a.expect_nothing(&memory);
    assert_eq!(b.current(&memory), 0, "charged to who has it now");
    to_child.send(0);
}

/// More is worked on than the cgroup may have: all of it is right, and the limit kept.
fn limited() {
    const LIMIT: usize = 2 * SZ_2M + MIDDLE;
    let (memory, group) = (memory(), Cgroup::new("its"));
    group.limit(&memory, LIMIT);
    let passes = iterations(3);
    let child = fork_into(&group, |link| {
        let gpu = Gpu::new();
        let map = filled(8 * SZ_2M);
        for pass in 0..passes {
            for chunk in 0..map.len() / SZ_2M {
                gpu.run(|c| {
                    for page in 0..SZ_2M / MIDDLE {
                        c.increment(map.at(chunk * SZ_2M + page * MIDDLE));
                    }
                });
                link.send(in_device(&gpu, map) as u64);
                link.receive();
            }
            let value = |o: usize| pattern(o).wrapping_add(u32::from(o % MIDDLE == 0) * (pass + 1));
            if pass + 1 == passes {
                map.expect("all", value);
            }
        }
    });
    let mut most = 0;
    for _ in 0..passes as usize * 8 {
        most = most.max(child.link().receive());
        let current = group.current(&memory);
        assert!(current <= LIMIT as u64, "{current:#x} bytes, above the limit");
        child.link().send(0);
    }
    child.expect_success();
    let peak = group.peak(&memory);
    assert!(peak <= LIMIT as u64, "{peak:#x} bytes, above the limit");
    assert!(peak >= SZ_2M as u64, "only {peak:#x} bytes were charged");
    assert!(most >= SZ_2M as u64, "only {most:#x} bytes were on the device at a time");
    group.expect_nothing(&memory);
}

/// A cgroup that may have nothing has nothing.
fn nothing() {
    let (memory, group) = (memory(), Cgroup::new("its"));
    group.limit(&memory, 0);
    let child = fork_into(&group, |_| {
        let gpu = Gpu::new();
        let map = filled(SIZE);
        gpu.run(|c| _ = c.increment(map.at(0)));
        touch(&gpu, map);
        assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory");
        map.expect("all", |o| pattern(o).wrapping_add(u32::from(o == 0)));
    });
    child.expect_success();
    assert_eq!(group.peak(&memory), 0);
}

/// Who is at his limit takes from himself, and not from others.
fn from_himself() {
    let memory = memory();
    let (a, b) = (Cgroup::new("a"), Cgroup::new("b"));
    let other = worker(&b, SIZE, |_, _, _| {});
    let others = b.current(&memory);
    let child = worker(&a, SIZE, |gpu, map, _| {
        let more = filled(SIZE);
        // What came just now is left alone for a while.
        soon("what came last is there", || {
            more.write(0, more.read(0));
            touch(gpu, more);
            in_device(gpu, more) >= SZ_2M
        });
        let there = in_device(gpu, map) + in_device(gpu, more);
        assert!(there <= SIZE, "more is there than may be: {there:#x} bytes");
        more.expect("the new", pattern);
    });
    let current = a.current(&memory);
    assert!(current >= SIZE as u64, "only {current:#x} bytes are charged");
    a.limit(&memory, current as usize);
    child.link().send(0);
    child.expect_success();
    assert_eq!(b.current(&memory), others, "it took from another");
    other.link().send(0);
    other.expect_success();
}

/// A limit is lowered: what is above it goes, the rest stays, and nothing is lost.
fn lowered() {
    let (memory, group) = (memory(), Cgroup::new("its"));
    let child = worker(&group, 4 * SZ_2M, |_, _, _| {});
    let before = group.current(&memory);
    assert!(before >= 4 * SZ_2M as u64, "only {before:#x} bytes are charged");
    group.limit(&memory, SZ_2M);
    let current = group.current(&memory);
    assert!(current <= SZ_2M as u64, "{current:#x} of {before:#x} bytes are left");
    assert_ne!(current, 0, "bytes that are left of {before:#x}");
    group.limit(&memory, 0);
    assert_eq!(group.current(&memory), 0);
    child.link().send(0);
    child.expect_success();
}

/// Others want the room: who is protected keeps what he has, if there is somebody who is not.
fn protected() {
    let memory = memory();
    let (a, b) = (Cgroup::new("protected"), Cgroup::new("free"));
    let first = worker(&a, SIZE, |_, _, _| {});
    a.protect(&memory, a.current(&memory) as usize);
    let second = worker(&b, SIZE, |_, _, _| {});
    let kept = a.current(&memory);
    // The older goes first, unless it is spared.
    let hogs = leave(&device(), kept as usize + SZ_2M / 2);
    assert_eq!(a.current(&memory), kept, "protected memory made room");
    assert!(b.current(&memory) < SIZE as u64, "there was room for all");
    drop(hogs);
    for child in [first, second] {
        child.link().send(0);
        child.expect_success();
    }
}

/// A buffer is charged to who makes it, for as long as it is in the device's memory.
fn buffers() {
    let (memory, before, group) = (memory(), used(), Cgroup::new("its"));
    group.limit(&memory, 4 * SZ_2M);
    let child = fork_into(&group, |link| {
        let device = device();
        let first = buffer(&device, 3 * SZ_2M);
        let error = try_buffer(&device, 5 * SZ_2M).map(drop).expect_err("more than the limit");
        assert_eq!(error.errno(), libc::ENOMEM);
        // It may be elsewhere.
        let second = Bo::create(&device, 5 * SZ_2M, 0b11, None).expect("a buffer in system memory");
        // The first makes room.
        let third = buffer(&device, 2 * SZ_2M);
        assert_eq!(resident(&device), 2 * SZ_2M, "of the third");
        link.send(0);
        link.receive();
        drop((first, second, third));
        link.send(0);
        link.receive();
    });
    child.link().receive();
    assert_eq!(group.current(&memory), 2 * SZ_2M as u64);
    assert_eq!(used() - before, 2 * SZ_2M as u64);
    child.link().send(0);
    child.link().receive();
    group.expect_nothing(&memory);
    child.link().send(0);
    child.expect_success();
}

/// A buffer of who is at his limit takes the place of what is his.
fn buffer_for_pages() {
    let (memory, group) = (memory(), Cgroup::new("its"));
    let child = worker(&group, SIZE, |gpu, map, _| {
        let bo = buffer(gpu.device(), SIZE);
        assert_eq!(in_device(gpu, map), 0, "more is there than may be");
        drop(bo);
    });
    let current = group.current(&memory);
    assert!(current >= SIZE as u64, "only {current:#x} bytes are charged");
    group.limit(&memory, current as usize);
    child.link().send(0);
    child.expect_success();
    assert!(group.peak(&memory) <= SIZE as u64 + SZ_2M as u64);
    group.expect_nothing(&memory);
}

/// A cgroup at its limit loses the buffers whose contents nobody needs, and no other cgroup does.
fn unneeded() {
    let (memory, group) = (memory(), Cgroup::new("its"));
    group.limit(&memory, 4 * SZ_2M);
    let ours = Gpu::new();
    let kept = buffer(ours.device(), SZ_2M);
    ours.vm().bind(&[Bind::bo(&kept, 0, FAR, SZ_2M as u64)]).expect("a bind");
    assert_eq!(ours.vm().set_needed(FAR, SZ_2M as u64, false), Ok(true));
    let child = fork_into(&group, |link| {
        let gpu = Gpu::new();
        let bound = |size: usize, at: u64| {
            let bo = buffer(gpu.device(), size);
            gpu.vm().bind(&[Bind::bo(&bo, 0, at, size as u64)]).expect("a bind");
            bo
        };
        let is_there =
            |at: u64, needed| gpu.vm().set_needed(at, PAGE as u64, needed).expect("advice");
        let (first, second, third) = (FAR, FAR + (1 << 30), FAR + (2 << 30));
        let _first = bound(3 * SZ_2M, first);
        assert!(is_there(first, false));
        let _second = bound(2 * SZ_2M, second);
        assert!(!is_there(first, true), "more than the limit");
        let _third = bound(2 * SZ_2M, third);
        assert!(is_there(second, false), "all that the limit allows");
        link.send(0);
        link.receive();
        assert!(!is_there(second, true), "the limit was lowered");
        assert!(is_there(third, true), "enough is free");
    });
    child.link().receive();
    assert_eq!(group.current(&memory), 4 * SZ_2M as u64);
    group.limit(&memory, 2 * SZ_2M);
    assert_eq!(group.current(&memory), 2 * SZ_2M as u64);
    child.link().send(0);
    child.expect_success();
    assert_eq!(ours.vm().set_needed(FAR, SZ_2M as u64, true), Ok(true), "another cgroup's");
}

/// The owner is stopped: its GPU goes on, in system memory if need be.
fn stopped() {
    let (memory, group) = (memory(), Cgroup::new("its"));
    let shared = Map::shared(PAGE);
    let child = fork_into(&group, |link| {
        let gpu = Gpu::new();
        let map = filled(16 * SZ_2M);
        let job = gpu.start(|c| {
            for offset in (0..map.len()).step_by(MIDDLE) {
                c.increment(map.at(offset));
            }
            c.store(shared.at(0), 1);
        });
        let job = job.expect("a job");
        link.send(0);
        job.wait().expect("the job");
        map.expect("all", |o| pattern(o).wrapping_add(u32::from(o % MIDDLE == 0)));
    });
    child.link().receive();
    child.stop();
    let start = Instant::now();
    soon("the job of a stopped process is done", || shared.read(0) == 1);
    println!("it took {:?}, {:#x} bytes are charged", start.elapsed(), group.current(&memory));
    child.go_on();
    child.expect_success();
    group.expect_nothing(&memory);
}

/// The owner is frozen: its GPU goes on, in system memory, and does not wait for it.
fn frozen() {
    let (memory, group) = (memory(), Cgroup::new("its"));
    let shared = Map::shared(PAGE);
    let child = fork_into(&group, |link| {
        let gpu = Gpu::new();
        let work = |map: Map, stamp: u32| {
            gpu.start(|c| {
                // Something else, for long enough to be frozen meanwhile.
                for _ in 0..2000 {
                    c.increment(shared.at(PAGE / 2));
                }
                c.store(shared.at(0), stamp);
                for offset in (0..map.len()).step_by(MIDDLE) {
                    c.increment(map.at(offset));
                }
                c.store(shared.at(0), stamp + 1);
            })
        };
        for stamp in [1, 3] {
            let map = filled(8 * SZ_2M);
            let job = work(map, stamp).expect("a job");
            link.send(0);
            job.wait().expect("the job");
            map.expect("all", |o| pattern(o).wrapping_add(u32::from(o % MIDDLE == 0)));
            map.unmap();
            link.receive();
        }
    });
    let took = || {
        soon("the job begins", || shared.read(0) % 2 == 1);
        let start = Instant::now();
        soon("the job is done", || shared.read(0) % 2 == 0);
        start.elapsed()
    };
    child.link().receive();
    let awake = took();
    child.link().send(0);
    child.link().receive();
    group.freeze(true);
    let frozen = took();
    println!("it took {awake:?}, and {frozen:?} with the process frozen");
    println!("{:#x} bytes are charged", group.current(&memory));
    group.freeze(false);
    child.link().send(0);
    child.expect_success();
    group.expect_nothing(&memory);
    expect_prompt("the job of who is frozen", frozen, 2 * awake + Duration::from_millis(500));
}

/// The owner sleeps where it must not be woken: what its GPU works on stays in system memory, and its
/// sleep goes on. When it waits for the GPU, or is awake, memory moves.
fn asleep() {
    let (memory, group) = (memory(), Cgroup::new("its"));
    let child = fork_into(&group, |link| {
        let gpu = Gpu::new();
        let map = filled(SIZE);
        let job = gpu.start(|c| {
            for offset in (0..map.len()).step_by(MIDDLE) {
                c.increment(map.at(offset));
            }
        });
        let job = job.expect("a job");
        link.send(0);
        // A sleep that would not be restarted.
        // SAFETY: the calls take an array of one entry, and nothing else.
        let (epoll, slept) = unsafe {
            let epoll = libc::epoll_create1(0);
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            (epoll, libc::epoll_wait(epoll, &mut event, 1, 1000))
        };
        assert!(epoll >= 0);
        assert_eq!(slept, 0, "its sleep ended: {}", std::io::Error::last_os_error());
        job.wait().expect("the job");
        link.send(0);
        link.receive();
        let more = filled(SIZE);
        bring(&gpu, more);
        link.send(0);
        link.receive();
        more.expect("what moved", pattern);
    });
    child.link().receive();
    child.link().receive();
    child.link().send(0);
    child.link().receive();
    let charged = group.current(&memory);
    assert!(charged >= SIZE as u64, "only {charged:#x} bytes are charged for who is awake");
    child.link().send(0);
    child.expect_success();
    group.expect_nothing(&memory);
}

/// The memory of another device, in a module of its own, is charged as that.
fn elsewhere() {
    let group = Cgroup::new("its");
    let provider = Provider::load(16);
    let (here, there) = (memory(), Region::of(&provider.slot().open()));
    let child = fork_into(&group, |link| {
        let second = provider.slot().open();
        let gpu = Gpu::new();
        let map = filled(SIZE);
        let location = Location::Device { fd: second.as_raw_fd(), region: 1 };
        let advice = Advice::Preferred(location, Migrate::AllPages);
        gpu.vm().madvise(map.at(0), map.len() as u64, advice).expect("advice");
        bring(&gpu, map);
        link.send(0);
        link.receive();
        map.expect("all", pattern);
    });
    child.link().receive();
    assert_eq!(group.current(&there), SIZE as u64, "charged for the other device");
    assert!(group.current(&here) < SIZE as u64, "charged for the wrong device");
    child.link().send(0);
    child.expect_success();
    group.expect_nothing(&there);
    provider.slot().unbind();
    assert_eq!(group.mentions(&there), 0, "a region without its device");
    provider.remove();
}

/// The device is unbound: the region goes, with what is charged there; it comes back with the device.
fn unbound() {
    let group = Cgroup::new("its");
    let slot = Slot::first();
    let memory = memory();
    for _ in 0..iterations(3) {
        let child = worker(&group, SIZE, |_, _, _| {});
        let device = slot.open();
        let bo = buffer(&device, SZ_2M);
        assert_eq!(group.mentions(&memory), 1);
        slot.unbind();
        assert_eq!(group.mentions(&memory), 0, "a region without its device");
        slot.bind();
        assert_eq!((group.mentions(&memory), group.current(&memory)), (1, 0));
        drop((bo, device));
        child.link().send(0);
        child.expect_success();
        assert_eq!(group.current(&memory), 0, "of what was charged before");
    }
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_dmem", "Who is charged for device memory.");
    p.subtest("charged", "Memory on the device is charged to its process.", charged);
    p.subtest("exit", "A process that ends is charged no more.", || end(false));
    p.subtest("kill", "A process that is killed is charged no more.", || end(true));
    p.subtest("exec", "A process that becomes another program is charged no more.", exec);
    p.subtest("back", "What the CPU takes back is charged no more.", back);
    p.subtest("other-cgroup", "A process moves to another cgroup.", moves);
    p.subtest("fork", "The owner of a VM pays for what others have it do.", forked);
    p.subtest("limit", "More is worked on than the cgroup may have.", limited);
    p.subtest("limit-0", "The cgroup may have nothing.", nothing);
    p.subtest("limit-own", "A limit costs only those whom it is for.", from_himself);
    p.subtest("limit-lowered", "A limit is lowered.", lowered);
    p.subtest("protected", "Protected memory makes no room.", protected);
    p.subtest("buffer", "Buffers are charged, and limited.", buffers);
    p.subtest("buffer-for-pages", "A buffer takes the place of pages.", buffer_for_pages);
    p.subtest("unneeded", "Buffers go whose contents nobody needs.", unneeded);
    p.subtest("stopped", "The owner is stopped.", stopped);
    p.subtest("frozen", "The owner is frozen.", frozen);
    p.subtest("asleep", "The owner sleeps, and must not be woken.", asleep);
    p.subtest("other-device", "The memory of another device is charged.", elsewhere);
    p.subtest("unbind", "The device goes, and comes back.", unbound);
    p.main()
}
