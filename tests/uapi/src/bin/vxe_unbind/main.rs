// SPDX-License-Identifier: GPL-2.0

//! The device is taken away from its driver at any moment, and given back.
//!
//! What was open stays open and says -ENODEV; work in flight ends, well or with an error, and its
//! waiters learn of it; memory of the process that the device had mapped is the process's alone; a
//! device that is bound again works like new.

mod held;

use std::{
    process::ExitCode,
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};
use vxe_client::{Bind, Bo, Device, Error, ExecQueue, Fence, Timeout, Vm, Wait};
use vxe_uapi::{
    contents::filled,
    env::{enough, iterations},
    failure::NoPages,
    gpu::{device, works, write_batch, PATIENCE_TIME},
    klog::{Alarm, Expected},
    memory::large,
    process::fork,
    sysfs::{is_end, Slot},
    uffd::Uffd,
    vram::{bring, soon},
    Gpu, Map, Program, Stop, MIDDLE, PAGE, SZ_2M,
};

/// How long to keep taking the device away from those who work: the rest of the rounds are for a faster
/// machine, or for who has more time.
const ENOUGH: Duration = Duration::from_secs(12);

fn idle() {
    let slot = Slot::first();
    for _ in 0..iterations(40) {
        slot.unbind();
        assert_eq!(Device::open().map(|_| ()).map_err(|e| e.errno()), Err(libc::ENODEV));
        slot.bind();
        drop(device());
    }
    works(&device(), "counted");
}

/// All that can be asked of a file whose device is gone.
#[track_caller]
fn expect_cut_off(gpu: &Gpu, bo: &Bo) {
    let (device, vm) = (gpu.device(), gpu.vm());
    let gone = |what: &str, result: Result<(), Error>| {
        assert_eq!(result.map_err(|e| e.errno()), Err(libc::ENODEV), "{what}");
    };
    gone("a query", device.config().map(|_| ()));
    gone("a VM", Vm::new(device).map(|_| ()));
    gone("a queue", ExecQueue::new(vm).map(|_| ()));
    gone("a buffer", Bo::system(device, PAGE).map(|_| ()));
    gone("an offset", bo.mmap_offset().map(|_| ()));
    gone("a bind", vm.bind(&[Bind::bo(bo, 0, 1 << 40, PAGE as u64)]));
    gone("a job", gpu.try_run(|c| _ = c.noop()));
    gone("a queue's state", gpu.queue().is_banned().map(|_| ()));
}

fn open_file() {
    let slot = Slot::first();
    for round in 0..iterations(10) {
        let map = large();
        let gpu = Gpu::new();
        let bo = Bo::system(gpu.device(), MIDDLE).expect("a buffer");
        let mapping = bo.map().expect("its memory");
        gpu.vm().bind(&[Bind::bo(&bo, 0, 1 << 40, MIDDLE as u64)]).expect("a bind");
        gpu.store((1 << 40) + 8, round);
        gpu.increment(map.at(SZ_2M / 2));
        slot.unbind();
        expect_cut_off(&gpu, &bo);
        map.expect_word("counted", SZ_2M / 2, 1);
        let word = mapping.words()[2].load(Ordering::Relaxed);
        assert_eq!(word, round, "a buffer's memory outlives its device");
        // The old file and the new device do not meet.
        slot.bind();
        expect_cut_off(&gpu, &bo);
        works(&device(), "counted");
        drop(gpu);
        works(&device(), "counted");
        map.unmap();
    }
}

/// A number of threads each do `work` with GPUs of their own, until the device is gone, and begin
/// anew when it is back; meanwhile it is unbound and bound `rounds` times, or fewer on a slow
/// machine.
fn while_working(rounds: u32, work: impl Fn(&Gpu, Map, u32) -> Result<(), Error> + Sync) {
    const THREADS: u32 = 4;
    let slot = Slot::first();
    let done = Stop::new();
    let (jobs, ends) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let map = Map::aligned(2 * SZ_2M, SZ_2M);
                while !done.is_set() {
                    let Ok(device) = Device::open() else {
                        std::thread::sleep(Duration::from_millis(1));
                        continue;
                    };
                    let Ok(gpu) = Gpu::try_on_device(&device) else { continue };
                    loop {
                        let round = jobs.fetch_add(1, Ordering::Relaxed);
                        if let Err(e) = work(&gpu, map, round) {
                            assert!(is_end(&e), "{e}");
                            ends.fetch_add(1, Ordering::Relaxed);
                            break;
                        }
                        if done.is_set() {
                            break;
                        }
                    }
                }
            });
        }
        let _done = done.on_drop();
        let (start, enough) = (Instant::now(), enough(ENOUGH));
        for round in 0..iterations(rounds) {
            if start.elapsed() > enough {
                println!("{round} rounds are enough for a slow machine");
                break;
            }
            std::thread::sleep(Duration::from_millis(u64::from(round % 7) * 5));
            slot.unbind();
            slot.bind();
        }
        // On a slow machine it may be that none came to a good end in between.
        soon("a job works", || {
            jobs.load(Ordering::Relaxed) > ends.load(Ordering::Relaxed) + THREADS
        });
    });
    let (jobs, ends) = (jobs.into_inner(), ends.into_inner());
    println!("{jobs} jobs, {ends} of them ended by an unbind");
    works(&device(), "counted");
}

