// SPDX-License-Identifier: GPL-2.0

//! The copy engine: runs batches of commands in an address space.
//!
//! A batch runs in a [`Context`], which holds all that there is between two of its steps: where the
//! next command is fetched, the command under way, and how far a copy is. [`Context::run`] lends it
//! the calling thread, and returns where the batch ends, where it faults, or after the step at which
//! the caller wants the thread back. Later, another thread may call it again, and the batch goes on
//! there. So no thread waits for a fault, and many more batches than threads may be under way; several
//! may run in one address space at once.
//!
//! A step is one command, or one piece of a copy, of at most one page. An access that faults has not
//! happened: nothing of it is seen, and calling [`Context::run`] again tries it again.
//!
//! A fault that is serviced again and again without effect is given up on in the end, so that each
//! batch ends: by its last command, by an error, or by its `stop` flag, which is looked at before each
//! access: once it is set, the batch makes one access more at most.

use super::{
    address_space::{AccessError, AddressSpace},
    command::{self, Command, Copy2d, Reject, MAX_DWORDS},
    page_table::{Access, PAGE_SIZE},
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
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
        }
    }
}

impl From<EngineError> for Error {
    /// What a waiter is told: `ECANCELED` for a batch that was stopped, else `EIO`.
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Stopped => ECANCELED,
            _ => EIO,
        }
    }
}

/// How [`Context::run`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The batch, or the store, is done.
    Done,
    /// The caller wanted its thread back; there is more to do.
    Over,
    /// An access is not mapped. It is tried again when the batch goes on.
    Fault {
        /// The GPU virtual address.
        addr: u64,
        /// The kind of access.
        access: Access,
    },
    /// The batch failed. What it has written, stays.
    Failed(EngineError),
}

/// Why a step did not get to its end.
enum Pause {
    Fault { addr: u64, access: Access },
    Failed(EngineError),
}

impl From<EngineError> for Pause {
    fn from(error: EngineError) -> Self {
        Self::Failed(error)
    }
}

/// What the next step is.
enum Step {
    /// Nothing: all is done.
    Idle,
    /// To begin a batch at an address, which was not looked at yet.
    Begin(u64),
    /// To fetch a command.
    Fetch,
    /// To store a value, or add to one.
    Execute(Command),
    /// To copy a piece.
    Copy(Copying),
    /// To store a fence.
    Fence { addr: u64, value: u64 },
}

/// A batch that runs, runs no more or waits to run: see the module.
pub(crate) struct Context {
    step: Step,
    fetcher: Fetcher,
    /// How often the access that comes next has faulted.
    faults: u32,
    /// What a copy has read and not written yet.
    buffer: KBox<[u8; PIECE]>,
}

impl Context {
    /// One that has nothing to do. Fails with `ENOMEM`; its memory, a bit more than a page, is charged
    /// to the caller's memory cgroup.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            step: Step::Idle,
            fetcher: Fetcher::new(0),
            faults: 0,
            buffer: KBox::zeroed(GFP_KERNEL_ACCOUNT)?,
        })
    }

    /// Has the batch at the address `batch` run next, up to its `MI_BATCH_BUFFER_END`. What was under
    /// way is forgotten.
    pub(crate) fn start(&mut self, batch: u64) {
        self.step = Step::Begin(batch);
        self.faults = 0;
    }

    /// Has `value` stored next at the address `addr`, which must be a multiple of 8: the fence that a
    /// program waits for. All that the GPU wrote in this context before is visible to whoever sees it.
    pub(crate) fn start_store(&mut self, addr: u64, value: u64) {
        self.step = Step::Fence { addr, value };
        self.faults = 0;
    }

    /// Runs what was started, in `aspace`, and on from where it was.
    ///
    /// Soon after `stop` is set, it fails. `is_over` is asked after each step whether the caller wants
    /// its thread back; at least one access is tried in any case. May sleep, as other threads get
    /// their turn.
    pub(crate) fn run(
        &mut self,
        aspace: &AddressSpace,
        stop: &AtomicFlag,
        mut is_over: impl FnMut() -> bool,
    ) -> Outcome {
        loop {
            match self.step(aspace, stop) {
                Err(Pause::Failed(error)) => return Outcome::Failed(error),
                Err(Pause::Fault { addr, access }) => return Outcome::Fault { addr, access },
                Ok(()) => {}
            }
            if let Step::Idle = self.step {
                return Outcome::Done;
            }
            if is_over() {
                return Outcome::Over;
            }
            cond_resched();
        }
    }

    /// Takes one step. If it returns early, the same step is next.
    fn step(&mut self, aspace: &AddressSpace, stop: &AtomicFlag) -> Result<(), Pause> {
        let mut port = Port {
            aspace,
            stop,
            faults: &mut self.faults,
        };
        port.check_stop()?;
        self.step = match &mut self.step {
            Step::Idle => Step::Idle,
            Step::Begin(batch) => {
                if *batch % 4 != 0 {
                    return Err(EngineError::Misaligned { addr: *batch }.into());
                }
                self.fetcher = Fetcher::new(port.address(*batch, 0)?);
                Step::Fetch
            }
            Step::Fetch => match self.fetcher.command(&mut port)? {
                Command::Noop => Step::Fetch,
                Command::End => Step::Idle,
                Command::Copy(copy) => Step::Copy(Copying::new(copy)),
                command @ (Command::Store { .. } | Command::Add { .. }) => Step::Execute(command),
            },
            Step::Execute(command) => {
                match *command {
                    Command::Store { addr, value } => port.store_u32(addr, value)?,
                    Command::Add { addr, delta } => port.add_u32(addr, delta)?,
                    Command::Noop | Command::End | Command::Copy(_) => {}
                }
                Step::Fetch
            }
            Step::Copy(copying) => {
                copying.piece(&mut port, &mut self.buffer)?;
                if !copying.is_done() {
                    return Ok(());
                }
                Step::Fetch
            }
            Step::Fence { addr, value } => {
                port.store_u64(*addr, *value)?;
                Step::Idle
            }
        };
        Ok(())
    }
}

