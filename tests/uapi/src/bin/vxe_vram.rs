// SPDX-License-Identifier: GPL-2.0

//! Buffers in the device's own memory: by the GPU, by the CPU, and when it is full.

use std::{os::fd::AsRawFd, process::ExitCode, sync::atomic::Ordering};
use vxe_client::{sys, Bind, Bo, Mapping};
use vxe_uapi::{
    env::iterations,
    gpu::{device, write_batch, FAR},
    process::fork,
    sysfs::Slot,
    vram::{buffer, region, try_buffer, Hogs},
    Gpu, Map, Program, Rng, MIDDLE, PAGE, RW, SZ_2M,
};

fn read(mapping: &Mapping, offset: usize) -> u32 {
    mapping.words()[offset / 4].load(Ordering::Acquire)
}

fn write(mapping: &Mapping, offset: usize, value: u32) {
    mapping.words()[offset / 4].store(value, Ordering::Release);
}

/// What the device says of it.
fn described() {
    let device = device();
    let region = region(&device);
    assert_eq!(region.instance, 1);
    assert_eq!(region.min_page_size, PAGE as u32);
    assert_eq!(region.cpu_visible_size, region.total_size);
    let flag = u64::from(sys::DRM_XE_QUERY_CONFIG_FLAG_HAS_VRAM);
    assert_ne!(device.config().expect("the configuration").flags & flag, 0);
    let gt = device.gts().expect("the GTs")[0];
    assert_eq!((gt.near_mem_regions, gt.far_mem_regions), (1 << 1, 1 << 0));
}

/// Buffers are counted while they live.
fn used() {
    let device = device();
    let before = region(&device).used;
    let bo = buffer(&device, 3 * MIDDLE);
    let now = region(&device);
    assert_eq!(now.used, before + 3 * MIDDLE as u64);
    assert_eq!(now.cpu_visible_used, now.used);
    drop(bo);
    assert_eq!(region(&device).used, before);
    let system = Bo::system(&device, MIDDLE).expect("a buffer");
    assert_eq!(region(&device).used, before);
    drop(system);
}

/// CPU and GPU see the same memory.
fn coherent(size: usize) {
    let gpu = Gpu::new();
    let bo = buffer(gpu.device(), size);
    let mapping = bo.map().expect("its memory");
    gpu.vm().bind(&[Bind::bo(&bo, 0, FAR, size as u64)]).expect("a bind");
    for offset in (0..size).step_by(MIDDLE / 4) {
        assert_eq!(read(&mapping, offset), 0, "new memory");
        write(&mapping, offset, offset as u32 + 1);
    }
    gpu.run(|c| {
        for offset in (0..size).step_by(MIDDLE / 4) {
            c.increment(FAR + offset as u64).store(FAR + offset as u64 + 8, offset as u32);
        }
    });
    for offset in (0..size).step_by(MIDDLE / 4) {
        assert_eq!(read(&mapping, offset), offset as u32 + 2, "at {offset:#x}");
        assert_eq!(read(&mapping, offset + 8), offset as u32, "at {offset:#x}");
    }
}

/// The GPU copies between its own memory and the process's.
fn copies() {
    let gpu = Gpu::new();
    let bo = buffer(gpu.device(), 2 * SZ_2M);
    gpu.vm().bind(&[Bind::bo(&bo, 0, FAR, 2 * SZ_2M as u64)]).expect("a bind");
    let (from, to) = (Map::anon(SZ_2M), Map::anon(SZ_2M));
    from.fill(|offset| offset as u32 ^ 0x5a5a_0000);
    gpu.run(|c| _ = c.copy(from.at(0), FAR + MIDDLE as u64, SZ_2M));
    gpu.run(|c| {
        _ = c.copy(FAR + MIDDLE as u64, FAR + SZ_2M as u64 + MIDDLE as u64, SZ_2M - MIDDLE)
    });
    gpu.run(|c| _ = c.copy(FAR + SZ_2M as u64 + MIDDLE as u64, to.at(0), SZ_2M - MIDDLE));
    to.part(0, SZ_2M - MIDDLE).expect("copied", |offset| offset as u32 ^ 0x5a5a_0000);
}

/// Batches and fences may be there, too.
fn batch() {
    let gpu = Gpu::new();
    let bo = buffer(gpu.device(), MIDDLE);
    let mapping = bo.map().expect("its memory");
    gpu.vm().bind(&[Bind::bo(&bo, 0, FAR, MIDDLE as u64)]).expect("a bind");
    let memory = Map::existing(mapping.address() as usize, MIDDLE);
    write_batch(memory, |c| _ = c.store(FAR + PAGE as u64, 7).increment(FAR + PAGE as u64));
    gpu.submit_and_wait(FAR).expect("a batch in the device's memory");
    assert_eq!(read(&mapping, PAGE), 8);
}

/// New buffers are zero, whatever was in their memory before.
fn zeroed() {
    let device = device();
    for round in 1..=4 {
        let size = round * SZ_2M / 2;
        let bo = buffer(&device, size);
        let mapping = bo.map().expect("its memory");
        for offset in (0..size).step_by(PAGE) {
            assert_eq!(read(&mapping, offset + 4 * round), 0, "somebody's word at {offset:#x}");
        }
        mapping.words().iter().for_each(|word| word.store(!0, Ordering::Relaxed));
    }
}

