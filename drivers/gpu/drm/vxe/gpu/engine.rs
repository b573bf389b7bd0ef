// SPDX-License-Identifier: GPL-2.0

//! The copy engine's command streamer: runs batches in an address space.
//!
//! A [`EngineContext`] holds the whole state of a batch between two steps: the address of the next
//! command, the current command, the progress of a copy, and the registers. [`EngineContext::run`]
//! executes the batch on the calling thread. It returns at the end of the batch, at a fault, at a
//! condition that does not hold yet, or after a step when the caller's `is_over` says so. Another
//! thread may call it later to continue the batch. So no thread waits for a fault or a condition,
//! and there can be many more batches than threads; several can run in one address space at a time.
//!
//! A step is one command, one store or instruction of a command that has a list of them, or one
//! piece of a copy or fill, of at most one page. An access that faults has no effect; the next call
//! of [`EngineContext::run`] repeats it.
//!
//! A fault that is serviced without effect too often fails the batch. A batch may jump, and so may
//! run or wait for ever; then only its `stop` flag ends it. The flag is checked before each step
//! and before each access: after it is set, the batch makes at most one more access.

use super::{
    access::Accessor,
    address_space::AddressSpace,
    clock,
    command::{Command, Condition, DecodeError, PostSync, Store},
    fetcher::Fetcher,
    page_table::Access,
    registers::{Register, RegisterSpace, Registers},
    rows::{CopyState, FillState, PIECE}, //
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    fmt,
    prelude::*,
    sync::atomic::AtomicFlag, //
};
use kernel_ext::sched::cond_resched;

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
    /// The batch waits for a condition on memory. The next call checks it again.
    Waiting,
    /// The batch wakes threads that wait for memory; there is more to do.
    Interrupt,
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
pub(super) enum StepError {
    /// An access faults.
    Fault { addr: u64, access: Access },
    /// A condition does not hold.
    Waiting,
    /// The batch failed.
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
    /// Executes a command.
    Execute(Command),
    /// Stores the next dword or qword of a list.
    Store(Store),
    /// Loads the next register of a list, with this many left.
    LoadImmediates { left: usize, space: RegisterSpace },
    /// Executes the next instruction of a list, with this many left.
    Math { left: usize },
    /// Copies a piece.
    Copy(CopyState),
    /// Fills a piece.
    Fill(FillState),
    /// Writes a fence.
    Fence { addr: u64, value: u64 },
}

/// The state of a batch; see the module.
pub(crate) struct EngineContext {
    step: NextStep,
    fetcher: Fetcher,
    registers: Registers,
    /// Whether the last step wakes threads.
    interrupt: bool,
    /// How often the next access has faulted.
    faults: u32,
    /// Data that a copy has read and not yet written, or the pattern of a fill.
    buffer: KBox<[u8; PIECE]>,
}

