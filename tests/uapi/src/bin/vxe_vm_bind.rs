// SPDX-License-Identifier: GPL-2.0

//! VM_BIND: mirrors, buffers over parts of them, arrays of binds, fences and bind queues.

use std::process::ExitCode;
use vxe_client::{Bind, Bo, ExecQueue, Fence, Vm, Wait};
use vxe_uapi::{
    contents::pattern,
    env::iterations,
    gpu::{device, ALL, PATIENCE},
    vmas::vmas,
    Buffer, Gpu, Map, Program, Rng, MIDDLE, PAGE, RW, SZ_2M,
};

#[track_caller]
fn bind(gpu: &Gpu, binds: &[Bind]) {
    gpu.vm().bind(binds).expect("bind");
}

/// Addresses at which the process has nothing and gets nothing.
fn nowhere(length: usize) -> Map {
    Map::reserve(length, SZ_2M)
}

/// A VM is mirrored whole, or in parts, or not at all.
fn mirror_parts() {
    let device = device();
    let vm = Vm::new(&device).expect("a VM");
    let mut gpu = Gpu::on_vm(&vm);
    let map = Map::aligned(MIDDLE, SZ_2M);
    let bad = |gpu: &mut Gpu, what: &str| {
        let result = gpu.try_run(|c| _ = c.store(map.at(0), 1));
        assert_eq!(result.map_err(|e| e.errno()), Err(libc::EIO), "{what}");
        gpu.renew();
    };
    bad(&mut gpu, "not mirrored at all");
    // The batches have to be found, of course.
    vm.bind(&[Bind::mirror(0, map.at(0)), Bind::mirror(map.at(PAGE), ALL - map.at(PAGE))])
        .expect("a mirror with a gap");
    bad(&mut gpu, "in the gap");
    gpu.store(map.at(PAGE), 2);
    vm.bind(&[Bind::mirror(map.at(0), PAGE as u64)]).expect("the gap is closed");
    gpu.store(map.at(0), 3);
    map.expect_word("before the gap", PAGE, 2);
    map.expect_word("in the gap", 0, 3);
    // Once more over all, live pages included, is no harm.
    vm.bind(&[Bind::mirror(0, ALL)]).expect("mirrored again");
    gpu.increment(map.at(0));
    map.expect_word("after all was mirrored again", 0, 4);
}

/// A buffer at an address where the process has nothing.
fn bo_alone(immediate: bool) {
    let gpu = Gpu::new();
    let buffer = Buffer::new(&gpu, SZ_2M + MIDDLE);
    buffer.memory().fill(pattern);
    let place = nowhere(SZ_2M + MIDDLE);
    let map = buffer.bind(place);
    bind(&gpu, &[if immediate { map.immediate() } else { map }]);
    gpu.run(|c| {
        for page in (0..place.len()).step_by(PAGE) {
            c.store(place.at(page), page as u32);
        }
    });
    buffer.memory().expect("the buffer", |o| if o % PAGE == 0 { o as u32 } else { pattern(o) });
    let to = Map::anon(place.len());
    gpu.copy(place, to);
    to.expect("read through the GPU", |o| buffer.memory().read(o));
}

/// A buffer covers a part of the mirror, then the mirror comes back.
fn bo_over_mirror(offset: usize, length: usize) {
    let gpu = Gpu::new();
    let cpu = Map::aligned(SZ_2M, SZ_2M);
    let part = cpu.part(offset, length);
    let covered = |page: usize| (offset..offset + length).contains(&page);
    let buffer = Buffer::new(&gpu, length);
    let touch_all = || {
        gpu.run(|c| {
            for page in (0..SZ_2M).step_by(PAGE) {
                c.increment(cpu.at(page));
            }
        });
    };

    bind(&gpu, &[buffer.bind(part)]);
    touch_all();
    cpu.expect("the process's memory", |o| u32::from(o % PAGE == 0 && !covered(o)));
    buffer.memory().expect("the buffer", |o| u32::from(o % PAGE == 0));

    bind(&gpu, &[Bind::mirror(part.at(0), length as u64)]);
    touch_all();
    cpu.expect("mirrored again", |o| match o % PAGE {
        0 => 1 + u32::from(!covered(o)),
        _ => 0,
    });
    buffer.memory().expect("the buffer, unbound", |o| u32::from(o % PAGE == 0));
}

