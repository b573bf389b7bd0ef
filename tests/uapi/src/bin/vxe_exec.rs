// SPDX-License-Identifier: GPL-2.0

//! Queues, batches, fences and the wait for them.

use std::{
    process::ExitCode,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use vxe_client::{monotonic_now, Commands, ExecQueue, Fence, Timeout, Vm, Wait, WaitOp};
use vxe_uapi::{
    env::iterations,
    gpu::{device, write_batch, FAULT_DEADLINE, PATIENCE},
    time::expect_prompt,
    Gpu, Map, Program, MIDDLE, PAGE, SZ_2M,
};

/// Each job sees what the one before it wrote, and not what the next one writes.
fn in_order() {
    let gpu = Gpu::new();
    let jobs = iterations(100) as usize;
    let cell = Map::anon(PAGE);
    let log = Map::anon((jobs * 256).next_multiple_of(PAGE));
    let batches = Map::anon(jobs * 256);
    for i in 0..jobs {
        let fence = (i + 1 == jobs).then(|| Fence { address: cell.at(512), value: 1 });
        let batch = write_batch(batches.part(i * 256, 256), |c| {
            c.store(cell.at(0), i as u32).copy(cell.at(0), log.at(i * 256), 256);
        });
        // SAFETY: batches, cell and log are the test's memory.
        unsafe { gpu.queue().submit(batch, fence) }.expect("a job");
    }
    gpu.queue().wait(&Wait::equal(cell.at(512), 1, PATIENCE)).expect("the last job");
    for i in 0..jobs {
        log.expect_word("the log", i * 256, i as u32);
    }
}

/// Many jobs at once: each is either queued or refused with -EAGAIN, and each queued one runs.
fn many_jobs() {
    const JOBS: u32 = 16384;
    let gpu = Gpu::new();
    let memory = Map::anon(2 * PAGE);
    let counter = memory.at(PAGE);
    let batch = write_batch(memory.part(0, PAGE), |c| _ = c.increment(counter));
    let end = Instant::now() + Duration::from_secs(50);
    let mut refused = 0;
    for job in 1..=JOBS {
        let fence = (job == JOBS).then(|| Fence { address: memory.at(PAGE + 64), value: 1 });
        // SAFETY: batch, counter and fence are the test's memory.
        while let Err(e) = unsafe { gpu.queue().submit(batch, fence) } {
            assert_eq!(e.errno(), libc::EAGAIN, "{e}");
            assert!(Instant::now() < end, "the queue stays full");
            refused += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    gpu.queue().wait(&Wait::equal(memory.at(PAGE + 64), 1, PATIENCE)).expect("the last job");
    memory.expect_word("jobs run", PAGE, JOBS);
    println!("{JOBS} jobs, {refused} times refused");
}

/// The fence comes after what the batch wrote, also for one who polls it.
fn fence_after_batch() {
    let gpu = Gpu::new();
    let memory = Map::anon(MIDDLE);
    let last = MIDDLE - PAGE;
    for round in 1..=iterations(15) {
        let job = gpu
            .start(|c| {
                for page in (0..last).step_by(PAGE) {
                    c.store(memory.at(page), round);
                }
                c.store(memory.at(last), round);
            })
            .expect("a job");
        let end = Instant::now() + FAULT_DEADLINE * 10;
        while !job.is_done() {
            assert!(Instant::now() < end, "no fence");
            std::hint::spin_loop();
        }
        for page in (0..=last).step_by(PAGE) {
            memory.expect_word("stored before the fence", page, round);
        }
        job.wait().expect("the job");
    }
}

/// Who waits for a word that a batch stores is woken when the job is done, though it has no fence.
fn word_of_a_batch() {
    /// Long enough to tell a wait that was not woken from a machine that is slow.
    const TIMEOUT: Duration = Duration::from_secs(20);
    let gpu = Gpu::new();
    let memory = Map::shared(2 * PAGE);
    let word = memory.at(PAGE);
    let batch = write_batch(memory.part(0, PAGE), |c| _ = c.store(word, 1));
    let device = gpu.device().clone();
    let waiter = std::thread::spawn(move || {
        let start = Instant::now();
        let wait = Wait::equal(word, 1, Timeout::Relative(TIMEOUT));
        device.wait_user_fence(&wait).map(|_| start.elapsed())
    });
    // Let the other one sleep.
    std::thread::sleep(Duration::from_millis(300));
    // SAFETY: batch and word are the test's memory.
    unsafe { gpu.queue().submit(batch, None) }.expect("a job");
    let took = waiter.join().expect("the waiter").expect("the wait");
    assert!(took < TIMEOUT / 2, "woken after {took:?}");
}

/// A fence is 64 bits wide, and touches nothing else.
fn fence_value() {
    let gpu = Gpu::new();
    let memory = Map::anon(2 * PAGE);
    let batch = write_batch(memory.part(0, PAGE), |c| _ = c.noop());
    memory.part(PAGE, PAGE).fill(|_| u32::MAX);
    let value = 0x0123_4567_89ab_cdef;
    // SAFETY: batch and fence are the test's memory.
    unsafe { gpu.queue().submit(batch, Some(Fence { address: memory.at(PAGE + 8), value })) }
        .expect("a job");
    gpu.queue().wait(&Wait::equal(memory.at(PAGE + 8), value, PATIENCE)).expect("the fence");
    memory.part(PAGE, PAGE).expect("around the fence", |o| match o {
        8 => value as u32,
        12 => (value >> 32) as u32,
        _ => u32::MAX,
    });
}

/// The fence lies in memory that nothing has touched yet.
fn fence_first_touch() {
    let gpu = Gpu::new();
    let batch = Map::anon(PAGE);
    let batch = write_batch(batch, |c| _ = c.noop());
    let fence = Map::aligned(MIDDLE, MIDDLE);
    let address = fence.at(MIDDLE - 8);
    // SAFETY: batch and fence are the test's memory.
    unsafe { gpu.queue().submit(batch, Some(Fence { address, value: 3 })) }.expect("a job");
    gpu.queue().wait(&Wait::equal(address, 3, PATIENCE)).expect("the fence");
}

/// All comparisons, under several masks, against what Rust says.
fn wait_ops() {
    let gpu = Gpu::new();
    let memory = Map::anon(PAGE);
    let words = [0u64, 1, 0x7f, 0x80, 0xff00, 0x1_0000_0001, u64::MAX - 1, u64::MAX];
    let masks = [0xff, 0xffff, 0xffff_ffff, u64::MAX];
    type Comparison = (WaitOp, fn(&u64, &u64) -> bool);
    let ops: [Comparison; 6] = [
        (WaitOp::Eq, u64::eq),
        (WaitOp::Neq, u64::ne),
        (WaitOp::Gt, u64::gt),
        (WaitOp::Gte, u64::ge),
        (WaitOp::Lt, u64::lt),
        (WaitOp::Lte, u64::le),
    ];
    for word in words {
        memory.write(0, word as u32);
        memory.write(4, (word >> 32) as u32);
        for (value, mask) in words.iter().flat_map(|v| masks.map(|m| (*v, m))) {
            for (op, compare) in ops {
                let wait = Wait { op, mask, ..Wait::equal(memory.at(0), value, Timeout::ms(0)) };
                let expected = match compare(&(word & mask), &(value & mask)) {
                    true => Ok(()),
                    false => Err(libc::ETIME),
                };
                let result = gpu.device().wait_user_fence(&wait);
                assert_eq!(
                    result.map(|_| ()).map_err(|e| e.errno()),
                    expected,
                    "({word:#x} & {mask:#x}) {op:?} ({value:#x} & {mask:#x})"
                );
            }
        }
    }
}

/// Time-outs are neither much too short nor much too long.
fn wait_times_out() {
    let device = device();
    let memory = Map::anon(PAGE);
    let never = |timeout| device.wait_user_fence(&Wait::equal(memory.at(0), 1, timeout));
    let timed = |timeout| {
        let start = Instant::now();
        let result = never(timeout);
        assert_eq!(result.map_err(|e| e.errno()), Err(libc::ETIME), "{timeout:?}");
        start.elapsed()
    };
    let tick = Duration::from_millis(10);
    for ms in [0, 1, 50, 200] {
        let wanted = Duration::from_millis(ms);
        for absolute in [false, true] {
            let timeout = match absolute {
                true => Timeout::Absolute(monotonic_now() + wanted),
                false => Timeout::Relative(wanted),
            };
            let took = timed(timeout);
            assert!(took + tick >= wanted, "{timeout:?} took {took:?}");
            expect_prompt(&format!("{timeout:?}"), took, wanted + FAULT_DEADLINE);
        }
    }
    let past = timed(Timeout::Absolute(monotonic_now().saturating_sub(FAULT_DEADLINE)));
    expect_prompt("a time in the past", past, FAULT_DEADLINE);
}

/// What is left of a relative time-out is given back.
fn wait_gives_back_the_rest() {
    let gpu = Gpu::new();
    let memory = Map::anon(PAGE);
    let total = Duration::from_secs(30);
    let left = gpu
        .device()
        .wait_user_fence(&Wait::equal(memory.at(0), 0, Timeout::Relative(total)))
        .expect("true at once");
    assert!(left <= total && left > total / 2, "{left:?} left of {total:?}");
}

/// Those who wait long, or for ever, are woken by the GPU.
fn wait_is_woken() {
    let gpu = Gpu::new();
    let memory = Map::anon(2 * PAGE);
    let timeouts = [
        Timeout::Forever,
        Timeout::Relative(Duration::MAX),
        Timeout::Relative(Duration::from_secs(40)),
        Timeout::Absolute(monotonic_now() + Duration::from_secs(40)),
    ];
    for (round, timeout) in timeouts.into_iter().enumerate() {
        let batch = write_batch(memory.part(0, PAGE), |c| _ = c.noop());
        let (address, value) = (memory.at(PAGE), round as u64 + 1);
        std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..4)
                .map(|_| {
                    let device = gpu.device().clone();
                    scope.spawn(move || {
                        device.wait_user_fence(&Wait::equal(address, value, timeout)).map(|_| ())
                    })
                })
                .collect();
            // Give them the time to fall asleep: it is the wake-up that is tested.
            std::thread::sleep(Duration::from_millis(100));
            // SAFETY: batch and fence are the test's memory.
            unsafe { gpu.queue().submit(batch, Some(Fence { address, value })) }.expect("a job");
            let start = Instant::now();
            for waiter in waiters {
                assert_eq!(waiter.join().expect("a waiter"), Ok(()));
            }
            expect_prompt("the wake-up", start.elapsed(), 3 * FAULT_DEADLINE);
        });
    }
}

