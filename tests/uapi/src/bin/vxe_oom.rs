// SPDX-License-Identifier: GPL-2.0

//! The GPU fills memory until there is no more: who has it do that is killed, and nobody else; and all
//! of its memory is free again.

use std::{
    fs,
    process::ExitCode,
    time::{Duration, Instant},
};
use vxe_client::{Advice, Location, Migrate};
use vxe_uapi::{
    cgroup::Cgroup,
    gpu::device,
    klog::{Alarm, Expected},
    process::{fork, Child},
    skip,
    time::{expect_prompt, is_debug_kernel},
    vram::soon,
    Gpu, Map, Program, PAGE, RW, SZ_2M,
};

/// What the group may have, in bytes. The OOM reaper gives up, with a report, when the process itself takes
/// more than a second to let go of it all, which is soon reached with the checks of a debug kernel.
const LIMIT: usize = 20 << 20;

/// How often a group is filled. A kernel thread that continues to charge while the victim exits has a second
/// process killed in about every second round; with the checks of a debug kernel a round takes long.
const ROUNDS: u32 = 4;

/// What is left of the machine's memory, in bytes.
const LEFT: usize = 64 << 20;

/// How long it may take to fill that.
const FILLING: Duration = Duration::from_secs(40);

/// How long the end of a process may take whose memory somebody needs. The OOM killer waits two seconds
/// before it helps, and gives up a second after that.
const END: Duration = Duration::from_secs(10);

/// What a process may keep, of page tables and the like, in bytes.
const RESIDUE: u64 = 8 << 20;

/// How a process waits for its jobs.
#[derive(Clone, Copy)]
enum Waiting {
    /// In the kernel, which needs memory for that.
    InKernel,
    /// By reading the fence, without any memory.
    Reading,
}

