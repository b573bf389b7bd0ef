// SPDX-License-Identifier: GPL-2.0

//! The kernel's half: `/dev/gpusvm_bench`.

use crate::{
    abi::{op, Request, DEVICE, FIGURES, IOCTL},
    Outcome,
};
use std::{
    fs::File,
    io,
    os::fd::AsRawFd, //
};

/// One measurement of the kernel's.
pub struct Measured {
    /// The figures of the operation, see [`op`].
    pub figures: [u64; FIGURES],
    /// Whether a timer tick came meanwhile, and is in the figures.
    pub disturbed: bool,
}

/// An operation that is refused now and then, because of the state that it is in.
#[derive(Debug)]
pub struct Refused(pub i32);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.0))
    }
}

impl std::error::Error for Refused {}

/// An open device, with or without an SVM of this process.
pub struct Session {
    file: File,
}

/// What an SVM is made of.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// A range, with what the driver of the benchmark adds (nothing).
    pub range: u64,
    /// A segment.
    pub segment: u64,
}

impl Session {
    /// Opens the device.
    pub fn open() -> Outcome<Self> {
        let path = format!("/dev/{}", DEVICE.to_str()?);
        let file = File::options().read(true).write(true).open(&path).map_err(|e| {
            format!("{path}: {e}: load the module gpusvm_bench (make bench does), as root")
        })?;
        Ok(Self { file })
    }

    fn call(&self, mut request: Request) -> Result<Measured, Refused> {
        let (kind, number) = IOCTL;
        let command = (3u64 << 30)
            | ((size_of::<Request>() as u64) << 16)
            | (u64::from(kind) << 8)
            | u64::from(number);
        // SAFETY: the ioctl reads and writes one request, which lives through it. What it does to
        // the memory that the request names a process cannot tell from reading and writing it as
        // it is: the module maps it for a device that does nothing.
        let status =
            unsafe { libc::ioctl(self.file.as_raw_fd(), command as libc::Ioctl, &raw mut request) };
        if status != 0 {
            return Err(Refused(io::Error::last_os_error().raw_os_error().unwrap_or(0)));
        }
        Ok(Measured { figures: request.figures, disturbed: request.disturbed != 0 })
    }

    /// Makes an SVM of this process with ranges of at most `chunk` bytes, in place of the last.
    pub fn start(&self, chunk: usize) -> Outcome<Sizes> {
        let request = Request { op: op::OPEN, size: chunk as u64, ..Default::default() };
        let [range, _notifier, segment, ..] = self.call(request)?.figures;
        Ok(Sizes { range, segment })
    }

    /// Drops the SVM.
    pub fn stop(&self) -> Result<Measured, Refused> {
        self.call(Request { op: op::CLOSE, ..Default::default() })
    }

    /// Has the device write to `addr`, or read.
    pub fn fault(&self, addr: usize, size: usize, write: bool) -> Result<Measured, Refused> {
        self.on(op::FAULT, addr, size, Some(u64::from(write)))
    }

    /// Has the device write to `addr`, where it has `size` bytes moved to its memory first.
    pub fn migrating_fault(&self, addr: usize, size: usize) -> Result<Measured, Refused> {
        self.call(Request {
            op: op::FAULT,
            write: 1,
            addr: addr as u64,
            size: size as u64,
            count: 1,
            ..Default::default()
        })
    }

    /// Gives the device `size` bytes of memory, or none.
    pub fn memory(&self, size: usize) -> Result<Measured, Refused> {
        self.on(op::MEMORY, 0, size, None)
    }

    /// Moves memory to the device.
    pub fn populate(&self, addr: usize, size: usize) -> Result<Measured, Refused> {
        self.on(op::POPULATE, addr, size, None)
    }

    /// Brings everything back from the device.
    pub fn evict(&self) -> Result<Measured, Refused> {
        self.on(op::EVICT, 0, 0, None)
    }

    /// What was copied last.
    pub fn copied(&self) -> Result<Measured, Refused> {
        self.on(op::COPIED, 0, 0, None)
    }

    /// What the fault would call, alone.
    pub fn callees(&self, addr: usize, size: usize, write: bool) -> Result<Measured, Refused> {
        self.on(op::CALLEES, addr, size, Some(u64::from(write)))
    }

    /// Looks a range up.
    pub fn find(&self, addr: usize) -> Result<Measured, Refused> {
        self.on(op::FIND, addr, 0, None)
    }

    /// Makes a range, and removes it.
    pub fn insert_remove(&self, addr: usize) -> Result<Measured, Refused> {
        self.on(op::INSERT_REMOVE, addr, 0, None)
    }

    /// Removes a range.
    pub fn remove(&self, addr: usize) -> Result<Measured, Refused> {
        self.on(op::REMOVE, addr, 0, None)
    }

    /// Calls the notifier's callback.
    pub fn invalidate(&self, addr: usize, size: usize) -> Result<Measured, Refused> {
        self.on(op::INVALIDATE, addr, size, None)
    }

    /// Makes `count` ranges of one page, `stride` bytes apart.
    pub fn fill(&self, addr: usize, stride: usize, count: usize) -> Result<Measured, Refused> {
        self.call(Request {
            op: op::FILL,
            addr: addr as u64,
            size: stride as u64,
            count: count as u64,
            ..Default::default()
        })
    }

    /// Removes the ranges that were unmapped.
    pub fn collect(&self) -> Result<Measured, Refused> {
        self.on(op::COLLECT, 0, 0, None)
    }

    /// What the kernel takes for single services.
    pub fn services(&self, addr: usize, size: usize) -> Result<Measured, Refused> {
        self.on(op::SERVICES, addr, size, None)
    }

    fn on(
        &self,
        op: u32,
        addr: usize,
        size: usize,
        write: Option<u64>,
    ) -> Result<Measured, Refused> {
        self.call(Request {
            op,
            write: write.unwrap_or(0) as u32,
            addr: addr as u64,
            size: size as u64,
            ..Default::default()
        })
    }
}
