// SPDX-License-Identifier: GPL-2.0

//! The commands of the command streamer: jumps, conditions, semaphores, registers, flushes.

use crate::{
    encode::{gpr, Encode, Op, CTX_TIMESTAMP, RING_TIMESTAMP},
    spinner::Spinner,
};
use std::time::{Duration, Instant};
use vxe_client::{request, sys, Commands, Device, ExecQueue, Fence, Timeout, Wait};
use vxe_uapi::{
    gpu::{write_batch, PATIENCE},
    sysfs::Slot,
    time::promptly,
    Gpu, Map, PAGE,
};

/// How soon what does not wait for a job must be done.
const SOON: Duration = Duration::from_secs(2);

/// The ticks of the engine, from the query.
fn engine_cycles(device: &Device) -> u64 {
    let mut cycles = sys::drm_xe_query_engine_cycles {
        eci: sys::drm_xe_engine_class_instance {
            engine_class: sys::DRM_XE_ENGINE_CLASS_COPY as u16,
            ..Default::default()
        },
        clockid: libc::CLOCK_MONOTONIC,
        ..Default::default()
    };
    let mut query = sys::drm_xe_device_query {
        query: sys::DRM_XE_DEVICE_QUERY_ENGINE_CYCLES,
        size: size_of_val(&cycles) as u32,
        data: (&raw mut cycles) as u64,
        ..Default::default()
    };
    // SAFETY: the kernel writes a struct of that size.
    unsafe { device.call(&request::DEVICE_QUERY, &mut query) }.expect("the cycles");
    assert_eq!(cycles.width, 64);
    cycles.engine_cycles
}

fn read64(map: Map, offset: usize) -> u64 {
    u64::from(map.read(offset)) | (u64::from(map.read(offset + 4)) << 32)
}

/// A spinner runs until it is told to end, and says how long it has run.
pub fn spin() {
    let gpu = Gpu::new();
    let spinner = Spinner::new(None);
    spinner.submit(gpu.queue());
    spinner.started();
    std::thread::sleep(Duration::from_millis(200));
    let first = spinner.stamp();
    std::thread::sleep(Duration::from_millis(200));
    let second = spinner.stamp();
    assert!(second > first, "{first} and {second} ticks");
    assert!(!spinner.is_done());
    spinner.end();
    spinner.wait(gpu.queue());
    let stopped = spinner.stamp();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(spinner.stamp(), stopped, "it has ended");
    gpu.run(|c| _ = c.noop());
}

/// A spinner ends by itself when it has run for a time.
pub fn spin_for_a_time() {
    const TICKS: u32 = 19_200_000 / 5;
    let gpu = Gpu::new();
    let spinner = Spinner::new(Some(TICKS));
    let start = Instant::now();
    spinner.submit(gpu.queue());
    spinner.wait(gpu.queue());
    assert!(start.elapsed() >= Duration::from_millis(190), "{:?}", start.elapsed());
    assert!(spinner.stamp() >= TICKS / 2, "{} ticks", spinner.stamp());
}

/// Jobs without an end take turns with others, and are ended with their queue, at once.
pub fn endless_loops() {
    let gpu = Gpu::new();
    let memory = Map::shared(2 * PAGE);
    let batch = memory.at(0);
    memory.write_words(0, Commands::new().jump(batch).dwords());
    let queues: Vec<_> = (0..8).map(|_| ExecQueue::new(gpu.vm()).expect("a queue")).collect();
    for queue in &queues {
        // SAFETY: the batch is the test's memory.
        unsafe { queue.submit(batch, None) }.expect("a loop");
    }
    for i in 1..=10 {
        promptly("a job beside loops", SOON, || gpu.increment(memory.at(PAGE)));
        memory.expect_word("jobs", PAGE, i);
    }
    promptly("the end of the loops", SOON, || drop(queues));
    promptly("a job after the loops", SOON, || gpu.increment(memory.at(PAGE)));
}

/// A process with endless loops, waits and a full queue exits at once when it is killed.
pub fn killed_process() {
    let memory = Map::shared(2 * PAGE);
    // SAFETY: the child uses only what it makes itself, and does not return.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork");
    if child == 0 {
        let gpu = Gpu::new();
        let waiting = ExecQueue::new(gpu.vm()).expect("a queue");
        let looping = write_batch(memory.part(0, 256), |c| _ = c.jump(memory.at(0)));
        let wait = memory.at(PAGE);
        let waits = write_batch(memory.part(256, 256), |c| _ = c.wait(wait, Op::Equal, 7));
        for _ in 0..10 {
            // SAFETY: the batches are the test's memory.
            unsafe {
                gpu.queue().submit(looping, None).expect("a loop");
                waiting.submit(waits, None).expect("a wait");
            }
        }
        memory.write(PAGE + 64, 1);
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    let end = Instant::now() + Duration::from_secs(20);
    while memory.read(PAGE + 64) == 0 {
        assert!(Instant::now() < end, "the child does not start");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(100));
    promptly("the end of the process", SOON, || {
        let mut status = 0;
        // SAFETY: the child is this process's own.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
        }
    });
    let gpu = Gpu::new();
    promptly("a job afterwards", SOON, || gpu.increment(memory.at(PAGE + 128)));
}