/// A buffer cannot take the place of mirrored pages: those stay.
fn bo_over_live_mirror() {
    let gpu = Gpu::new();
    let cpu = Map::aligned(MIDDLE, SZ_2M);
    let buffer = Buffer::new(&gpu, MIDDLE);
    gpu.increment(cpu.at(0));
    let result = gpu.vm().bind(&[buffer.bind(cpu)]);
    assert_eq!(result.map_err(|e| e.errno()), Err(libc::EBUSY), "over live pages");
    gpu.increment(cpu.at(0));
    cpu.expect_word("still mirrored", 0, 2);
    buffer.memory().expect("the buffer", |_| 0);
}

/// A bind that fails half-way leaves nothing behind.
fn array_is_undone() {
    let mut gpu = Gpu::new();
    let live = Map::aligned(MIDDLE, SZ_2M);
    gpu.increment(live.at(0));
    let buffer = Buffer::new(&gpu, MIDDLE);
    let place = nowhere(MIDDLE);
    // The second is refused, for there are live pages.
    let result = gpu.vm().bind(&[buffer.bind(place), buffer.bind(live)]);
    assert_eq!(result.map_err(|e| e.errno()), Err(libc::EBUSY));
    gpu.expect_fault("where the first was bound", |c| _ = c.store(place.at(0), 1));
    gpu.increment(live.at(0));
    live.expect_word("still mirrored", 0, 2);
    buffer.memory().expect("the buffer", |_| 0);
    bind(&gpu, &[buffer.bind(place)]);
    gpu.increment(place.at(0));
    buffer.memory().expect_word("bound after all", 0, 1);
}

/// A buffer that is cut in two, and more than that, by binds of which a later one is refused: both it and
/// its neighbours are as they were.
fn remap_is_undone() {
    let gpu = Gpu::new();
    let live = Map::aligned(MIDDLE, SZ_2M);
    gpu.increment(live.at(0));
    let place = nowhere(3 * SZ_2M);
    let (old, new) = (Buffer::new(&gpu, 3 * SZ_2M), Buffer::new(&gpu, SZ_2M));
    bind(&gpu, &[old.bind(place).immediate()]);
    let before = vmas(gpu.vm(), 0..ALL);
    let (middle, page) = (place.part(SZ_2M / 2, SZ_2M), PAGE as u64);
    let refused = [Bind::unmap(live.at(0), MIDDLE as u64)];
    for binds in [
        &[new.bind(middle)][..],
        &[new.bind(middle).immediate(), Bind::unmap(middle.at(0), page)],
        &[Bind::unmap(place.at(SZ_2M), page), Bind::unmap(place.at(SZ_2M + 2 * PAGE), page)],
        &[Bind::mirror(middle.at(0), SZ_2M as u64), new.bind(middle), Bind::unmap_all(old.bo())],
        &[Bind::unmap_all(old.bo()), old.bind(place).read_only().immediate()],
    ] {
        let result = gpu.vm().bind(&[binds, &refused].concat());
        assert_eq!(result.map_err(|e| e.errno()), Err(libc::EBUSY), "live pages");
        assert_eq!(vmas(gpu.vm(), 0..ALL), before, "VMAs after it was undone");
        for offset in
            [0, SZ_2M / 2 - PAGE, SZ_2M / 2, SZ_2M + PAGE, SZ_2M * 3 / 2, 3 * SZ_2M - PAGE]
        {
            let count = old.memory().read(offset) + 1;
            gpu.increment(place.at(offset));
            old.memory().expect_word("where it was", offset, count);
        }
        new.memory().expect("never bound", |_| 0);
    }
}

