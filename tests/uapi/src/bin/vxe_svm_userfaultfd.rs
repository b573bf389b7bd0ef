// SPDX-License-Identifier: GPL-2.0

//! Faults that userspace answers when it likes: they hold up nobody but those who wait for them.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};
use vxe_client::{Advice, AtomicAccess, Bind};
use vxe_uapi::{
    contents::pattern, gpu::device, process::fork, uffd::Uffd, Gpu, Job, Map, Program, Stop,
    MIDDLE, PAGE, SZ_2M,
};

/// How long anything may take that has nothing to do with a blocked fault.
const PROMPT: Duration = Duration::from_secs(2);

/// How long a GPU's fault may take to reach the userfaultfd.
const ARRIVAL: Duration = Duration::from_secs(10);

/// More faults than there could be workers to serve them.
const BLOCKED: usize = 12;

/// Queues of one VM, each blocked in a fault on a chunk of its own.
struct Blocked {
    uffd: Uffd,
    map: Map,
    gpus: Vec<Gpu>,
}

impl Blocked {
    fn new(main: &Gpu) -> Self {
        let map = Map::aligned(BLOCKED * SZ_2M, SZ_2M);
        let gpus = (0..BLOCKED).map(|_| main.another()).collect();
        Self { uffd: Uffd::new(map), map, gpus }
    }

    /// The word in which queue `i` counts.
    fn word(i: usize) -> usize {
        i * SZ_2M + MIDDLE + 8
    }

    /// Starts a job on each queue, and waits until the first faults have arrived.
    fn start(&self) -> Vec<Job<'_>> {
        let jobs = self
            .gpus
            .iter()
            .enumerate()
            .map(|(i, gpu)| {
                gpu.start(|c| _ = c.increment(self.map.at(Self::word(i)))).expect("a job")
            })
            .collect();
        let first = self.uffd.next_fault(ARRIVAL).expect("no fault arrives");
        assert!((self.map.at(0)..=self.map.at(self.map.len() - 1)).contains(&first));
        // Let the others run into it as well.
        std::thread::sleep(Duration::from_millis(200));
        jobs
    }

    fn release(&self, jobs: Vec<Job<'_>>) {
        assert!(jobs.iter().all(|j| !j.is_done()), "a job went past its fault");
        self.uffd.populate(pattern);
        for job in jobs {
            job.wait().expect("a job, after its page was given");
        }
        for i in 0..BLOCKED {
            let word = Self::word(i);
            self.map.expect_word("counted", word, pattern(word).wrapping_add(1));
            self.map.expect_word("given", word + 4, pattern(word + 4));
        }
    }
}

#[track_caller]
fn promptly<T>(what: &str, call: impl FnOnce() -> T) -> T {
    vxe_uapi::time::promptly(what, PROMPT, call)
}

/// Works on new memory, for which the GPU must fault each time.
fn work_promptly(gpu: &Gpu) {
    for i in 1..=8 {
        let map = Map::aligned(MIDDLE, MIDDLE);
        promptly("somebody else's fault", || gpu.store(map.at(PAGE), i));
        map.expect_word("stored", PAGE, i);
    }
}

/// The GPU waits for a page, and goes on when it is given.
fn page_is_given() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    let uffd = Uffd::new(map);
    let to = Map::anon(MIDDLE);
    let job = gpu.start(|c| _ = c.copy(map.at(0), to.at(0), MIDDLE)).expect("a job");
    uffd.next_fault(ARRIVAL).expect("no fault arrives");
    std::thread::sleep(Duration::from_millis(300));
    assert!(!job.is_done(), "the GPU did not wait");
    uffd.populate(pattern);
    job.wait().expect("the copy");
    to.expect("copied", pattern);
    gpu.increment(map.at(4));
    map.expect_word("counted", 4, pattern(4).wrapping_add(1));
}

/// Who gives one page after the other, and takes his time, is waited for.
fn pages_are_given_slowly() {
    const PAGES: usize = MIDDLE / PAGE;
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    let uffd = Uffd::new(map);
    let to = Map::anon(MIDDLE);
    let job = gpu.start(|c| _ = c.copy(map.at(0), to.at(0), MIDDLE)).expect("a job");
    for page in 0..PAGES {
        let addr = uffd.next_fault(ARRIVAL).unwrap_or_else(|| panic!("no fault for page {page}"));
        std::thread::sleep(Duration::from_millis(150));
        uffd.give_page(addr, pattern);
    }
    job.wait().expect("the copy");
    to.expect("copied", pattern);
}

