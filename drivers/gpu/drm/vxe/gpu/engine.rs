// SPDX-License-Identifier: GPL-2.0

//! The copy engine: runs a batch of commands in an address space.
//!
//! An engine is not an object. Whoever calls [`run`] lends it a thread, and it runs one batch to
//! its end there; several may run in one address space at once. It has no state between batches,
//! and holds no lock while it waits for a fault to be serviced.
//!
//! An access that faults is handed to the [`FaultHandler`] and tried again. A handler that reports
//! success while the page keeps faulting is given up on in the end, so that each batch ends: by its
//! last command, by an error, or by its `stop` flag, which is looked at before each access and each
//! fault: once it is set, the batch makes one access more at most.

use super::{
    address_space::{AccessError, AddressSpace},
    command::{self, Command, Copy2d, Reject, MAX_DWORDS},
    page_table::{Access, PAGE_SIZE},
};
use kernel::{
    fmt,
    prelude::*,
    sync::atomic::{AtomicFlag, Relaxed}, //
};
use kernel_ext::sched::cond_resched;

/// Tries of one access, each after a fault that was serviced, before it counts as hopeless.
///
/// A page may be taken away again before the access is tried, so one try is not enough; but each
/// costs a whole fault, and some thousand in a row are no race any more.
const MAX_TRIES: u32 = 4096;

/// Bytes that are fetched of a batch at once.
const LINE: usize = 64;

/// Bytes of a piece of a copy at most: what one access can move.
const PIECE: usize = PAGE_SIZE as usize;

/// Services the page faults of an address space.
pub(crate) trait FaultHandler {
    /// Makes an access of kind `access` to the GPU virtual address `addr` possible, and waits until
    /// it is. May sleep.
    ///
    /// On success the access is tried again. On failure the batch fails.
    fn fault(&self, addr: u64, access: Access) -> Result;
}

/// Why a batch failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineError {
    /// It was told to stop.
    Stopped,
    /// A fault could not be serviced.
    Fault {
        /// The address of the access.
        addr: u64,
        /// Its kind.
        access: Access,
        /// What the handler said.
        error: Error,
    },
    /// A page keeps faulting, however often that is serviced.
    NoProgress {
        /// The address of the access.
        addr: u64,
        /// Its kind.
        access: Access,
    },
    /// An access that is mapped was refused by the bus: the driver lost track of its mappings, or
    /// the device is gone.
    Bus {
        /// The address of the access.
        addr: u64,
        /// What the bus said.
        error: Error,
    },
    /// An address is not within the address space.
    Address {
        /// The address.
        addr: u64,
    },
    /// Something in the batch is not a command.
    Command {
        /// Where in the batch: a GPU virtual address.
        at: u64,
        /// Its first dword.
        header: u32,
        /// What is wrong.
        reject: Reject,
    },
    /// The address of a batch or a fence is not aligned.
    Misaligned {
        /// The address.
        addr: u64,
    },
    /// No memory for the engine's own buffer.
    NoMemory,
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped"),
            Self::Fault {
                addr,
                access,
                error,
            } => f.write_fmt(fmt!("{access:?} fault at {addr:#x}: {error:?}")),
            Self::NoProgress { addr, access } => {
                f.write_fmt(fmt!("endless {access:?} fault at {addr:#x}"))
            }
            Self::Bus { addr, error } => f.write_fmt(fmt!("bus error at {addr:#x}: {error:?}")),
            Self::Address { addr } => f.write_fmt(fmt!("no such address: {addr:#x}")),
            Self::Command { at, header, reject } => {
                f.write_fmt(fmt!("bad command {header:#010x} at {at:#x}: {reject}"))
            }
            Self::Misaligned { addr } => f.write_fmt(fmt!("misaligned address {addr:#x}")),
            Self::NoMemory => f.write_str("no memory"),
        }
    }
}

impl From<EngineError> for Error {
    /// What a waiter is told: `ECANCELED` for a batch that was stopped, `ENOMEM`, else `EIO`.
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Stopped => ECANCELED,
            EngineError::NoMemory => ENOMEM,
            _ => EIO,
        }
    }
}

