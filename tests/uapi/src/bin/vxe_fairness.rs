// SPDX-License-Identifier: GPL-2.0

//! However much one process has under way, others get their share of the device and of the CPUs.

use std::{
    hint::black_box,
    process::ExitCode,
    sync::mpsc,
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};
use vxe_client::{Bind, Device, Error, ExecQueue, Fence, Timeout, Vm, Wait, WaitOp};
use vxe_uapi::{
    gpu::{device, write_batch},
    process::{fork, Child},
    time::is_debug_kernel,
    uffd::Uffd,
    Gpu, Map, Program, MIDDLE, PAGE, SZ_2M,
};

/// More than a work queue of the kernel runs at once.
const MANY: usize = 2100;

/// How much longer than alone a victim's work may take beside a culprit, and a constant for it to wait
/// for a few turns. Without a scheduler it takes hundreds of times as long, or never ends.
const SLOWER: u32 = 30;
const TURNS: Duration = Duration::from_millis(150);

/// How many times longer than alone what a victim does with the CPU may take.
const SLOWER_CPU: u32 = 8;

/// A batch that does not end while a test runs: it copies 32 GiB. The GPU has mapped all that it needs, so that
/// no fault interrupts it.
fn endless_batch(gpu: &Gpu) -> u64 {
    let (from, to, batch) = (Map::shared(SZ_2M), Map::shared(SZ_2M), Map::shared(SZ_2M));
    let address = write_batch(batch, |c| {
        for _ in 0..16384 {
            c.copy(from.at(0), to.at(0), SZ_2M);
        }
    });
    gpu.copy(batch, to);
    gpu.copy(from, to);
    address
}

/// Starts a batch on each queue.
fn start_all<'a>(queues: impl IntoIterator<Item = &'a ExecQueue>, batch: u64) {
    for queue in queues {
        // SAFETY: the batch and what it touches are the test's memory, which stays.
        unsafe { queue.submit(batch, None) }.expect("a job");
    }
}

fn queues(vm: &Vm) -> Vec<ExecQueue> {
    (0..MANY).map(|_| ExecQueue::new(vm).expect("a queue")).collect()
}

/// A process that does `start`, says so, and does nothing more until it is killed.
fn culprit<T>(start: impl FnOnce() -> T) -> Child {
    let child = fork(|link| {
        let _keep = start();
        link.send(1);
        let _ = link.try_receive();
    });
    assert_eq!(child.link().receive(), 1, "the culprit is at work");
    child
}

/// Endless copies on many queues.
fn copies() -> Child {
    culprit(|| {
        let gpu = Gpu::new();
        let batch = endless_batch(&gpu);
        let queues = queues(gpu.vm());
        start_all(&queues, batch);
        (gpu, queues)
    })
}

/// Many queues of one VM wait for a page that never comes.
fn stuck_queues() -> Child {
    culprit(|| {
        let gpu = Gpu::new();
        let map = Map::aligned(SZ_2M, SZ_2M);
        let uffd = Uffd::new(map);
        let batch = write_batch(Map::shared(PAGE), |c| _ = c.increment(map.at(0)));
        let queues = queues(gpu.vm());
        start_all(&queues, batch);
        (gpu, uffd, queues)
    })
}

/// Many VMs do, so that there are as many services of faults.
fn stuck_vms() -> Child {
    culprit(|| {
        let device = device();
        let map = Map::aligned(SZ_2M, SZ_2M);
        let uffd = Uffd::new(map);
        let batch = write_batch(Map::shared(PAGE), |c| _ = c.increment(map.at(0)));
        let queues: Vec<_> = (0..MANY)
            .map(|_| {
                let vm = Vm::new(&device).expect("a VM");
                // SAFETY: nothing is to be signalled.
                unsafe { vm.bind_async(&[Bind::mirror(0, 1 << 47)], None, &[]) }.expect("a mirror");
                ExecQueue::new(&vm).expect("a queue")
            })
            .collect();
        start_all(&queues, batch);
        (device, uffd, queues)
    })
}

/// The fences of jobs are to be stored where no page ever comes.
fn stuck_fences() -> Child {
    culprit(|| {
        let gpu = Gpu::new();
        let map = Map::aligned(SZ_2M, SZ_2M);
        let uffd = Uffd::new(map);
        let batch = write_batch(Map::shared(PAGE), |c| _ = c.noop());
        let queues = queues(gpu.vm());
        for queue in &queues {
            let fence = Fence { address: map.at(0), value: 1 };
            // SAFETY: batch and fence are the test's memory, which stays.
            unsafe { queue.submit(batch, Some(fence)) }.expect("a job");
        }
        (gpu, uffd, queues)
    })
}