/// First touches all the time.
fn faulting() {
    while_working(60, |gpu, map, round| {
        map.madvise(libc::MADV_DONTNEED);
        gpu.try_run(|c| {
            for page in 0..map.len() / MIDDLE {
                c.store(map.at(page * MIDDLE), round);
            }
        })?;
        for page in 0..map.len() / MIDDLE {
            map.expect_word("stored", page * MIDDLE, round);
        }
        Ok(())
    });
}

/// Jobs that need no fault any more.
fn copying() {
    while_working(60, |gpu, map, _| {
        let half = map.len() / 2;
        gpu.try_run(|c| _ = c.copy(map.at(0), map.at(half), half))
    });
}

/// Binds, unbinds and jobs in between.
fn binding() {
    while_working(60, |gpu, map, round| {
        let bo = Bo::system(gpu.device(), MIDDLE)?;
        let at = 1 << 40;
        gpu.vm().bind(&[Bind::bo(&bo, 0, at, MIDDLE as u64)])?;
        gpu.try_run(|c| _ = c.store(at + 4, round))?;
        gpu.vm().bind(&[Bind::unmap(at, MIDDLE as u64)])?;
        match gpu.vm().bind(&[Bind::prefetch(map.at(0), map.len() as u64, 0)]) {
            // The other threads change the process's memory all the time.
            Err(e) if e.errno() == libc::EBUSY => Ok(()),
            done => done,
        }
    });
}

/// The CPU unmaps all the while what the device has mapped.
fn unmapping() {
    while_working(60, |gpu, map, round| {
        // At once: no other thread may get the addresses.
        map.replace_anon(vxe_uapi::RW);
        gpu.try_run(|c| _ = c.store(map.at(MIDDLE), round).increment(map.at(MIDDLE)))?;
        map.expect_word("counted", MIDDLE, round.wrapping_add(1));
        Ok(())
    });
}

/// Files are opened and closed while the device comes and goes.
fn opening() {
    while_working(100, |gpu, _, _| {
        let device = Device::open()?;
        let other = Gpu::try_on_device(&device)?;
        drop(device);
        other.try_run(|c| _ = c.noop())?;
        gpu.try_run(|c| _ = c.noop())
    });
}

/// Who waits for a fence that nobody will signal is told that the device is gone.
fn waiter() {
    let slot = Slot::first();
    let device = device();
    let vm = Vm::mirrored(&device).expect("a VM");
    let queue = ExecQueue::new(&vm).expect("a queue");
    let fence = Map::anon(PAGE);
    let wait = Wait::equal(fence.at(0), 1, Timeout::ms(60_000));
    std::thread::scope(|scope| {
        let anybody = scope.spawn(|| device.wait_user_fence(&wait).map(|_| ()));
        let of_queue = scope.spawn(|| queue.wait(&wait));
        std::thread::sleep(Duration::from_millis(200));
        slot.unbind();
        let ends = |what: &str, handle: std::thread::ScopedJoinHandle<'_, Result<(), Error>>| {
            let e = handle.join().expect("a thread").expect_err(what);
            assert!(is_end(&e), "{what}: {e}");
        };
        ends("a wait", anybody);
        ends("a wait for a queue", of_queue);
    });
    slot.bind();
    works(&slot.open(), "counted");
}

/// A fault that waits for a userfaultfd is cut off as well: its job ends, and unbinding waits for nobody. The
/// page that it waits for may come later.
fn held_fault() {
    let slot = Slot::first();
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    let uffd = Uffd::new(map);
    let job = gpu.start(|c| _ = c.increment(map.at(0))).expect("a job");
    uffd.next_fault(Duration::from_secs(10)).expect("no fault arrives");
    std::thread::scope(|scope| {
        let (ended, end) = mpsc::channel();
        let slot = &slot;
        scope.spawn(move || {
            slot.unbind();
            let _ = ended.send(());
        });
        // The job ends though its page never came.
        let e = job.wait().expect_err("a job without its page");
        assert!(is_end(&e), "{e}");
        let in_time = end.recv_timeout(PATIENCE_TIME);
        uffd.populate(|_| 7);
        in_time.expect("unbinding waits for userspace");
    });
    map.expect_word("untouched", 0, 7);
    slot.bind();
    works(&device(), "counted");
}

/// Submits work that does not end while a test runs, and counts on its way. The GPU has mapped all that it
/// needs, so that no fault interrupts it.
fn count_endlessly(gpu: &Gpu) -> Map {
    let (from, to, batch) = (Map::shared(SZ_2M), Map::shared(SZ_2M), Map::shared(SZ_2M));
    let counter = Map::shared(PAGE);
    let batch = {
        let address = write_batch(batch, |c| {
            for _ in 0..16384 {
                c.increment(counter.at(0)).copy(from.at(0), to.at(0), SZ_2M);
            }
        });
        gpu.copy(batch, to);
        gpu.copy(from, to);
        gpu.increment(counter.at(0));
        address
    };
    for _ in 0..16 {
        // SAFETY: the batch and what it touches are the test's memory, which stays.
        unsafe { gpu.queue().submit(batch, None) }.expect("a job");
    }
    counter
}