/// Buffers of all sizes come and go, and keep what is theirs.
fn churn() {
    let device = device();
    let mut rng = Rng::from_environment();
    let mut alive: Vec<(Mapping, u32)> = Vec::new();
    let before = region(&device).used;
    for round in 0..iterations(300) {
        if alive.len() > 20 || (rng.below(3) == 0 && !alive.is_empty()) {
            let (mapping, value) = alive.swap_remove(rng.below(alive.len()));
            for offset in (0..mapping.len()).step_by(PAGE) {
                assert_eq!(read(&mapping, offset), value, "at {offset:#x}");
            }
            continue;
        }
        let size = (1 + rng.below(64)) * PAGE;
        let mapping = buffer(&device, size).map().expect("its memory");
        for offset in (0..size).step_by(PAGE) {
            write(&mapping, offset, round);
        }
        alive.push((mapping, round));
    }
    // Mappings are all that was left of the buffers.
    drop(alive);
    assert_eq!(region(&device).used, before);
}

/// A full memory refuses what cannot be elsewhere, and takes it when there is room again.
fn full() {
    let device = device();
    let total = region(&device).total_size as usize;
    let mut hogs = Hogs::new();
    hogs.add_all(&device, SZ_2M);
    let refused = try_buffer(&device, total).map(|_| ()).map_err(|e| e.errno());
    assert_eq!(refused, Err(libc::ENOMEM), "more than there is");
    let refused = try_buffer(&device, SZ_2M).map(|_| ()).map_err(|e| e.errno());
    assert_eq!(refused, Err(libc::ENOMEM), "full");

    // What may be in system memory is made there, and works.
    let gpu = Gpu::on_device(&device);
    let both = Bo::create(&device, SZ_2M, 0b11, None).expect("a buffer anywhere");
    gpu.vm().bind(&[Bind::bo(&both, 0, FAR, SZ_2M as u64)]).expect("a bind");
    gpu.store(FAR + 4, 9);
    assert_eq!(read(&both.map().expect("its memory"), 4), 9);

    hogs.pop();
    buffer(&device, SZ_2M);
    drop(hogs);
    buffer(&device, total / 2);
}

/// A part of a buffer is mapped by the CPU: its own offset counts, also after a part was unmapped.
fn partial_mapping() {
    let device = device();
    let bo = buffer(&device, 4 * MIDDLE);
    let all = bo.map().expect("its memory");
    for page in 0..4 * MIDDLE / PAGE {
        write(&all, page * PAGE, page as u32);
    }
    let offset = bo.mmap_offset().expect("an offset") as i64;
    let at = Map::reserve(4 * MIDDLE, MIDDLE);
    let whole = Map::mmap(
        at.start(),
        4 * MIDDLE,
        RW,
        libc::MAP_SHARED | libc::MAP_FIXED,
        device.as_raw_fd(),
        offset,
    );
    whole.part(0, MIDDLE).unmap();
    whole.part(2 * MIDDLE, MIDDLE).unmap();
    for page in [16, 17, 31, 48, 63] {
        whole.expect_word("the page", page * PAGE, page as u32);
    }
    let private = Map::try_mmap(0, MIDDLE, RW, libc::MAP_PRIVATE, device.as_raw_fd(), offset);
    assert!(private.is_err(), "a private mapping of a buffer");
}

/// A child shares the mapping, and the buffer lives as long as any mapping.
fn forked() {
    let device = device();
    let before = region(&device).used;
    let bo = buffer(&device, MIDDLE);
    let mapping = bo.map().expect("its memory");
    drop(bo);
    write(&mapping, 0, 1);
    let map = Map::existing(mapping.address() as usize, MIDDLE);
    fork(move |_| {
        map.expect_word("the parent's word", 0, 1);
        map.write(PAGE, 2);
    })
    .expect_success();
    assert_eq!(read(&mapping, PAGE), 2, "the child's word");
    assert!(region(&device).used > before, "the buffer is gone");
    drop(mapping);
    assert_eq!(region(&device).used, before);
}

/// Memory that is somebody's is not given away when the device comes back.
fn unbound() {
    let slot = Slot::first();
    let old = Gpu::new();
    let bo = buffer(old.device(), SZ_2M);
    let mapping = bo.map().expect("its memory");
    old.vm().bind(&[Bind::bo(&bo, 0, FAR, SZ_2M as u64)]).expect("a bind");
    old.store(FAR, 0x1234);
    let before = region(old.device()).used;
    slot.unbind();
    assert_eq!(read(&mapping, 0), 0x1234, "after the unbind");
    write(&mapping, 4, 0x5678);
    slot.bind();
    let device = device();
    assert_eq!(region(&device).used, before, "used, though the device is new");
    let new = buffer(&device, region(&device).total_size as usize / 2);
    let other = new.map().expect("its memory");
    other.words().iter().step_by(PAGE / 4).for_each(|word| word.store(!0, Ordering::Relaxed));
    assert_eq!((read(&mapping, 0), read(&mapping, 4)), (0x1234, 0x5678));
    drop((mapping, bo, old, other, new));
    assert_eq!(region(&device).used, before - SZ_2M as u64);
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_vram", "Buffers in the device's own memory.");
    p.subtest("region", "what the device says of it", described);
    p.subtest("used", "buffers are counted", used);
    p.subtest("coherent-64K", "CPU and GPU see the same: 64 KiB", || coherent(MIDDLE));
    p.subtest("coherent-6M", "CPU and GPU see the same: 6 MiB", || coherent(3 * SZ_2M));
    p.subtest("copies", "the GPU copies in and out", copies);
    p.subtest("batch", "a batch in it", batch);
    p.subtest("zeroed", "new buffers are zero", zeroed);
    p.subtest("churn", "buffers of all sizes come and go", churn);
    p.subtest("full", "it is full", full);
    p.subtest("partial-mapping", "parts of a mapping go", partial_mapping);
    p.subtest("fork", "a mapping is inherited", forked);
    p.subtest("unbind", "it outlives an unbind", unbound);
    p.main()
}