/// A prefetch to where memory was advised to be has no meaning for a buffer, whose place was chosen when it
/// was made.
fn prefetch_of_buffer() {
    const ADVISED: i32 = -1;
    let gpu = Gpu::new();
    let buffer = Buffer::new(&gpu, MIDDLE);
    let place = nowhere(2 * MIDDLE);
    let length = MIDDLE as u64;
    bind(&gpu, &[buffer.bind(place.part(MIDDLE, MIDDLE))]);
    let errno = |binds: &[Bind]| gpu.vm().bind(binds).map_err(|e| e.errno());
    let of_buffer = Bind::prefetch(place.at(MIDDLE), length, ADVISED);
    assert_eq!(errno(&[of_buffer]), Err(libc::EINVAL), "a buffer");
    let of_both = Bind::prefetch(place.at(0), 2 * length, ADVISED);
    assert_eq!(errno(&[of_both]), Err(libc::EINVAL), "a mirror, and a buffer");
    assert_eq!(errno(&[Bind::prefetch(place.at(0), length, ADVISED)]), Ok(()), "a mirror");
    assert_eq!(errno(&[Bind::prefetch(place.at(MIDDLE), length, 0)]), Ok(()), "to a region");
    // What an array has done before counts, and is undone.
    let unmapped = Bind::unmap(place.at(MIDDLE), length);
    assert_eq!(errno(&[unmapped, of_both]), Ok(()), "no buffer any more");
    let before = vmas(gpu.vm(), 0..ALL);
    let bound = buffer.bind(place.part(MIDDLE, MIDDLE));
    assert_eq!(errno(&[bound, of_buffer]), Err(libc::EINVAL), "a buffer by then");
    assert_eq!(vmas(gpu.vm(), 0..ALL), before, "as before");
}

/// Many binds in one call.
fn arrays() {
    let mut gpu = Gpu::new();
    let buffer = Buffer::new(&gpu, 16 * PAGE);
    let place = nowhere(16 * PAGE);
    // The pages in reverse order.
    let reverse: Vec<_> = (0..16)
        .map(|i| Bind::bo(buffer.bo(), ((15 - i) * PAGE) as u64, place.at(i * PAGE), PAGE as u64))
        .collect();
    bind(&gpu, &reverse);
    gpu.run(|c| {
        for i in 0..16 {
            c.store(place.at(i * PAGE), i as u32 + 1);
        }
    });
    for i in 0..16 {
        buffer.memory().expect_word("in reverse", (15 - i) * PAGE, i as u32 + 1);
    }
    // Later binds of an array see what earlier ones did.
    bind(
        &gpu,
        &[
            Bind::unmap(place.at(0), 16 * PAGE as u64),
            Bind::bo(buffer.bo(), 0, place.at(0), 8 * PAGE as u64),
            Bind::bo(buffer.bo(), 0, place.at(4 * PAGE), PAGE as u64),
            Bind::unmap(place.at(2 * PAGE), PAGE as u64),
        ],
    );
    buffer.memory().fill(|_| 0);
    gpu.store(place.at(4 * PAGE), 7);
    buffer.memory().expect_word("the later bind", 0, 7);
    gpu.store(place.at(5 * PAGE), 8);
    buffer.memory().expect_word("the rest of the earlier one", 5 * PAGE, 8);
    gpu.expect_fault("what was unmapped", |c| _ = c.store(place.at(2 * PAGE), 1));
    gpu.expect_fault("what was not mapped again", |c| _ = c.store(place.at(9 * PAGE), 1));
}

/// Unmapping is exact: head, middle, tail, what is empty, and what is the mirror's.
fn unmap() {
    let mut gpu = Gpu::new();
    let buffer = Buffer::new(&gpu, 8 * PAGE);
    let place = nowhere(8 * PAGE);
    for hole in [0, 3, 7] {
        bind(&gpu, &[buffer.bind(place)]);
        bind(&gpu, &[Bind::unmap(place.at(hole * PAGE), PAGE as u64)]);
        gpu.expect_fault("the hole", |c| _ = c.store(place.at(hole * PAGE), 1));
        buffer.memory().fill(|_| 0);
        gpu.run(|c| {
            for page in (0..8).filter(|&page| page != hole) {
                c.store(place.at(page * PAGE), page as u32 + 1);
            }
        });
        buffer.memory().expect("the rest", |o| match o / PAGE {
            page if o % PAGE == 0 && page != hole => page as u32 + 1,
            _ => 0,
        });
        bind(&gpu, &[Bind::unmap(place.at(hole * PAGE), PAGE as u64)]);
    }
    let cpu = Map::aligned(MIDDLE, SZ_2M);
    bind(&gpu, &[Bind::unmap(cpu.at(8 * PAGE), PAGE as u64)]);
    gpu.expect_fault("a page taken from the mirror", |c| _ = c.store(cpu.at(8 * PAGE), 1));
    gpu.run(|c| _ = c.store(cpu.at(7 * PAGE), 1).store(cpu.at(9 * PAGE), 1));
    bind(&gpu, &[Bind::mirror(cpu.at(8 * PAGE), PAGE as u64)]);
    gpu.store(cpu.at(8 * PAGE), 1);
    (7..10).for_each(|page| cpu.expect_word("stored", page * PAGE, 1));
}