/// A fault in one VM of a process waits for its page: the GPU stops in the others all the same when the
/// device is unbound, be they made before that VM or after it.
fn held_beside() {
    /// How long it may take until the GPU stops.
    const LONG: Duration = Duration::from_secs(10);
    let slot = Slot::first();
    let device = device();
    let gpus = [(); 3].map(|()| Gpu::on_device(&device));
    let [first, stuck, last] = &gpus;
    let map = Map::aligned(MIDDLE, MIDDLE);
    let uffd = Uffd::new(map);
    let job = stuck.start(|c| _ = c.increment(map.at(0))).expect("a job");
    uffd.next_fault(Duration::from_secs(10)).expect("no fault arrives");
    let counters = [first, last].map(count_endlessly);
    let counts = || counters.map(|counter| counter.read(0));
    soon("the GPU works in both", || {
        let before = counts();
        std::thread::sleep(Duration::from_millis(100));
        before.into_iter().zip(counts()).all(|(before, after)| after != before)
    });
    std::thread::scope(|scope| {
        let unbinding = scope.spawn(|| slot.unbind());
        let e = job.wait().expect_err("a job without its page");
        assert!(is_end(&e), "{e}");
        let start = Instant::now();
        let stands_still = loop {
            let before = counts();
            std::thread::sleep(Duration::from_millis(300));
            if counts() == before {
                break true;
            }
            if start.elapsed() > LONG {
                break false;
            }
        };
        // Whatever came of it, the unbinding must end.
        uffd.populate(|_| 7);
        unbinding.join().expect("the unbind");
        assert!(stands_still, "the GPU works on while the device is being unbound");
    });
    slot.bind();
    works(&vxe_uapi::gpu::device(), "counted");
}

/// Many jobs are queued; all of them go.
fn queued() {
    let slot = Slot::first();
    for _ in 0..iterations(5) {
        let gpu = Gpu::new();
        let map = Map::anon(PAGE);
        let batch = Map::anon(PAGE);
        let batch = write_batch(batch, |c| (0..64).for_each(|_| _ = c.increment(map.at(0))));
        let fence = Map::anon(PAGE);
        for value in 1..=4000 {
            let fence = Fence { address: fence.at(0), value };
            // SAFETY: batch and fence are the test's memory.
            unsafe { gpu.queue().submit(batch, Some(fence)) }.expect("a job");
        }
        slot.unbind();
        let (counted, signalled) = (map.read(0), fence.read(0));
        assert!(signalled * 64 <= counted, "{signalled} jobs signalled, {counted} counted");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!((map.read(0), fence.read(0)), (counted, signalled), "the GPU works on");
        slot.bind();
    }
    works(&device(), "counted");
}

/// How long a device that is unbound waits for RAM.
const PATIENCE: Duration = Duration::from_secs(10);

/// There is no RAM for what a process has in the device's memory. It is lost when the device has waited ten
/// seconds, which the log says; the process learns of it when it looks, and nobody else has a part in it.
fn lost() {
    let slot = Slot::first();
    let child = fork(|link| {
        let gpu = Gpu::new();
        let map = filled(SZ_2M);
        bring(&gpu, map);
        let other = Map::shared(PAGE);
        other.write(0, 7);
        link.send(1);
        link.receive();
        other.expect_word("what was never on the device", 0, 7);
        link.send(map.read(MIDDLE).into());
    });
    child.link().receive();
    let took = {
        // Skips where no allocation can be made to fail: before anything is expected.
        let _no_pages = NoPages::below("vxe");
        let _lost = Expected::new(Alarm::LostPages);
        let start = Instant::now();
        slot.unbind();
        start.elapsed()
    };
    assert!(took >= PATIENCE, "the device gave up after {took:?}");
    child.link().send(1);
    assert!(child.link().try_receive().is_err(), "contents that nobody has");
    let status = child.wait();
    assert!(
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS,
        "status {status:#x}"
    );
    slot.bind();
    works(&device(), "counted");
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_unbind", "The device is unbound and bound at any moment.");
    p.subtest("idle", "nobody uses the device", idle);
    p.subtest("open-file", "a file with all it can have is open", open_file);
    p.subtest("faulting", "the GPU faults all the time", faulting);
    p.subtest("copying", "the GPU copies memory that is mapped", copying);
    p.subtest("binding", "buffers are bound and pages prefetched", binding);
    p.subtest("unmapping", "the CPU unmaps what the GPU has mapped", unmapping);
    p.subtest("opening", "files are opened and closed", opening);
    p.subtest("waiter", "somebody waits for a fence", waiter);
    p.subtest("held-fault", "a fault waits for userspace", held_fault);
    p.subtest("held-beside", "a fault waits, and other VMs are at work", held_beside);
    p.subtest("queued", "thousands of jobs are queued", queued);
    held::subtests(&mut p);
    p.subtest("lost", "no RAM for what is in the device's memory", lost);
    p.main()
}