/// The way of one step to memory.
struct Port<'a> {
    aspace: &'a AddressSpace,
    stop: &'a AtomicFlag,
    /// How often the access that comes next has faulted.
    faults: &'a mut u32,
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

    /// Tries an access once.
    fn access(
        &mut self,
        va: u64,
        access: Access,
        attempt: impl FnOnce(&AddressSpace) -> Result<(), AccessError>,
    ) -> Result<(), Pause> {
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
                // Does not overflow: it is below the limit.
                *self.faults += 1;
                Err(Pause::Fault { addr: va, access })
            }
        }
    }

    fn read(&mut self, va: u64, buf: &mut [u8]) -> Result<(), Pause> {
        self.access(va, Access::Read, |aspace| aspace.read(va, buf))
    }

    fn write(&mut self, va: u64, data: &[u8]) -> Result<(), Pause> {
        self.access(va, Access::Write, |aspace| aspace.write(va, data))
    }

    fn store_u32(&mut self, addr: u64, value: u32) -> Result<(), Pause> {
        let va = self.address(addr, 4)?;
        self.access(va, Access::Write, |aspace| aspace.store_u32(va, value))
    }

    fn store_u64(&mut self, addr: u64, value: u64) -> Result<(), Pause> {
        if addr % 8 != 0 {
            return Err(EngineError::Misaligned { addr }.into());
        }
        let va = self.address(addr, 8)?;
        self.access(va, Access::Write, |aspace| aspace.store_u64(va, value))
    }

    fn add_u32(&mut self, addr: u64, delta: u32) -> Result<(), Pause> {
        let va = self.address(addr, 4)?;
        self.access(va, Access::Atomic, |aspace| aspace.add_u32(va, delta))
    }
}

/// A copy under way, upwards, row by row, in pieces that cross no page of either side.
struct Copying {
    copy: Copy2d,
    /// The row that is copied.
    row: u64,
    /// How many of its bytes are.
    done: u64,
    /// Whether the next piece is in the buffer.
    is_read: bool,
}

impl Copying {
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

    /// Copies the next piece. One that was read is not read again, whatever becomes of its source
    /// until it can be written.
    fn piece(&mut self, port: &mut Port<'_>, buffer: &mut [u8; PIECE]) -> Result<(), Pause> {
        let copy = &self.copy;
        // Rows and pitches have 33 bits at most, so only the sums can leave 64 bits.
        let place = |addr: u64, pitch: u64| {
            let row = addr.checked_add(self.row.saturating_mul(pitch));
            row.ok_or(EngineError::Address { addr })
        };
        let (src, dst) = (
            place(copy.src, copy.src_pitch)?,
            place(copy.dst, copy.dst_pitch)?,
        );
        // Cannot overflow: both spans lie within the address space, and `done` is less than a row.
        let from = port.address(src, copy.width)? + self.done;
        let to = port.address(dst, copy.width)? + self.done;
        let piece = (copy.width - self.done)
            .min(PAGE_SIZE - from % PAGE_SIZE)
            .min(PAGE_SIZE - to % PAGE_SIZE);
        // CAST: A piece is not larger than a page, which is also why this never fails.
        let Some(data) = buffer.get_mut(..piece as usize) else {
            return Err(EngineError::Address { addr: from }.into());
        };
        if !self.is_read {
            port.read(from, data)?;
            self.is_read = true;
        }
        port.write(to, data)?;
        self.is_read = false;
        self.done += piece;
        if self.done >= copy.width {
            self.done = 0;
            self.row += 1;
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
    /// The command that is being fetched.
    dwords: [u32; MAX_DWORDS],
    /// How many of its dwords are there.
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
    fn command(&mut self, port: &mut Port<'_>) -> Result<Command, Pause> {
        let mut wanted = 1;
        loop {
            let header = self.dwords[0];
            // Cannot overflow: as many dwords were fetched before.
            let at = self.at - 4 * self.count as u64;
            let bad = |reject| EngineError::Command { at, header, reject };
            if self.count > 0 {
                wanted = command::length(header).map_err(bad)?;
            }
            if self.count >= wanted {
                let dwords = self.dwords.get(..self.count).unwrap_or(&[]);
                let command = command::decode(dwords).map_err(bad)?;
                self.count = 0;
                return Ok(command);
            }
            let dword = self.dword(port)?;
            // A command is not longer than the longest, which is why this never fails.
            let Some(place) = self.dwords.get_mut(self.count) else {
                return Err(EngineError::Misaligned { addr: self.at }.into());
            };
            *place = dword;
            self.count += 1;
        }
    }

    /// Fetches the next dword.
    fn dword(&mut self, port: &mut Port<'_>) -> Result<u32, Pause> {
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