/// A bad address in each place where a command can have one.
fn invalid_address(bad: fn() -> u64) {
    let mut gpu = Gpu::new();
    let good = Map::anon(PAGE);
    good.fill(|o| o as u32);
    let bad = bad();
    gpu.expect_fault("a store", |c| _ = c.store(bad, 1));
    gpu.expect_fault("an increment", |c| _ = c.increment(bad));
    gpu.expect_fault("a copy from", |c| _ = c.copy(bad, good.at(0), 256));
    gpu.expect_fault("a copy to", |c| _ = c.copy(good.at(0), bad, 256));
    gpu.expect_batch_fault("a batch", bad);
    good.expect("the good memory", |o| o as u32);
}

fn hole() -> u64 {
    let room = Map::reserve(SZ_2M, SZ_2M);
    room.unmap();
    room.at(MIDDLE)
}

fn forbidden() -> u64 {
    Map::reserve(SZ_2M, SZ_2M).at(MIDDLE)
}

fn null() -> u64 {
    0
}

/// Above all addresses of a process, within the mirror.
fn above_the_process() -> u64 {
    0xffff_0000_0000
}

/// Beyond the 48 bits.
fn beyond_the_vm() -> u64 {
    0x0123_0000_0000_0000
}

/// Where the kernel lives, from the CPU's point of view.
fn kernel() -> u64 {
    0xffff_8880_0010_0000
}