/// Who has a fault begin anew again and again, and never gives a page, is not waited for: after a second the VM
/// does something else, and comes back to the fault.
fn woken_in_vain() {
    /// How long that goes on.
    const ALWAYS: Duration = Duration::from_secs(12);
    /// When the VM is there for others, at the latest: after a second or two, on a busy machine.
    const SOON: Duration = Duration::from_secs(6);
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    let uffd = Uffd::new(map);
    let job = gpu.start(|c| _ = c.increment(map.at(0))).expect("a job");
    uffd.next_fault(ARRIVAL).expect("no fault arrives");
    let is_over = Stop::new();
    let start = Instant::now();
    let took = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.is_set() && start.elapsed() < ALWAYS {
                uffd.wake();
                uffd.next_fault(Duration::from_millis(10));
            }
        });
        let _over = is_over.on_drop();
        bind(&gpu, Map::reserve(MIDDLE, SZ_2M));
        start.elapsed()
    });
    // What goes on is to end well.
    uffd.populate(pattern);
    assert!(took < SOON, "the VM was at work on the fault for {took:?}");
    job.wait().expect("a job, after its page was given");
    map.expect_word("counted", 0, pattern(0).wrapping_add(1));
}

/// Another VM of the same process is not held up.
fn other_vm() {
    let device = device();
    let (a, b) = (Gpu::on_device(&device), Gpu::on_device(&device));
    let blocked = Blocked::new(&a);
    let jobs = blocked.start();
    work_promptly(&b);
    let new = promptly("a new VM", || Gpu::on_device(&device));
    work_promptly(&new);
    blocked.release(jobs);
}

/// Nor is another process.
fn other_process() {
    let child = fork(|link| {
        link.receive();
        let gpu = promptly("a VM", Gpu::new);
        work_promptly(&gpu);
        link.send(1);
    });
    let gpu = Gpu::new();
    let blocked = Blocked::new(&gpu);
    let jobs = blocked.start();
    child.link().send(0);
    assert_eq!(child.link().receive(), 1);
    child.expect_success();
    blocked.release(jobs);
}

/// The process itself can still map, unmap and protect other memory.
fn own_mappings() {
    let gpu = Gpu::new();
    let other = Map::aligned(MIDDLE, MIDDLE);
    gpu.increment(other.at(0));
    let blocked = Blocked::new(&gpu);
    let jobs = blocked.start();
    for _ in 0..5 {
        let map = promptly("mmap", || Map::anon(MIDDLE));
        map.fill(pattern);
        promptly("mprotect", || map.protect(vxe_uapi::RO));
        promptly("munmap", || map.unmap());
    }
    promptly("munmap of what the GPU has mapped", || other.unmap());
    blocked.release(jobs);
}

/// The memory is unmapped while the GPU waits for a page of it. As the kernel has it, those who
/// wait go on waiting until the userfaultfd lets them go; then there is nothing any more.
fn unmapped() {
    let mut gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    let uffd = Uffd::new(map);
    {
        let job = gpu.start(|c| _ = c.increment(map.at(0))).expect("a job");
        uffd.next_fault(ARRIVAL).expect("no fault arrives");
        promptly("munmap", || map.unmap());
        drop(uffd);
        let result = promptly("the end of the job", || job.wait());
        assert_eq!(result.map_err(|e| e.errno()), Err(libc::EIO));
    }
    gpu.renew();
    work_promptly(&gpu);
}

/// The userfaultfd is closed while the GPU waits: what was missing is ordinary memory then.
fn uffd_closed() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    let uffd = Uffd::new(map);
    let job = gpu.start(|c| _ = c.increment(map.at(8))).expect("a job");
    uffd.next_fault(ARRIVAL).expect("no fault arrives");
    drop(uffd);
    promptly("the job", || job.wait()).expect("a job on ordinary memory");
    map.expect("ordinary memory", |o| u32::from(o == 8));
}

/// The process is killed while its GPU waits for pages.
fn killed() {
    let child = fork(|link| {
        let gpu = Gpu::new();
        let blocked = Blocked::new(&gpu);
        let _jobs = blocked.start();
        link.send(1);
        link.receive();
    });
    assert_eq!(child.link().receive(), 1);
    promptly("death", || child.kill());
    let gpu = promptly("a VM", Gpu::new);
    work_promptly(&gpu);
}