/// A process that does a bit of everything.
struct Victim {
    gpu: Gpu,
    to: Map,
}

impl Victim {
    fn new() -> Self {
        Self { gpu: Gpu::new(), to: Map::shared(MIDDLE) }
    }

    /// A bind with a fence, a fault, a copy.
    fn work(&self, round: u32) {
        let map = Map::aligned(MIDDLE, MIDDLE);
        let bind = Bind::mirror(map.at(0), MIDDLE as u64);
        self.gpu.vm().bind(&[bind]).expect("a bind");
        self.gpu.store(map.at(PAGE), round);
        self.gpu.copy(map, self.to);
        self.to.expect_word("copied", PAGE, round);
        map.unmap();
    }

    /// How long that takes, on the average.
    fn measure(&self, rounds: u32) -> Duration {
        let start = Instant::now();
        (1..=rounds).for_each(|round| self.work(round));
        start.elapsed() / rounds
    }
}

/// Takes a few milliseconds of a CPU.
fn spin() {
    for i in 0..2_000_000u32 {
        black_box(i);
    }
}

fn measure_cpu(rounds: u32) -> Duration {
    let start = Instant::now();
    (0..rounds).for_each(|_| spin());
    start.elapsed() / rounds
}

/// The victim works alone, and then beside the culprit.
fn beside(culprit: fn() -> Child) {
    let victim = Victim::new();
    victim.work(0);
    let (alone, cpu_alone) = (victim.measure(10), measure_cpu(20));
    let culprit = culprit();
    // Let all of it run into what it is stuck in.
    std::thread::sleep(Duration::from_millis(300));
    let (beside, cpu_beside) = (victim.measure(5), measure_cpu(10));
    println!("alone: {alone:?} and {cpu_alone:?} of CPU; beside: {beside:?} and {cpu_beside:?}");
    culprit.kill();
    assert!(beside < alone * SLOWER + TURNS, "{beside:?} in place of {alone:?}");
    assert!(cpu_beside < cpu_alone * SLOWER_CPU, "{cpu_beside:?} in place of {cpu_alone:?}");
    victim.work(1);
}

/// Makes queues until it is refused, at which there are more than anybody needs.
fn all_queues(vm: &Vm) -> Vec<ExecQueue> {
    let mut queues = Vec::new();
    loop {
        match ExecQueue::new(vm) {
            Ok(queue) => queues.push(queue),
            Err(e) => {
                assert_eq!(e.errno(), libc::ENOSPC, "{e}, with {} queues", queues.len());
                return queues;
            }
        }
        assert!(queues.len() < 10_000, "there is no limit");
    }
}

/// A process has so many queues, whatever files it opens, and others have theirs.
fn too_many_queues() {
    let other = fork(|link| {
        let gpu = Gpu::new();
        link.receive();
        drop(gpu.another());
        drop(Gpu::new());
        link.send(1);
    });
    let device = device();
    let vm = Vm::mirrored(&device).expect("a VM");
    let mut queues = all_queues(&vm);
    println!("{} queues", queues.len());
    assert!(queues.len() >= MANY);
    // Neither another VM nor another file helps.
    let second = vxe_uapi::gpu::device();
    let second = Vm::mirrored(&second).expect("a VM of another file");
    for vm in [&vm, &second] {
        let refused = ExecQueue::new(vm).map(|_| ()).map_err(|e| e.errno());
        assert_eq!(refused, Err(libc::ENOSPC));
    }
    other.link().send(0);
    assert_eq!(other.link().receive(), 1);
    other.expect_success();
    // Those that go make room.
    queues.truncate(queues.len() - 2);
    let _room = (ExecQueue::new(&vm).expect("room"), ExecQueue::new(&second).expect("room"));
}

/// A process has so many jobs, and others have theirs.
fn too_many_jobs() {
    /// The most of one queue.
    const QUEUE: usize = 16384;
    let expect_again = |e: Error| assert_eq!(e.errno(), libc::EAGAIN, "{e}");
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    let uffd = Uffd::new(map);
    let batch = write_batch(Map::shared(PAGE), |c| _ = c.noop());
    let stuck = write_batch(Map::shared(PAGE), |c| _ = c.increment(map.at(0)));
    let (mut queues, mut jobs) = (Vec::new(), 0);
    loop {
        let queue = ExecQueue::new(gpu.vm()).expect("a queue");
        // The first one never ends, so that none does. The last queue may not have room for any.
        let mut count = 0;
        // SAFETY: the batches are the test's memory, which stays.
        let submit = |batch| unsafe { queue.submit(batch, None) }.map_err(expect_again).is_ok();
        while count < QUEUE && submit(if count == 0 { stuck } else { batch }) {
            count += 1;
        }
        jobs += count;
        queues.push(queue);
        if count < QUEUE {
            break;
        }
        assert!(queues.len() < 64, "there is no limit");
    }
    println!("{jobs} jobs");
    fork(|_| Victim::new().work(1)).expect_success();
    // Those that go make room.
    queues.truncate(1);
    // Before its page comes, the VM serves no other fault.
    uffd.populate(|_| 0);
    gpu.run(|c| _ = c.noop());
}