/// A buffer is bound at several places; UNMAP_ALL takes them all.
fn unmap_all() {
    let mut gpu = Gpu::new();
    let (buffer, other) = (Buffer::new(&gpu, MIDDLE), Buffer::new(&gpu, MIDDLE));
    let places: Vec<Map> = (0..4).map(|_| nowhere(MIDDLE)).collect();
    let binds: Vec<_> = places.iter().map(|p| buffer.bind(*p)).collect();
    bind(&gpu, &binds);
    let kept = nowhere(MIDDLE);
    bind(&gpu, &[other.bind(kept)]);
    for (i, place) in places.iter().enumerate() {
        gpu.increment(place.at(PAGE));
        buffer.memory().expect_word("through each alias", PAGE, i as u32 + 1);
    }
    bind(&gpu, &[Bind::unmap_all(buffer.bo())]);
    for place in &places {
        gpu.expect_fault("after UNMAP_ALL", |c| _ = c.increment(place.at(PAGE)));
    }
    gpu.increment(kept.at(0));
    other.memory().expect_word("the other buffer", 0, 1);
    bind(&gpu, &[Bind::unmap_all(buffer.bo())]);
}

/// The handle is closed, the binding stays, and so does the memory.
fn closed_while_bound() {
    let gpu = Gpu::new();
    let bo = Bo::system(gpu.device(), MIDDLE).expect("a buffer");
    let mapping = bo.map().expect("a mapping of the buffer");
    let memory = Map::existing(mapping.as_ptr() as usize, mapping.len());
    memory.fill(pattern);
    let place = nowhere(MIDDLE);
    bind(&gpu, &[Bind::bo(&bo, 0, place.at(0), MIDDLE as u64)]);
    drop(bo);
    gpu.increment(place.at(PAGE));
    memory.expect("through a mapping", |o| pattern(o).wrapping_add(u32::from(o == PAGE)));
    drop(mapping);
    gpu.increment(place.at(PAGE));
    let to = Map::anon(MIDDLE);
    gpu.copy(place, to);
    to.expect("through the GPU", |o| pattern(o).wrapping_add(2 * u32::from(o == PAGE)));
}

/// A buffer private to a VM, and one shared by two VMs.
fn buffers_and_vms() {
    let device = device();
    let (a, b) = (Gpu::on_device(&device), Gpu::on_device(&device));
    let place = nowhere(MIDDLE);
    let shared = Buffer::new(&a, MIDDLE);
    for gpu in [&a, &b] {
        bind(gpu, &[shared.bind(place)]);
        gpu.increment(place.at(0));
    }
    shared.memory().expect_word("counted by both", 0, 2);

    let private = Bo::create(&device, MIDDLE, 1, Some(a.vm())).expect("a private buffer");
    let map = Bind::bo(&private, 0, place.at(0), MIDDLE as u64);
    bind(&a, &[map]);
    a.increment(place.at(0));
    let mapping = private.map().expect("a mapping");
    Map::existing(mapping.as_ptr() as usize, MIDDLE).expect_word("the private one", 0, 1);
    b.vm().bind(&[map]).expect_err("a private buffer in another VM");
    shared.memory().expect_word("untouched", 0, 2);
}

/// The GPU may only read what is bound read-only.
fn read_only() {
    let mut gpu = Gpu::new();
    let buffer = Buffer::new(&gpu, MIDDLE);
    buffer.memory().fill(pattern);
    let place = nowhere(MIDDLE);
    bind(&gpu, &[buffer.bind(place).read_only()]);
    let to = Map::anon(MIDDLE);
    gpu.copy(place, to);
    to.expect("read", pattern);
    gpu.expect_fault("a store", |c| _ = c.store(place.at(0), 1));
    buffer.memory().expect("unchanged", pattern);
}