/// A second level returns to the first, a jump does not; and IGT's loop with an atomic and a
/// condition.
pub fn jumps() {
    let gpu = Gpu::new();
    let memory = Map::anon(4 * PAGE);
    let data = memory.at(3 * PAGE);
    let second = write_batch(memory.part(PAGE, PAGE), |c| _ = c.increment(data + 4));
    let chained = write_batch(memory.part(2 * PAGE, PAGE), |c| _ = c.increment(data + 8));
    gpu.run(|c| {
        c.increment(data).call(second).increment(data).call(second).jump(chained);
        c.increment(data + 12);
    });
    for (offset, count) in [(0, 2), (4, 2), (8, 1), (12, 0)] {
        memory.expect_word("commands run", 3 * PAGE + offset, count);
    }

    let again = memory.at(0);
    let mut c = Commands::new();
    c.increment(data + 16).mem_fence().end_unless(data + 16, Op::NotEqual, 25).jump(again);
    memory.write_words(0, c.dwords());
    gpu.submit_and_wait(again).expect("the loop");
    memory.expect_word("rounds", 3 * PAGE + 16, 25);
}

/// Lists of dwords and qwords, also where nothing was touched yet.
pub fn stores() {
    let gpu = Gpu::new();
    let memory = Map::anon(2 * PAGE);
    let values: Vec<u32> = (100..150).collect();
    gpu.run(|c| {
        c.store_dwords(memory.at(PAGE - 100), &values).store_qword(memory.at(0), u64::MAX - 1);
    });
    for (i, value) in values.iter().enumerate() {
        memory.expect_word("the list", PAGE - 100 + i * 4, *value);
    }
    assert_eq!(read64(memory, 0), u64::MAX - 1);
}

/// What MI_FLUSH_DW stores.
pub fn flush() {
    let gpu = Gpu::new();
    let memory = Map::anon(PAGE);
    memory.fill(|_| 0x5a5a_5a5a);
    gpu.run(|c| {
        c.flush_dword(memory.at(0), 1).flush_qword(memory.at(8), (2 << 32) | 3);
        // As intel_bb, without a store.
        c.raw(&[0x1300_0002, 0, 0, 0]);
    });
    memory.expect("the page", |offset| match offset {
        0 => 1,
        8 => 3,
        12 => 2,
        _ => 0x5a5a_5a5a,
    });
}

/// All ways to get the time agree, and the time goes on.
pub fn timestamps() {
    let gpu = Gpu::new();
    let memory = Map::anon(PAGE);
    let mut last = engine_cycles(gpu.device());
    for _ in 0..20 {
        gpu.run(|c| {
            c.flush_timestamp(memory.at(0));
            c.store_register(memory.at(8), RING_TIMESTAMP);
            c.store_register(memory.at(12), RING_TIMESTAMP + 4);
            c.store_register(memory.at(16), CTX_TIMESTAMP);
            c.flush_timestamp(memory.at(24));
        });
        let query = engine_cycles(gpu.device());
        let stamps = [last, read64(memory, 0), read64(memory, 8), read64(memory, 24), query];
        assert!(stamps.is_sorted(), "{stamps:?}");
        assert!(query > last, "{query} after {last}");
        last = query;
    }
    // 19.2 MHz.
    let start = Instant::now();
    let first = engine_cycles(gpu.device());
    std::thread::sleep(Duration::from_millis(300));
    let ticks = engine_cycles(gpu.device()) - first;
    let expected = start.elapsed().as_nanos() as u64 * 12 / 625;
    assert!((5_700_000..=expected).contains(&ticks), "{ticks} ticks, at most {expected}");
}

/// Registers keep their values from job to job, and each queue has its own.
pub fn registers() {
    let gpu = Gpu::new();
    let other = gpu.another();
    let memory = Map::anon(PAGE);
    memory.write(64, 77);
    gpu.run(|c| {
        c.load_immediate(gpr(3), 5).load_immediate(gpr(15) + 4, 6);
        c.load_memory(gpr(4), memory.at(64));
    });
    other.run(|c| _ = c.load_immediate(gpr(3), 9));
    gpu.run(|c| {
        c.load_register(gpr(5), gpr(3)).subtract_inverted(6, 4, 5);
        for (offset, register) in [(0, gpr(3)), (4, gpr(15) + 4), (8, gpr(4)), (12, gpr(6))] {
            c.store_register(memory.at(offset), register);
        }
    });
    for (offset, value) in [(0, 5), (4, 6), (8, 77), (12, !72)] {
        memory.expect_word("a register", offset, value);
    }
    other.run(|c| _ = c.store_register(memory.at(16), gpr(3)));
    memory.expect_word("of the other queue", 16, 9);
}