/// Has the GPU write to each page of memory that is four times what there is.
fn fill(available: usize, waiting: Waiting) {
    let gpu = Gpu::new();
    let map = Map::anon(4 * available);
    // Without this, what there is of the device's memory is filled first.
    let stay = Advice::Preferred(Location::System, Migrate::AllPages);
    gpu.vm().madvise(map.at(0), map.len() as u64, stay).expect("advice");
    for chunk in (0..map.len()).step_by(SZ_2M) {
        let job = gpu.start(|c| {
            for page in (0..SZ_2M).step_by(PAGE) {
                c.store(map.at(chunk + page), 1);
            }
        });
        let job = job.expect("a job");
        while matches!(waiting, Waiting::Reading) && !job.is_done() {
            std::thread::sleep(Duration::from_millis(1));
        }
        job.wait().expect("the job");
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

/// Waits for the end of who fills memory, which must be the OOM killer's doing, and soon enough after that
/// was at work.
#[track_caller]
fn expect_killed(culprit: Child, is_killed: impl Fn() -> bool) {
    // That takes as long as the GPU does.
    let begun = Instant::now();
    while !is_killed() && !culprit.is_over() {
        assert!(begun.elapsed() < FILLING, "memory is not full yet");
        std::thread::sleep(Duration::from_millis(5));
    }
    let start = Instant::now();
    let status = culprit.wait();
    let took = start.elapsed();
    assert!(
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL,
        "the culprit was not killed: status {status:#x}"
    );
    expect_prompt("its end", took, END);
}

/// In a memory cgroup that has a limit, with one process beside it and one in it. That in it only sleeps: the
/// OOM killer of a cgroup does not see a process that is exiting, and would kill the next if another process of
/// the group charged memory meanwhile.
fn group(waiting: Waiting) {
    let bystander = bystander();
    let rounds = if is_debug_kernel() { 1 } else { ROUNDS };
    for _ in 0..rounds {
        let group = Cgroup::with_memory("oom", LIMIT);
        let member = fork(|link| {
            link.receive();
            link.send(0);
        });
        let culprit = fork(|link| {
            link.receive();
            fill(LIMIT, waiting);
        });
        group.add(member.pid());
        group.add(culprit.pid());
        let announced = Expected::new(Alarm::OomKill);
        culprit.link().send(0);
        expect_killed(culprit, || group.oom_kills() != 0);
        soon("its memory is free", || group.memory() < RESIDUE);
        drop(announced);
        assert_eq!(group.oom_kills(), 1, "processes were killed");
        member.link().send(0);
        member.link().receive();
        member.expect_success();
    }
    expect_well(bystander);
}

/// Has the caller told of the end of a child, which then waits for it, with all that it has.
struct Tracing(libc::pid_t);

impl Tracing {
    #[track_caller]
    fn start(child: &Child) -> Self {
        // SAFETY: the call takes no pointers but for the options, which are a number.
        let result =
            unsafe { libc::ptrace(libc::PTRACE_SEIZE, child.pid(), 0, libc::PTRACE_O_TRACEEXIT) };
        if result != 0 {
            skip!("PTRACE_SEIZE: {}", std::io::Error::last_os_error());
        }
        Self(child.pid())
    }

    /// Waits until it stops on its way out.
    #[track_caller]
    fn wait(&self) {
        let mut status = 0;
        // SAFETY: the call writes an int.
        let pid = unsafe { libc::waitpid(self.0, &mut status, 0) };
        let is_exit = status >> 8 == libc::SIGTRAP | (libc::PTRACE_EVENT_EXIT << 8);
        assert!(pid == self.0 && is_exit, "not at its end: status {status:#x}");
    }

    /// Lets it end.
    fn stop(self) {
        // SAFETY: the call takes no pointers.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}

/// Who is killed does not end, since somebody traces it: its memory is free nevertheless. That takes the
/// kernel's OOM reaper, which waits for nobody, and GPUs that make no more of it.
fn traced() {
    let group = Cgroup::with_memory("oom", LIMIT);
    let culprit = fork(|link| {
        link.receive();
        fill(LIMIT, Waiting::Reading);
    });
    let tracing = Tracing::start(&culprit);
    group.add(culprit.pid());
    let announced = Expected::new(Alarm::OomKill);
    culprit.link().send(0);
    tracing.wait();
    assert_eq!(group.oom_kills(), 1, "processes were killed");
    let start = Instant::now();
    soon("its memory is free", || group.memory() < RESIDUE);
    println!("reaped after {:?}", start.elapsed());
    assert_eq!(group.oom_kills(), 1, "processes were killed");
    assert!(!culprit.is_over(), "it has ended");
    tracing.stop();
    let status = culprit.wait();
    drop(announced);
    assert!(libc::WIFSIGNALED(status), "the culprit was not killed: status {status:#x}");
}

/// Takes most of the machine's memory, until the result goes, or the process: in huge pages of hugetlbfs, which
/// nobody reclaims, and which take little time.
fn take_huge(bytes: usize) -> Option<Map> {
    let count = bytes / SZ_2M;
    // As many more than there are may come, and go when they are not used any more.
    let _ = fs::write("/proc/sys/vm/nr_overcommit_hugepages", count.to_string());
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_NORESERVE;
    let map = Map::try_mmap(0, count * SZ_2M, RW, flags, -1, 0).ok()?;
    // Where there is no more in one piece a write would be a SIGBUS.
    let _ = map.try_madvise(libc::MADV_POPULATE_WRITE);
    Some(map)
}

/// The number that a file of the kernel's has behind a name.
fn figure(path: &str, name: &str) -> usize {
    let text = fs::read_to_string(path).expect(path);
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// How much memory is available, in bytes.
fn available() -> usize {
    figure("/proc/meminfo", "MemAvailable:") << 10
}

/// How much memory nobody has, in bytes: with what is on the lists of the processors, where only their own
/// allocations find it.
fn unused() -> usize {
    let zones = fs::read_to_string("/proc/zoneinfo").expect("the zones");
    let counts = zones.lines().filter_map(|line| line.trim().strip_prefix("count:"));
    let listed: usize = counts.map(|count| count.trim().parse::<usize>().expect("a count")).sum();
    available() + listed * PAGE
}

/// How often the OOM killer has killed.
fn kills() -> usize {
    figure("/proc/vmstat", "oom_kill ")
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
        fill(LEFT, Waiting::InKernel);
    });
    // Nobody kills who has the most.
    set_score(-1000);
    let huge = take_huge(available().saturating_sub(LEFT));
    let hog = Map::aligned(available().saturating_sub(LEFT).max(PAGE), SZ_2M);
    println!("{} MiB are left over", hog.len() >> 20);
    for page in (0..hog.len()).step_by(PAGE) {
        hog.write(page, 1);
    }
    let (before, kills_before) = (unused(), kills());
    let announced = Expected::new(Alarm::OomKill);
    culprit.link().send(0);
    expect_killed(culprit, || kills() != kills_before);
    soon("its memory is free", || unused() as u64 + RESIDUE >= before as u64);
    drop(announced);
    assert_eq!(kills(), kills_before + 1, "processes were killed");
    expect_well(bystander);
    hog.unmap();
    huge.inspect(|huge| huge.unmap());
    drop(device);
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_oom", "The GPU uses up all memory.");
    p.subtest("cgroup", "A cgroup has no more memory.", || group(Waiting::InKernel));
    p.subtest("cgroup-reading", "Only the GPU needs more.", || group(Waiting::Reading));
    p.subtest("traced", "Who is killed for that does not end.", traced);
    p.subtest("machine", "The machine has no more memory.", machine);
    p.main()
}
