// SPDX-License-Identifier: GPL-2.0

//! Maps the regions of a program, and answers for the pages of those that fault.

use crate::regions::{self, Kind, Region};
use std::{
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};
use vxe_client::{request, sys, Bo, Device};
use vxe_uapi::PAGE;

/// The regions, mapped.
pub struct Arena {
    /// What the files of the regions with files hold, where it can be written.
    read_only: u64,
    /// What pages of [`regions::FAULTS`] will have in them.
    faults: u64,
    /// Where files are open that regions need.
    _files: Vec<OwnedFd>,
    _device: Option<(Device, Vec<Bo>)>,
}

/// userfaultfds whose faults are answered: the arena's first, then those that the program makes.
static UFFDS: [AtomicI32; 8] = [const { AtomicI32::new(-1) }; 8];
/// Where the pages of the arena's come from.
static SOURCE: AtomicU64 = AtomicU64::new(0);

/// `mmap`; the address, or nothing.
fn map(address: u64, length: u64, prot: i32, flags: i32, fd: RawFd, offset: i64) -> Option<u64> {
    let fixed = if address == 0 { 0 } else { libc::MAP_FIXED };
    let at = std::ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: where an address is given, it is that of a region, where nothing of Rust's is.
    let result = unsafe { libc::mmap(at, length as usize, prot, flags | fixed, fd, offset) };
    (result != libc::MAP_FAILED).then_some(result as u64)
}

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn memfd(length: u64) -> Option<OwnedFd> {
    // SAFETY: the name ends with a zero.
    let fd = unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the descriptor is new and ours.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the call takes no pointers.
    (unsafe { libc::ftruncate(fd.as_raw_fd(), length as i64) } == 0).then_some(fd)
}

impl Arena {
    /// Maps all regions; what cannot be had (buffers, where there is no device) is a hole. `device`: the
    /// number of the device that buffers are of.
    pub fn map(device: usize) -> Self {
        let mut arena = Self { read_only: 0, faults: 0, _files: Vec::new(), _device: None };
        let anon = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let device = Device::open_path(format!("/dev/dri/card{device}")).ok();
        let mut buffers = Vec::new();
        for region in regions::ALL {
            match region.kind {
                Kind::Anon | Kind::Device => {
                    map(region.start, region.length, RW, anon, -1, 0);
                }
                Kind::Shmem => {
                    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
                    map(region.start, region.length, RW, flags, -1, 0);
                }
                Kind::File | Kind::Private | Kind::ReadOnly => arena.map_file(region),
                Kind::Faults => arena.map_faults(region),
                Kind::Gem | Kind::Vram => {
                    let placement = if region.kind == Kind::Gem { 1 } else { 2 };
                    buffers.extend(device.as_ref().and_then(|d| map_buffer(d, placement, region)));
                }
                Kind::Nothing => {}
            }
        }
        arena._device = device.map(|device| (device, buffers));
        arena
    }

    fn map_file(&mut self, region: &Region) {
        let Some(file) = memfd(region.length) else { return };
        let fd = file.as_raw_fd();
        match region.kind {
            Kind::ReadOnly => {
                map(region.start, region.length, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
                self.read_only = map(0, region.length, RW, libc::MAP_SHARED, fd, 0).unwrap_or(0);
            }
            Kind::Private => {
                map(region.start, region.length, RW, libc::MAP_PRIVATE, fd, 0);
            }
            _ => {
                map(region.start, region.length, RW, libc::MAP_SHARED, fd, 0);
            }
        }
        self._files.push(file);
    }

    fn map_faults(&mut self, region: &Region) {
        let anon = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        map(region.start, region.length, RW, anon, -1, 0);
        self.faults = map(0, region.length, RW, anon, -1, 0).unwrap_or(0);
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) } as RawFd;
        if fd < 0 || self.faults == 0 {
            return;
        }
        let mut api = [0xaa, 0, 0u64];
        let mut register = [region.start, region.length, 1, 0];
        uffd_call(fd, API, &mut api);
        uffd_call(fd, REGISTER, &mut register);
        SOURCE.store(self.faults, Relaxed);
        UFFDS[0].store(fd, Relaxed);
    }

    /// Has these bytes be at an address, whatever is there; where nothing is, nothing happens.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        let Some(region) = regions::of(address) else { return };
        let offset = address - region.start;
        let inside = (bytes.len() as u64).min(region.length - offset) as usize;
        let to = match region.kind {
            Kind::Nothing => return,
            Kind::ReadOnly => self.read_only,
            Kind::Faults => self.faults,
            _ => region.start,
        };
        if to == 0 {
            return;
        }
        // SAFETY: the memory is the program's, for anything.
        unsafe { crate::guard::write(to + offset, &bytes[..inside]) };
        if region.kind == Kind::Faults && !bytes.is_empty() {
            // Whoever comes next waits for the page.
            let start = address & !(PAGE as u64 - 1);
            let length =
                (offset + inside as u64 + region.start - start).next_multiple_of(PAGE as u64);
            let at = std::ptr::with_exposed_provenance_mut(start as usize);
            // SAFETY: as above.
            unsafe { libc::madvise(at, length as usize, libc::MADV_DONTNEED) };
        }
    }
}

