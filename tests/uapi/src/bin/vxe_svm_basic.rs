// SPDX-License-Identifier: GPL-2.0

//! Every kind of memory that a program has, used by the GPU through plain pointers.

use std::process::ExitCode;
use vxe_uapi::{
    contents::pattern,
    gpu::{device, write_batch},
    memory::{Kind, KINDS},
    Gpu, Map, Program, MIDDLE, PAGE, RW, SZ_2M,
};

type Operation = (&'static str, fn(&Gpu, Map));

/// What the GPU does to the memory.
const OPERATIONS: [Operation; 4] =
    [("write", write), ("read", read), ("atomic", atomic), ("copy", copy)];

/// One store to each page, at an offset that differs from page to page.
fn write(gpu: &Gpu, map: Map) {
    map.fill(pattern);
    let target = |page: usize| page * PAGE + (page * 68) % PAGE;
    gpu.run(|c| {
        for page in 0..map.len() / PAGE {
            c.store(map.at(target(page)), page as u32 | 0xab00_0000);
        }
    });
    map.expect("stored", |offset| match offset / PAGE {
        page if offset == target(page) => page as u32 | 0xab00_0000,
        _ => pattern(offset),
    });
}

fn read(gpu: &Gpu, map: Map) {
    map.fill(pattern);
    let to = Map::anon(map.len());
    gpu.copy(map, to);
    to.expect("read", pattern);
    map.expect("still there", pattern);
}

fn atomic(gpu: &Gpu, map: Map) {
    map.fill(pattern);
    gpu.run(|c| {
        for page in 0..map.len() / PAGE {
            c.increment(map.at(page * PAGE)).increment(map.at(page * PAGE));
            c.decrement(map.at(page * PAGE + PAGE - 4));
        }
    });
    map.expect("counted", |offset| match offset % PAGE {
        0 => pattern(offset).wrapping_add(2),
        o if o == PAGE - 4 => pattern(offset).wrapping_sub(1),
        _ => pattern(offset),
    });
}

/// The first half onto the second.
fn copy(gpu: &Gpu, map: Map) {
    let half = map.len() / 2;
    map.fill(pattern);
    gpu.copy(map.part(0, half), map.part(half, half));
    map.expect("copied", |offset| pattern(offset % half));
}

/// The GPU is the first to touch the memory.
fn first_touch_write(length: usize, align: usize) {
    let gpu = Gpu::new();
    let map = Map::aligned(length, align);
    gpu.store(map.at(length - 8), 77);
    map.expect("first touched", |offset| if offset == length - 8 { 77 } else { 0 });
}

fn first_touch_read() {
    let gpu = Gpu::new();
    let (from, to) = (Map::aligned(MIDDLE, MIDDLE), Map::anon(MIDDLE));
    to.fill(pattern);
    gpu.copy(from, to);
    to.expect("zeroes read", |_| 0);
    from.fill(pattern);
    gpu.copy(from, to);
    to.expect("read after the CPU wrote", pattern);
}

/// Both see what the other wrote, over and over.
fn ping_pong() {
    let gpu = Gpu::new();
    let map = Map::anon(PAGE);
    for round in (0..200).step_by(2) {
        map.write(64, round);
        gpu.increment(map.at(64));
        map.expect_word("after the GPU", 64, round + 1);
    }
}

/// One page in each of many mappings.
fn sparse() {
    let gpu = Gpu::new();
    let maps: Vec<Map> = (0..48).map(|_| Map::aligned(PAGE, MIDDLE)).collect();
    gpu.run(|c| {
        for (i, map) in maps.iter().enumerate() {
            c.store(map.at(i * 4), i as u32 + 1);
        }
    });
    for (i, map) in maps.iter().enumerate() {
        map.expect_word("sparse", i * 4, i as u32 + 1);
    }
}

/// Several chunks of the largest size in one command.
fn large_copy() {
    let gpu = Gpu::new();
    let length = 3 * SZ_2M + MIDDLE + PAGE;
    let (from, to) = (Map::aligned(length, SZ_2M), Map::aligned(length, SZ_2M));
    from.fill(pattern);
    gpu.copy(from, to);
    to.expect("copied", pattern);
}

/// A copy whose ends lie in mappings next to each other.
fn across_mappings() {
    let gpu = Gpu::new();
    let room = Map::aligned(16 * PAGE, MIDDLE);
    room.part(5 * PAGE, 3 * PAGE).replace_anon(RW);
    let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    Map::mmap(room.start() + 8 * PAGE, 4 * PAGE, RW, shared, -1, 0);
    room.fill(pattern);
    let to = Map::anon(room.len());
    gpu.copy(room, to);
    to.expect("gathered", pattern);
    room.fill(|_| 0);
    gpu.copy(to, room);
    room.expect("scattered", pattern);
}

/// Runs a batch that starts `before` bytes before the end of a page, or of a chunk.
fn batch_across(boundary: usize, before: usize) {
    let gpu = Gpu::new();
    let map = Map::aligned(2 * boundary, SZ_2M);
    let result = Map::anon(PAGE);
    let mut commands = vxe_client::Commands::new();
    for i in 0..16 {
        commands.store(result.at(i * 4), i as u32 + 5);
    }
    commands.end();
    let start = boundary - before;
    map.write_words(start, commands.dwords());
    gpu.submit_and_wait(map.at(start)).expect("a job");
    for i in 0..16 {
        result.expect_word("stored", i * 4, i as u32 + 5);
    }
}

/// A batch in a file, and one on the stack.
fn batch_in(kind: Kind) {
    let gpu = Gpu::new();
    kind.with(PAGE, &|map| {
        let target = Map::anon(PAGE);
        let batch = write_batch(map.part(256, 64), |c| _ = c.store(target.at(12), 0x1234));
        gpu.submit_and_wait(batch).expect("a job");
        target.expect_word("stored", 12, 0x1234);
    });
}

/// A batch that the CPU changes between its runs.
fn batch_changes() {
    let gpu = Gpu::new();
    let map = Map::anon(2 * PAGE);
    let target = map.part(PAGE, PAGE);
    for i in 0..20 {
        let batch = write_batch(map, |c| _ = c.store(target.at(i * 4), i as u32 + 9));
        gpu.submit_and_wait(batch).expect("a job");
        target.expect_word("stored", i * 4, i as u32 + 9);
    }
}

/// Two VMs of one process mirror the same memory.
fn two_vms() {
    let device = device();
    let (a, b) = (Gpu::on_device(&device), Gpu::on_device(&device));
    let map = Map::anon(MIDDLE);
    for i in 0..40 {
        a.increment(map.at(i * PAGE / 4));
        b.increment(map.at(i * PAGE / 4));
        map.expect_word("both counted", i * PAGE / 4, 2);
    }
}

/// Two open files of the device, and its two nodes.
fn two_files() {
    let (a, b) = (Gpu::new(), Gpu::new());
    let render = match vxe_client::Device::open_render() {
        Ok(device) => Gpu::on_device(&device),
        Err(e) => panic!("the render node: {e}"),
    };
    let map = Map::anon(PAGE);
    for gpu in [&a, &b, &render] {
        gpu.increment(map.at(128));
    }
    map.expect_word("all counted", 128, 3);
}

/// A thousand commands in one batch.
fn many_commands() {
    let gpu = Gpu::new();
    let map = Map::anon(MIDDLE);
    gpu.run(|c| {
        for i in 0..1000 {
            c.store(map.at(i * 4), i as u32 + 1).noop();
        }
    });
    map.expect("stored", |offset| match offset / 4 {
        i if i < 1000 => i as u32 + 1,
        _ => 0,
    });
}

/// Memory that a finished job used can be unmapped and mapped again, many times over.
fn churn() {
    let gpu = Gpu::new();
    for round in 0..vxe_uapi::env::iterations(30) {
        let map = Map::anon(2 * MIDDLE);
        gpu.store(map.at(4 * round as usize), round + 1);
        map.expect("fresh", |offset| match offset / 4 {
            i if i == round as usize => round + 1,
            _ => 0,
        });
        map.unmap();
    }
}

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_svm_basic",
        "The GPU uses every kind of memory that a program has, through plain pointers.",
    );
    for kind in KINDS {
        for (operation, body) in OPERATIONS {
            p.subtest(
                format!("{}-{operation}", kind.name()),
                format!("GPU {operation} on {}", kind.about()),
                move || {
                    let gpu = Gpu::new();
                    kind.with(kind.length(), &|map| body(&gpu, map));
                },
            );
        }
    }
    for (name, length, align) in [("4k", PAGE, PAGE), ("64k", MIDDLE, MIDDLE), ("2m", SZ_2M, SZ_2M)]
    {
        p.subtest(
            format!("first-touch-write-{name}"),
            "the GPU is the first to touch memory, by writing",
            move || first_touch_write(length, align),
        );
    }
    p.subtest(
        "first-touch-read",
        "the GPU is the first to touch memory, by reading",
        first_touch_read,
    );
    p.subtest("ping-pong", "CPU and GPU take turns on a word", ping_pong);
    p.subtest("sparse", "one page in each of many mappings", sparse);
    p.subtest("large-copy", "a copy over several large chunks", large_copy);
    p.subtest("across-mappings", "a copy over mappings of different kinds", across_mappings);
    p.subtest("batch-across-page", "a command that lies in two pages", || batch_across(PAGE, 8));
    p.subtest("batch-across-chunk", "a command that lies in two chunks", || batch_across(SZ_2M, 4));
    p.subtest("batch-in-file", "a batch in a mapped file", || batch_in(Kind::FileShared));
    p.subtest("batch-on-stack", "a batch on the stack", || batch_in(Kind::Stack));
    p.subtest("batch-changes", "a batch that changes between runs", batch_changes);
    p.subtest("two-vms", "two VMs mirror one process", two_vms);
    p.subtest("two-files", "several open files of the device", two_files);
    p.subtest("many-commands", "a thousand commands in a batch", many_commands);
    p.subtest("churn", "mappings come and go", churn);
    p.main()
}
