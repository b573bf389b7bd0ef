// SPDX-License-Identifier: GPL-2.0

//! Makes a call: system calls by their names, and those that are no system call.

use crate::{
    arena,
    execute::{Execution, Outcome},
    guard,
    program::Arg,
    regions,
};
use std::{
    ffi::CStr,
    fs,
    io::{Read, Write},
    os::fd::RawFd,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

/// Bytes of a file that are read at most.
const MAX_READ: usize = 1 << 20;

/// The number of a system call.
fn number(name: &str) -> Option<libc::c_long> {
    Some(match name {
        "ioctl" => libc::SYS_ioctl,
        "mmap" => libc::SYS_mmap,
        "munmap" => libc::SYS_munmap,
        "mprotect" => libc::SYS_mprotect,
        "mremap" => libc::SYS_mremap,
        "madvise" => libc::SYS_madvise,
        "mlock2" => libc::SYS_mlock2,
        "munlock" => libc::SYS_munlock,
        "msync" => libc::SYS_msync,
        "mincore" => libc::SYS_mincore,
        "memfd_create" => libc::SYS_memfd_create,
        "ftruncate" => libc::SYS_ftruncate,
        "fallocate" => libc::SYS_fallocate,
        "pipe2" => libc::SYS_pipe2,
        "vmsplice" => libc::SYS_vmsplice,
        "read" => libc::SYS_read,
        "userfaultfd" => libc::SYS_userfaultfd,
        "close" => libc::SYS_close,
        "dup" => libc::SYS_dup,
        "kill" => libc::SYS_kill,
        "pidfd_open" => libc::SYS_pidfd_open,
        "pidfd_getfd" => libc::SYS_pidfd_getfd,
        "process_madvise" => libc::SYS_process_madvise,
        "process_vm_readv" => libc::SYS_process_vm_readv,
        "process_vm_writev" => libc::SYS_process_vm_writev,
        _ => return None,
    })
}

/// Whether a call of this name can be made.
pub fn is_known(name: &str) -> bool {
    number(name).is_some()
        || matches!(
            name,
            "fuzz_open"
                | "fuzz_load"
                | "fuzz_store"
                | "fuzz_fill"
                | "fuzz_check_fence"
                | "fuzz_sleep"
                | "fuzz_fork"
                | "fuzz_send_fd"
                | "fuzz_receive_fd"
                | "fuzz_rebind"
                | "fuzz_read"
                | "fuzz_write"
        )
}

fn result(value: libc::c_long) -> Outcome {
    match value {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
        value => Ok(value as u64),
    }
}

/// Makes the call with that number of the program.
pub fn make(execution: &Execution<'_>, call: usize, values: &[u64; 6]) -> Outcome {
    let description = &execution.model.calls[execution.program.calls[call].index];
    let [a, b, c, ..] = *values;
    match description.base() {
        "fuzz_open" => open(a),
        "fuzz_load" => fault_unless(guard::load(a)),
        "fuzz_store" => {
            // SAFETY: the address is one of a region's, where nothing of Rust's is.
            let store = || unsafe { guard::store(a, b as u32) };
            fault_unless(regions::of(a).is_some() && store())
        }
        "fuzz_fill" => {
            let Some(region) = regions::of(a) else { return Err(libc::EFAULT) };
            let length = b.min(region.end() - a) as usize;
            // SAFETY: as above.
            fault_unless(unsafe { guard::fill(a, c as u8, length) })
        }
        "fuzz_check_fence" => fault_unless(guard::load(a)),
        "fuzz_sleep" => {
            std::thread::sleep(Duration::from_millis(a.min(50)));
            Ok(0)
        }
        "fuzz_fork" => fork(execution, call, b),
        "fuzz_send_fd" => send(execution.mailbox.0, a as RawFd),
        "fuzz_receive_fd" => receive(execution.mailbox.1),
        "fuzz_rebind" => {
            execution.tally.rebinds.fetch_add(1, Ordering::Relaxed);
            rebind(a as usize, b)
        }
        "fuzz_read" => read_file(&text(execution, call, 0)),
        "fuzz_write" => write_file(&text(execution, call, 0), &text(execution, call, 1)),
        name => {
            // Only children of the program are ever killed, looked into or changed.
            let about_pid =
                matches!(name, "kill" | "pidfd_open" | "process_vm_readv" | "process_vm_writev");
            if about_pid
                && !execution.children.iter().any(|p| is_child(p.load(Ordering::Relaxed), a))
            {
                return Err(libc::ESRCH);
            }
            let number = number(name).ok_or(libc::ENOSYS)?;
            let [a, b, c, d, e, f] = *values;
            // SAFETY: memory that calls change is that of regions, or what an argument that is meant to be
            // wrong hits: the process is made for this one program and may break.
            let outcome = result(unsafe { libc::syscall(number, a, b, c, d, e, f) });
            if let ("userfaultfd", Ok(fd)) = (name, outcome) {
                arena::answer(fd as RawFd);
            }
            outcome
        }
    }
}

fn is_child(pid: i32, wanted: u64) -> bool {
    pid > 0 && u64::try_from(pid) == Ok(wanted)
}

fn fault_unless(well: bool) -> Outcome {
    if well {
        Ok(0)
    } else {
        Err(libc::EFAULT)
    }
}

/// Opens the device of a number, or the next that is there: one that was taken from its driver has another
/// number when it is back.
fn open(node: u64) -> Outcome {
    let (kind, first) = if node < 8 { ("card", 0) } else { ("renderD", 128) };
    let mut outcome = Err(libc::ENOENT);
    for next in 0..16 {
        let path = format!("/dev/dri/{kind}{}\0", first + (node % 3 + next) % 16);
        // SAFETY: the path ends with a zero.
        let fd = unsafe { libc::open(path.as_ptr().cast(), libc::O_RDWR | libc::O_CLOEXEC) };
        outcome = result(fd.into());
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// `how`: 0 the child ends after its calls, 1 it waits until it is killed, 2 it is killed at once.
fn fork(execution: &Execution<'_>, call: usize, how: u64) -> Outcome {
    let Some(place) = execution
        .children
        .iter()
        .find(|p| p.compare_exchange(0, -1, Ordering::Relaxed, Ordering::Relaxed).is_ok())
    else {
        return Err(libc::EAGAIN);
    };
    // SAFETY: the C library makes its allocator usable in the child, which needs nothing else of
    // threads that are gone there.
    match unsafe { libc::fork() } {
        -1 => {
            place.store(0, Ordering::Relaxed);
            result(-1)
        }
        0 => {
            // SAFETY: the call takes no pointers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            execution.run_child(call);
            loop {
                match how {
                    // SAFETY: the process ends here, without running the parent's destructors.
                    0 => unsafe { libc::_exit(0) },
                    // SAFETY: the call takes no pointers.
                    2 => unsafe { libc::kill(libc::getpid(), libc::SIGKILL) },
                    _ => 0,
                };
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        pid => {
            place.store(pid, Ordering::Relaxed);
            Ok(pid as u64)
        }
    }
}

/// Room for one descriptor beside a message.
#[repr(C, align(8))]
struct Control([u8; 24]);

fn with_message<T>(control: &mut Control, body: impl FnOnce(&mut libc::msghdr) -> T) -> T {
    let mut byte = 0u8;
    let mut iov = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: a header is plain integers and pointers, which may be null.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    body(&mut message)
}

fn send(socket: RawFd, fd: RawFd) -> Outcome {
    let mut control = Control([0; 24]);
    control.0[..8].copy_from_slice(&20usize.to_ne_bytes());
    control.0[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control.0[12..16].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
    control.0[16..20].copy_from_slice(&fd.to_ne_bytes());
    with_message(&mut control, |message| {
        // SAFETY: the header describes live memory.
        result(unsafe { libc::sendmsg(socket, message, libc::MSG_DONTWAIT) } as libc::c_long)
    })
}

fn receive(socket: RawFd) -> Outcome {
    let mut control = Control([0; 24]);
    let received = with_message(&mut control, |message| {
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: the header describes live memory, which the kernel may write.
        result(unsafe { libc::recvmsg(socket, message, flags) } as libc::c_long)
    });
    received?;
    match i32::from_ne_bytes([control.0[16], control.0[17], control.0[18], control.0[19]]) {
        fd if fd > 0 => Ok(fd as u64),
        _ => Err(libc::EBADF),
    }
}

const DEVICES: &str = "/sys/bus/platform/devices";
const DRIVERS: &str = "/sys/bus/platform/drivers";

/// The platform devices of our drivers, and their drivers.
fn devices() -> Vec<(String, String)> {
    let entries = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| {
            let driver = name.split('.').next()?.to_owned();
            matches!(driver.as_str(), "vxe" | "vxe2").then_some((name, driver))
        })
        .collect();
    found.sort();
    found
}

fn to_driver((device, driver): &(String, String), file: &str) -> Outcome {
    fs::write(Path::new(DRIVERS).join(driver).join(file), device)
        .map(|()| 0)
        .map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
}

/// Takes a device from its driver and gives it back.
fn rebind(device: usize, ms: u64) -> Outcome {
    let devices = devices();
    let device = devices.get(device % devices.len().max(1)).ok_or(libc::ENODEV)?;
    let outcome = to_driver(device, "unbind");
    std::thread::sleep(Duration::from_millis(ms.min(50)));
    let _ = to_driver(device, "bind");
    outcome
}

/// Gives back devices that somebody was killed while he had taken.
pub fn bind_all() {
    for device in devices() {
        if !Path::new(DRIVERS).join(&device.1).join(&device.0).exists() {
            let _ = to_driver(&device, "bind");
        }
    }
}

/// The string that an argument points to, as the program has it.
fn text(execution: &Execution<'_>, call: usize, argument: usize) -> String {
    match execution.program.calls[call].args.get(argument) {
        Some(Arg::Pointer { to: Some(to), .. }) => match &**to {
            Arg::Bytes(bytes) => CStr::from_bytes_until_nul(bytes)
                .map(|text| text.to_string_lossy().into_owned())
                .unwrap_or_default(),
            _ => String::new(),
        },
        _ => String::new(),
    }
}

/// The files that a path with `*` for the name of one directory or file means.
fn files(path: &str) -> Vec<PathBuf> {
    let Some((before, after)) = path.split_once('*') else { return vec![path.into()] };
    let entries = fs::read_dir(before).into_iter().flatten().flatten();
    entries
        .map(|entry| match after.trim_start_matches('/') {
            "" => entry.path(),
            rest => entry.path().join(rest),
        })
        .filter(|path| path.exists())
        .take(4)
        .collect()
}

fn read_file(path: &str) -> Outcome {
    let mut all = 0;
    for path in files(path) {
        let Ok(file) = fs::File::open(path) else { continue };
        let mut bytes = Vec::new();
        all += file.take(MAX_READ as u64).read_to_end(&mut bytes).unwrap_or(0) as u64;
    }
    if all > 0 {
        Ok(all)
    } else {
        Err(libc::ENOENT)
    }
}

fn write_file(path: &str, what: &str) -> Outcome {
    for path in files(path) {
        let file = fs::OpenOptions::new().write(true).open(path);
        file.and_then(|mut file| file.write_all(what.as_bytes()))
            .map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    #[test]
    fn every_call_that_is_described_can_be_made() {
        for call in Model::load().unwrap().calls {
            assert!(is_known(call.base()), "{}", call.name);
            assert!(call.arguments.len() <= 6, "{}", call.name);
        }
    }

    #[test]
    fn descriptors_pass_through_the_mailbox() {
        let (a, b) = std::os::unix::net::UnixDatagram::pair().unwrap();
        assert_eq!(receive(b.as_raw_fd()), Err(libc::EAGAIN));
        assert_eq!(send(a.as_raw_fd(), 1000), Err(libc::EBADF));
        assert_eq!(send(a.as_raw_fd(), a.as_raw_fd()), Ok(1));
        let fd = receive(b.as_raw_fd()).unwrap();
        // SAFETY: the descriptor is new.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        assert_ne!(fd.as_raw_fd(), a.as_raw_fd());
    }

    #[test]
    fn a_star_is_any_name() {
        assert!(files("/proc/*/comm").iter().all(|path| path.ends_with("comm")));
        assert!(!files("/proc/self/fdinfo/*").is_empty());
        assert_eq!(read_file("/nothing/*/here"), Err(libc::ENOENT));
        assert!(read_file("/proc/self/status").unwrap() > 100);
    }
}
