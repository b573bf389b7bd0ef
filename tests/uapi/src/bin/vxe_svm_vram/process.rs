// SPDX-License-Identifier: GPL-2.0

//! Processes that share what is on the device.

use super::{Shape, SHAPES};
use vxe_uapi::{
    contents::pattern,
    gpu::device,
    process::{fork, Link},
    vram::{bring, counted, evict_all, in_device, region, soon, touch},
    Gpu, Program, PAGE,
};

/// A child reads and writes its parent's memory, which is on the device; so does the parent.
fn forked(shape: Shape) {
    let gpu = Gpu::new();
    region(gpu.device());
    let map = shape.make();
    bring(&gpu, map);
    let child = fork(|link| {
        link.receive();
        map.part(0, map.len() / 2).expect("the parent's", pattern);
        map.write(4, 0xc);
        // The child's GPU works on the child's memory.
        let gpu = Gpu::on_device(gpu.device());
        gpu.store(map.at(PAGE), 0xcc);
        map.expect("the child's", |o| match o {
            4 => 0xc,
            PAGE => 0xcc,
            _ => pattern(o),
        });
        link.send(0);
    });
    // The parent's goes on, in a copy of its own.
    gpu.store(map.at(8), 0xa);
    child.link().send(0);
    gpu.store(map.at(2 * PAGE), 0xaa);
    child.link().receive();
    child.expect_success();
    gpu.store(map.at(12), 0xaaa);
    map.expect("the parent's", |o| match o {
        8 => 0xa,
        12 => 0xaaa,
        o if o == 2 * PAGE => 0xaa,
        _ => pattern(o),
    });
}

/// The parent exits; its child reads what is on the device, writes it, and has it evicted.
fn orphan(shape: Shape) {
    shape.require();
    let (ours, theirs) = Link::pair();
    let parent = fork(|_| {
        let gpu = Gpu::new();
        region(gpu.device());
        let (map, other) = (shape.make(), shape.make());
        bring(&gpu, map);
        bring(&gpu, other);
        let device = gpu.device().clone();
        let orphan = fork(|_| {
            // Told when the parent is no more.
            theirs.receive();
            let quarter = map.len() / 4;
            map.part(0, quarter).expect("after the parent's end", pattern);
            map.write(4, 0xc);
            // What nobody has touched is there still, and goes.
            let counts = counted(&device, || evict_all(&device));
            assert!(counts["svm_evict_kb"] >= (other.len() / 1024) as u64, "evicted: {counts:?}");
            other.expect("after eviction", pattern);
            map.expect("not evicted", |o| if o == 4 { 0xc } else { pattern(o) });
            let own = Gpu::on_device(&device);
            own.store(map.at(8), 0xcc);
            map.expect("on and on", |o| match o {
                4 => 0xc,
                8 => 0xcc,
                _ => pattern(o),
            });
            theirs.send(1);
        });
        std::mem::forget(orphan);
    });
    parent.expect_success();
    drop(theirs);
    ours.send(0);
    assert_eq!(ours.receive(), 1);
}

/// The parent's memory is evicted while two share it.
fn evicted(shape: Shape) {
    let gpu = Gpu::new();
    region(gpu.device());
    let map = shape.make();
    bring(&gpu, map);
    let child = fork(|link| {
        link.receive();
        map.expect("the child's", pattern);
        link.send(0);
    });
    evict_all(gpu.device());
    touch(&gpu, map);
    child.link().send(0);
    child.link().receive();
    child.expect_success();
    gpu.increment(map.at(0));
    map.expect("the parent's", |o| pattern(o).wrapping_add(u32::from(o == 0)));
    assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory");
}

/// A process is killed while its memory is on its way: what it had on the device is given back.
fn killed() {
    let device = device();
    let before = region(&device).used;
    for _ in 0..vxe_uapi::env::iterations(6) {
        let child = fork(|link| {
            let gpu = Gpu::new();
            let maps = [Shape::Small.make(), Shape::LARGE.make(), Shape::Small.make()];
            link.send(0);
            loop {
                for map in maps {
                    touch(&gpu, map);
                    map.write(0, 1);
                }
            }
        });
        child.link().receive();
        std::thread::sleep(std::time::Duration::from_millis(30));
        child.kill();
    }
    soon("its memory is given back", || region(&device).used <= before);
    super::moves::works();
}

pub fn subtests(p: &mut Program) {
    for (shape, name, about) in SHAPES {
        let sub = move |test: fn(Shape)| move || test(shape);
        p.subtest(format!("fork-{name}"), format!("parent and child: {about}"), sub(forked));
        p.subtest(format!("orphan-{name}"), format!("the parent exits: {about}"), sub(orphan));
        p.subtest(format!("fork-evict-{name}"), format!("two lose {about}"), sub(evicted));
    }
    p.subtest("killed", "a process dies on the way", killed);
}