/// The process is killed while a call of its waits for the VM, which is at work on a fault that
/// goes on being blocked: somebody else has the userfaultfd, too.
fn killed_in(call: fn(&Gpu, Map)) {
    let child = fork(|link| {
        let gpu = Gpu::new();
        let map = Map::aligned(MIDDLE, MIDDLE);
        let uffd = Uffd::new(map);
        let _job = gpu.start(|c| _ = c.increment(map.at(0))).expect("a job");
        uffd.next_fault(ARRIVAL).expect("no fault arrives");
        link.send(uffd.fd() as u64);
        link.receive();
        call(&gpu, Map::reserve(MIDDLE, SZ_2M));
        // Not to be reached.
        link.send(1);
        link.receive();
    });
    let uffd = child.take_fd(child.link().receive() as i32);
    child.link().send(0);
    let start = Instant::now();
    while !child.is_blocked() && start.elapsed() < ARRIVAL {
        std::thread::sleep(Duration::from_millis(5));
    }
    // It stays there.
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.is_blocked(), "the call did not wait");
    promptly("death", || child.kill());
    // The rest of the system does not wait for the fault, either.
    work_promptly(&promptly("a VM", Gpu::new));
    drop(uffd);
    work_promptly(&promptly("a VM", Gpu::new));
}

fn bind(gpu: &Gpu, place: Map) {
    gpu.vm().bind(&[Bind::mirror(place.at(0), MIDDLE as u64)]).expect("bind");
}

fn prefetch(gpu: &Gpu, place: Map) {
    gpu.vm().bind(&[Bind::prefetch(place.at(0), MIDDLE as u64, 0)]).expect("prefetch");
}

fn advise(gpu: &Gpu, place: Map) {
    let advice = Advice::Atomic(AtomicAccess::Device);
    gpu.vm().madvise(place.at(0), MIDDLE as u64, advice).expect("advice");
}

/// The device is closed while its GPU waits for pages.
fn closed() {
    let gpu = Gpu::new();
    {
        let blocked = Blocked::new(&gpu);
        let jobs = blocked.start();
        // SAFETY: no other thread uses the device; the jobs' memory stays.
        promptly("close", || unsafe { gpu.device().close() });
        blocked.uffd.populate(pattern);
        std::thread::sleep(Duration::from_millis(200));
        let words: Vec<u32> = (0..BLOCKED).map(|i| blocked.map.read(Blocked::word(i))).collect();
        std::thread::sleep(Duration::from_millis(200));
        for (i, &value) in words.iter().enumerate() {
            blocked.map.expect_word("counted after close", Blocked::word(i), value);
        }
        drop(jobs);
    }
    work_promptly(&Gpu::new());
}

/// A queue is destroyed while it waits for a page.
fn queue_destroyed() {
    let device = device();
    let (a, b) = (Gpu::on_device(&device), Gpu::on_device(&device));
    let map = Map::aligned(MIDDLE, MIDDLE);
    let uffd = Uffd::new(map);
    let doomed = a.another();
    let job = doomed.start(|c| _ = c.increment(map.at(0))).expect("a job");
    uffd.next_fault(ARRIVAL).expect("no fault arrives");
    drop(job);
    promptly("the queue's end", || drop(doomed));
    work_promptly(&b);
    uffd.populate(pattern);
    work_promptly(&a);
}

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_svm_userfaultfd",
        "Faults that userspace answers late hold up nobody but those who wait for them.",
    );
    p.subtest("page-is-given", "the GPU waits for a page", page_is_given);
    p.subtest("given-slowly", "pages come one by one", pages_are_given_slowly);
    p.subtest("woken-in-vain", "no page comes, again and again", woken_in_vain);
    p.subtest("other-vm", "another VM is not held up", other_vm);
    p.subtest("other-process", "another process is not held up", other_process);
    p.subtest("own-mappings", "mmap and munmap are not held up", own_mappings);
    p.subtest("unmapped", "the memory goes away", unmapped);
    p.subtest("uffd-closed", "the userfaultfd goes away", uffd_closed);
    p.subtest("killed", "the process is killed", killed);
    p.subtest("killed-in-bind", "and waits to bind", || killed_in(bind));
    p.subtest("killed-in-prefetch", "and waits to prefetch", || killed_in(prefetch));
    p.subtest("killed-in-madvise", "and waits to advise", || killed_in(advise));
    p.subtest("closed", "the device is closed", closed);
    p.subtest("queue-destroyed", "the queue is destroyed", queue_destroyed);
    p.main()
}