/// Runs the batch at the address `batch` of `aspace`, up to its `MI_BATCH_BUFFER_END`.
///
/// Soon after `stop` is set, it ends with an error. What a batch that fails has written, stays.
/// May sleep; hold no lock that servicing a fault may need.
pub(crate) fn run(
    aspace: &AddressSpace,
    faults: &dyn FaultHandler,
    batch: u64,
    stop: &AtomicFlag,
) -> Result<(), EngineError> {
    let port = Port {
        aspace,
        faults,
        stop,
    };
    if batch % 4 != 0 {
        return Err(EngineError::Misaligned { addr: batch });
    }
    let mut fetcher = Fetcher::new(port.address(batch, 0)?);
    let mut buffer: Option<KBox<[u8; PIECE]>> = None;

    loop {
        port.check_stop()?;
        match fetcher.command(&port)? {
            Command::Noop => {}
            Command::End => return Ok(()),
            Command::Store { addr, value } => port.store_u32(addr, value)?,
            Command::Add { addr, delta } => port.add_u32(addr, delta)?,
            Command::Copy(copy) => {
                // Most batches copy nothing.
                let buffer = match &mut buffer {
                    Some(buffer) => buffer,
                    none => {
                        none.insert(KBox::zeroed(GFP_KERNEL).map_err(|_| EngineError::NoMemory)?)
                    }
                };
                port.copy(&copy, buffer)?;
            }
        }
        cond_resched();
    }
}

/// Stores `value` at the address `addr` of `aspace`, which must be a multiple of 8: the fence that a
/// program waits for. All that the GPU wrote for this thread before is visible to whoever sees it.
///
/// Faults, stops and fails as [`run`] does.
pub(crate) fn store_qword(
    aspace: &AddressSpace,
    faults: &dyn FaultHandler,
    addr: u64,
    value: u64,
    stop: &AtomicFlag,
) -> Result<(), EngineError> {
    let port = Port {
        aspace,
        faults,
        stop,
    };
    if addr % 8 != 0 {
        return Err(EngineError::Misaligned { addr });
    }
    let va = port.address(addr, 8)?;
    port.access(va, Access::Write, || aspace.store_u64(va, value))
}

/// The way of one batch to memory: accesses that service their faults.
struct Port<'a> {
    aspace: &'a AddressSpace,
    faults: &'a dyn FaultHandler,
    stop: &'a AtomicFlag,
}

