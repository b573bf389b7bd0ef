// SPDX-License-Identifier: GPL-2.0

//! Memory whose page faults the test answers, when it likes: userfaultfd.

use crate::{skip, Map};
use std::{
    fs::File,
    io::{Error, Read},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

/// `_IOWR(0xaa, nr, T)`.
const fn request<T>(nr: u64) -> libc::c_ulong {
    (3 << 30) | ((size_of::<T>() as u64) << 16) | (0xaa << 8) | nr
}

// From linux/userfaultfd.h, whose layouts never change.
const API: u64 = 0xaa;
const FEATURE_WP: u64 = 1;
const REGISTER_MODE_MISSING: u64 = 1;
const REGISTER_MODE_WP: u64 = 2;
const WRITEPROTECT_MODE_WP: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct WriteProtect {
    start: u64,
    length: u64,
    mode: u64,
}

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

/// A range of memory without pages; whoever touches it sleeps until the test gives it some. Or one that
/// may only be read: whoever writes it sleeps until the test lets him.
pub struct Uffd {
    file: File,
    map: Map,
}

impl Uffd {
    /// Takes charge of untouched memory. Skips the subtest if the system does not allow it.
    #[track_caller]
    pub fn new(map: Map) -> Self {
        Self::register(map, 0, REGISTER_MODE_MISSING)
    }

    /// Takes charge of writes to memory that is there. Skips the subtest if the system does not allow
    /// it.
    #[track_caller]
    pub fn write_protected(map: Map) -> Self {
        let this = Self::register(map, FEATURE_WP, REGISTER_MODE_WP);
        this.protect(WRITEPROTECT_MODE_WP);
        this
    }

    #[track_caller]
    fn register(map: Map, features: u64, mode: u64) -> Self {
        // SAFETY: the call takes no pointers.
        let fd =
            unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        if fd < 0 {
            skip!("userfaultfd: {}", Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        let this = Self { file, map };
        this.call(0x3f, &mut Api { api: API, features, ioctls: 0 });
        this.call(
            0x00,
            &mut Register { start: map.at(0), length: map.len() as u64, mode, ioctls: 0 },
        );
        this
    }

    #[track_caller]
    fn call<T>(&self, nr: u64, argument: &mut T) {
        // SAFETY: the argument is the struct that the request encodes the size of; it gives pages
        // to memory that the test has none in.
        let result = unsafe {
            libc::ioctl(self.file.as_raw_fd(), request::<T>(nr), std::ptr::from_mut(argument))
        };
        assert_eq!(result, 0, "userfaultfd request {nr:#x}: {}", Error::last_os_error());
    }

    #[track_caller]
    fn protect(&self, mode: u64) {
        let mut argument =
            WriteProtect { start: self.map.at(0), length: self.map.len() as u64, mode };
        self.call(0x06, &mut argument);
    }

    /// Lets all write what was [write-protected](Self::write_protected), and wakes those who sleep.
    #[track_caller]
    pub fn unprotect(&self) {
        self.protect(0);
    }

    /// Its descriptor.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Waits for somebody to touch the memory; says where.
    pub fn next_fault(&self, timeout: Duration) -> Option<u64> {
        let mut poll = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, in an array of one.
        let ready = unsafe { libc::poll(&mut poll, 1, timeout.as_millis() as i32) };
        if ready != 1 {
            return None;
        }
        let mut message = [0u8; 32];
        let length = (&self.file).read(&mut message).ok()?;
        assert_eq!(length, message.len(), "a message of the userfaultfd");
        assert_eq!(message[0], EVENT_PAGEFAULT, "a page fault");
        Some(u64::from_ne_bytes(message[16..24].try_into().expect("eight bytes")))
    }

    /// Gives pages to all of the memory, every word being `value(offset)`, and wakes those who
    /// sleep.
    #[track_caller]
    pub fn populate(&self, value: impl Fn(usize) -> u32) {
        let source = Map::anon(self.map.len());
        source.fill(value);
        let mut copy = Copy {
            to: self.map.at(0),
            from: source.at(0),
            length: self.map.len() as u64,
            mode: 0,
            copied: 0,
        };
        self.call(0x03, &mut copy);
        assert_eq!(copy.copied, self.map.len() as i64);
        source.unmap();
    }
}
