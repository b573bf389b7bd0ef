// SPDX-License-Identifier: GPL-2.0

//! Memory whose page faults the test answers, when it likes, or whose accesses it is told of: userfaultfd,
//! and `PAGEMAP_SCAN`.

use crate::{skip, Map, PAGE};
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
const REGISTER_MODE_MISSING: u64 = 1;
const REGISTER_MODE_WP: u64 = 1 << 1;
const REGISTER_MODE_RWP: u64 = 1 << 3;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const FEATURE_MOVE: u64 = 1 << 16;
const FEATURE_RWP: u64 = 1 << 17;
const FEATURE_RWP_ASYNC: u64 = 1 << 18;
const EVENT_PAGEFAULT: u8 = 0x12;

/// Which accesses userfaultfd keeps from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Writes.
    Write,
    /// All.
    ReadWrite,
}

/// Who learns of an access to protected memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The test: the access waits until the protection is taken away.
    Test,
    /// Who [asks later](accessed): the protection goes with the access.
    Nobody,
}

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
struct Protect {
    start: u64,
    length: u64,
    mode: u64,
}

#[repr(C)]
struct Move {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    moved: i64,
}

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

/// A range of memory without pages; whoever touches it sleeps until the test gives it some.
pub struct Uffd {
    file: File,
    map: Map,
}

impl Uffd {
    /// Takes charge of untouched memory. Skips the subtest if the system does not allow it.
    #[track_caller]
    pub fn new(map: Map) -> Self {
        Self::with(map, 0, REGISTER_MODE_MISSING)
    }

    /// Takes charge of untouched memory, to [move](Self::move_from) pages there. Skips the subtest if the
    /// kernel cannot.
    #[track_caller]
    pub fn movable(map: Map) -> Self {
        Self::with(map, FEATURE_MOVE, REGISTER_MODE_MISSING)
    }

    /// Watches memory, which is not protected yet. Skips the subtest if the kernel cannot.
    #[track_caller]
    pub fn watch(map: Map, protection: Protection, told: Told) -> Self {
        let (features, mode) = match (protection, told) {
            (Protection::Write, Told::Test) => (FEATURE_PAGEFAULT_FLAG_WP, REGISTER_MODE_WP),
            (Protection::Write, Told::Nobody) => (
                FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC,
                REGISTER_MODE_WP,
            ),
            (Protection::ReadWrite, Told::Test) => (FEATURE_RWP, REGISTER_MODE_RWP),
            (Protection::ReadWrite, Told::Nobody) => {
                (FEATURE_RWP | FEATURE_RWP_ASYNC, REGISTER_MODE_RWP)
            }
        };
        Self::with(map, features, mode)
    }

    /// Keeps all writes from memory that is there, until [`unprotect`](Self::unprotect). Skips the subtest
    /// if the kernel cannot.
    #[track_caller]
    pub fn write_protected(map: Map) -> Self {
        let this = Self::watch(map, Protection::Write, Told::Test);
        this.protect(map, Protection::Write, true);
        this
    }

    /// Lets all write what was [write-protected](Self::write_protected), and wakes those who sleep.
    #[track_caller]
    pub fn unprotect(&self) {
        self.protect(self.map, Protection::Write, false);
    }

