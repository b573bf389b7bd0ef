// SPDX-License-Identifier: GPL-2.0

//! Commands of the command streamer, which every engine of the hardware has: bits 31:29 of the
//! header are 0, bits 28:23 are the opcode.
//!
//! C header: `drivers/gpu/drm/xe/instructions/xe_mi_commands.h`

use super::{
    address,
    aligned,
    Command,
    Compare,
    Condition,
    DecodeError,
    PostSync,
    Store, //
};
use crate::gpu::registers::RegisterSpace;
use kernel::bits::{bit_u32, genmask_u32};

const fn opcode(header: u32) -> u32 {
    header >> 23
}

const NOOP: u32 = 0x00;
const USER_INTERRUPT: u32 = 0x02;
const ARB_CHECK: u32 = 0x05;
const MEM_FENCE: u32 = 0x09;
const BATCH_BUFFER_END: u32 = 0x0a;
const MATH: u32 = 0x1a;
const SEMAPHORE_WAIT: u32 = 0x1c;
const STORE_DATA_IMM: u32 = 0x20;
const LOAD_REGISTER_IMM: u32 = 0x22;
const STORE_REGISTER_MEM: u32 = 0x24;
const FLUSH_DW: u32 = 0x26;
const LOAD_REGISTER_MEM: u32 = 0x29;
const LOAD_REGISTER_REG: u32 = 0x2a;
const ATOMIC: u32 = 0x2f;
const BATCH_BUFFER_START: u32 = 0x31;
const CONDITIONAL_BATCH_BUFFER_END: u32 = 0x36;

/// The opcode. Of the other bits of a header each command has its own.
const OPCODE: u32 = genmask_u32(23..=31);
/// The number of dwords, less two.
const LENGTH: u32 = genmask_u32(0..=7);
/// The same, of STORE_DATA_IMM and FLUSH_DW.
const STORE_LENGTH: u32 = genmask_u32(0..=9);
const FLUSH_LENGTH: u32 = genmask_u32(0..=5);

/// The address is one of the global GTT, which only the driver of real hardware may use.
const GLOBAL_GTT: u32 = bit_u32(22);
const STORE_QWORDS: u32 = bit_u32(21);

const ATOMIC_OPERATION: u32 = genmask_u32(8..=15);
const ATOMIC_INC: u32 = 0x5 << 8;
const ATOMIC_DEC: u32 = 0x6 << 8;

/// The bit and the mask that control the prefetch of commands.
const ARB_PREFETCH: u32 = bit_u32(0) | bit_u32(8);
const FENCE_TYPE: u32 = genmask_u32(0..=1);
const FENCE_RESERVED: u32 = 2;

const START_SECOND_LEVEL: u32 = bit_u32(22);
const START_PPGTT: u32 = bit_u32(8);

const COMPARE: u32 = genmask_u32(12..=14);
const END_COMPARE_SEMAPHORE: u32 = bit_u32(21);
const END_CURRENT_LEVEL: u32 = bit_u32(18);
const WAIT_POLL: u32 = bit_u32(15);

/// Register offsets are relative to the engine's registers: of the only, or the destination
/// register.
const CS_MMIO: u32 = bit_u32(19);
/// The same, of the source register of LOAD_REGISTER_REG.
const SOURCE_CS_MMIO: u32 = bit_u32(18);
const LRI_FORCE_POSTED: u32 = bit_u32(12);

const FLUSH_TLB: u32 = bit_u32(18);
const FLUSH_CCS: u32 = bit_u32(16);
const FLUSH_LLC: u32 = bit_u32(9);
const FLUSH_POST_SYNC: u32 = genmask_u32(14..=15);
const FLUSH_NOTIFY: u32 = bit_u32(8);
const FLUSH_ADDRESS_GTT: u32 = bit_u32(2);