/// The value of a bind's fence is written to the process's memory, wherever that is.
fn fences() {
    let gpu = Gpu::new();
    let buffer = Buffer::new(&gpu, MIDDLE);
    let place = nowhere(MIDDLE);
    let memory = Map::anon(MIDDLE);
    // One that the GPU has mapped, too.
    gpu.store(memory.at(PAGE), 0);
    let alternate = [buffer.bind(place), Bind::unmap(place.at(0), MIDDLE as u64)];
    for round in 1..=21u64 {
        let fence = Fence { address: memory.at(PAGE + 8), value: (round << 32) | 5 };
        let ops = [alternate[round as usize % 2]];
        // SAFETY: the fence is the test's memory.
        unsafe { gpu.vm().bind_async(&ops, None, &[fence.to_sync()]) }.expect("bind");
        let wait = Wait::equal(fence.address, fence.value, PATIENCE);
        gpu.device().wait_user_fence(&wait).expect("the fence");
    }
    // A fence even where there is nothing to do.
    let fence = Fence { address: memory.at(0), value: 9 };
    let nothing = [Bind::unmap(place.at(0), PAGE as u64)];
    // SAFETY: as above.
    unsafe { gpu.vm().bind_async(&nothing, None, &[fence.to_sync()]) }.expect("bind nothing");
    gpu.device().wait_user_fence(&Wait::equal(fence.address, 9, PATIENCE)).expect("the fence");
}

/// Binds on a queue of their own are done in order.
fn bind_queue() {
    let gpu = Gpu::new();
    let queue = ExecQueue::for_binds(gpu.vm()).expect("a bind queue");
    let (a, b) = (Buffer::new(&gpu, PAGE), Buffer::new(&gpu, PAGE));
    let place = nowhere(PAGE);
    let progress = Map::anon(PAGE);
    let rounds = u64::from(iterations(40));
    for round in 1..=rounds {
        let buffer = if round % 2 == 0 { &a } else { &b };
        // Only the last has a fence: what has one that is pending is busy.
        let fence = Fence { address: progress.at(0), value: rounds }.to_sync();
        let syncs = if round == rounds { &[fence][..] } else { &[] };
        // SAFETY: the fence is the test's memory.
        unsafe { gpu.vm().bind_async(&[buffer.bind(place)], Some(&queue), syncs) }.expect("bind");
    }
    let wait = Wait::equal(progress.at(0), rounds, PATIENCE);
    gpu.device().wait_user_fence(&wait).expect("the last bind");
    gpu.store(place.at(0), 4);
    let last = if rounds % 2 == 0 { &a } else { &b };
    last.memory().expect_word("the last bind holds", 0, 4);
    assert_eq!(a.memory().read(0) + b.memory().read(0), 4, "and only that");

    let work = gpu.vm().bind_on(&[a.bind(place)], Some(gpu.queue()));
    assert_eq!(work.map_err(|e| e.errno()), Err(libc::EINVAL), "a queue for work");
}

/// Random binds of a buffer's pages against a table of what should be where.
fn random() {
    const PAGES: usize = 32;
    let mut rng = Rng::from_environment();
    let mut gpu = Gpu::new();
    let buffer = Buffer::new(&gpu, PAGES * PAGE);
    for page in 0..PAGES {
        buffer.memory().write(page * PAGE, page as u32 + 100);
    }
    let place = nowhere(PAGES * PAGE);
    let mut model = [None; PAGES];
    let to = Map::anon(PAGE);
    for _ in 0..iterations(60) {
        let start = rng.below(PAGES);
        let length = 1 + rng.below(PAGES - start);
        let (address, bytes) = (place.at(start * PAGE), (length * PAGE) as u64);
        if rng.one_in(3) {
            bind(&gpu, &[Bind::unmap(address, bytes)]);
            model[start..start + length].fill(None);
        } else {
            let from = rng.below(PAGES - length + 1);
            bind(&gpu, &[Bind::bo(buffer.bo(), (from * PAGE) as u64, address, bytes)]);
            (0..length).for_each(|i| model[start + i] = Some(from + i));
        }
        for page in [start, start + length - 1, rng.below(PAGES)] {
            let read = gpu.try_run(|c| _ = c.copy(place.at(page * PAGE), to.at(0), 256));
            match model[page] {
                Some(source) => {
                    read.expect("a bound page");
                    to.expect_word("the page bound there", 0, source as u32 + 100);
                }
                None => {
                    assert_eq!(read.map_err(|e| e.errno()), Err(libc::EIO), "an unbound page");
                    gpu.renew();
                }
            }
        }
    }
}

