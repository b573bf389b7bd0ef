// SPDX-License-Identifier: GPL-2.0

//! As many devices as there may be, of one driver.

use std::{
    io,
    process::ExitCode,
    time::{Duration, Instant},
};
use vxe_client::Device;
use vxe_uapi::{
    skip,
    sysfs::{Provider, Slot},
    vram, Gpu, Map, Program, CHUNK, MIDDLE, PAGE, SZ_2M,
};

/// As many as a module makes.
const MOST: usize = 8;

/// How long devices move memory at most: fewer rounds are as good on a slow machine.
const ENOUGH: Duration = Duration::from_secs(12);

/// The memory of each, in MiB.
const VRAM_MB: usize = 4;

/// All eight are there, work at once on the same memory, and reach each other's.
fn eight() {
    let provider =
        Provider::try_load(MOST, VRAM_MB, "").unwrap_or_else(|e| panic!("modprobe: {e}"));
    let slots = provider.slots();
    assert_eq!(slots.len(), MOST, "devices");
    assert!(slots.iter().all(Slot::is_bound), "a device without its driver");
    let devices: Vec<Device> = slots.iter().map(Slot::open).collect();
    let mut minors: Vec<_> = devices.iter().map(|device| device.minor().expect("a node")).collect();
    minors.sort_unstable();
    minors.dedup();
    assert_eq!(minors.len(), MOST, "nodes");
    let gpus: Vec<Gpu> = devices.iter().map(Gpu::on_device).collect();

    // Memory of the system's, which all of them have mapped.
    let shared = Map::shared(PAGE);
    let jobs: Vec<_> = gpus
        .iter()
        .map(|gpu| gpu.start(|c| _ = c.increment(shared.at(64))).expect("a job"))
        .collect();
    jobs.into_iter().for_each(|job| job.wait().expect("a job"));
    shared.expect_word("counted by all", 64, MOST as u32);

    // Memory that lives on each of them in turn, and is used by all others there.
    let map = Map::aligned(MOST * CHUNK, SZ_2M);
    map.fill(|offset| offset as u32);
    for owner in &gpus {
        assert_eq!(vram::region(owner.device()).total_size, (VRAM_MB as u64) << 20);
        assert!(vram::prefetch(owner, map), "a prefetch");
        assert_eq!(vram::in_device(owner, map), map.len(), "bytes in device memory");
        for (i, gpu) in gpus.iter().enumerate() {
            gpu.increment(map.at(i * CHUNK));
        }
    }
    map.expect("counted", |offset| {
        let is_counted = offset % CHUNK == 0 && offset / CHUNK < MOST;
        offset as u32 + if is_counted { MOST as u32 } else { 0 }
    });

    // Each comes and goes without the others.
    slots[3].unbind();
    for (i, gpu) in gpus.iter().enumerate().filter(|(i, _)| *i != 3) {
        gpu.store(shared.at(4 * i), 7);
        shared.expect_word("stored", 4 * i, 7);
    }
    slots[3].bind();
    Gpu::on_device(&slots[3].open()).increment(shared.at(128));
    shared.expect_word("counted by the new one", 128, 1);
    drop((gpus, devices));
    provider.remove();
}

/// Keeps the calling thread, and those that it starts, on one processor, where none of them makes way for
/// another before it sleeps. Skips the subtest without the right to it.
#[track_caller]
fn on_one_processor() {
    // SAFETY: the set is the caller's, all zeros are an empty one, and processor 0 is in its bounds.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    assert_eq!(done, 0, "sched_setaffinity: {}", io::Error::last_os_error());
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads its argument.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &first) } != 0 {
        skip!("sched_setscheduler: {}", io::Error::last_os_error());
    }
}

/// Two devices take memory from each other, and the CPU takes it from both, on one processor: nobody waits
/// for a page by keeping the processor from whoever has it.
fn one_processor() {
    const ROUNDS: u32 = 40;
    let provider = Provider::try_load(2, VRAM_MB, "").unwrap_or_else(|e| panic!("modprobe: {e}"));
    let devices: Vec<Device> = provider.slots().iter().map(Slot::open).collect();
    let map = Map::aligned(4 * MIDDLE, SZ_2M);
    map.fill(|offset| offset as u32);
    on_one_processor();
    let end = Instant::now() + ENOUGH;
    let rounds = std::thread::scope(|scope| {
        let movers: Vec<_> = devices
            .iter()
            .map(|device| {
                scope.spawn(|| {
                    let gpu = Gpu::on_device(device);
                    let moves = (0..ROUNDS).take_while(|_| Instant::now() < end);
                    // It may be taken away again before all is there.
                    moves.inspect(|_| _ = vram::prefetch(&gpu, map)).count()
                })
            })
            .collect();
        let touches = scope.spawn(|| {
            let touches = (0..ROUNDS).take_while(|_| Instant::now() < end);
            let touch = |_: &u32| {
                map.expect("moved", |offset| offset as u32);
                std::thread::sleep(Duration::from_millis(1));
            };
            touches.inspect(touch).count()
        });
        let mut rounds: Vec<usize> =
            movers.into_iter().map(|mover| mover.join().expect("a device's thread")).collect();
        rounds.push(touches.join().expect("the CPU's thread"));
        rounds
    });
    println!("{rounds:?} of {ROUNDS} rounds");
    assert!(rounds.iter().all(|&rounds| rounds > 0), "somebody starves: {rounds:?}");
    map.expect("at the end", |offset| offset as u32);
    drop(devices);
    provider.remove();
}

/// More of them are refused, and nothing is left of the attempt.
fn refused() {
    for count in [MOST + 1, 255] {
        let error = Provider::try_load(count, VRAM_MB, "").err().expect("no error");
        assert!(error.contains("Invalid argument"), "{count} devices: {error}");
    }
    assert!(Slot::all().iter().all(|slot| !slot.is_of("vxe2")), "a device is left");
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_devices", "As many devices as there may be.");
    p.subtest("eight", "eight devices work", eight);
    p.subtest("one-processor", "two of them share a processor", one_processor);
    p.subtest("refused", "other numbers of devices are refused", refused);
    p.main()
}
