// SPDX-License-Identifier: GPL-2.0

//! As many devices as there may be, of one driver.

use std::process::ExitCode;
use vxe_client::Device;
use vxe_igt::{
    sysfs::{Provider, Slot},
    vram, Gpu, Map, Program, PAGE, SZ_2M, SZ_64K,
};

/// As many as a module makes.
const MOST: usize = 8;

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
    let map = Map::aligned(MOST * SZ_64K, SZ_2M);
    map.fill(|offset| offset as u32);
    for owner in &gpus {
        assert_eq!(vram::region(owner.device()).total_size, (VRAM_MB as u64) << 20);
        assert!(vram::prefetch(owner, map), "a prefetch");
        assert_eq!(vram::in_device(owner, map), map.len(), "bytes in device memory");
        for (i, gpu) in gpus.iter().enumerate() {
            gpu.increment(map.at(i * SZ_64K));
        }
    }
    map.expect("counted", |offset| {
        let is_counted = offset % SZ_64K == 0 && offset / SZ_64K < MOST;
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

/// More of them, or none, are refused, and nothing is left of the attempt.
fn refused() {
    for count in [0, MOST + 1, 255] {
        let error = Provider::try_load(count, VRAM_MB, "").err().expect("no error");
        assert!(error.contains("Invalid argument"), "{count} devices: {error}");
    }
    assert!(Slot::all().iter().all(|slot| !slot.is_of("vxe2")), "a device is left");
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_devices", "As many devices as there may be.");
    p.subtest("eight", "eight devices work", eight);
    p.subtest("refused", "other numbers of devices are refused", refused);
    p.main()
}
