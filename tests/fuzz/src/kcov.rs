// SPDX-License-Identifier: GPL-2.0

//! Coverage: which places of the modules' text a thread has reached in its system calls and faults
//! (Documentation/dev-tools/kcov.rst). Only modules that were built with `GPUSVM_KCOV=1` tell. What the
//! kernel's workers do for a thread is not seen.

use crate::tally::{Tally, MODULES};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

const NAMES: [&str; MODULES] = ["gpusvm", "vxe", "vxe2", "vxe_sim"];
const FILE: &str = "/sys/kernel/debug/kcov";
/// Places that are remembered between two looks.
const WORDS: usize = 1 << 15;

const INIT_TRACE: libc::c_ulong = 0x8008_6301;
const ENABLE: libc::c_ulong = 0x6364;
const TRACE_PC: libc::c_ulong = 0;

/// Where the text of the modules is.
#[derive(Clone, Debug, Default)]
pub struct Modules(Vec<(usize, u64, u64)>);

impl Modules {
    /// Those that are loaded.
    pub fn loaded() -> Self {
        let sizes = fs::read_to_string("/proc/modules").unwrap_or_default();
        let found = NAMES.iter().enumerate().filter_map(|(i, name)| {
            let start = section(name, ".text")?;
            let mut words = sizes
                .lines()
                .map(str::split_whitespace)
                .find(|w| w.clone().next() == Some(*name))?;
            Some((i, start, start + words.nth(1)?.parse::<u64>().ok()?))
        });
        Self(found.collect())
    }

    fn find(&self, pc: u64) -> Option<(usize, usize)> {
        // A module's size is that of all its parts, and the next one's text may be among them.
        let has = |(_, start, end): &&(usize, u64, u64)| (*start..*end).contains(&pc);
        let (module, start, _) = self.0.iter().filter(has).max_by_key(|(_, start, _)| *start)?;
        Some((*module, (pc - start) as usize))
    }

    /// Writes all that was reached, for tools/coverage.py: the module and the offset in its text.
    pub fn write(&self, tally: &Tally, to: &mut impl Write) -> io::Result<()> {
        for (module, ..) in &self.0 {
            for (i, byte) in tally.coverage[*module].iter().enumerate() {
                let byte = byte.load(Relaxed);
                for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                    writeln!(to, "{} {:#x}", NAMES[*module], i * 8 + bit)?;
                }
            }
        }
        Ok(())
    }
}

fn section(module: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/sys/module/{module}/sections/{name}")).ok()?;
    u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

/// The coverage of a thread, from when it was made.
pub struct Kcov {
    buffer: &'static [AtomicU64],
    _file: OwnedFd,
}

impl Kcov {
    /// Begins; nothing where the kernel has none.
    pub fn start() -> Option<Self> {
        let file: OwnedFd = OpenOptions::new().read(true).write(true).open(FILE).ok()?.into();
        let fd = file.as_raw_fd();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let null = std::ptr::null_mut();
        // SAFETY: the calls take no other pointers; a new mapping is nobody else's.
        let at = unsafe {
            if libc::ioctl(fd, INIT_TRACE, WORDS as libc::c_ulong) != 0 {
                return None;
            }
            let at = libc::mmap(null, WORDS * 8, protection, libc::MAP_SHARED, fd, 0);
            if at == libc::MAP_FAILED || libc::ioctl(fd, ENABLE, TRACE_PC) != 0 {
                return None;
            }
            at
        };
        // SAFETY: the mapping is of that size, stays until the process ends, and is only ever accessed as
        // atomics here.
        let buffer = unsafe { std::slice::from_raw_parts(at.cast::<AtomicU64>(), WORDS) };
        Some(Self { buffer, _file: file })
    }

    /// Counts what was reached since the last time; says how much of it nobody had reached before.
    pub fn collect(&self, modules: &Modules, tally: &Tally) -> u64 {
        let count = (self.buffer[0].load(Relaxed) as usize).min(self.buffer.len() - 1);
        let mut new = 0;
        for pc in &self.buffer[1..=count] {
            if let Some((module, offset)) = modules.find(pc.load(Relaxed)) {
                new += u64::from(tally.cover(module, offset));
            }
        }
        self.buffer[0].store(0, Relaxed);
        new
    }
}
