// SPDX-License-Identifier: GPL-2.0

//! A driver in a module of its own, with a device beside the first: it comes, is used, is unbound
//! and removed while the first device works, and nothing of it is left.

use std::{
    os::fd::AsRawFd,
    process::ExitCode,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use vxe_client::{Advice, Bind, Bo, Device, Location, Migrate, Vm};
use vxe_uapi::{
    env::{enough, iterations},
    gpu::{device, works, FAR},
    process::fork,
    sysfs::{core_references, drop_caches, is_end, Expedited, Provider},
    vram::{region, soon},
    Gpu, Map, Program, Stop, MIDDLE, PAGE, SZ_2M,
};

/// The memory of the second device, in MiB.
const VRAM_MB: usize = 16;

/// How long the second driver is to come and go at most: the rest of the rounds are for a faster machine,
/// or for who has more time.
const ENOUGH: Duration = Duration::from_secs(6);

/// Device memory that is bound, with a word that the GPU has written.
fn buffer(gpu: &Gpu, value: u32) -> Bo {
    let bo = Bo::create(gpu.device(), SZ_2M, 1 << 1, None).expect("a buffer in its memory");
    gpu.vm().bind(&[Bind::bo(&bo, 0, FAR, SZ_2M as u64)]).expect("a bind");
    gpu.store(FAR + MIDDLE as u64, value);
    bo
}

/// Two drivers of the same kind, side by side.
fn beside() {
    let core = core_references();
    let first = device();
    let provider = Provider::load(VRAM_MB);
    let second = provider.slot().open();
    assert_ne!(first.minor().expect("a node"), second.minor().expect("a node"));
    let size = second.memory_regions().expect("the regions")[1].total_size;
    assert_eq!(size, (VRAM_MB as u64) << 20, "not the memory of the second device");
    works(&first, "the first device");
    works(&second, "the second device");

    // One memory, two GPUs.
    let map = Map::aligned(SZ_2M, SZ_2M);
    let (one, other) = (Gpu::on_device(&first), Gpu::on_device(&second));
    for round in 0..4 {
        for page in 0..SZ_2M / MIDDLE {
            one.increment(map.at(page * MIDDLE));
            other.increment(map.at(page * MIDDLE));
        }
        map.expect_word("both", 0, 2 * round + 2);
    }
    let bo = buffer(&other, 3);
    drop((bo, one, other, second));
    // What is in the device's memory keeps its module, as long as the device is bound.
    provider.slot().unbind();
    provider.remove();
    soon("no more references to the core than before", || core_references() == core);
    works(&first, "the first device, alone again");
}

/// What is open keeps the module, whether the device is bound or not.
fn open_file() {
    let mut provider = Provider::load(VRAM_MB);
    let slot = provider.slot();
    let mut busy = |what: &str| {
        let error = provider.try_remove().expect_err(what).raw_os_error();
        assert_eq!(error, Some(libc::EAGAIN), "{what}");
        assert!(provider.references() > 0, "{what}");
    };
    let device = slot.open();
    busy("a file");
    let gpu = Gpu::on_device(&device);
    let bo = buffer(&gpu, 5);
    let mapping = bo.map().expect("its memory");
    drop((device, gpu, bo));
    busy("a mapping");
    let word = || mapping.words()[MIDDLE / 4].load(Ordering::Acquire);
    assert_eq!(word(), 5);
    slot.unbind();
    assert_eq!(word(), 5, "memory that is mapped outlives the device's driver");
    busy("a mapping, with the device unbound");
    slot.bind();
    works(&slot.open(), "bound again");
    drop(mapping);
    provider.remove();
}

/// The first device counts in all parts of a memory until it is told to stop; then each must have as
/// many as there were jobs, and what is between them what it had.
fn counting(gpu: &Gpu, map: Map, stop: &Stop) -> u32 {
    const STEP: usize = 8 * PAGE;
    for offset in (0..map.len()).step_by(PAGE) {
        map.write(offset + 4, offset as u32);
    }
    let mut jobs = 0;
    while !stop.is_set() {
        gpu.run(|c| {
            for offset in (0..map.len()).step_by(STEP) {
                c.increment(map.at(offset));
            }
        });
        jobs += 1;
        // The others need the processor, too.
        std::thread::sleep(Duration::from_millis(2));
    }
    for offset in (0..map.len()).step_by(PAGE) {
        let counted = if offset % STEP == 0 { jobs } else { 0 };
        map.expect_word("counted by the first device", offset, counted);
        map.expect_word("what was there", offset + 4, offset as u32);
    }
    jobs
}

/// Has memory live on a device, and be used there. Says whether it is there: the first device works in it
/// all the time.
fn place(vm: &Vm, map: Map, device: &Device) -> bool {
    let (at, length) = (map.at(0), map.len() as u64);
    let location = Location::Device { fd: device.as_raw_fd(), region: 1 };
    let advice = Advice::Preferred(location, Migrate::AllPages);
    vm.madvise(at, length, advice).expect("a place on the second device");
    match vm.bind(&[Bind::prefetch(at, length, -1)]) {
        Err(e) if e.errno() == libc::EBUSY => {}
        done => done.expect("a prefetch"),
    }
    region(device).used > 0
}

/// The second driver comes and goes, `rounds` times or as often as there is time for, while the
/// first device works, out of the second one's memory if `placed`; `round` is what happens in
/// between.
fn come_and_go(rounds: u32, placed: bool, round: impl Fn(&Provider, &Device, u32)) {
    let core = core_references();
    let _expedited = Expedited::now();
    let map = Map::aligned(SZ_2M, SZ_2M);
    let vm = Vm::mirrored(&device()).expect("a VM of the first device");
    let stop = Stop::new();
    let (mut done, mut there, mut longest) = (0, 0, Duration::ZERO);
    let jobs = std::thread::scope(|scope| {
        let worker = scope.spawn(|| counting(&Gpu::on_vm(&vm), map, &stop));
        // The end of the worker is sure, whatever fails here.
        let _stop = stop.on_drop();
        let (start, enough) = (Instant::now(), enough(ENOUGH));
        while done < iterations(rounds) && start.elapsed() < enough {
            let provider = Provider::load(VRAM_MB);
            let device = provider.slot().open();
            if placed {
                there += u32::from(place(&vm, map, &device));
            }
            round(&provider, &device, done);
            drop(device);
            if provider.slot().is_bound() && provider.references() != 0 {
                // Pages of this process are in its memory: batches, say.
                provider.slot().unbind();
            }
            longest = longest.max(provider.remove());
            done += 1;
        }
        drop(_stop);
        worker.join().expect("the first device's work")
    });
    println!(
        "{done} of {} rounds, {jobs} jobs meanwhile; removal took {longest:?} at most",
        iterations(rounds)
    );
    assert!(jobs > 0, "the first device never worked");
    assert!(!placed || there * 2 >= done, "memory was on the second device {there} times only");
    // A thread that charges this process ends after its last VM.
    drop(vm);
    soon("no more references to the core than before", || core_references() == core);
    map.unmap();
}

/// All that a device has is in use when it goes; every other time it comes back first.
fn use_up(provider: &Provider, device: &Device, number: u32) {
    let map = Map::aligned(MIDDLE, MIDDLE);
    let gpu = Gpu::on_device(device);
    let bo = buffer(&gpu, number);
    gpu.store(map.at(0), number);
    let copied =
        gpu.start(|c| _ = c.copy(FAR, map.at(0), MIDDLE).copy(FAR, FAR + MIDDLE as u64, MIDDLE));
    if number % 3 != 0 {
        provider.slot().unbind();
    }
    if let Ok(Err(e)) = copied.map(vxe_uapi::Job::wait) {
        assert!(is_end(&e), "{e}");
    }
    if number % 3 == 1 {
        provider.slot().bind();
        works(&provider.slot().open(), "bound again");
    }
    drop((gpu, bo));
    map.unmap();
}

fn removed() {
    come_and_go(500, true, use_up);
}

/// The module goes with its device bound and never used, or used a moment ago.
fn bound() {
    come_and_go(40, false, |_, device, number| {
        if number % 2 == 0 {
            works(device, "the second device");
        }
    });
}

/// A process with both devices is killed in the middle of its work.
fn exit() {
    come_and_go(60, false, |provider, _, number| {
        let child = fork(|link| {
            let gpu = Gpu::on_device(&provider.slot().open());
            let first = Gpu::new();
            let bo = buffer(&gpu, number);
            let mapping = bo.map().expect("its memory");
            let map = Map::aligned(SZ_2M, SZ_2M);
            link.send(1);
            loop {
                gpu.run(|c| _ = c.copy(FAR, map.at(0), MIDDLE));
                first.run(|c| _ = c.increment(map.at(MIDDLE)));
                map.madvise(libc::MADV_DONTNEED);
                mapping.words()[0].fetch_add(1, Ordering::Relaxed);
            }
        });
        child.link().receive();
        std::thread::sleep(Duration::from_millis(u64::from(number % 5)));
        // The device goes before the process on every other round, and in the middle of its end on
        // every fourth.
        match number % 4 {
            0 => child.kill(),
            1 => {
                provider.slot().unbind();
                drop(child);
            }
            2 => {
                child.kill();
                provider.slot().unbind();
            }
            _ => {
                child.signal(libc::SIGKILL);
                provider.slot().unbind();
                drop(child);
            }
        }
    });
}

/// All memory that is easy to free is freed all the while.
fn reclaim() {
    let stop = Stop::new();
    let times = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.is_set() {
                drop_caches(2 + times.fetch_add(1, Ordering::Relaxed) % 2);
            }
        });
        let _stop = stop.on_drop();
        come_and_go(60, false, use_up);
    });
    println!("reclaimed {} times", times.into_inner());
}

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_provider",
        "A driver in a module of its own comes and goes beside the first.",
    );
    p.subtest("beside", "two drivers side by side", beside);
    p.subtest("open-file", "what is open keeps the module", open_file);
    p.subtest("bound", "the module goes with its device bound", bound);
    p.subtest("removed", "the device is unbound, and the module removed", removed);
    p.subtest("exit", "a process with both devices is killed", exit);
    p.subtest("reclaim", "memory is reclaimed meanwhile", reclaim);
    p.main()
}