/// A fence that cannot be written.
fn invalid_fence() {
    let mut gpu = Gpu::new();
    let memory = Map::anon(2 * PAGE);
    let batch = write_batch(memory.part(0, PAGE), |c| _ = c.store(memory.at(PAGE), 4));
    // SAFETY: the batch is the test's memory, and nothing is where the fence should be.
    unsafe { gpu.queue().submit(batch, Some(Fence { address: hole(), value: 1 })) }.expect("a job");
    let start = Instant::now();
    let wait = Wait::equal(memory.at(PAGE + 64), 1, PATIENCE);
    assert_eq!(gpu.queue().wait(&wait).map_err(|e| e.errno()), Err(libc::EIO));
    expect_prompt("-EIO", start.elapsed(), FAULT_DEADLINE);
    memory.expect_word("what the batch wrote", PAGE, 4);
    gpu.renew();
    gpu.store(memory.at(PAGE), 5);
}

/// The bad access is the last of a long batch: what was before it is done.
fn fault_in_the_middle() {
    let mut gpu = Gpu::new();
    let memory = Map::anon(MIDDLE);
    let bad = hole();
    gpu.expect_fault("a bad store among good ones", |c| {
        for i in 0..100 {
            c.store(memory.at(i * 4), i as u32 + 1);
        }
        c.store(bad, 1);
        for i in 100..200 {
            c.store(memory.at(i * 4), i as u32 + 1);
        }
    });
    memory.expect("up to the fault", |o| match o / 4 {
        i if i < 100 => i as u32 + 1,
        _ => 0,
    });
}