/// A wait lets other queues run, and ends when the word has the value: from the CPU or a job.
pub fn semaphores() {
    let gpu = Gpu::new();
    let memory = Map::shared(2 * PAGE);
    let queues: Vec<_> = (0..40).map(|_| ExecQueue::new(gpu.vm()).expect("a queue")).collect();
    let word = memory.at(PAGE);
    let fence = |i: usize| Fence { address: memory.at(PAGE + 256 + i * 8), value: 1 };
    let batch = write_batch(memory.part(0, PAGE), |c| {
        c.wait(word, Op::GreaterOrEqual, 5).increment(memory.at(PAGE + 8));
    });
    for (i, queue) in queues.iter().enumerate() {
        // SAFETY: batch and fence are the test's memory.
        unsafe { queue.submit(batch, Some(fence(i))) }.expect("a wait");
    }
    for i in 1..=4 {
        promptly("a job beside waits", SOON, || gpu.store(word, i));
        std::thread::sleep(Duration::from_millis(20));
        memory.expect_word("a wait ended too soon", PAGE + 8, 0);
    }
    gpu.store(word, 5);
    for (i, queue) in queues.iter().enumerate() {
        let wait = Wait::equal(fence(i).address, 1, PATIENCE);
        queue.wait(&wait).expect("the end of a wait");
    }
    memory.expect_word("waits", PAGE + 8, 40);

    // By the CPU.
    memory.write(PAGE, 0);
    let job = gpu.start(|c| _ = c.wait(word, Op::Equal, 9)).expect("a job");
    std::thread::sleep(Duration::from_millis(50));
    assert!(!job.is_done());
    memory.write(PAGE, 9);
    job.wait().expect("the end of a wait");
}

/// A queue that waits is destroyed at once, and so is a VM.
pub fn semaphores_in_vain() {
    let gpu = Gpu::new();
    let memory = Map::shared(2 * PAGE);
    let word = memory.at(PAGE);
    let batch = write_batch(memory.part(0, PAGE), |c| _ = c.wait(word, Op::Equal, 1));
    for _ in 0..20 {
        let queue = ExecQueue::new(gpu.vm()).expect("a queue");
        // SAFETY: the batch is the test's memory.
        unsafe { queue.submit(batch, None) }.expect("a wait");
        std::thread::sleep(Duration::from_millis(5));
        promptly("destroying a queue that waits", SOON, || drop(queue));
    }
    gpu.increment(memory.at(PAGE + 64));

    let doomed = Gpu::new();
    // SAFETY: the batch is the test's memory.
    unsafe { doomed.queue().submit(batch, None) }.expect("a wait");
    std::thread::sleep(Duration::from_millis(20));
    promptly("destroying its VM", SOON, || doomed.vm().destroy()).expect("VM_DESTROY");
    let end = Instant::now() + SOON;
    while !doomed.queue().is_banned().expect("the property") {
        assert!(Instant::now() < end, "the queue of a destroyed VM lives");
        std::thread::sleep(Duration::from_millis(1));
    }
    // The word is not mapped any more: the wait must not access it.
    memory.unmap();
    std::thread::sleep(Duration::from_millis(50));
}

/// The device is unbound at once while jobs loop and wait; they end, and it works when it is bound
/// again.
pub fn unbind() {
    let slot = Slot::first();
    let gpu = Gpu::new();
    let memory = Map::shared(2 * PAGE);
    let (first, word) = (memory.at(0), memory.at(PAGE));
    memory.write_words(0, Commands::new().jump(first).dwords());
    let waiting = write_batch(memory.part(256, 256), |c| _ = c.wait(word, Op::Equal, 1));
    let queues: Vec<_> = (0..6).map(|_| ExecQueue::new(gpu.vm()).expect("a queue")).collect();
    for (i, queue) in queues.iter().enumerate() {
        // SAFETY: the batches are the test's memory.
        unsafe { queue.submit(if i % 2 == 0 { first } else { waiting }, None) }.expect("a job");
    }
    std::thread::sleep(Duration::from_millis(100));
    promptly("unbinding the device", 5 * SOON, || slot.unbind());
    // The jobs access nothing any more.
    memory.unmap();
    slot.bind();
    let memory = Map::anon(PAGE);
    let again = Gpu::new();
    let job = again.start(|c| _ = c.wait(memory.at(0), Op::Equal, 1).increment(memory.at(4)));
    let job = job.expect("a job");
    memory.write(0, 1);
    job.wait().expect("a wait on the device that was bound again");
    memory.expect_word("the job", 4, 1);
}