impl Port<'_> {
    fn check_stop(&self) -> Result<(), EngineError> {
        if self.stop.load(Relaxed) {
            return Err(EngineError::Stopped);
        }
        Ok(())
    }

    /// The virtual address of `len` bytes that a program calls `addr`.
    fn address(&self, addr: u64, len: u64) -> Result<u64, EngineError> {
        let span = self.aspace.span(addr, len);
        Ok(span.ok_or(EngineError::Address { addr })?.start)
    }

    /// Tries an access until it does not fault any more.
    fn access(
        &self,
        va: u64,
        access: Access,
        mut attempt: impl FnMut() -> Result<(), AccessError>,
    ) -> Result<(), EngineError> {
        for _ in 0..MAX_TRIES {
            self.check_stop()?;
            match attempt() {
                Ok(()) => return Ok(()),
                Err(AccessError::Bus(error)) => return Err(EngineError::Bus { addr: va, error }),
                Err(AccessError::Fault) => {}
            }
            self.check_stop()?;
            self.faults
                .fault(va, access)
                .map_err(|error| EngineError::Fault {
                    addr: va,
                    access,
                    error,
                })?;
            cond_resched();
        }
        Err(EngineError::NoProgress { addr: va, access })
    }

    fn read(&self, va: u64, buf: &mut [u8]) -> Result<(), EngineError> {
        self.access(va, Access::Read, || self.aspace.read(va, buf))
    }

    fn write(&self, va: u64, data: &[u8]) -> Result<(), EngineError> {
        self.access(va, Access::Write, || self.aspace.write(va, data))
    }

    fn store_u32(&self, addr: u64, value: u32) -> Result<(), EngineError> {
        let va = self.address(addr, 4)?;
        self.access(va, Access::Write, || self.aspace.store_u32(va, value))
    }

    fn add_u32(&self, addr: u64, delta: u32) -> Result<(), EngineError> {
        let va = self.address(addr, 4)?;
        self.access(va, Access::Atomic, || self.aspace.add_u32(va, delta))
    }

    fn copy(&self, copy: &Copy2d, buffer: &mut [u8; PIECE]) -> Result<(), EngineError> {
        for row in 0..copy.rows {
            // Rows and pitches have 33 bits at most, so only the sums can leave 64 bits.
            let row = |addr: u64, pitch: u64| addr.checked_add(row.saturating_mul(pitch));
            let src =
                row(copy.src, copy.src_pitch).ok_or(EngineError::Address { addr: copy.src })?;
            let dst =
                row(copy.dst, copy.dst_pitch).ok_or(EngineError::Address { addr: copy.dst })?;
            self.copy_row(src, dst, copy.width, buffer)?;
        }
        Ok(())
    }

    /// Copies `len` bytes, upwards, in pieces that cross no page of either side.
    fn copy_row(
        &self,
        src: u64,
        dst: u64,
        len: u64,
        buffer: &mut [u8; PIECE],
    ) -> Result<(), EngineError> {
        let src = self.address(src, len)?;
        let dst = self.address(dst, len)?;
        let mut done = 0;
        while done < len {
            self.check_stop()?;
            // Cannot overflow: both spans lie within the address space.
            let (from, to) = (src + done, dst + done);
            let piece = (len - done)
                .min(PAGE_SIZE - from % PAGE_SIZE)
                .min(PAGE_SIZE - to % PAGE_SIZE);
            // CAST: A piece is not larger than a page, which is also why this never fails.
            let Some(data) = buffer.get_mut(..piece as usize) else {
                return Err(EngineError::Address { addr: from });
            };
            self.read(from, data)?;
            self.write(to, data)?;
            done += piece;
            cond_resched();
        }
        Ok(())
    }
}

/// Fetches commands, through a buffer of one line: as on hardware, a command that is changed after
/// the line with it has been fetched, runs as it was.
struct Fetcher {
    /// The address of the next dword.
    at: u64,
    line: [u8; LINE],
    /// The address of the line in the buffer.
    line_at: Option<u64>,
}

impl Fetcher {
    fn new(at: u64) -> Self {
        Self {
            at,
            line: [0; LINE],
            line_at: None,
        }
    }

    /// Fetches the next command.
    fn command(&mut self, port: &Port<'_>) -> Result<Command, EngineError> {
        let at = self.at;
        let mut dwords = [0; MAX_DWORDS];
        let mut count = 0;
        let mut wanted = 1;
        for (i, dword) in dwords.iter_mut().enumerate() {
            if i == wanted {
                break;
            }
            *dword = self.dword(port)?;
            count = i + 1;
            if i == 0 {
                let header = *dword;
                wanted = command::length(header).map_err(|reject| EngineError::Command {
                    at,
                    header,
                    reject,
                })?;
            }
        }
        let header = dwords[0];
        let command = command::decode(dwords.get(..count).unwrap_or(&[]));
        command.map_err(|reject| EngineError::Command { at, header, reject })
    }

    /// Fetches the next dword.
    fn dword(&mut self, port: &Port<'_>) -> Result<u32, EngineError> {
        // The end of the address space may be reached.
        let at = port.address(self.at, 4)?;
        let line_at = at / LINE as u64 * LINE as u64;
        if self.line_at != Some(line_at) {
            self.line_at = None;
            port.read(line_at, &mut self.line)?;
            self.line_at = Some(line_at);
        }
        // CAST: Less than a line.
        let offset = (at - line_at) as usize;
        let bytes = self.line.get(offset..).and_then(|line| line.first_chunk());
        let dword = u32::from_le_bytes(*bytes.ok_or(EngineError::Misaligned { addr: at })?);
        self.at = at + 4;
        Ok(dword)
    }
}
