// SPDX-License-Identifier: GPL-2.0

//! The commands of the GPU, and how the dwords of a batch encode them.
//!
//! The encodings are those of Intel's Xe2, as the `xe` driver (`drivers/gpu/drm/xe/instructions`)
//! and programs for it use them. Any other bit pattern is rejected, so that a GPU that runs into
//! data stops there; so is what the engine does not have: tiling, compression, encryption, the
//! global GTT.
//!
//! Decoding does not access memory: [`length`] returns the number of dwords of a command from its
//! first one, and [`decode`] makes a [`Command`] of the dwords. The data of a [`Command::Store`],
//! and the lists of [`Command::LoadImmediates`] and [`Command::Math`], follow these dwords in the
//! batch and are not decoded here, as they may be long.

mod blit;
mod mi;
#[cfg(CONFIG_KUNIT = "y")]
mod tests;

use super::registers::{Register, RegisterSpace};
use kernel::{fmt, prelude::*};

/// Most dwords that [`decode`] needs.
pub(super) const MAX_DWORDS: usize = 22;

/// Why dwords are not a valid command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// The header is not that of a command of this engine.
    Unknown,
    /// The length in the header is wrong for the command.
    Length,
    /// The header has an undefined or unsupported bit set.
    Reserved,
    /// An address is not aligned as the command requires.
    Misaligned,
    /// An address is one of the global GTT.
    GlobalGtt,
    /// There is no such register, or no program may access it.
    Register,
    /// The register cannot be written.
    ReadOnly,
    /// The ALU has no such instruction or operand.
    Alu,
    /// A rectangle has negative coordinates or no pitch, or wraps around.
    Rectangle,
    /// The engine does not support this number of bits for a pixel.
    Depth,
    /// A surface is tiled.
    Tiling,
    /// A surface is compressed, or has a clear colour.
    Compression,
    /// A surface is encrypted.
    Encryption,
    /// A surface is a level or a part of another one.
    Surface,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DecodeError::Unknown => "unknown command",
            DecodeError::Length => "wrong length",
            DecodeError::Reserved => "reserved bits set",
            DecodeError::Misaligned => "misaligned address",
            DecodeError::GlobalGtt => "global GTT not accessible",
            DecodeError::Register => "no such register",
            DecodeError::ReadOnly => "read-only register",
            DecodeError::Alu => "unknown ALU instruction",
            DecodeError::Rectangle => "invalid rectangle",
            DecodeError::Depth => "unsupported colour depth",
            DecodeError::Tiling => "tiling not supported",
            DecodeError::Compression => "compression not supported",
            DecodeError::Encryption => "encryption not supported",
            DecodeError::Surface => "arrays and mipmaps not supported",
        })
    }
}

/// A command. Addresses are as in the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Does nothing.
    Noop,
    /// Ends the batch, or the second level of it.
    End,
    /// Continues elsewhere.
    Start {
        /// The address of the next command, aligned.
        addr: u64,
        /// Whether the end of the batch there returns to this command.
        second_level: bool,
    },
    /// Ends the batch unless the condition holds.
    EndUnless {
        condition: Condition,
        /// Whether a second level ends with its first level.
        all_levels: bool,
    },
    /// Waits until the condition holds.
    Wait(Condition),
    /// Wakes threads that wait for memory.
    Interrupt,
    /// Writes to memory after all earlier accesses.
    Flush {
        /// The address, aligned to 8 bytes, and the data.
        write: Option<(u64, PostSync)>,
        /// Whether to wake threads that wait for memory.
        interrupt: bool,
    },
    /// Stores the data that follows.
    Store(Store),
    /// Adds to a 32-bit value atomically; wraps around.
    Add {
        /// The address, aligned.
        addr: u64,
        /// The addend: 1, or `u32::MAX` to subtract 1.
        delta: u32,
    },
    /// Loads registers with values: as many pairs of register and value follow.
    LoadImmediates { count: usize, space: RegisterSpace },
    /// Copies a register, which may be written.
    MoveRegister { from: Register, to: Register },
    /// Loads a register, which may be written.
    LoadRegister {
        register: Register,
        /// The address, aligned.
        addr: u64,
    },
    /// Stores a register.
    StoreRegister {
        register: Register,
        /// The address, aligned.
        addr: u64,
    },
    /// Executes the ALU instructions that follow.
    Math { count: usize },
    /// Copies memory.
    Copy(Copy2d),
    /// Fills memory.
    Fill(Fill2d),
}