/// A wait on a word that cannot be read fails the job.
pub fn semaphore_fault() {
    let mut gpu = Gpu::new();
    let hole = Map::reserve(PAGE, PAGE).at(0);
    gpu.expect_fault("a wait on nothing", |c| _ = c.wait(hole, Op::Equal, 1));
    gpu.expect_fault("a condition on nothing", |c| _ = c.end_unless(hole, Op::Equal, 1));
    gpu.expect_fault("a time-stamp to nothing", |c| _ = c.flush_timestamp(hole));
    gpu.expect_fault("a jump to nothing", |c| _ = c.jump(hole));
}

/// MI_USER_INTERRUPT wakes who waits for a word, while the job goes on.
pub fn interrupt() {
    /// Long enough to tell a wait that was not woken from a machine that is slow.
    const TIMEOUT: Duration = Duration::from_secs(20);
    let gpu = Gpu::new();
    let memory = Map::shared(PAGE);
    let (word, stop) = (memory.at(0), memory.at(64));
    let device = gpu.device().clone();
    let waiter = std::thread::spawn(move || {
        let start = Instant::now();
        let wait = Wait::equal(word, 1, Timeout::Relative(TIMEOUT));
        device.wait_user_fence(&wait).map(|_| start.elapsed())
    });
    // Let the other one sleep.
    std::thread::sleep(Duration::from_millis(300));
    let job = gpu.start(|c| _ = c.store(word, 1).interrupt().wait(stop, Op::Equal, 1));
    let job = job.expect("a job");
    let took = waiter.join().expect("the waiter").expect("the wait");
    assert!(took < TIMEOUT / 2, "woken after {took:?}");
    assert!(!job.is_done());
    memory.write(64, 1);
    job.wait().expect("the job");
}

/// A job that interrupts all the time extends no time-out.
pub fn interrupts() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    let gpu = Gpu::new();
    let memory = Map::shared(PAGE);
    let mut c = Commands::new();
    c.store(memory.at(PAGE - 8), 1);
    let again = memory.at(c.dwords().len() * 4);
    c.interrupt().jump(again);
    memory.write_words(0, c.dwords());
    // SAFETY: the job only writes the test's memory, which stays.
    unsafe { gpu.queue().submit(memory.at(0), None) }.expect("a job");
    while memory.read(PAGE - 8) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..3 {
        let start = Instant::now();
        let wait = Wait::equal(memory.at(PAGE - 16), 1, Timeout::Relative(TIMEOUT));
        let waited = gpu.device().wait_user_fence(&wait);
        assert_eq!(waited.map_err(|e| e.errno()), Err(libc::ETIME));
        let took = start.elapsed();
        assert!(took >= TIMEOUT && took < TIMEOUT + SOON, "{took:?} instead of {TIMEOUT:?}");
    }
}

/// What the engine does not have bans the queue.
pub fn refused() {
    let mut gpu = Gpu::new();
    let at = Map::anon(PAGE).at(0);
    let (low, high) = (at as u32, (at >> 32) as u32);
    let commands: &[(&str, &[u32])] = &[
        ("a store to the global GTT", &[0x1040_0002, low, high, 1]),
        ("a register that there is not", &[0x1208_0002, 0x200, low, high]),
        ("a write of a time-stamp", &[0x1108_0001, CTX_TIMESTAMP, 0]),
        ("an ALU instruction that there is not", &[0x0d00_0001, 0, 0x1080_0000]),
        ("a wait for a signal", &[0x0e00_4003, 1, low, high, 0]),
        ("MI_ARB_ON_OFF", &[0x0400_0000]),
        ("PIPE_CONTROL", &[0x7a00_0004, 0, 0, 0, 0, 0]),
        ("XY_COLOR_BLT", &[0x5400_0005, 0, 0, 0, low, high, 0]),
        ("XY_CTRL_SURF_COPY_BLT", &[0x5200_0003, low, high, low, high]),
        (
            "a tiled copy",
            &[0x5090_0008, 0x0300_0040, 0, (1 << 16) | 1, low, high, 0, 64, low, high],
        ),
        (
            "a rectangle with negative coordinates",
            &[0x5080_0008, 0x0300_0040, 0xffff, (1 << 16) | 1, low, high, 0, 64, low, high],
        ),
    ];
    for (what, command) in commands {
        gpu.expect_fault(what, |c| _ = c.raw(command));
    }
}
