// SPDX-License-Identifier: GPL-2.0

//! Processes: several of them, those that fork, exec, close and die at any moment, and those that
//! get a device from another.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};
use vxe_client::{
    request, stats::debugfs_directory, sys, Bind, Bo, Device, ExecQueue, Fence, Timeout, Vm, Wait,
};
use vxe_uapi::{
    contents::pattern,
    env::iterations,
    gpu::{device, write_batch, PATIENCE},
    process::{fork, Link},
    skip,
    vram::soon,
    Gpu, Map, Program, MIDDLE, PAGE, SZ_2M,
};

/// When set, the program is what `exec-keeps-fd` has executed, with the device at this descriptor.
const HELPER: &str = "VXE_EXEC_HELPER_FD";

/// Starts jobs that count in a word for as long as a test takes to interfere.
fn start_counting(gpu: &Gpu, counter: u64) {
    for _ in 0..30 {
        let job = gpu.start(|c| {
            for _ in 0..1000 {
                c.increment(counter);
            }
        });
        job.map(drop).expect("a job");
    }
}

/// Some time after what should have ended the jobs, nothing counts any more.
#[track_caller]
fn expect_silence(memory: Map, what: &str) {
    std::thread::sleep(Duration::from_millis(300));
    let before = memory.read(0);
    std::thread::sleep(Duration::from_millis(200));
    memory.expect_word(what, 0, before);
}

/// Waits until the GPU has begun.
#[track_caller]
fn await_begin(memory: Map) {
    for _ in 0..5000 {
        if memory.read(0) > 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the GPU does not begin");
}

/// Two processes, one address, two memories.
fn two_processes() {
    let map = Map::aligned(MIDDLE, MIDDLE);
    let body = move |mark: u32| {
        move |link: &Link| {
            let gpu = Gpu::new();
            map.fill(|o| pattern(o) ^ mark);
            link.send(0);
            link.receive();
            for page in (0..MIDDLE).step_by(PAGE) {
                gpu.store(map.at(page), mark);
            }
            link.send(0);
            link.receive();
            let to = Map::anon(MIDDLE);
            gpu.copy(map, to);
            to.expect("its own", |o| if o % PAGE == 0 { mark } else { pattern(o) ^ mark });
        }
    };
    let children = [fork(body(0x1111)), fork(body(0x2222))];
    for _ in 0..2 {
        children.iter().for_each(|c| _ = c.link().receive());
        children.iter().for_each(|c| c.link().send(0));
    }
    children.into_iter().for_each(|c| c.expect_success());
}

/// Many processes at once.
fn many_processes() {
    let shared = Map::shared(PAGE);
    let children: Vec<_> = (0..8u32)
        .map(|i| {
            fork(move |_| {
                let gpu = Gpu::new();
                for round in 0..4u32 {
                    let map = Map::anon(MIDDLE);
                    gpu.run(|c| {
                        for page in (0..MIDDLE).step_by(PAGE) {
                            c.store(map.at(page), (i << 8) | round);
                        }
                        c.increment(shared.at(0));
                    });
                    map.expect("its own", |o| if o % PAGE == 0 { (i << 8) | round } else { 0 });
                    map.unmap();
                }
            })
        })
        .collect();
    children.into_iter().for_each(|c| c.expect_success());
    shared.expect_word("all counted in shared memory", 0, 8 * 4);
}

/// The parent forks and goes on; so does the child, with a VM of its own on the parent's file.
fn fork_with_own_vms() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    map.fill(pattern);
    gpu.increment(map.at(0));
    let child = fork(|link| {
        // The same open file, another memory.
        let own = Gpu::on_device(gpu.device());
        for _ in 0..20 {
            own.increment(map.at(4));
        }
        map.expect("the child's copy", |o| match o {
            0 => pattern(0).wrapping_add(1),
            4 => pattern(4).wrapping_add(20),
            _ => pattern(o),
        });
        link.send(0);
    });
    for _ in 0..20 {
        gpu.increment(map.at(8));
    }
    child.link().receive();
    child.expect_success();
    map.expect("the parent's copy", |o| match o {
        0 => pattern(0).wrapping_add(1),
        8 => pattern(8).wrapping_add(20),
        _ => pattern(o),
    });
}