/// A comparison of the memory at an address with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// The address of a dword, aligned.
    pub(super) addr: u64,
    pub(super) compare: Compare,
    pub(super) value: u32,
}

/// How memory is compared with a value; the memory is on the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    Equal,
    NotEqual,
}

impl Condition {
    /// Returns whether the condition holds if the memory has this value.
    pub(super) fn holds(&self, memory: u32) -> bool {
        match self.compare {
            Compare::Greater => memory > self.value,
            Compare::GreaterOrEqual => memory >= self.value,
            Compare::Less => memory < self.value,
            Compare::LessOrEqual => memory <= self.value,
            Compare::Equal => memory == self.value,
            Compare::NotEqual => memory != self.value,
        }
    }
}

/// What [`Command::Flush`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PostSync {
    Dword(u32),
    Qword(u64),
    /// The time-stamp of the engine, a qword.
    Timestamp,
}

/// A store of the dwords or qwords that follow in the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Store {
    /// The address, aligned.
    pub(super) addr: u64,
    /// How many dwords or qwords; at least one.
    pub(super) count: usize,
    pub(super) qwords: bool,
}

/// A copy of rows of bytes. A linear copy has one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copy2d {
    /// The address of the first source row.
    pub(super) src: u64,
    /// The address of the first destination row.
    pub(super) dst: u64,
    /// Bytes of a row; at least one, at most 2^40.
    pub(super) width: u64,
    /// Rows; at least one, at most 2^32.
    pub(super) rows: u64,
    /// Bytes from one source row to the next; at most 2^32.
    pub(super) src_pitch: u64,
    /// Bytes from one destination row to the next; at most 2^32.
    pub(super) dst_pitch: u64,
}

/// Rows of bytes to fill. A linear fill has one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fill2d {
    /// The address of the first row.
    pub(super) dst: u64,
    /// Bytes of a row; at least one, at most 2^32.
    pub(super) width: u64,
    /// Rows; at least one, at most 2^32.
    pub(super) rows: u64,
    /// Bytes from one row to the next; at most 2^32.
    pub(super) pitch: u64,
    /// What each row is filled with from its start: the first `period` bytes, repeated.
    pub(super) pattern: [u8; 16],
    /// 1, 2, 4, 8 or 16.
    pub(super) period: usize,
}

/// Returns how many dwords of the command with this header to [`decode`]: 1 to [`MAX_DWORDS`].
pub(super) fn length(header: u32) -> Result<usize, DecodeError> {
    match header >> 29 {
        0 => mi::length(header),
        2 => blit::length(header),
        _ => Err(DecodeError::Unknown),
    }
}

/// Decodes the command at the start of `dwords`.
///
/// There must be as many dwords as [`length`] returns; additional ones are ignored.
pub(super) fn decode(dwords: &[u32]) -> Result<Command, DecodeError> {
    let header = *dwords.first().ok_or(DecodeError::Length)?;
    let dwords = dwords.get(..length(header)?).ok_or(DecodeError::Length)?;
    match header >> 29 {
        0 => mi::decode(dwords),
        _ => blit::decode(dwords),
    }
}

/// Returns the address in two dwords.
fn address(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// Returns the address in two dwords, which must be a multiple of `align`, a power of two.
fn aligned(low: u32, high: u32, align: u64) -> Result<u64, DecodeError> {
    let addr = address(low, high);
    if addr & (align - 1) != 0 {
        return Err(DecodeError::Misaligned);
    }
    Ok(addr)
}