/// Starts `count` threads that wait until the word at `address` is not zero, and returns when they are about
/// to sleep.
fn wait_in_threads(count: usize, device: &Device, address: u64) -> Vec<JoinHandle<()>> {
    let wait = Wait { op: WaitOp::Neq, ..Wait::equal(address, 0, Timeout::Forever) };
    let (begun, threads) = mpsc::channel();
    let start = |_| {
        let (device, begun) = (device.clone(), begun.clone());
        let wait = move || {
            begun.send(()).expect("the test");
            device.wait_user_fence(&wait).expect("a wait");
        };
        Builder::new().stack_size(MIDDLE).spawn(wait).expect("a thread")
    };
    let handles = (0..count).map(start).collect();
    assert_eq!(threads.iter().take(count).count(), count);
    handles
}

/// How often the threads of a process have gone to sleep.
fn sleeps(child: &Child) -> u64 {
    let path = format!("/proc/{}/task", child.pid());
    let threads = std::fs::read_dir(&path).expect(&path);
    let of_thread = |thread: std::io::Result<std::fs::DirEntry>| {
        let status = thread.expect("a thread").path().join("status");
        let text = std::fs::read_to_string(status).expect("its status");
        let count = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.expect("a count").trim().parse::<u64>().expect("a number")
    };
    threads.map(of_thread).sum()
}

/// A victim's jobs beside thousands of threads that wait for what never comes: the jobs wake few of them, and
/// all only now and then.
fn waiting_threads() {
    const JOBS: u32 = 100;
    /// How many a job may wake at once.
    const DIRECT: u64 = 64;
    /// How many may be woken in each millisecond besides.
    const PER_MS: u64 = 4;
    let count = if is_debug_kernel() { 500 } else { 2000 };
    let gpu = Gpu::new();
    let measure = || {
        let start = Instant::now();
        (0..JOBS).for_each(|_| gpu.run(|c| _ = c.noop()));
        start.elapsed()
    };
    measure();
    let alone = measure();
    let culprit = culprit(|| {
        let device = device();
        let threads = wait_in_threads(count, &device, Map::anon(PAGE).at(0));
        (device, threads)
    });
    std::thread::sleep(Duration::from_millis(300));
    let (before, start) = (sleeps(&culprit), Instant::now());
    let beside = measure();
    let woken = sleeps(&culprit) - before;
    let ms = start.elapsed().as_millis() as u64;
    culprit.kill();
    println!("{JOBS} jobs take {alone:?} alone, and {beside:?} beside {count} threads, woken {woken} times");
    // All of them may be woken at the beginning, and once more at the end.
    let allowed = u64::from(JOBS) * DIRECT + ms * PER_MS + 2 * count as u64;
    assert!(woken <= allowed, "woken {woken} times, not {allowed}");
    assert!(allowed < u64::from(JOBS) * count as u64, "the machine is too slow to tell");
}

/// However many threads wait, all of them see what another process's job stores in memory that they share.
fn waiting_for_another() {
    for count in [1, 40, 400] {
        let word = Map::shared(PAGE);
        let other = fork(|link| {
            let gpu = Gpu::new();
            link.receive();
            gpu.store(word.at(0), 1);
        });
        let device = device();
        let threads = wait_in_threads(count, &device, word.at(0));
        std::thread::sleep(Duration::from_millis(200));
        other.link().send(0);
        other.expect_success();
        let start = Instant::now();
        threads.into_iter().for_each(|thread| thread.join().expect("a thread"));
        println!("{count} threads saw it after {:?}", start.elapsed());
    }
}

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_fairness",
        "However much one process has under way, others get their share.",
    );
    p.subtest("copies", "beside endless copies", || beside(copies));
    p.subtest("stuck-queues", "beside queues that wait for a page", || beside(stuck_queues));
    p.subtest("stuck-vms", "beside VMs that wait for a page", || beside(stuck_vms));
    p.subtest("stuck-fences", "beside jobs whose fences wait", || beside(stuck_fences));
    p.subtest("waiting-threads", "beside threads that wait", waiting_threads);
    p.subtest("waiting-for-another", "threads that wait for another process", waiting_for_another);
    p.subtest("too-many-queues", "-ENOSPC, for one process", too_many_queues);
    p.subtest("too-many-jobs", "-EAGAIN, for one process", too_many_jobs);
    p.main()
}
