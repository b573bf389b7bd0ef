// SPDX-License-Identifier: GPL-2.0

//! Placement: memory lives where a program prefers it, be it on another device, of another driver; and
//! goes to and fro where both the CPU and the GPU do atomics.

use std::{os::fd::AsRawFd, process::ExitCode};
use vxe_client::{Advice, AtomicAccess, Bind, Device, Location, Migrate};
use vxe_uapi::{
    contents::{filled, pattern},
    gpu::device,
    sysfs::Provider,
    vmas::vmas,
    vram::{in_device, leave, region, soon, touch},
    Gpu, Map, Program, CHUNK, MIDDLE, RW, SZ_2M,
};

/// The memory of the second device, in MiB.
const VRAM_MB: usize = 16;

/// Says that memory should live in a region of another device.
fn prefer(gpu: &Gpu, map: Map, other: &Device, region: u16) -> Result<(), i32> {
    let location = Location::Device { fd: other.as_raw_fd(), region };
    let advice = Advice::Preferred(location, Migrate::AllPages);
    gpu.vm().madvise(map.at(0), map.len() as u64, advice).map_err(|e| e.errno())
}

/// How much of a device's memory is used.
fn used(device: &Device) -> usize {
    region(device).used as usize
}

/// Memory of the process on a second device is where the first one works.
fn other_device() {
    let provider = Provider::load(VRAM_MB);
    let other = provider.slot().open();
    let gpu = Gpu::new();
    region(gpu.device());
    let before = used(gpu.device());
    for prefetch in [false, true] {
        let map = filled(2 * SZ_2M);
        prefer(&gpu, map, &other, 1).expect("a place on the second device");
        if prefetch {
            let bind = Bind::prefetch(map.at(0), map.len() as u64, -1);
            gpu.vm().bind(&[bind]).expect("a prefetch");
        } else {
            touch(&gpu, map);
        }
        assert_eq!(used(&other), map.len(), "bytes on the second device");
        assert_eq!(used(gpu.device()), before, "bytes on the first");
        assert_eq!(in_device(&gpu, map), map.len(), "bytes that the first device reaches there");
        gpu.run(|c| {
            for offset in (0..map.len()).step_by(MIDDLE) {
                c.increment(map.at(offset));
            }
        });
        // A GPU of its own finds it there as well.
        let own = Gpu::on_device(&other);
        own.increment(map.at(0));
        map.write(0, map.read(0) - 1);
        let wanted = |offset| pattern(offset) + u32::from(offset % MIDDLE == 0);
        map.expect("counted on the second device", wanted);
        drop(own);
        map.unmap();
        soon("the second device's memory is free", || used(&other) == 0);
    }
    let locations: Vec<_> =
        vmas(gpu.vm(), 0..1 << 48).iter().map(|vma| vma.attributes.location).collect();
    assert!(locations.contains(&other.as_raw_fd()), "{locations:?}");
    drop((gpu, other));
    provider.remove();
}

/// Places that there are not.
fn refused() {
    let provider = Provider::load(VRAM_MB);
    let other = provider.slot().open();
    let gpu = Gpu::new();
    region(gpu.device());
    let map = filled(CHUNK);
    assert_eq!(prefer(&gpu, map, &other, 0), Err(libc::ENOENT), "its system memory");
    assert_eq!(prefer(&gpu, map, &other, 2), Err(libc::ENOENT), "a region that there is not");
    assert_eq!(prefer(&gpu, map, gpu.device(), 1), Ok(()), "the first device itself");
    touch(&gpu, map);
    assert_eq!(in_device(&gpu, map), CHUNK);
    provider.slot().unbind();
    assert_eq!(prefer(&gpu, map, &other, 1), Err(libc::ENODEV), "a device that is gone");
    drop((gpu, other));
    provider.remove();
}