impl EngineContext {
    /// Creates a context without a batch. Fails with `ENOMEM`. Its memory, a bit more than a page,
    /// is charged to the caller's memory cgroup.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            step: NextStep::Idle,
            fetcher: Fetcher::new(0),
            registers: Registers::new(),
            interrupt: false,
            faults: 0,
            buffer: KBox::zeroed(GFP_KERNEL_ACCOUNT)?,
        })
    }

    /// Starts the batch at `batch`, which runs up to its `MI_BATCH_BUFFER_END`. Drops the previous
    /// batch. The registers keep their values.
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

    /// Returns how many ticks of the reference clock the context has run: the value of its register
    /// `CTX_TIMESTAMP`.
    pub(crate) fn run_ticks(&self) -> u64 {
        self.registers.run_ticks()
    }

    /// Runs or continues the batch in `aspace`.
    ///
    /// Fails soon after `stop` is set. Calls `is_over` after each step and returns if that returns
    /// true; tries at least one access in any case. May sleep to let other threads run.
    pub(crate) fn run(
        &mut self,
        aspace: &AddressSpace,
        stop: &AtomicFlag,
        is_over: impl FnMut() -> bool,
    ) -> Outcome {
        self.registers.start();
        let outcome = self.run_steps(aspace, stop, is_over);
        self.registers.stop();
        outcome
    }

    fn run_steps(
        &mut self,
        aspace: &AddressSpace,
        stop: &AtomicFlag,
        mut is_over: impl FnMut() -> bool,
    ) -> Outcome {
        loop {
            match self.step(aspace, stop) {
                Err(StepError::Failed(error)) => return Outcome::Failed(error),
                Err(StepError::Fault { addr, access }) => return Outcome::Fault { addr, access },
                Err(StepError::Waiting) => return Outcome::Waiting,
                Ok(()) => {}
            }
            if core::mem::take(&mut self.interrupt) {
                return Outcome::Interrupt;
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
        let mut accessor = Accessor::new(aspace, stop, &mut self.faults);
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
                Command::End => end(&mut self.fetcher, false),
                Command::Start { addr, second_level } => {
                    self.fetcher.jump(accessor.address(addr, 0)?, second_level);
                    NextStep::Fetch
                }
                Command::Interrupt => {
                    self.interrupt = true;
                    NextStep::Fetch
                }
                Command::Store(store) => NextStep::Store(store),
                Command::LoadImmediates { count, space } => {
                    NextStep::LoadImmediates { left: count, space }
                }
                Command::Math { count } => NextStep::Math { left: count },
                Command::Copy(copy) => NextStep::Copy(CopyState::new(copy)),
                Command::Fill(fill) => NextStep::Fill(FillState::new(fill, &mut self.buffer)),
                command => NextStep::Execute(command),
            },
            NextStep::Execute(command) => {
                let command = *command;
                self.execute(command, aspace, stop)?
            }
            NextStep::Store(store) => {
                let (addr, len) = (store.addr, if store.qwords { 8 } else { 4 });
                if store.qwords {
                    let [low, high] = self.fetcher.list(&mut accessor)?;
                    accessor.store_u64(addr, u64::from(high) << 32 | u64::from(low))?;
                } else {
                    let [value] = self.fetcher.list(&mut accessor)?;
                    accessor.store_u32(addr, value)?;
                }
                self.fetcher.consume();
                store.count = store.count.saturating_sub(1);
                if store.count > 0 {
                    store.addr = addr.checked_add(len).ok_or(EngineError::Address { addr })?;
                    return Ok(());
                }
                NextStep::Fetch
            }
            NextStep::LoadImmediates { left, space } => {
                let [offset, value] = self.fetcher.list(&mut accessor)?;
                let register = space.register(offset).and_then(Register::writable);
                let register = register.map_err(|error| self.fetcher.error(error))?;
                self.registers.write(register, value);
                self.fetcher.consume();
                *left = left.saturating_sub(1);
                if *left > 0 {
                    return Ok(());
                }
                NextStep::Fetch
            }
            NextStep::Math { left } => {
                let [instruction] = self.fetcher.list(&mut accessor)?;
                let done = self.registers.compute(instruction);
                done.map_err(|error| self.fetcher.error(error))?;
                self.fetcher.consume();
                *left = left.saturating_sub(1);
                if *left > 0 {
                    return Ok(());
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
            NextStep::Fill(state) => {
                state.piece(&mut accessor, &self.buffer)?;
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

    /// Executes a command of one access, or none. Returns the next step.
    fn execute(
        &mut self,
        command: Command,
        aspace: &AddressSpace,
        stop: &AtomicFlag,
    ) -> Result<NextStep, StepError> {
        let mut accessor = Accessor::new(aspace, stop, &mut self.faults);
        let holds = |accessor: &mut Accessor<'_>, condition: Condition| {
            let value = accessor.load_u32(condition.addr)?;
            Ok::<_, StepError>(condition.holds(value))
        };
        match command {
            Command::Add { addr, delta } => accessor.add_u32(addr, delta)?,
            Command::EndUnless {
                condition,
                all_levels,
            } => {
                if !holds(&mut accessor, condition)? {
                    return Ok(end(&mut self.fetcher, all_levels));
                }
            }
            Command::Wait(condition) => {
                if !holds(&mut accessor, condition)? {
                    return Err(StepError::Waiting);
                }
            }
            Command::Flush { write, interrupt } => {
                match write {
                    Some((addr, PostSync::Dword(value))) => accessor.store_u32(addr, value)?,
                    Some((addr, PostSync::Qword(value))) => accessor.store_u64(addr, value)?,
                    Some((addr, PostSync::Timestamp)) => {
                        accessor.store_u64(addr, clock::timestamp())?;
                    }
                    None => {}
                }
                self.interrupt = interrupt;
            }
            Command::MoveRegister { from, to } => {
                let value = self.registers.read(from);
                self.registers.write(to, value);
            }
            Command::LoadRegister { register, addr } => {
                let value = accessor.load_u32(addr)?;
                self.registers.write(register, value);
            }
            Command::StoreRegister { register, addr } => {
                accessor.store_u32(addr, self.registers.read(register))?;
            }
            // These have steps of their own.
            Command::Noop
            | Command::End
            | Command::Start { .. }
            | Command::Interrupt
            | Command::Store(_)
            | Command::LoadImmediates { .. }
            | Command::Math { .. }
            | Command::Copy(_)
            | Command::Fill(_) => {}
        }
        Ok(NextStep::Fetch)
    }
}

/// Ends a level of the batch, or all. Returns the next step.
fn end(fetcher: &mut Fetcher, all_levels: bool) -> NextStep {
    match fetcher.end(all_levels) {
        true => NextStep::Fetch,
        false => NextStep::Idle,
    }
}
