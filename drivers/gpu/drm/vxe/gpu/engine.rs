// SPDX-License-Identifier: GPL-2.0

//! The copy engine's command streamer: runs batches in an address space.
//!
//! A [`EngineContext`] holds the whole state of a batch between two steps: the address of the next
//! command, the current command, and the progress of a copy. [`EngineContext::run`] executes the
//! batch on the calling thread. It returns at the end of the batch, at a fault, or after a step
//! when the caller's `is_over` says so. Another thread may call it later to continue the batch. So
//! no thread waits for a fault, and there can be many more batches than threads; several can run in
//! one address space at a time.
//!
//! A step is one command, or one piece of a copy, of at most one page. An access that faults has no
//! effect; the next call of [`EngineContext::run`] repeats it.
//!
//! A fault that is serviced without effect too often fails the batch. So each batch ends: with its
//! last command, with an error, or by its `stop` flag. The flag is checked before each access:
//! after it is set, the batch makes at most one more access.

use super::{
    address_space::{AccessError, AddressSpace},
    command::{self, Command, Copy2d, DecodeError, MAX_DWORDS},
    page_table::{Access, PAGE_SIZE},
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    fmt,
    prelude::*,
    sync::atomic::{AtomicFlag, Relaxed}, //
};
use kernel_ext::sched::cond_resched;

/// How many times an access may fault, with each fault serviced, before the batch fails.
///
/// The page may be invalidated again before the access is repeated, so one attempt is not enough.
/// But each attempt costs a whole fault, and thousands in a row are not a race any more.
const MAX_TRIES: u32 = 4096;

/// How many bytes of a batch are fetched at once.
const LINE: usize = 64;

/// The most bytes of a piece of a copy: those of one access.
const PIECE: usize = PAGE_SIZE as usize;

/// Why a batch failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineError {
    /// It was stopped.
    Stopped,
    /// A fault could not be serviced.
    Fault {
        /// The address of the access.
        addr: u64,
        /// The kind of access.
        access: Access,
        /// The error of the fault handler.
        error: Error,
    },
    /// A page keeps faulting although its faults are serviced.
    NoProgress {
        /// The address of the access.
        addr: u64,
        /// The kind of access.
        access: Access,
    },
    /// The bus refused an access that is mapped: the driver lost track of its mappings, or the
    /// device is gone.
    Bus {
        /// The address of the access.
        addr: u64,
        /// The error of the bus.
        error: Error,
    },
    /// An address is not within the address space.
    Address {
        /// The address.
        addr: u64,
    },
    /// The batch contains an invalid command.
    Command {
        /// The GPU virtual address of the command.
        at: u64,
        /// The first dword of the command.
        header: u32,
        /// What is wrong with the command.
        error: DecodeError,
    },
    /// The address of a batch or a fence is not aligned.
    Misaligned {
        /// The address.
        addr: u64,
    },
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
            Self::Command { at, header, error } => {
                f.write_fmt(fmt!("bad command {header:#010x} at {at:#x}: {error}"))
            }
            Self::Misaligned { addr } => f.write_fmt(fmt!("misaligned address {addr:#x}")),
        }
    }
}

impl From<EngineError> for Error {
    /// Returns the error for waiters: `ECANCELED` for a batch that was stopped, else `EIO`.
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Stopped => ECANCELED,
            _ => EIO,
        }
    }
}

/// Why [`EngineContext::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The batch, or the store, is done.
    Done,
    /// `is_over` returned true; there is more to do.
    Yielded,
    /// An access is not mapped. The next call repeats it.
    Fault {
        /// The GPU virtual address.
        addr: u64,
        /// The kind of access.
        access: Access,
    },
    /// The batch failed. What it has written stays.
    Failed(EngineError),
}

/// Why a step was not completed.
enum StepError {
    Fault { addr: u64, access: Access },
    Failed(EngineError),
}

impl From<EngineError> for StepError {
    fn from(error: EngineError) -> Self {
        Self::Failed(error)
    }
}

/// The next step.
enum NextStep {
    /// None: all is done.
    Idle,
    /// Starts a batch at this address, which is not checked yet.
    Begin(u64),
    /// Fetches a command.
    Fetch,
    /// Stores or adds a value.
    Execute(Command),
    /// Copies a piece.
    Copy(CopyState),
    /// Writes a fence.
    Fence { addr: u64, value: u64 },
}

/// The state of a batch; see the module.
pub(crate) struct EngineContext {
    step: NextStep,
    fetcher: Fetcher,
    /// How often the next access has faulted.
    faults: u32,
    /// Data that a copy has read and not yet written.
    buffer: KBox<[u8; PIECE]>,
}

