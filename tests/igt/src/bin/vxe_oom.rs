// SPDX-License-Identifier: GPL-2.0

//! The GPU fills memory until there is no more: who has it do that is killed, and nobody else; and all
//! of its memory is free again.

use std::{
    fs,
    process::ExitCode,
    time::{Duration, Instant},
};
use vxe_client::{Advice, Location, Migrate};
use vxe_igt::{
    cgroup::Cgroup,
    gpu::device,
    klog::{Alarm, Expected},
    process::{fork, Child},
    skip,
    time::{expect_prompt, is_debug_kernel},
    vram::soon,
    Gpu, Map, Program, PAGE, SZ_2M,
};

/// What the group may have, in bytes. The OOM reaper gives up, with a report, when the process itself takes
/// more than a second to let go of it all, which is soon reached with the checks of a debug kernel.
const LIMIT: usize = 20 << 20;

/// What is left of the machine's memory, in bytes.
const LEFT: usize = 96 << 20;

/// How long it may take to fill that.
const FILLING: Duration = Duration::from_secs(40);

/// How long the end of a process may take whose memory somebody needs. The OOM killer waits two seconds
/// before it helps, and gives up a second after that.
const END: Duration = Duration::from_secs(10);

/// What a process may keep, of page tables and the like, in bytes.
const RESIDUE: u64 = 8 << 20;

/// Has the GPU write to each page of memory that is four times what there is.
fn fill(available: usize) {
    let gpu = Gpu::new();
    let map = Map::anon(4 * available);
    // Without this, what there is of the device's memory is filled first.
    let stay = Advice::Preferred(Location::System, Migrate::AllPages);
    gpu.vm().madvise(map.at(0), map.len() as u64, stay).expect("advice");
    for chunk in (0..map.len()).step_by(SZ_2M) {
        gpu.run(|c| {
            for page in (0..SZ_2M).step_by(PAGE) {
                c.store(map.at(chunk + page), 1);
            }
        });
    }
}

/// A child that has the GPU count, until it is told to stop, and says then how far it got.
#[track_caller]
fn bystander() -> Child {
    let child = fork(|link| {
        let gpu = Gpu::new();
        let map = Map::anon(PAGE);
        let mut count = 0;
        gpu.increment(map.at(0));
        link.send(0);
        while !link.has_word() {
            gpu.increment(map.at(0));
            count += 1;
            map.expect_word("the count", 0, count + 1);
        }
        link.receive();
        link.send(u64::from(count));
    });
    child.link().receive();
    child
}

/// Stops a bystander, which must be alive and well.
#[track_caller]
fn expect_well(bystander: Child) {
    bystander.link().send(0);
    let count = bystander.link().receive();
    println!("the bystander counted to {count}");
    bystander.expect_success();
}

/// Waits for the end of who fills memory, which must be the OOM killer's doing, and soon enough after the
/// memory was full.
#[track_caller]
fn expect_killed(culprit: Child, is_full: impl Fn() -> bool) {
    // That takes as long as the GPU does.
    let begun = Instant::now();
    while !is_full() && !culprit.is_over() {
        assert!(begun.elapsed() < FILLING, "memory is not full yet");
        std::thread::sleep(Duration::from_millis(5));
    }
    let start = Instant::now();
    let status = culprit.wait();
    let took = start.elapsed();
    println!("killed after {took:?}");
    assert!(
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL,
        "the culprit was not killed: status {status:#x}"
    );
    expect_prompt("its end", took, END);
}

/// In a memory cgroup that has a limit, with another process beside it. (Not in it: of a process that is
/// dying, but has not given its memory back, the OOM killer of a cgroup knows nothing.)
fn group() {
    let group = Cgroup::with_memory("oom", LIMIT);
    let bystander = bystander();
    let culprit = fork(|link| {
        link.receive();
        fill(LIMIT);
    });
    group.add(culprit.pid());
    let announced = Expected::new(Alarm::OomKill);
    culprit.link().send(0);
    expect_killed(culprit, || group.oom_kills() != 0);
    soon("its memory is free", || group.memory() < RESIDUE);
    drop(announced);
    assert_eq!(group.oom_kills(), 1, "processes were killed");
    expect_well(bystander);
}

/// How much memory is available, in bytes.
fn available() -> usize {
    let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("a line");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// Says how much the caller is worth being killed: -1000 is never.
#[track_caller]
fn set_score(score: i32) {
    if let Err(e) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        skip!("oom_score_adj: {e}");
    }
}

/// All of the machine's memory, most of which is taken before.
fn machine() {
    if is_debug_kernel() {
        skip!("with the checks of a debug kernel the GPU takes minutes to fill the machine");
    }
    let device = device();
    let bystander = bystander();
    let culprit = fork(|link| {
        link.receive();
        fill(LEFT);
    });
    // Nobody kills who has the most.
    set_score(-1000);
    let hog = Map::aligned(available().saturating_sub(LEFT).max(PAGE), SZ_2M);
    let _ = hog.try_madvise(libc::MADV_HUGEPAGE);
    for page in (0..hog.len()).step_by(PAGE) {
        hog.write(page, 1);
    }
    let before = available();
    let announced = Expected::new(Alarm::OomKill);
    culprit.link().send(0);
    expect_killed(culprit, || available() < LEFT / 8);
    soon("its memory is free", || available() as u64 + RESIDUE >= before as u64);
    drop(announced);
    expect_well(bystander);
    hog.unmap();
    drop(device);
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_oom", "The GPU uses up all memory.");
    p.subtest("cgroup", "A cgroup has no more memory.", group);
    p.subtest("machine", "The machine has no more memory.", machine);
    p.main()
}