/// The VM is destroyed under a queue with work; the process's other VM lives on.
fn destroy_vm() {
    let device = device();
    let memory = Map::anon(MIDDLE);
    let survivor = Gpu::on_device(&device);
    for _ in 0..iterations(5) {
        let gpu = Gpu::on_device(&device);
        let jobs: Vec<_> = (0..20)
            .map(|_| {
                gpu.start(|c| {
                    for _ in 0..500 {
                        c.increment(memory.at(0));
                    }
                })
                .expect("a job")
            })
            .collect();
        gpu.vm().destroy().expect("destroy");
        let gone = gpu.vm().bind(&[Bind::mirror(0, ALL)]);
        assert_eq!(gone.map_err(|e| e.errno()), Err(libc::EINVAL), "a destroyed VM");
        survivor.increment(memory.at(256));
        drop(jobs);
    }
    memory.expect_word("the other VM", 256, iterations(5));
}

/// A buffer's pages come as zeroes, and no two buffers share them.
fn buffers_are_fresh() {
    let gpu = Gpu::new();
    let buffers: Vec<Buffer> = (0..8).map(|_| Buffer::new(&gpu, MIDDLE)).collect();
    for (i, buffer) in buffers.iter().enumerate() {
        buffer.memory().expect("fresh", |_| 0);
        let place = nowhere(MIDDLE);
        bind(&gpu, &[buffer.bind(place)]);
        let fill = Map::anon(MIDDLE);
        fill.fill(|o| pattern(o) ^ i as u32);
        gpu.copy(fill, place);
    }
    for (i, buffer) in buffers.iter().enumerate() {
        buffer.memory().expect("its own", |o| pattern(o) ^ i as u32);
    }
}

/// Memory that replaces what a buffer covered is found when the mirror is back.
fn mirror_after_bo() {
    let gpu = Gpu::new();
    let place = nowhere(MIDDLE);
    let buffer = Buffer::new(&gpu, MIDDLE);
    for round in 1..=iterations(10) {
        bind(&gpu, &[buffer.bind(place)]);
        gpu.store(place.at(0), round);
        buffer.memory().expect_word("the buffer", 0, round);
        bind(&gpu, &[Bind::mirror(place.at(0), MIDDLE as u64)]);
        let cpu = place.replace_anon(RW);
        gpu.increment(cpu.at(4));
        cpu.expect("the process's memory", |o| u32::from(o == 4));
        cpu.unmap();
        buffer.memory().expect_word("the buffer", 0, round);
    }
}

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_vm_bind",
        "VM_BIND: mirrors, buffers over parts of them, arrays of binds, fences, bind queues.",
    );
    p.subtest("mirror-parts", "a VM is mirrored in parts", mirror_parts);
    p.subtest("bo", "a buffer alone", || bo_alone(false));
    p.subtest("bo-immediate", "a buffer that is mapped at once", || bo_alone(true));
    for (name, offset, length) in [
        ("head", 0, MIDDLE),
        ("middle", SZ_2M / 2, MIDDLE),
        ("tail", SZ_2M - MIDDLE, MIDDLE),
        ("page", SZ_2M / 4 + PAGE, PAGE),
        ("all", 0, SZ_2M),
    ] {
        p.subtest(
            format!("bo-over-mirror-{name}"),
            "a buffer covers a part of the mirror, and goes",
            move || bo_over_mirror(offset, length),
        );
    }
    p.subtest("bo-over-live-mirror", "-EBUSY where pages are mirrored", bo_over_live_mirror);
    p.subtest("mirror-after-bo", "buffer and mirror take turns", mirror_after_bo);
    p.subtest("array", "many binds in a call", arrays);
    p.subtest("array-undone", "a failing array of binds is undone", array_is_undone);
    p.subtest("remap-undone", "neighbours of a bind that is undone", remap_is_undone);
    p.subtest("prefetch-buffer", "a prefetch to where memory was advised", prefetch_of_buffer);
    p.subtest("unmap", "unmapping is exact", unmap);
    p.subtest("unmap-all", "UNMAP_ALL", unmap_all);
    p.subtest("closed-while-bound", "a buffer is closed while bound", closed_while_bound);
    p.subtest("private-bo", "buffers private to a VM, and shared ones", buffers_and_vms);
    p.subtest("fresh-bos", "buffers are zeroed and distinct", buffers_are_fresh);
    p.subtest("read-only", "a read-only bind", read_only);
    p.subtest("fences", "user fences of binds", fences);
    p.subtest("bind-queue", "binds on a queue of their own", bind_queue);
    p.subtest("random", "random binds against a model", random);
    p.subtest("destroy-vm", "a VM is destroyed under a queue", destroy_vm);
    p.main()
}