/// The jobs behind a failed one do not run.
fn jobs_after_a_ban() {
    let gpu = Gpu::new();
    let memory = Map::anon(2 * PAGE);
    let bad = hole();
    let jobs: Vec<_> = (0..20)
        .map_while(|i| {
            gpu.start(|c| {
                if i == 5 {
                    c.store(bad, 1);
                }
                c.increment(memory.at(0));
            })
            .map_err(|e| assert_eq!(e.errno(), libc::ECANCELED, "{e}"))
            .ok()
        })
        .collect();
    assert!(jobs.len() >= 6, "the bad job was not submitted");
    for (i, job) in jobs.into_iter().enumerate() {
        let expected = if i < 5 { Ok(()) } else { Err(libc::EIO) };
        assert_eq!(job.wait().map_err(|e| e.errno()), expected, "job {i}");
    }
    memory.expect_word("jobs run", 0, 5);
}

/// A batch that runs into nothing for lack of an end.
fn batch_without_end() {
    let mut gpu = Gpu::new();
    let room = Map::reserve(2 * PAGE, MIDDLE);
    let page = room.part(0, PAGE).replace_anon(vxe_uapi::RW);
    let result = Map::anon(PAGE);
    let mut commands = Commands::new();
    commands.store(result.at(0), 1);
    page.write_words(0, commands.dwords());
    gpu.expect_batch_fault("no end", page.at(0));
    result.expect_word("the command before", 0, 1);
    // A command that is cut off by the end of what is mapped.
    page.write_words(PAGE - 8, &commands.dwords()[..2]);
    gpu.expect_batch_fault("half a command", page.at(PAGE - 8));
}

/// What is no command is an error.
fn garbage() {
    let mut gpu = Gpu::new();
    for dword in [0xffff_ffff, 0xdead_beef, 0x0080_0000, 0x7000_0000, 0x1780_3f01] {
        gpu.expect_fault(&format!("command {dword:#x}"), |c| _ = c.raw(&[dword, 0, 0, 0]));
    }
}

/// The GPU's increments and the CPU's are one count.
fn atomics() {
    const EACH: u32 = 400;
    let gpu = Gpu::new();
    let memory = Map::anon(PAGE);
    let counter = memory.atomic(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let gpu = gpu.another();
            scope.spawn(move || {
                for _ in 0..EACH / 100 {
                    gpu.run(|c| {
                        for _ in 0..100 {
                            c.increment(memory.at(0)).decrement(memory.at(4));
                        }
                    });
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..EACH {
                    counter.fetch_add(1, Ordering::Relaxed);
                    std::thread::yield_now();
                }
            });
        }
    });
    memory.expect_word("increments", 0, 5 * EACH);
    memory.expect_word("decrements, below zero", 4, (3 * EACH).wrapping_neg());
}

/// Copies of many sizes, between blocks of 256 bytes anywhere in their pages.
fn copy_sizes() {
    let gpu = Gpu::new();
    let length = SZ_2M + MIDDLE;
    let (from, to) = (Map::aligned(length, SZ_2M), Map::aligned(length, SZ_2M));
    from.fill(|o| o as u32 ^ 0x55aa);
    for (source, target, size) in [
        (0, 0, 256),
        (256, 768, 256),
        (PAGE - 256, PAGE - 512, 512),
        (PAGE - 256, 0, PAGE),
        (512, 3 * PAGE + 256, MIDDLE),
        (MIDDLE - 256, 256, MIDDLE + 512),
        (256, MIDDLE - 256, SZ_2M),
    ] {
        to.fill(|_| 0);
        gpu.copy(from.part(source, size), to.part(target, size));
        to.expect(&format!("{size:#x} bytes"), |o| match (target..target + size).contains(&o) {
            true => (o - target + source) as u32 ^ 0x55aa,
            false => 0,
        });
    }
}

/// Queues on one VM are banned one by one.
fn bans_are_per_queue() {
    let (mut a, memory) = (Gpu::new(), Map::anon(PAGE));
    let b = a.another();
    let bad = hole();
    for i in 1..=5 {
        a.expect_fault("a store", |c| _ = c.store(bad, 1));
        b.increment(memory.at(0));
        memory.expect_word("the other queue", 0, i);
        assert_eq!(b.queue().is_banned(), Ok(false));
    }
}