/// Returns how many dwords to [`decode`], those of a list that follows not counted.
pub(super) fn length(header: u32) -> Result<usize, DecodeError> {
    let (mask, allowed, fixed) = match opcode(header) {
        NOOP | USER_INTERRUPT | ARB_CHECK | MEM_FENCE | BATCH_BUFFER_END => return Ok(1),
        MATH => (LENGTH, 2..=257, Some(1)),
        SEMAPHORE_WAIT => (LENGTH, 4..=5, None),
        STORE_DATA_IMM => (STORE_LENGTH, 4..=1025, Some(3)),
        LOAD_REGISTER_IMM => (LENGTH, 3..=257, Some(1)),
        STORE_REGISTER_MEM | LOAD_REGISTER_MEM => (LENGTH, 4..=4, None),
        FLUSH_DW => (FLUSH_LENGTH, 3..=5, None),
        LOAD_REGISTER_REG | ATOMIC | BATCH_BUFFER_START => (LENGTH, 3..=3, None),
        CONDITIONAL_BATCH_BUFFER_END => (LENGTH, 4..=4, None),
        _ => return Err(DecodeError::Unknown),
    };
    let dwords = total(header, mask);
    if !allowed.contains(&dwords) {
        return Err(DecodeError::Length);
    }
    Ok(fixed.unwrap_or(dwords))
}

/// Returns how many dwords the command has in all.
fn total(header: u32, mask: u32) -> usize {
    // CAST: At most 10 bits.
    (header & mask) as usize + 2
}

/// Fails unless the bits of `header` that are neither opcode nor `known` are zero.
fn only(header: u32, known: u32) -> Result<(), DecodeError> {
    if header & !(OPCODE | known) != 0 {
        return Err(DecodeError::Reserved);
    }
    Ok(())
}

/// Fails if the command uses the global GTT.
fn no_gtt(header: u32) -> Result<(), DecodeError> {
    if header & GLOBAL_GTT != 0 {
        return Err(DecodeError::GlobalGtt);
    }
    Ok(())
}

/// Decodes a command of as many dwords as [`length`] returns.
pub(super) fn decode(dwords: &[u32]) -> Result<Command, DecodeError> {
    let header = *dwords.first().ok_or(DecodeError::Length)?;
    match (opcode(header), dwords) {
        (NOOP, _) => only(header, 0).map(|()| Command::Noop),
        (ARB_CHECK, _) => only(header, ARB_PREFETCH).map(|()| Command::Noop),
        (MEM_FENCE, _) if header & FENCE_TYPE == FENCE_RESERVED => Err(DecodeError::Reserved),
        (MEM_FENCE, _) => only(header, FENCE_TYPE).map(|()| Command::Noop),
        (USER_INTERRUPT, _) => only(header, 0).map(|()| Command::Interrupt),
        (BATCH_BUFFER_END, _) => only(header, 0).map(|()| Command::End),
        (BATCH_BUFFER_START, &[_, low, high]) => {
            only(header, LENGTH | START_SECOND_LEVEL | START_PPGTT)?;
            Ok(Command::Start {
                addr: aligned(low, high, 4)?,
                second_level: header & START_SECOND_LEVEL != 0,
            })
        }
        (CONDITIONAL_BATCH_BUFFER_END, &[_, value, low, high]) => {
            no_gtt(header)?;
            let known = LENGTH | COMPARE | END_CURRENT_LEVEL | END_COMPARE_SEMAPHORE;
            only(header, known)?;
            if header & END_COMPARE_SEMAPHORE == 0 {
                return Err(DecodeError::Reserved);
            }
            Ok(Command::EndUnless {
                condition: condition(header, value, low, high)?,
                all_levels: header & END_CURRENT_LEVEL == 0,
            })
        }
        // The fifth dword is a token for the firmware.
        (SEMAPHORE_WAIT, &[_, value, low, high] | &[_, value, low, high, _]) => {
            no_gtt(header)?;
            only(header, LENGTH | COMPARE | WAIT_POLL)?;
            if header & WAIT_POLL == 0 {
                // Waiting for a signal, which no command sends.
                return Err(DecodeError::Reserved);
            }
            Ok(Command::Wait(condition(header, value, low, high)?))
        }
        (STORE_DATA_IMM, &[_, low, high]) => store_data(header, low, high),
        (ATOMIC, &[_, low, high]) => {
            no_gtt(header)?;
            let delta = match header & ATOMIC_OPERATION {
                ATOMIC_INC => 1,
                ATOMIC_DEC => u32::MAX,
                _ => return Err(DecodeError::Unknown),
            };
            only(header, LENGTH | ATOMIC_OPERATION)?;
            let addr = aligned(low, high, 4)?;
            Ok(Command::Add { addr, delta })
        }
        (FLUSH_DW, &[_, low, high, ref data @ ..]) => flush(header, low, high, data),
        (LOAD_REGISTER_IMM, _) => {
            only(header, LENGTH | CS_MMIO | LRI_FORCE_POSTED)?;
            let pairs = total(header, LENGTH) - 1;
            if pairs % 2 != 0 {
                return Err(DecodeError::Length);
            }
            Ok(Command::LoadImmediates {
                count: pairs / 2,
                space: space(header, CS_MMIO),
            })
        }
        (LOAD_REGISTER_REG, &[_, from, to]) => {
            only(header, LENGTH | CS_MMIO | SOURCE_CS_MMIO)?;
            Ok(Command::MoveRegister {
                from: space(header, SOURCE_CS_MMIO).register(from)?,
                to: space(header, CS_MMIO).register(to)?.writable()?,
            })
        }
        (LOAD_REGISTER_MEM, &[_, register, low, high]) => {
            no_gtt(header)?;
            only(header, LENGTH | CS_MMIO)?;
            Ok(Command::LoadRegister {
                register: space(header, CS_MMIO).register(register)?.writable()?,
                addr: aligned(low, high, 4)?,
            })
        }
        (STORE_REGISTER_MEM, &[_, register, low, high]) => {
            no_gtt(header)?;
            only(header, LENGTH | CS_MMIO)?;
            Ok(Command::StoreRegister {
                register: space(header, CS_MMIO).register(register)?,
                addr: aligned(low, high, 4)?,
            })
        }
        (MATH, _) => {
            only(header, LENGTH)?;
            Ok(Command::Math {
                count: total(header, LENGTH) - 1,
            })
        }
        _ => Err(DecodeError::Unknown),
    }
}

