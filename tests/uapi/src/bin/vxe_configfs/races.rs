// SPDX-License-Identifier: GPL-2.0

//! Everybody at once: who makes devices, who removes them, and who uses them.

use crate::{ENOUGH, VRAM_MB};
use std::{
    fs, io,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};
use vxe_client::Device;
use vxe_uapi::{
    configfs::{subsystem, Configuration},
    env::enough,
    gpu::works,
    sysfs::is_end,
    Gpu, Map, Program, MIDDLE, SZ_2M,
};

/// What a call may end with when its configuration comes and goes.
fn is_race(e: &io::Error) -> bool {
    let known = [libc::ENOENT, libc::EBUSY, libc::EEXIST, libc::ENODEV, libc::ENOSPC, libc::EINTR];
    e.raw_os_error().is_some_and(|errno| known.contains(&errno))
}

/// Calls `step` until it is time, and says how often it was done and came to nothing.
fn until(done: &AtomicBool, step: impl Fn(u32) -> io::Result<()>) -> (u32, u32) {
    let (mut good, mut bad) = (0, 0);
    while !done.load(Ordering::Acquire) {
        match step(good + bad) {
            Ok(()) => good += 1,
            Err(e) => {
                assert!(is_race(&e), "{e}");
                bad += 1;
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }
    (good, bad)
}

/// The GPU works on every device that is there at this moment.
fn use_all(map: Map, jobs: &AtomicU32) {
    let work = |device: &Device| {
        let gpu = Gpu::try_on_device(device)?;
        for page in 0..8 {
            gpu.try_run(|c| _ = c.increment(map.at(page * MIDDLE)))?;
            jobs.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    for node in 0..8 {
        let Ok(device) = Device::open_path(format!("/dev/dri/card{node}")) else { continue };
        if let Err(e) = work(&device) {
            assert!(is_end(&e), "{e}");
        }
    }
}

/// Writers of all attributes, users of the device, and one more thread, until it is time.
fn with_writers(name: &str, more: impl Fn(u32) -> io::Result<()> + Sync) {
    let path = subsystem("vxe").join(name);
    let done = AtomicBool::new(false);
    let jobs = AtomicU32::new(0);
    let write = |attribute: &str, value: &str| fs::write(path.join(attribute), value);
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 0..2 {
            threads.push(
                scope.spawn(|| {
                    until(&done, |i| write("enabled", if i % 2 == 0 { "1" } else { "0" }))
                }),
            );
        }
        threads.push(scope.spawn(|| {
            until(&done, |i| {
                std::thread::sleep(Duration::from_millis(1));
                write("vram_mb", if i % 2 == 0 { "8" } else { "16" })?;
                write("device_id", &(1 + i % 9).to_string())?;
                fs::read_to_string(path.join("device")).map(drop)
            })
        }));
        threads.push(scope.spawn(|| until(&done, &more)));
        for _ in 0..2 {
            scope.spawn(|| {
                let map = Map::aligned(SZ_2M, SZ_2M);
                while !done.load(Ordering::Acquire) {
                    use_all(map, &jobs);
                    std::thread::sleep(Duration::from_micros(300));
                }
            });
        }
        let end = Instant::now() + enough(ENOUGH);
        while Instant::now() < end && threads.iter().all(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        done.store(true, Ordering::Release);
        for (what, thread) in ["enabled", "enabled", "settings", "other"].iter().zip(threads) {
            let (good, bad) = thread.join().expect("a thread");
            println!("{what}: {good} done, {bad} refused");
            // Who only changes settings finds no moment for it on a slow machine.
            assert!(good > 0 || what == &"settings", "{what}: nothing was done");
        }
    });
    println!("{} jobs", jobs.into_inner());
}

/// What remains works.
#[track_caller]
fn expect_works(config: &Configuration) {
    config.disable();
    config.set("vram_mb", VRAM_MB);
    config.enable();
    works(&config.open(), "after the race");
}

/// Writers of `enabled` beside each other.
fn writers() {
    let config = Configuration::make("writers");
    with_writers("writers", |_| {
        std::thread::sleep(Duration::from_millis(1));
        config.try_get("enabled").map(drop)
    });
    expect_works(&config);
}

/// The device is unbound and bound through sysfs meanwhile.
fn unbinding() {
    let config = Configuration::make("unbinding");
    with_writers("unbinding", |i| {
        std::thread::sleep(Duration::from_millis(1));
        let name = config.try_get("device")?;
        if name.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        let file = if i % 2 == 0 { "unbind" } else { "bind" };
        match fs::write(format!("/sys/bus/platform/drivers/vxe/{file}"), name) {
            // It is bound already, or another one.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                Err(io::Error::from_raw_os_error(libc::ENODEV))
            }
            done => done,
        }
    });
    expect_works(&config);
}

/// The directory comes and goes.
fn removal() {
    let path = subsystem("vxe").join("removal");
    with_writers("removal", |i| {
        fs::create_dir(&path)?;
        std::thread::sleep(Duration::from_millis(u64::from(i % 8)));
        fs::remove_dir(&path)
    });
    // The thread that made it may have been done in between.
    let _ = fs::remove_dir(&path);
    expect_works(&Configuration::make("removal"));
}

pub fn subtests(p: &mut Program) {
    p.subtest("race-writers", "several write at once", writers);
    p.subtest("race-unbind", "the device is unbound and bound meanwhile", unbinding);
    p.subtest("race-rmdir", "the directory comes and goes meanwhile", removal);
}