/// The child submits to the parent's VM, whose addresses are the parent's: the child's own memory
/// is not for that VM to touch. The parent's may be, for the file was shared by choice.
fn fork_uses_parents_vm() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    map.fill(pattern);
    gpu.increment(map.at(0));
    // Batch and fence are where both can see them.
    let shared = Map::shared(PAGE);
    write_batch(shared, |c| _ = c.store(map.at(0), 0x600d));
    let child = fork(|link| {
        let fence = Fence { address: shared.at(512), value: 1 };
        // SAFETY: batch and fence are the test's memory, and so is the target.
        let result = unsafe { gpu.queue().submit(shared.at(0), Some(fence)) }
            .and_then(|()| gpu.queue().wait(&Wait::equal(fence.address, 1, PATIENCE)));
        map.expect("the child's copy", |o| pattern(o).wrapping_add(u32::from(o == 0)));
        link.send(u64::from(result.is_ok()));
    });
    let accepted = child.link().receive() == 1;
    child.expect_success();
    map.expect("the parent's memory", |o| match o {
        0 if accepted => 0x600d,
        0 => pattern(0).wrapping_add(1),
        _ => pattern(o),
    });
}

/// The parent is gone: its VM has no memory any more, and using it is an error.
fn parent_gone() {
    let (ours, theirs) = Link::pair();
    let shared = Map::shared(PAGE);
    let parent = fork(|_| {
        let gpu = Gpu::new();
        let map = Map::anon(PAGE);
        gpu.increment(map.at(0));
        let orphan = fork(|_| {
            // Told when the parent is no more.
            theirs.receive();
            let result = gpu.try_run(|c| _ = c.increment(map.at(0)));
            result.expect_err("a job on the memory of a process that is gone");
            map.expect_word("the orphan's copy", 0, 1);
            // The file is still good for a VM of one's own.
            let own = Gpu::on_device(gpu.device());
            own.increment(map.at(0));
            map.expect_word("the orphan's copy", 0, 2);
            own.increment(shared.at(0));
            theirs.send(1);
        });
        std::mem::forget(orphan);
        std::mem::forget(gpu);
    });
    parent.expect_success();
    ours.send(0);
    assert_eq!(ours.receive(), 1, "the orphan");
    shared.expect_word("counted by the orphan", 0, 1);
}

/// The file is closed while the GPU works.
fn close_in_flight() {
    for _ in 0..iterations(2) {
        let memory = Map::anon(MIDDLE);
        let gpu = Gpu::new();
        let bo = Bo::system(gpu.device(), MIDDLE).expect("a buffer");
        start_counting(&gpu, memory.at(0));
        await_begin(memory);
        // SAFETY: no other thread uses the device, and the jobs touch only `memory`.
        unsafe { gpu.device().close() };
        expect_silence(memory, "counted after the file was closed");
        drop((bo, gpu));
    }
    let gpu = Gpu::new();
    let memory = Map::anon(PAGE);
    gpu.increment(memory.at(0));
    memory.expect_word("a new file", 0, 1);
}

/// The file is closed while somebody waits on it.
fn close_while_waiting() {
    let device = device();
    let memory = Map::anon(PAGE);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let timeout = Timeout::ms(1500);
            device.wait_user_fence(&Wait::equal(memory.at(0), 1, timeout))
        });
        std::thread::sleep(Duration::from_millis(300));
        // SAFETY: the only other thread is in its call by now, and no jobs run.
        unsafe { device.close() };
        let result = waiter.join().expect("the waiter");
        result.expect_err("nothing came true");
    });
}

/// A process is killed while its GPU works.
fn kill_in_flight() {
    for round in 0..iterations(3) {
        let shared = Map::shared(MIDDLE);
        let child = fork(|link| {
            let gpu = Gpu::new();
            let own = Map::anon(MIDDLE);
            own.fill(pattern);
            start_counting(&gpu, shared.at(0));
            link.send(0);
            loop {
                // Faults on new memory, too.
                let map = Map::anon(MIDDLE);
                gpu.store(map.at(PAGE), 1);
                map.unmap();
            }
        });
        child.link().receive();
        await_begin(shared);
        std::thread::sleep(Duration::from_millis(u64::from(round) * 3));
        child.kill();
        expect_silence(shared, "counted after the process was killed");
    }
    let gpu = Gpu::new();
    let memory = Map::anon(PAGE);
    gpu.increment(memory.at(0));
    memory.expect_word("somebody else's GPU", 0, 1);
}