fn space(header: u32, relative: u32) -> RegisterSpace {
    match header & relative {
        0 => RegisterSpace::Device,
        _ => RegisterSpace::Engine,
    }
}

/// Decodes a condition on the dword at an address.
fn condition(header: u32, value: u32, low: u32, high: u32) -> Result<Condition, DecodeError> {
    let compare = match (header & COMPARE) >> 12 {
        0 => Compare::Greater,
        1 => Compare::GreaterOrEqual,
        2 => Compare::Less,
        3 => Compare::LessOrEqual,
        4 => Compare::Equal,
        5 => Compare::NotEqual,
        _ => return Err(DecodeError::Reserved),
    };
    Ok(Condition {
        addr: aligned(low, high, 4)?,
        compare,
        value,
    })
}

fn store_data(header: u32, low: u32, high: u32) -> Result<Command, DecodeError> {
    no_gtt(header)?;
    only(header, STORE_LENGTH | STORE_QWORDS)?;
    let qwords = header & STORE_QWORDS != 0;
    // Does not underflow: `length()` checked it.
    let data = total(header, STORE_LENGTH) - 3;
    if qwords && data % 2 != 0 {
        return Err(DecodeError::Length);
    }
    Ok(Command::Store(Store {
        addr: aligned(low, high, if qwords { 8 } else { 4 })?,
        count: if qwords { data / 2 } else { data },
        qwords,
    }))
}

fn flush(header: u32, low: u32, high: u32, data: &[u32]) -> Result<Command, DecodeError> {
    let ignored = FLUSH_TLB | FLUSH_CCS | FLUSH_LLC;
    only(
        header,
        FLUSH_LENGTH | FLUSH_POST_SYNC | FLUSH_NOTIFY | ignored,
    )?;
    let write = match ((header & FLUSH_POST_SYNC) >> 14, data) {
        (0, _) => None,
        (1, &[value]) => Some(PostSync::Dword(value)),
        (1, &[low, high]) => Some(PostSync::Qword(address(low, high))),
        (3, &[_] | &[_, _]) => Some(PostSync::Timestamp),
        (1 | 3, _) => return Err(DecodeError::Length),
        _ => return Err(DecodeError::Reserved),
    };
    let addr = match write {
        Some(_) if low & FLUSH_ADDRESS_GTT != 0 => return Err(DecodeError::GlobalGtt),
        Some(_) => aligned(low, high, 8)?,
        None => 0,
    };
    Ok(Command::Flush {
        write: write.map(|write| (addr, write)),
        interrupt: header & FLUSH_NOTIFY != 0,
    })
}