impl EngineContext {
    /// Creates a context without a batch. Fails with `ENOMEM`. Its memory, a bit more than a page,
    /// is charged to the caller's memory cgroup.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            step: NextStep::Idle,
            fetcher: Fetcher::new(0),
            faults: 0,
            buffer: KBox::zeroed(GFP_KERNEL_ACCOUNT)?,
        })
    }

    /// Starts the batch at `batch`, which runs up to its `MI_BATCH_BUFFER_END`. Drops the previous
    /// batch.
    pub(crate) fn start(&mut self, batch: u64) {
        self.step = NextStep::Begin(batch);
        self.faults = 0;
    }

    /// Starts a store of `value` at `addr`, which must be a multiple of 8: a fence. All earlier
    /// writes of this context are visible to a reader of the value.
    pub(crate) fn start_store(&mut self, addr: u64, value: u64) {
        self.step = NextStep::Fence { addr, value };
        self.faults = 0;
    }

    /// Runs or continues the batch in `aspace`.
    ///
    /// Fails soon after `stop` is set. Calls `is_over` after each step and returns if that returns
    /// true; tries at least one access in any case. May sleep to let other threads run.
    pub(crate) fn run(
        &mut self,
        aspace: &AddressSpace,
        stop: &AtomicFlag,
        mut is_over: impl FnMut() -> bool,
    ) -> Outcome {
        loop {
            match self.step(aspace, stop) {
                Err(StepError::Failed(error)) => return Outcome::Failed(error),
                Err(StepError::Fault { addr, access }) => return Outcome::Fault { addr, access },
                Ok(()) => {}
            }
            if let NextStep::Idle = self.step {
                return Outcome::Done;
            }
            if is_over() {
                return Outcome::Yielded;
            }
            cond_resched();
        }
    }

    /// Executes one step. On an error the same step is next.
    fn step(&mut self, aspace: &AddressSpace, stop: &AtomicFlag) -> Result<(), StepError> {
        let mut accessor = Accessor {
            aspace,
            stop,
            faults: &mut self.faults,
        };
        accessor.check_stop()?;
        self.step = match &mut self.step {
            NextStep::Idle => NextStep::Idle,
            NextStep::Begin(batch) => {
                if *batch % 4 != 0 {
                    return Err(EngineError::Misaligned { addr: *batch }.into());
                }
                self.fetcher = Fetcher::new(accessor.address(*batch, 0)?);
                NextStep::Fetch
            }
            NextStep::Fetch => match self.fetcher.command(&mut accessor)? {
                Command::Noop => NextStep::Fetch,
                Command::End => NextStep::Idle,
                Command::Copy(copy) => NextStep::Copy(CopyState::new(copy)),
                command @ (Command::Store { .. } | Command::Add { .. }) => {
                    NextStep::Execute(command)
                }
            },
            NextStep::Execute(command) => {
                match *command {
                    Command::Store { addr, value } => accessor.store_u32(addr, value)?,
                    Command::Add { addr, delta } => accessor.add_u32(addr, delta)?,
                    Command::Noop | Command::End | Command::Copy(_) => {}
                }
                NextStep::Fetch
            }
            NextStep::Copy(state) => {
                state.piece(&mut accessor, &mut self.buffer)?;
                if !state.is_done() {
                    return Ok(());
                }
                NextStep::Fetch
            }
            NextStep::Fence { addr, value } => {
                accessor.store_u64(*addr, *value)?;
                NextStep::Idle
            }
        };
        Ok(())
    }
}

/// The memory accesses of one step.
struct Accessor<'a> {
    aspace: &'a AddressSpace,
    stop: &'a AtomicFlag,
    /// How often the next access has faulted.
    faults: &'a mut u32,
}

impl Accessor<'_> {
    fn check_stop(&self) -> Result<(), EngineError> {
        if self.stop.load(Relaxed) {
            return Err(EngineError::Stopped);
        }
        Ok(())
    }

    /// Returns the virtual address of the `len` bytes at `addr` of a command.
    fn address(&self, addr: u64, len: u64) -> Result<u64, EngineError> {
        let span = self.aspace.span(addr, len);
        Ok(span.ok_or(EngineError::Address { addr })?.start)
    }

    /// Tries an access once.
    fn access(
        &mut self,
        va: u64,
        access: Access,
        attempt: impl FnOnce(&AddressSpace) -> Result<(), AccessError>,
    ) -> Result<(), StepError> {
        self.check_stop()?;
        match attempt(self.aspace) {
            Ok(()) => {
                *self.faults = 0;
                Ok(())
            }
            Err(AccessError::Bus(error)) => Err(EngineError::Bus { addr: va, error }.into()),
            Err(AccessError::Fault) if *self.faults >= MAX_TRIES => {
                Err(EngineError::NoProgress { addr: va, access }.into())
            }
            Err(AccessError::Fault) => {
                // Does not overflow: it is less than `MAX_TRIES`.
                *self.faults += 1;
                Err(StepError::Fault { addr: va, access })
            }
        }
    }

    fn read(&mut self, va: u64, buf: &mut [u8]) -> Result<(), StepError> {
        self.access(va, Access::Read, |aspace| aspace.read(va, buf))
    }

    fn write(&mut self, va: u64, data: &[u8]) -> Result<(), StepError> {
        self.access(va, Access::Write, |aspace| aspace.write(va, data))
    }

    fn store_u32(&mut self, addr: u64, value: u32) -> Result<(), StepError> {
        let va = self.address(addr, 4)?;
        self.access(va, Access::Write, |aspace| aspace.store_u32(va, value))
    }

    fn store_u64(&mut self, addr: u64, value: u64) -> Result<(), StepError> {
        if addr % 8 != 0 {
            return Err(EngineError::Misaligned { addr }.into());
        }
        let va = self.address(addr, 8)?;
        self.access(va, Access::Write, |aspace| aspace.store_u64(va, value))
    }

    fn add_u32(&mut self, addr: u64, delta: u32) -> Result<(), StepError> {
        let va = self.address(addr, 4)?;
        self.access(va, Access::Atomic, |aspace| aspace.add_u32(va, delta))
    }
}

