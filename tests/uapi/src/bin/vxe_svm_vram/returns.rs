// SPDX-License-Identifier: GPL-2.0

//! What the GPU uses in system memory, since it could not move or went to and fro, comes back when only the
//! GPU works on it; nobody but the GPU touches it here in the end.

use super::{Shape, SHAPES};
use std::time::{Duration, Instant};
use vxe_uapi::{
    contents::pattern,
    vram::{bring, counted, in_device, leave, region, soon, touch},
    Gpu, Map, Program, PAGE, SZ_2M,
};

/// Only the GPU works on it: it goes to the device.
#[track_caller]
fn expect_return(gpu: &Gpu, map: Map) {
    soon("it is on the device", || {
        touch(gpu, map);
        in_device(gpu, map) == map.len()
    });
}

/// CPU and GPU took it from each other until it was left alone.
fn bounced(shape: Shape) {
    const TURNS: u32 = 60;
    let gpu = Gpu::new();
    region(gpu.device());
    let map = shape.make();
    let mut turns = 0;
    let counts = counted(gpu.device(), || loop {
        gpu.increment(map.at(PAGE));
        turns += 1;
        if in_device(&gpu, map) == 0 {
            break;
        }
        assert!(turns < TURNS, "it never bounces");
        map.write(PAGE + 8, turns);
    });
    assert!(counts["svm_thrash_count"] > 0, "nothing was left alone: {counts:?}");
    expect_return(&gpu, map);
    map.expect("all", |o| match o {
        o if o == PAGE + 8 => turns - 1,
        PAGE => pattern(o).wrapping_add(turns),
        _ => pattern(o),
    });
}

/// There was no room when the GPU came.
fn no_room(shape: Shape) {
    let gpu = Gpu::new();
    let map = shape.make();
    let hogs = leave(gpu.device(), 0);
    touch(&gpu, map);
    assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory");
    drop(hogs);
    expect_return(&gpu, map);
    map.expect("all", pattern);
}

/// Others took its room.
fn evicted(shape: Shape) {
    let gpu = Gpu::new();
    let map = shape.make();
    bring(&gpu, map);
    let hogs = leave(gpu.device(), 0);
    touch(&gpu, map);
    assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory");
    drop(hogs);
    expect_return(&gpu, map);
    map.expect("all", pattern);
}

/// A device that stays full is not asked all the time, however much would move.
fn stays_full() {
    const CHUNKS: usize = 12;
    let gpu = Gpu::new();
    let _hogs = leave(gpu.device(), 0);
    let map = Map::aligned(CHUNKS * SZ_2M, SZ_2M);
    map.fill(pattern);
    touch(&gpu, map);
    let counts = counted(gpu.device(), || {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            touch(&gpu, map);
        }
    });
    // After 100, 300, 700, 1500, 3100 and 6300 ms, one each.
    let (refused, revisits) = (counts["svm_full_count"], counts["svm_revisit_count"]);
    println!("{revisits} ranges were looked at again, {refused} refused");
    assert!(revisits >= 1, "nothing was looked at again: {counts:?}");
    assert!(revisits <= 8 && refused <= 8, "asked too often: {counts:?}");
    map.expect("all", pattern);
}

pub fn subtests(p: &mut Program) {
    for (shape, name, about) in SHAPES {
        let sub = move |test: fn(Shape)| move || test(shape);
        p.subtest(format!("returns-bounced-{name}"), format!("{about} bounced"), sub(bounced));
        p.subtest(format!("returns-full-{name}"), format!("no room for {about}"), sub(no_room));
        p.subtest(format!("returns-evicted-{name}"), format!("{about} was evicted"), sub(evicted));
    }
    p.subtest("returns-never", "there is no room at all", stays_full);
}