fn map_buffer(device: &Device, placement: u32, region: &Region) -> Option<Bo> {
    let buffer = Bo::create(device, region.length as usize, placement, None).ok()?;
    let mut offset = sys::drm_xe_gem_mmap_offset { handle: buffer.handle(), ..Default::default() };
    // SAFETY: the call only fills in its argument.
    unsafe { device.call(&request::GEM_MMAP_OFFSET, &mut offset) }.ok()?;
    map(
        region.start,
        region.length,
        RW,
        libc::MAP_SHARED,
        device.as_raw_fd(),
        offset.offset as i64,
    )?;
    Some(buffer)
}

// From linux/userfaultfd.h: `_IOWR(0xaa, nr, struct of so many words)`.
const fn uffd_request(nr: u64, words: u64) -> libc::c_ulong {
    (3 << 30) | ((words * 8) << 16) | (0xaa << 8) | nr
}
const API: libc::c_ulong = uffd_request(0x3f, 3);
const REGISTER: libc::c_ulong = uffd_request(0, 4);
const COPY: libc::c_ulong = uffd_request(3, 5);
const ZEROPAGE: libc::c_ulong = uffd_request(4, 4);
const WRITEPROTECT: libc::c_ulong = uffd_request(6, 3);
const CONTINUE: libc::c_ulong = uffd_request(7, 4);
const RWPROTECT: libc::c_ulong = uffd_request(9, 3);

fn uffd_call<const N: usize>(fd: RawFd, request: libc::c_ulong, words: &mut [u64; N]) -> bool {
    // SAFETY: the words are the struct of the request; it changes memory of the program's only.
    unsafe { libc::ioctl(fd, request, words.as_mut_ptr()) == 0 }
}

/// Has the faults of a program's own userfaultfd be answered.
pub fn answer(fd: RawFd) {
    for place in &UFFDS[1..] {
        if place.compare_exchange(-1, fd, Relaxed, Relaxed).is_ok() {
            return;
        }
    }
}

/// Answers faults, each after a while, until the process ends.
pub fn answer_faults(mut rng: vxe_uapi::Rng) -> ! {
    loop {
        let mut polls: Vec<_> = UFFDS
            .iter()
            .map(|fd| libc::pollfd { fd: fd.load(Relaxed), events: libc::POLLIN, revents: 0 })
            .collect();
        // SAFETY: the array has as many entries as is said.
        unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as u64, 20) };
        for (i, poll) in polls.iter().enumerate().filter(|(_, p)| p.revents != 0) {
            let mut message = [0u64; 4];
            // SAFETY: the kernel writes at most what there is.
            let length = unsafe { libc::read(poll.fd, message.as_mut_ptr().cast(), 32) };
            if length != 32 {
                if poll.revents & (libc::POLLNVAL | libc::POLLERR | libc::POLLHUP) != 0 && i > 0 {
                    UFFDS[i].store(-1, Relaxed);
                }
                continue;
            }
            const PAGEFAULT: u8 = 0x12;
            if message[0] as u8 != PAGEFAULT {
                continue;
            }
            // A program touches many pages: most of them come at once.
            if rng.one_in(8) {
                std::thread::sleep(Duration::from_millis([1, 5, 30, 150][rng.below(4)]));
            }
            give_page(poll.fd, i == 0, message[1], message[2] & !(PAGE as u64 - 1));
        }
    }
}

/// Gives a page, and for a program's own userfaultfd some behind it, if they are there.
fn give_page(fd: RawFd, ours: bool, flags: u64, page: u64) {
    const ONE: u64 = PAGE as u64;
    if ours {
        let from = SOURCE.load(Relaxed) + (page - regions::FAULTS.start);
        uffd_call(fd, COPY, &mut [page, from, ONE, 0, 0]);
        return;
    }
    // One of these is what the fault is about.
    const WP: u64 = 2;
    const MINOR: u64 = 4;
    let give = |length| match flags {
        f if f & WP != 0 => uffd_call(fd, WRITEPROTECT, &mut [page, length, 0]),
        f if f & MINOR != 0 => uffd_call(fd, CONTINUE, &mut [page, length, 0, 0]),
        _ => uffd_call(fd, ZEROPAGE, &mut [page, length, 0, 0]),
    };
    if !give(16 * ONE) && !give(ONE) {
        uffd_call(fd, RWPROTECT, &mut [page, ONE, 0]);
    }
}