/// Processes exit at once, with everything open and in use.
fn exit_in_flight() {
    for _ in 0..iterations(5) {
        fork(|_| {
            let gpu = Gpu::new();
            let memory = Map::anon(MIDDLE);
            let bo = Bo::system(gpu.device(), MIDDLE).expect("a buffer");
            let place = Map::reserve(MIDDLE, MIDDLE);
            gpu.vm().bind(&[Bind::bo(&bo, 0, place.at(0), MIDDLE as u64)]).expect("bind");
            start_counting(&gpu, memory.at(0));
            start_counting(&gpu, place.at(0));
            std::mem::forget((gpu, bo));
        })
        .expect_success();
    }
}

/// Another program comes in the process's place while the GPU works.
fn exec_in_flight() {
    let shared = Map::shared(MIDDLE);
    for _ in 0..iterations(2) {
        shared.write(0, 0);
        let child = fork(|_| {
            let gpu = Gpu::new();
            start_counting(&gpu, shared.at(0));
            await_begin(shared);
            let e = exec(&["--help-description"], None);
            panic!("exec: {e}");
        });
        child.expect_success();
        expect_silence(shared, "counted after exec");
    }
}

/// The only thread of a process ends by itself (exit(2), and not exit_group(2), which the C library calls),
/// with a buffer mapped and a job under way: the process ends, and its VM with it.
fn exit_of_the_thread() {
    let child = fork(|link| {
        let gpu = Gpu::new();
        let map = Map::aligned(SZ_2M, SZ_2M);
        map.fill(pattern);
        gpu.increment(map.at(0));
        let bo = Bo::system(gpu.device(), PAGE).expect("a buffer");
        let mapping = bo.map().expect("its memory");
        start_counting(&gpu, map.at(0));
        link.send(0);
        std::mem::forget((mapping, bo));
        // SAFETY: the thread ends here, without running any destructor.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    child.link().receive();
    let line = format!("vm of process {}", child.pid());
    assert_eq!(child.wait(), 0, "its end");
    let path = debugfs_directory(&device()).unwrap_or_else(|e| skip!("{e}")).join("vms");
    let vms = || std::fs::read_to_string(&path).unwrap_or_else(|e| skip!("{path:?}: {e}"));
    soon("its VM is gone", || !vms().lines().any(|other| other == line));
}

/// A process with one thread still has one when its GPU has worked for it: only such a one may go to
/// another namespace of users.
fn namespaces() {
    // SAFETY: the call takes no pointers.
    let unshare = || match unsafe { libc::unshare(libc::CLONE_NEWUSER) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    let work = || {
        let gpu = Gpu::new();
        let map = Map::aligned(SZ_2M, SZ_2M);
        map.fill(pattern);
        gpu.increment(map.at(0));
        let threads = std::fs::read_dir("/proc/self/task").expect("the threads").count();
        assert_eq!(threads, 1, "threads of a process that has one");
        gpu
    };
    let other = fork(|link| {
        unshare().expect("unshare");
        link.send(0);
        link.receive();
    });
    if other.link().try_receive().is_err() {
        skip!("no namespaces of users");
    }
    fork(|_| {
        let _gpu = work();
        unshare().expect("unshare");
    })
    .expect_success();
    let path = format!("/proc/{}/ns/user", other.pid());
    fork(|_| {
        let _gpu = work();
        let namespace = std::fs::File::open(&path).expect("the namespace");
        // SAFETY: the descriptor is open.
        let done = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWUSER) };
        assert_eq!(done, 0, "setns: {}", io::Error::last_os_error());
    })
    .expect_success();
    other.link().send(0);
    other.expect_success();
}

/// Executes this program, in place of what runs; returns only if it fails.
fn exec(arguments: &[&str], fd: Option<RawFd>) -> io::Error {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments).stdout(Stdio::null());
    if let Some(fd) = fd {
        command.env(HELPER, fd.to_string());
    }
    command.exec()
}

