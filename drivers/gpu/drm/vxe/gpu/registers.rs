// SPDX-License-Identifier: GPL-2.0

//! The registers of an engine that programs can access.
//!
//! C header: `drivers/gpu/drm/xe/regs/xe_engine_regs.h`

use super::{
    alu::Alu,
    clock,
    command::DecodeError, //
};
use kernel::prelude::*;

/// The number of general purpose registers, of 64 bits each.
const GPRS: usize = 16;

/// The offset of the registers of the first copy engine, in those of the device.
const ENGINE_BASE: u32 = 0x22000;

/// The offsets of registers in those of their engine.
const RING_TIMESTAMP: u32 = 0x358;
const CTX_TIMESTAMP: u32 = 0x3a8;
const GPR: u32 = 0x600;
const GPR_END: u32 = GPR + 8 * GPRS as u32;

/// What the offset of a register is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RegisterSpace {
    /// The registers of the device.
    Device,
    /// The registers of the engine that executes the command.
    Engine,
}

/// A half of a 64-bit register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register {
    name: Name,
    high: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    /// The time-stamp of the engine.
    RingTimestamp,
    /// How long the context has run.
    CtxTimestamp,
    /// A general purpose register, less than [`GPRS`].
    Gpr(usize),
}

impl RegisterSpace {
    /// Returns the register at `offset`.
    pub(super) fn register(self, offset: u32) -> Result<Register, DecodeError> {
        let offset = match self {
            RegisterSpace::Engine => offset,
            RegisterSpace::Device => offset
                .checked_sub(ENGINE_BASE)
                .ok_or(DecodeError::Register)?,
        };
        if offset % 4 != 0 {
            return Err(DecodeError::Register);
        }
        let name = match offset & !4 {
            GPR..GPR_END => Name::Gpr(((offset - GPR) / 8) as usize),
            RING_TIMESTAMP => Name::RingTimestamp,
            CTX_TIMESTAMP => Name::CtxTimestamp,
            _ => return Err(DecodeError::Register),
        };
        Ok(Register {
            name,
            high: offset & 4 != 0,
        })
    }
}

impl Register {
    /// Returns the register if a program may write it.
    pub(super) fn writable(self) -> Result<Self, DecodeError> {
        match self.name {
            Name::Gpr(_) => Ok(self),
            Name::RingTimestamp | Name::CtxTimestamp => Err(DecodeError::ReadOnly),
        }
    }
}

/// The registers of a context, and those of the engine as it sees them.
pub(super) struct Registers {
    gprs: [u64; GPRS],
    pub(super) alu: Alu,
    /// How long the context has run before it was last started, in nanoseconds.
    ran: u64,
    /// When it was last started.
    started: u64,
}

impl Registers {
    /// Returns registers that are zero.
    pub(super) const fn new() -> Self {
        Self {
            gprs: [0; GPRS],
            alu: Alu::new(),
            ran: 0,
            started: 0,
        }
    }

    /// An engine starts to run the context.
    pub(super) fn start(&mut self) {
        self.started = clock::now_ns();
    }

    /// The engine stops running the context.
    pub(super) fn stop(&mut self) {
        self.ran = self.ran_ns();
    }

    /// Returns how long the running context has run.
    fn ran_ns(&self) -> u64 {
        let since = clock::now_ns().saturating_sub(self.started);
        self.ran.saturating_add(since)
    }

    /// Returns how many ticks the stopped context has run.
    pub(super) fn run_ticks(&self) -> u64 {
        clock::ticks(self.ran)
    }

    /// Returns a register.
    pub(super) fn read(&self, register: Register) -> u32 {
        let value = match register.name {
            Name::RingTimestamp => clock::timestamp(),
            Name::CtxTimestamp => clock::ticks(self.ran_ns()),
            Name::Gpr(n) => self.gpr(n).unwrap_or(0),
        };
        // CAST: The low or the high half.
        match register.high {
            false => value as u32,
            true => (value >> 32) as u32,
        }
    }

    /// Writes a register. Nothing happens if it is read-only.
    pub(super) fn write(&mut self, register: Register, value: u32) {
        let Name::Gpr(n) = register.name else {
            return;
        };
        let old = self.gpr(n).unwrap_or(0);
        let value = u64::from(value);
        let new = match register.high {
            false => old & !u64::from(u32::MAX) | value,
            true => old & u64::from(u32::MAX) | value << 32,
        };
        self.set_gpr(n, new);
    }

    /// Returns general purpose register `n`, if there is one.
    pub(super) fn gpr(&self, n: usize) -> Option<u64> {
        self.gprs.get(n).copied()
    }

    /// Writes general purpose register `n`, if there is one.
    pub(super) fn set_gpr(&mut self, n: usize, value: u64) {
        if let Some(gpr) = self.gprs.get_mut(n) {
            *gpr = value;
        }
    }

    /// Executes an instruction of the ALU.
    pub(super) fn compute(&mut self, instruction: u32) -> Result<(), DecodeError> {
        Alu::execute(self, instruction)
    }
}

#[kunit_tests(vxe_gpu_registers)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_those_of_xe() {
        let engine = |offset| RegisterSpace::Engine.register(offset);
        let device = |offset| RegisterSpace::Device.register(offset);
        assert!(engine(0x3a8).is_ok() && engine(0x3ac).is_ok());
        assert_eq!(engine(0x358), device(0x22358));
        assert_eq!(engine(0x678), device(0x22678));
        assert!(engine(0x67c).is_ok());
        for none in [
            0,
            4,
            0x350,
            0x360,
            0x3a9,
            0x3b0,
            0x5fc,
            0x602,
            0x680,
            u32::MAX,
        ] {
            assert_eq!(engine(none), Err(DecodeError::Register));
        }
        // Of no engine, of the render engine.
        for none in [0x358, 0x2358, 0x21ffc, u32::MAX] {
            assert_eq!(device(none), Err(DecodeError::Register));
        }
        for stamp in [0x358, 0x35c, 0x3a8, 0x3ac] {
            let writable = engine(stamp).and_then(Register::writable);
            assert_eq!(writable, Err(DecodeError::ReadOnly));
        }
    }

    #[test]
    fn halves_are_written_one_by_one() {
        let mut registers = Registers::new();
        for (offset, value) in [(0x608, 1), (0x60c, 2), (0x608, 3), (0x67c, 4)] {
            let Ok(register) = RegisterSpace::Engine.register(offset) else {
                return assert!(false);
            };
            registers.write(register, value);
            assert_eq!(registers.read(register), value);
        }
        assert_eq!(registers.gpr(1), Some(2 << 32 | 3));
        assert_eq!(registers.gpr(15), Some(4 << 32));
        assert_eq!(registers.gpr(16), None);
    }

    #[test]
    fn only_the_time_that_a_context_runs_counts() {
        let Ok(register) = RegisterSpace::Engine.register(0x3a8) else {
            return assert!(false);
        };
        let wait = || {
            let until = clock::now_ns() + 1_000_000;
            while clock::now_ns() < until {}
        };
        let mut registers = Registers::new();
        registers.start();
        wait();
        let first = registers.read(register);
        assert!(first >= 19_200);
        registers.stop();
        let ran = registers.run_ticks();
        wait();
        assert_eq!(registers.run_ticks(), ran);
        registers.start();
        registers.stop();
        assert!(registers.run_ticks() >= ran && ran >= u64::from(first));
    }
}
