// SPDX-License-Identifier: GPL-2.0

//! The ALU of the command streamer, which MI_MATH programs.
//!
//! An instruction is a dword: the operation in bits 31:20, its operands in bits 19:10 and 9:0.
//! Operations work on the sources A and B, and set the accumulator, the zero flag and the carry
//! flag. A flag is stored as all ones or zero.
//!
//! C header: `drivers/gpu/drm/xe/instructions/xe_alu_commands.h`

use super::{
    command::DecodeError,
    registers::Registers, //
};
use kernel::prelude::*;

const NOOP: u32 = 0x000;
const LOAD: u32 = 0x080;
const LOADINV: u32 = 0x480;
const LOAD0: u32 = 0x081;
const LOAD1: u32 = 0x481;
const ADD: u32 = 0x100;
const SUB: u32 = 0x101;
const AND: u32 = 0x102;
const OR: u32 = 0x103;
const XOR: u32 = 0x104;
const SHL: u32 = 0x105;
const SHR: u32 = 0x106;
const SAR: u32 = 0x107;
const STORE: u32 = 0x180;
const STOREINV: u32 = 0x580;

const SRCA: u32 = 0x20;
const SRCB: u32 = 0x21;
const ACCU: u32 = 0x31;
const ZF: u32 = 0x32;
const CF: u32 = 0x33;

/// The state of the ALU between two instructions.
pub(super) struct Alu {
    sources: [u64; 2],
    accumulator: u64,
    zero: bool,
    carry: bool,
}

impl Alu {
    /// Returns an ALU whose state is zero.
    pub(super) const fn new() -> Self {
        Self {
            sources: [0; 2],
            accumulator: 0,
            zero: false,
            carry: false,
        }
    }

    /// Executes an instruction on `registers`, whose ALU this is.
    pub(super) fn execute(registers: &mut Registers, instruction: u32) -> Result<(), DecodeError> {
        let operation = instruction >> 20;
        let (first, second) = (instruction >> 10 & 0x3ff, instruction & 0x3ff);
        let gpr = |registers: &Registers, operand: u32| {
            // CAST: 10 bits.
            registers.gpr(operand as usize).ok_or(DecodeError::Alu)
        };
        match operation {
            NOOP => Ok(()),
            LOAD => {
                let value = gpr(registers, second)?;
                registers.alu.load(first, value)
            }
            LOADINV => {
                let value = gpr(registers, second)?;
                registers.alu.load(first, !value)
            }
            LOAD0 => registers.alu.load(first, 0),
            LOAD1 => registers.alu.load(first, u64::MAX),
            STORE | STOREINV => {
                gpr(registers, first)?;
                let value = registers.alu.output(second)?;
                let inverted = operation == STOREINV;
                // CAST: 10 bits.
                registers.set_gpr(first as usize, if inverted { !value } else { value });
                Ok(())
            }
            _ => registers.alu.compute(operation),
        }
    }

    /// Loads a source.
    fn load(&mut self, source: u32, value: u64) -> Result<(), DecodeError> {
        let [a, b] = &mut self.sources;
        match source {
            SRCA => *a = value,
            SRCB => *b = value,
            _ => return Err(DecodeError::Alu),
        }
        Ok(())
    }

    /// Returns a result.
    fn output(&self, operand: u32) -> Result<u64, DecodeError> {
        let flag = |set| if set { u64::MAX } else { 0 };
        match operand {
            ACCU => Ok(self.accumulator),
            ZF => Ok(flag(self.zero)),
            CF => Ok(flag(self.carry)),
            _ => Err(DecodeError::Alu),
        }
    }

    /// Computes a result from the sources.
    fn compute(&mut self, operation: u32) -> Result<(), DecodeError> {
        let [a, b] = self.sources;
        // Hardware shifts by powers of two only.
        // CAST: 6 bits.
        let shift = (b & 0x3f) as u32;
        (self.accumulator, self.carry) = match operation {
            ADD => a.overflowing_add(b),
            SUB => a.overflowing_sub(b),
            AND => (a & b, false),
            OR => (a | b, false),
            XOR => (a ^ b, false),
            SHL => (a << shift, false),
            SHR => (a >> shift, false),
            // CAST: For an arithmetic shift.
            SAR => (((a as i64) >> shift) as u64, false),
            _ => return Err(DecodeError::Alu),
        };
        self.zero = self.accumulator == 0;
        Ok(())
    }
}

#[kunit_tests(vxe_gpu_alu)]
mod tests {
    use super::*;

    const fn instruction(operation: u32, first: u32, second: u32) -> u32 {
        operation << 20 | first << 10 | second
    }

    /// Computes with two values. Returns the accumulator, and the flags zero and carry.
    fn results(operation: u32, a: u64, b: u64) -> Option<[u64; 3]> {
        let mut registers = Registers::new();
        registers.set_gpr(0, a);
        registers.set_gpr(15, b);
        for instruction in [
            instruction(LOAD, SRCA, 0),
            instruction(LOAD, SRCB, 15),
            instruction(operation, 0, 0),
            instruction(STORE, 1, ACCU),
            instruction(STORE, 2, ZF),
            instruction(STORE, 3, CF),
        ] {
            registers.compute(instruction).ok()?;
        }
        Some([registers.gpr(1)?, registers.gpr(2)?, registers.gpr(3)?])
    }

    #[test]
    fn operations() {
        const ALL: u64 = u64::MAX;
        for (operation, a, b, result) in [
            (ADD, 1, 2, [3, 0, 0]),
            (ADD, ALL, 1, [0, ALL, ALL]),
            (SUB, 5, 3, [2, 0, 0]),
            (SUB, 3, 3, [0, ALL, 0]),
            (SUB, 0, 1, [ALL, 0, ALL]),
            (AND, 6, 3, [2, 0, 0]),
            (OR, 6, 3, [7, 0, 0]),
            (XOR, 6, 6, [0, ALL, 0]),
            (SHL, 3, 4, [48, 0, 0]),
            (SHR, ALL, 63, [1, 0, 0]),
            (SAR, ALL << 8, 4, [ALL << 4, 0, 0]),
        ] {
            assert_eq!(results(operation, a, b), Some(result));
        }
    }

    #[test]
    fn loads_and_stores() {
        let mut registers = Registers::new();
        registers.set_gpr(1, 5);
        for instruction in [
            instruction(NOOP, 0, 0),
            instruction(LOADINV, SRCA, 1),
            instruction(LOAD0, SRCB, 0),
            instruction(ADD, 0, 0),
            instruction(STORE, 2, ACCU),
            instruction(STOREINV, 3, ACCU),
            instruction(LOAD1, SRCA, 0),
            instruction(ADD, 0, 0),
            instruction(STORE, 4, ACCU),
        ] {
            assert_eq!(registers.compute(instruction), Ok(()));
        }
        assert_eq!(registers.gpr(2), Some(!5));
        assert_eq!(registers.gpr(3), Some(5));
        assert_eq!(registers.gpr(4), Some(u64::MAX));
    }

    #[test]
    fn what_the_alu_does_not_have() {
        let mut registers = Registers::new();
        for bad in [
            u32::MAX,
            instruction(0x108, 0, 0),
            instruction(0x082, SRCA, 0),
            instruction(LOAD, SRCA, 16),
            instruction(LOAD, ACCU, 0),
            instruction(STORE, 16, ACCU),
            instruction(STORE, 0, SRCA),
        ] {
            assert_eq!(registers.compute(bad), Err(DecodeError::Alu));
        }
    }
}