/// The file survives exec, the memory that its VM mirrored does not.
fn exec_keeps_fd() {
    let child = fork(|_| {
        let gpu = Gpu::new();
        let memory = Map::anon(PAGE);
        start_counting(&gpu, memory.at(0));
        await_begin(memory);
        // SAFETY: the descriptor is open; only its flag changes.
        unsafe { libc::fcntl(gpu.device().as_raw_fd(), libc::F_SETFD, 0) };
        let ids = format!("{}:{}:{:#x}", gpu.vm().id(), gpu.queue().id(), memory.at(0));
        let e = exec(&[&ids], Some(gpu.device().as_raw_fd()));
        panic!("exec: {e}");
    });
    child.expect_success();
}

/// What `exec_keeps_fd` executes: the device is open, VM and queue exist, the memory is another's.
fn exec_helper(fd: &str) {
    let fd: RawFd = fd.parse().expect("a descriptor");
    // SAFETY: the descriptor was left open for us.
    let device = Device::from_fd(unsafe { OwnedFd::from_raw_fd(fd) });
    assert_eq!(device.driver_name().as_deref(), Ok("xe"));
    let ids = std::env::args().nth(1).expect("the old VM and queue");
    let mut ids = ids.split(':');
    let vm: u32 = ids.next().and_then(|id| id.parse().ok()).expect("the VM");
    let queue: u32 = ids.next().and_then(|id| id.parse().ok()).expect("the queue");

    let gpu = Gpu::on_device(&device);
    assert_ne!((gpu.vm().id(), gpu.queue().id()), (vm, queue));
    let memory = Map::anon(2 * PAGE);
    gpu.increment(memory.at(0));
    memory.expect_word("a new VM", 0, 1);

    // The old queue: its batches, and what they touch, are gone with the memory.
    write_batch(memory.part(PAGE, PAGE), |c| _ = c.store(memory.at(4), 0xbad));
    let fence = Fence { address: memory.at(8), value: 1 }.to_sync();
    let mut exec = sys::drm_xe_exec {
        exec_queue_id: queue,
        num_syncs: 1,
        syncs: &raw const fence as u64,
        address: memory.at(PAGE),
        num_batch_buffer: 1,
        ..Default::default()
    };
    // SAFETY: batch and fence are the test's memory.
    if let Ok(()) = unsafe { device.call(&request::EXEC, &mut exec) } {
        let wait = Wait { queue, ..Wait::equal(memory.at(8), 1, PATIENCE) };
        device.wait_user_fence(&wait).expect_err("a job on memory that is gone");
    }
    memory.part(4, 8).expect("this program's memory", |_| 0);
    gpu.increment(memory.at(0));
    memory.expect_word("the new VM", 0, 2);
}

/// A device is passed to a process that never had anything to do with it.
fn passed_fd() {
    let map = Map::aligned(MIDDLE, MIDDLE);
    map.fill(pattern);
    let receiver = fork(|link| {
        let device = Device::from_fd(receive_fd(link));
        let gpu = Gpu::on_device(&device);
        gpu.increment(map.at(0));
        map.expect("the receiver's memory", |o| pattern(o).wrapping_add(u32::from(o == 0)));
        // By number, what the sender made is on this file as well; see `fork_uses_parents_vm`.
        let queue = link.receive() as u32;
        assert_ne!(queue, gpu.queue().id());
        let mut banned = sys::drm_xe_exec_queue_get_property {
            exec_queue_id: queue,
            property: sys::DRM_XE_EXEC_QUEUE_GET_PROPERTY_BAN,
            ..Default::default()
        };
        // SAFETY: the call fills in its argument.
        unsafe { device.call(&request::EXEC_QUEUE_GET_PROPERTY, &mut banned) }
            .expect("the sender's queue");
        drop(gpu);
        // The receiver's VM goes, the sender's file stays.
        link.send(0);
    });
    let gpu = Gpu::new();
    gpu.increment(map.at(4));
    send_fd(receiver.link(), gpu.device().as_raw_fd());
    receiver.link().send(gpu.queue().id().into());
    receiver.link().receive();
    receiver.expect_success();
    gpu.increment(map.at(4));
    map.expect("the sender's memory", |o| pattern(o).wrapping_add(2 * u32::from(o == 4)));
}

/// Room for one control message with one descriptor, aligned as its header.
type Control = [u64; 8];

fn message(control: &mut Control, data: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: zeroes are a message header.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = data;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    // SAFETY: only computes.
    header.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as usize;
    header
}