/// The progress of a copy: upwards, row by row, in pieces that cross no page boundary on either
/// side.
struct CopyState {
    copy: Copy2d,
    /// The current row.
    row: u64,
    /// How many bytes of the row are done.
    done: u64,
    /// Whether the buffer holds the next piece.
    is_read: bool,
}

impl CopyState {
    fn new(copy: Copy2d) -> Self {
        Self {
            copy,
            row: 0,
            done: 0,
            is_read: false,
        }
    }

    fn is_done(&self) -> bool {
        self.row >= self.copy.rows
    }

    /// Copies the next piece. A piece that was read is not read again, even if its source changes
    /// before it is written.
    fn piece(
        &mut self,
        accessor: &mut Accessor<'_>,
        buffer: &mut [u8; PIECE],
    ) -> Result<(), StepError> {
        let copy = &self.copy;
        // Rows and pitches have at most 33 bits, so only the sums can overflow.
        let place = |addr: u64, pitch: u64| {
            let row = addr.checked_add(self.row.saturating_mul(pitch));
            row.ok_or(EngineError::Address { addr })
        };
        let (src, dst) = (
            place(copy.src, copy.src_pitch)?,
            place(copy.dst, copy.dst_pitch)?,
        );
        // Cannot overflow: both rows lie within the address space, and `done` is less than a row.
        let from = accessor.address(src, copy.width)? + self.done;
        let to = accessor.address(dst, copy.width)? + self.done;
        let piece = (copy.width - self.done)
            .min(PAGE_SIZE - from % PAGE_SIZE)
            .min(PAGE_SIZE - to % PAGE_SIZE);
        // CAST: At most a page, so `get_mut()` does not fail.
        let Some(data) = buffer.get_mut(..piece as usize) else {
            return Err(EngineError::Address { addr: from }.into());
        };
        if !self.is_read {
            accessor.read(from, data)?;
            self.is_read = true;
        }
        accessor.write(to, data)?;
        self.is_read = false;
        self.done += piece;
        if self.done >= copy.width {
            self.done = 0;
            self.row += 1;
        }
        Ok(())
    }
}

/// Fetches commands through a buffer of one line. As on hardware, a command that changes after its
/// line was fetched runs in its old form.
struct Fetcher {
    /// The address of the next dword.
    at: u64,
    line: [u8; LINE],
    /// The address of the line in the buffer.
    line_at: Option<u64>,
    /// The dwords of the current command.
    dwords: [u32; MAX_DWORDS],
    /// How many of them were fetched.
    count: usize,
}

impl Fetcher {
    fn new(at: u64) -> Self {
        Self {
            at,
            line: [0; LINE],
            line_at: None,
            dwords: [0; MAX_DWORDS],
            count: 0,
        }
    }

    /// Fetches the next command, or the rest of it.
    fn command(&mut self, accessor: &mut Accessor<'_>) -> Result<Command, StepError> {
        let mut wanted = 1;
        loop {
            let header = self.dwords[0];
            // Does not underflow: these dwords were fetched before.
            let at = self.at - 4 * self.count as u64;
            let bad = |error| EngineError::Command { at, header, error };
            if self.count > 0 {
                wanted = command::length(header).map_err(bad)?;
            }
            if self.count >= wanted {
                let dwords = self.dwords.get(..self.count).unwrap_or(&[]);
                let command = command::decode(dwords).map_err(bad)?;
                self.count = 0;
                return Ok(command);
            }
            let dword = self.dword(accessor)?;
            // Does not fail: no command has more dwords.
            let Some(place) = self.dwords.get_mut(self.count) else {
                return Err(EngineError::Misaligned { addr: self.at }.into());
            };
            *place = dword;
            self.count += 1;
        }
    }

    /// Fetches the next dword.
    fn dword(&mut self, accessor: &mut Accessor<'_>) -> Result<u32, StepError> {
        // Fails at the end of the address space.
        let at = accessor.address(self.at, 4)?;
        let line_at = at / LINE as u64 * LINE as u64;
        if self.line_at != Some(line_at) {
            self.line_at = None;
            accessor.read(line_at, &mut self.line)?;
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