/// Queues and VMs come and go in numbers.
fn many_queues() {
    let device = device();
    let vm = Vm::mirrored(&device).expect("a VM");
    let memory = Map::anon(PAGE);
    let queues: Vec<_> = (0..16).map(|_| Gpu::on_vm(&vm)).collect();
    for (i, gpu) in queues.iter().enumerate() {
        gpu.store(memory.at(i * 4), i as u32 + 1);
    }
    let vms: Vec<_> = (0..8).map(|_| Gpu::on_device(&device)).collect();
    for gpu in &vms {
        gpu.increment(memory.at(256));
    }
    drop(queues);
    for gpu in &vms {
        gpu.increment(memory.at(256));
    }
    memory.expect_word("VMs", 256, 16);
    (0..16).for_each(|i| memory.expect_word("queues", i * 4, i as u32 + 1));
}

/// A queue is destroyed with work in it: the work ends, and the VM is as good as before.
fn destroy_with_work() {
    let gpu = Gpu::new();
    let memory = Map::anon(MIDDLE);
    for round in 0..iterations(5) as usize {
        let counter = memory.at(round * 64);
        let queue = ExecQueue::new(gpu.vm()).expect("a queue");
        let batch = Map::anon(8 * PAGE);
        let address = write_batch(batch, |c| {
            for _ in 0..2000 {
                c.increment(counter);
            }
        });
        for _ in 0..50 {
            // SAFETY: batch and counter are the test's memory.
            unsafe { queue.submit(address, None) }.expect("a job");
        }
        drop(queue);
        gpu.store(memory.at(60 * 256), round as u32);
        // Some time later at most, nothing happens any more.
        std::thread::sleep(Duration::from_millis(100));
        let count = memory.read(round * 64);
        std::thread::sleep(Duration::from_millis(100));
        memory.expect_word("a destroyed queue works on", round * 64, count);
    }
}

/// Work without a fence runs as well.
fn without_fence() {
    let gpu = Gpu::new();
    let memory = Map::anon(2 * PAGE);
    let batch = write_batch(memory.part(0, PAGE), |c| _ = c.store(memory.at(PAGE), 6));
    // SAFETY: batch and target are the test's memory.
    unsafe { gpu.queue().submit(batch, None) }.expect("a job");
    let end = Instant::now() + 10 * FAULT_DEADLINE;
    while memory.read(PAGE) != 6 {
        assert!(Instant::now() < end, "the job does not run");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_exec", "Queues, batches, fences and the wait for them.");
    p.subtest("in-order", "jobs of a queue run in order", in_order);
    p.subtest("word-of-a-batch", "a job without a fence wakes who waits", word_of_a_batch);
    p.subtest("many-jobs", "16384 jobs are queued, or refused with -EAGAIN", many_jobs);
    p.subtest("without-fence", "work without a fence", without_fence);
    p.subtest("fence-after-batch", "the fence comes last", fence_after_batch);
    p.subtest("fence-value", "a fence is 64 bits", fence_value);
    p.subtest("fence-first-touch", "a fence in untouched memory", fence_first_touch);
    p.subtest("fence-invalid", "a fence that cannot be written", invalid_fence);
    p.subtest("wait-ops", "all comparisons and masks", wait_ops);
    p.subtest("wait-timeout", "relative and absolute time-outs", wait_times_out);
    p.subtest("wait-rest", "what is left of a time-out", wait_gives_back_the_rest);
    p.subtest("wait-woken", "those who wait are woken", wait_is_woken);
    type Bad = (&'static str, fn() -> u64);
    let bad: [Bad; 6] = [
        ("hole", hole),
        ("prot-none", forbidden),
        ("null", null),
        ("above-process", above_the_process),
        ("beyond-vm", beyond_the_vm),
        ("kernel", kernel),
    ];
    for (name, address) in bad {
        p.subtest(
            format!("invalid-address-{name}"),
            "-EIO within a second, a banned queue, a usable VM",
            move || invalid_address(address),
        );
    }
    p.subtest("fault-in-the-middle", "a bad command in a good batch", fault_in_the_middle);
    p.subtest("jobs-after-ban", "jobs behind a failed one do not run", jobs_after_a_ban);
    p.subtest("batch-without-end", "a batch runs into nothing", batch_without_end);
    p.subtest("garbage", "what is no command is an error", garbage);
    p.subtest("atomics", "the GPU's and the CPU's atomics agree", atomics);
    p.subtest("copy-sizes", "copies of many sizes", copy_sizes);
    p.subtest("bans-are-per-queue", "a ban hits one queue", bans_are_per_queue);
    p.subtest("many-queues", "many queues and VMs", many_queues);
    p.subtest("destroy-with-work", "a queue is destroyed with work in it", destroy_with_work);
    p.main()
}
