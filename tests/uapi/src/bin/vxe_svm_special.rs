// SPDX-License-Identifier: GPL-2.0

//! Special mappings: pages of the kernel's, of drivers' and of devices' in the address space of the process.
//! The GPU reads what the CPU does, or fails as at any bad address; however often, the kernel has nothing to
//! say about it.

use std::{fs::File, io, os::fd::FromRawFd, process::ExitCode};
use vxe_client::Bo;
use vxe_uapi::{gpu::device, kernel_log::KernelLog, skip, vram, Gpu, Map, Program, PAGE, RO, RW};

/// How often each is read: more often than any limit of messages.
const ROUNDS: u32 = 40;

/// How much is read.
const LENGTH: usize = 256;

/// The part of the process's address space with this name.
#[track_caller]
fn named(name: &str) -> Map {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the maps");
    let Some(line) = maps.lines().find(|line| line.ends_with(name)) else {
        skip!("there is no {name}");
    };
    let span = line.split(' ').next().and_then(|span| span.split_once('-')).expect("a span");
    let [start, end] = [span.0, span.1].map(|n| usize::from_str_radix(n, 16).expect("an address"));
    Map::existing(start, end - start)
}

/// What the GPU may make of a mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// The contents, which do not change.
    Contents,
    /// A failed access.
    Failure,
    /// Either of them, always the same; the contents may change.
    Either,
}

/// The GPU reads the first bytes of `map`, again and again.
#[track_caller]
fn read(map: Map, expect: Expect) {
    let mut log = KernelLog::from_now();
    let mut gpu = Gpu::new();
    let to = Map::shared(PAGE);
    let mut failures = 0;
    for round in 0..ROUNDS {
        to.fill(|_| !round);
        match gpu.try_run(|c| _ = c.copy(map.at(0), to.at(0), LENGTH)) {
            Ok(()) if expect == Expect::Contents => {
                to.part(0, LENGTH).expect("read", |offset| map.read(offset));
            }
            Ok(()) => {}
            Err(e) => {
                assert_eq!(e.errno(), libc::EIO, "{e}");
                failures += 1;
                gpu.renew();
            }
        }
    }
    println!("{failures} of {ROUNDS} reads fail");
    match expect {
        Expect::Contents => assert_eq!(failures, 0, "the GPU cannot read what the CPU can"),
        Expect::Failure => assert_eq!(failures, ROUNDS, "the GPU was let"),
        Expect::Either => assert!(failures == 0 || failures == ROUNDS, "by chance"),
    }
    let said = log.lines("refused");
    assert!(said.is_empty(), "{} lines in the kernel's log, such as {:?}", said.len(), said[0]);
}

/// The code of the kernel's that the CPU runs in user mode: pages of the kernel's image.
fn vdso() {
    read(named("[vdso]"), Expect::Contents);
}

/// A store there fails, and changes nothing.
fn vdso_store() {
    let mut log = KernelLog::from_now();
    let map = named("[vdso]");
    let before = map.read(0);
    let mut gpu = Gpu::new();
    for _ in 0..ROUNDS {
        gpu.expect_fault("a store to the vDSO", |c| _ = c.store(map.at(0), !before));
    }
    map.expect_word("read only", 0, before);
    assert_eq!(log.lines("refused"), [""; 0]);
}

/// The data of that code, which the kernel keeps changing. Some kernels have no pages there.
fn vvar() {
    read(named("[vvar]"), Expect::Either);
}

/// What performance events are written to.
fn perf() {
    // perf_event_attr, as far as it matters: a software event, the clock of the CPU.
    #[repr(C)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        rest: [u64; 6],
    }
    let attributes = Attributes { kind: 1, size: 64, config: 0, rest: [0; 6] };
    let no = -1;
    // SAFETY: the call reads the 64 bytes of the structure.
    let fd =
        unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, 0, no, no, 0) };
    if fd < 0 {
        skip!("perf_event_open: {}", io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    let file = unsafe { File::from_raw_fd(fd as i32) };
    let ring = Map::file(&file, 9 * PAGE, RW, libc::MAP_SHARED);
    read(ring.part(PAGE, PAGE), Expect::Either);
    read(ring.part(0, PAGE), Expect::Either);
}

/// The ring of asynchronous input and output.
fn aio() {
    let mut context: u64 = 0;
    // SAFETY: the call writes one word.
    if unsafe { libc::syscall(libc::SYS_io_setup, 16, &raw mut context) } != 0 {
        skip!("io_setup: {}", io::Error::last_os_error());
    }
    read(Map::existing(context as usize, PAGE), Expect::Contents);
}

/// Memory of a buffer, as the CPU maps it: frames that are a driver's.
fn buffer(bo: &Bo) {
    let mapping = bo.map().expect("its memory");
    read(Map::existing(mapping.address() as usize, PAGE), Expect::Failure);
}

fn system_buffer() {
    buffer(&Bo::system(&device(), PAGE).expect("a buffer"));
}

fn vram_buffer() {
    buffer(&vram::buffer(&device(), PAGE));
}

/// Zeros that nobody wrote: one page for all.
fn zeros() {
    let map = Map::anon_prot(PAGE, RO);
    map.expect_word("untouched", 0, 0);
    read(map, Expect::Contents);
}

fn main() -> ExitCode {
    let mut p =
        Program::new("vxe_svm_special", "The GPU accesses special mappings of the process.");
    p.subtest("vdso", "the kernel's code for user mode is read", vdso);
    p.subtest("vdso-store", "the same is written", vdso_store);
    p.subtest("vvar", "the data of that code is read", vvar);
    p.subtest("perf", "a ring buffer of performance events is read", perf);
    p.subtest("aio", "a ring of asynchronous I/O is read", aio);
    p.subtest("buffer", "a system buffer's memory is read, where the CPU has it", system_buffer);
    p.subtest("vram", "a buffer's device memory is read, where the CPU has it", vram_buffer);
    p.subtest("zeros", "the page of all zeros is read", zeros);
    p.main()
}