/// The second device goes, and its module, with memory there and advice in force; then it comes back.
fn gone() {
    let gpu = Gpu::new();
    region(gpu.device());
    let map = filled(2 * SZ_2M);
    for round in 0..3 {
        let provider = Provider::load(VRAM_MB);
        let other = provider.slot().open();
        prefer(&gpu, map, &other, 1).expect("a place on the second device");
        touch(&gpu, map);
        assert_eq!(used(&other), map.len(), "bytes on the second device");
        gpu.increment(map.at(MIDDLE));
        drop(other);
        provider.slot().unbind();
        gpu.increment(map.at(MIDDLE));
        if round == 1 {
            // It is another device now: nobody said anything of that.
            provider.slot().bind();
            gpu.increment(map.at(MIDDLE));
            assert_eq!(in_device(&gpu, map), 0, "bytes on a device that came back");
        }
        provider.remove();
        gpu.increment(map.at(MIDDLE));
        assert_eq!(in_device(&gpu, map), 0, "bytes on a device that is gone");
        map.write(MIDDLE, map.read(MIDDLE) - 3 - u32::from(round == 1));
        map.expect("after the second device", pattern);
    }
}

/// Both do atomics: each while it has the memory for itself.
fn global() {
    let mut gpu = Gpu::new();
    region(gpu.device());
    let map = filled(SZ_2M);
    let advice = Advice::Atomic(AtomicAccess::Global);
    gpu.vm().madvise(map.at(0), SZ_2M as u64, advice).expect("advice");
    let word = map.atomic(MIDDLE);
    word.store(0, std::sync::atomic::Ordering::SeqCst);
    for round in 0..12 {
        gpu.increment(map.at(MIDDLE));
        assert!(in_device(&gpu, map) >= MIDDLE || round > 0, "the GPU's atomic in system memory");
        word.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
    map.expect_word("counted by both", MIDDLE, 24);
    // Both at once.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..25 {
                word.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        for _ in 0..8 {
            gpu.increment(map.at(MIDDLE));
        }
    });
    map.expect_word("counted by both at once", MIDDLE, 57);

    // Memory that never moves bears no such atomics.
    let file = vxe_uapi::memory::memfd(MIDDLE, 0);
    let shared = Map::file(&file, MIDDLE, RW, libc::MAP_SHARED);
    shared.write(0, 5);
    gpu.vm().madvise(shared.at(0), MIDDLE as u64, advice).expect("advice");
    gpu.store(shared.at(4), 6);
    gpu.expect_fault("an atomic on shared memory", |c| _ = c.increment(shared.at(0)));
    shared.expect_word("untouched", 0, 5);
}

/// The device's own atomics are done wherever the memory is.
fn device_atomics() {
    let gpu = Gpu::new();
    let hogs = leave(gpu.device(), 0);
    let map = filled(MIDDLE);
    let advice = Advice::Atomic(AtomicAccess::Device);
    gpu.vm().madvise(map.at(0), MIDDLE as u64, advice).expect("advice");
    gpu.increment(map.at(0));
    assert_eq!(in_device(&gpu, map), 0);
    map.expect_word("counted", 0, pattern(0) + 1);
    drop(hogs);
}

/// Memory of a device that is preferred nowhere goes back.
fn system() {
    let gpu = Gpu::on_device(&device());
    region(gpu.device());
    let map = filled(SZ_2M);
    touch(&gpu, map);
    assert_eq!(in_device(&gpu, map), SZ_2M);
    let advice = Advice::Preferred(Location::System, Migrate::AllPages);
    gpu.vm().madvise(map.at(0), SZ_2M as u64, advice).expect("advice");
    touch(&gpu, map);
    assert_eq!(in_device(&gpu, map), 0);
    map.expect("kept", pattern);
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_placement", "Memory lives where a program prefers it.");
    p.subtest("other-device", "on a device of another driver", other_device);
    p.subtest("refused", "places that there are not", refused);
    p.subtest("gone", "on a device that goes, and comes back", gone);
    p.subtest("system", "in system memory", system);
    p.subtest("global-atomics", "atomics of both", global);
    p.subtest("device-atomics", "atomics of the device", device_atomics);
    p.main()
}