#[track_caller]
fn send_fd(link: &Link, fd: RawFd) {
    let (mut byte, mut control) = (0u8, Control::default());
    let mut data = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let header = message(&mut control, &mut data);
    // SAFETY: the control buffer has room for a message of one descriptor; all of it lives through
    // the call.
    let sent = unsafe {
        let first = libc::CMSG_FIRSTHDR(&header);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize;
        libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(fd);
        libc::sendmsg(link.socket().as_raw_fd(), &header, 0)
    };
    assert_eq!(sent, 1, "sendmsg: {}", io::Error::last_os_error());
}

#[track_caller]
fn receive_fd(link: &Link) -> OwnedFd {
    let (mut byte, mut control) = (0u8, Control::default());
    let mut data = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut header = message(&mut control, &mut data);
    // SAFETY: the buffers have the lengths that the header says; the descriptor that arrives is
    // new and nobody else's.
    unsafe {
        let received = libc::recvmsg(link.socket().as_raw_fd(), &mut header, 0);
        assert_eq!(received, 1, "recvmsg: {}", io::Error::last_os_error());
        let first = libc::CMSG_FIRSTHDR(&header);
        assert!(!first.is_null() && (*first).cmsg_type == libc::SCM_RIGHTS, "no descriptor");
        OwnedFd::from_raw_fd(libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned())
    }
}

/// The GPU works on while the process forks children that touch everything and exit.
fn fork_often() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    let rounds = iterations(10);
    for round in 1..=rounds {
        gpu.run(|c| {
            for page in (0..MIDDLE).step_by(PAGE) {
                c.increment(map.at(page));
            }
        });
        let child = fork(|_| map.fill(|_| 0xdead_dead));
        gpu.run(|c| {
            for page in (0..MIDDLE).step_by(PAGE) {
                c.increment(map.at(page));
            }
        });
        child.expect_success();
        map.expect("the parent's", |o| if o % PAGE == 0 { 2 * round } else { 0 });
    }
}

/// VMs and queues that nobody destroyed go with the file, one open file after the other.
fn open_and_close() {
    let memory = Map::anon(PAGE);
    let rounds = iterations(12);
    for _ in 0..rounds {
        let device = device();
        let vm = Vm::mirrored(&device).expect("a VM");
        let queue = ExecQueue::new(&vm).expect("a queue");
        let gpu = Gpu::on_vm(&vm);
        gpu.increment(memory.at(0));
        // SAFETY: nothing runs, and no other thread is there.
        unsafe { device.close() };
        drop((gpu, queue, vm));
    }
    memory.expect_word("counted", 0, rounds);
}

fn main() -> ExitCode {
    if let Ok(fd) = std::env::var(HELPER) {
        exec_helper(&fd);
        return ExitCode::SUCCESS;
    }
    let mut p = Program::new(
        "vxe_svm_process",
        "Processes that share, fork, exec, close and die at any moment.",
    );
    p.subtest("two-processes", "two processes at one address", two_processes);
    p.subtest("many-processes", "many processes at once", many_processes);
    p.subtest("fork-own-vms", "parent and child each with a VM", fork_with_own_vms);
    p.subtest("fork-parents-vm", "the child uses the parent's VM", fork_uses_parents_vm);
    p.subtest("fork-often", "children that write everything and exit", fork_often);
    p.subtest("parent-gone", "the process behind a VM is gone", parent_gone);
    p.subtest("close-in-flight", "the file is closed in flight", close_in_flight);
    p.subtest("close-while-waiting", "the file is closed under a waiter", close_while_waiting);
    p.subtest("kill-in-flight", "the process is killed in flight", kill_in_flight);
    p.subtest("exit-in-flight", "the process exits in flight", exit_in_flight);
    p.subtest("exit-thread", "the only thread exits", exit_of_the_thread);
    p.subtest("namespaces", "the process goes to another namespace", namespaces);
    p.subtest("exec-in-flight", "the process execs in flight", exec_in_flight);
    p.subtest("exec-keeps-fd", "the file survives exec", exec_keeps_fd);
    p.subtest("passed-fd", "the file is passed to another process", passed_fd);
    p.subtest("open-and-close", "files come and go with all they have", open_and_close);
    p.main()
}