    #[track_caller]
    fn with(map: Map, features: u64, mode: u64) -> Self {
        // SAFETY: the call takes no pointers.
        let fd =
            unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        if fd < 0 {
            skip!("userfaultfd: {}", Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        let this = Self { file, map };
        if let Err(e) = this.try_call(0x3f, &mut Api { api: API, features, ioctls: 0 }) {
            skip!("userfaultfd with features {features:#x}: {e}");
        }
        let (start, length) = (map.at(0), map.len() as u64);
        this.call(0x00, &mut Register { start, length, mode, ioctls: 0 });
        this
    }

    #[track_caller]
    fn call<T>(&self, nr: u64, argument: &mut T) {
        let result = self.try_call(nr, argument);
        assert!(result.is_ok(), "userfaultfd request {nr:#x}: {result:?}");
    }

    fn try_call<T>(&self, nr: u64, argument: &mut T) -> std::io::Result<()> {
        // SAFETY: the argument is the struct that the request encodes the size of; it gives pages
        // to memory that the test has none in, or protects or moves those that it has.
        let result = unsafe {
            libc::ioctl(self.file.as_raw_fd(), request::<T>(nr), std::ptr::from_mut(argument))
        };
        if result == 0 {
            Ok(())
        } else {
            Err(Error::last_os_error())
        }
    }

    /// Protects a part of the memory, or takes the protection away, and wakes who waits for that.
    #[track_caller]
    pub fn protect(&self, part: Map, protection: Protection, on: bool) {
        let nr = match protection {
            Protection::Write => 0x06,
            Protection::ReadWrite => 0x09,
        };
        let (start, length) = (part.at(0), part.len() as u64);
        self.call(nr, &mut Protect { start, length, mode: on.into() });
    }

    /// Moves the pages of other memory of the process here, to its start.
    pub fn move_from(&self, from: Map) -> std::io::Result<()> {
        let (to, length) = (self.map.at(0), from.len() as u64);
        let mut argument = Move { to, from: from.at(0), length, mode: 0, moved: 0 };
        self.try_call(0x05, &mut argument)
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

    /// Wakes those who sleep, and gives them nothing: they fault again.
    #[track_caller]
    pub fn wake(&self) {
        /// `UFFDIO_WAKE`, which is read only.
        const WAKE: libc::c_ulong =
            (2 << 30) | ((size_of::<[u64; 2]>() as u64) << 16) | (0xaa << 8) | 0x02;
        let mut range = [self.map.at(0), self.map.len() as u64];
        // SAFETY: the argument is the range that the request takes.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), WAKE, range.as_mut_ptr()) };
        assert_eq!(result, 0, "UFFDIO_WAKE: {}", Error::last_os_error());
    }

    /// Gives pages to all of the memory, every word being `value(offset)`, and wakes those who
    /// sleep.
    #[track_caller]
    pub fn populate(&self, value: impl Fn(usize) -> u32) {
        self.give(self.map, value);
    }

    /// Gives the page at an address, and wakes those who sleep.
    #[track_caller]
    pub fn give_page(&self, addr: u64, value: impl Fn(usize) -> u32) {
        let offset = (addr - self.map.at(0)) as usize / PAGE * PAGE;
        self.give(self.map.part(offset, PAGE), |o| value(offset + o));
    }

    #[track_caller]
    fn give(&self, part: Map, value: impl Fn(usize) -> u32) {
        let source = Map::anon(part.len());
        source.fill(value);
        let mut copy = Copy {
            to: part.at(0),
            from: source.at(0),
            length: part.len() as u64,
            mode: 0,
            copied: 0,
        };
        self.call(0x03, &mut copy);
        assert_eq!(copy.copied, part.len() as i64);
        source.unmap();
    }
}

#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    inverted: u64,
    mask: u64,
    any_of: u64,
    returned: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// Which pages of watched memory were accessed, as `PAGEMAP_SCAN` says, since they were protected last: bit
/// by bit. If `reset`, those are protected anew.
///
/// # Panics
///
/// If that are more than 64 pages, or the call fails.
#[track_caller]
pub fn accessed(map: Map, protection: Protection, reset: bool) -> u64 {
    assert!(map.len() <= 64 * PAGE);
    let category = match protection {
        Protection::Write => 1 << 1,
        Protection::ReadWrite => 1 << 9,
    };
    let mut regions = [Region::default(); 64];
    let mut scan = Scan {
        size: size_of::<Scan>() as u64,
        flags: reset.into(),
        start: map.at(0),
        end: map.at(0) + map.len() as u64,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        mask: category,
        returned: category,
        ..Scan::default()
    };
    let file = File::open("/proc/self/pagemap").expect("the pagemap");
    const REQUEST: libc::c_ulong =
        (3 << 30) | ((size_of::<Scan>() as libc::c_ulong) << 16) | (0x66 << 8) | 16;
    // SAFETY: the argument is what the request takes, with room for so many regions.
    let found = unsafe { libc::ioctl(file.as_raw_fd(), REQUEST, &raw mut scan) };
    assert!(found >= 0, "PAGEMAP_SCAN: {}", Error::last_os_error());
    let page = |addr: u64| (addr - map.at(0)) / PAGE as u64;
    let pages = regions.iter().take(found as usize).flat_map(|r| page(r.start)..page(r.end));
    pages.fold(0, |bits, page| bits | (1 << page))
}
