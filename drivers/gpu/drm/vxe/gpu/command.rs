// SPDX-License-Identifier: GPL-2.0

//! The commands of the GPU, and how the dwords of a batch encode them.
//!
//! The encodings are those of Intel's command streamer and blitter, as the `xe` driver
//! (`drivers/gpu/drm/xe/instructions`) and programs for it use them. Exactly one form of each
//! command is accepted; any other bit pattern is rejected, so that a GPU that runs into data stops
//! there.
//!
//! Decoding does not access memory: [`length`] returns the number of dwords of a command from its
//! first one, and [`decode`] makes a [`Command`] of the dwords.

use kernel::{bits::bit_u32, fmt, prelude::*};

/// Dwords of the longest command.
pub(super) const MAX_DWORDS: usize = 10;

const MI_NOOP: u32 = 0;
const MI_BATCH_BUFFER_END: u32 = 0x0a << 23;
const MI_STORE_DWORD_IMM: u32 = 0x20 << 23;
const MI_ATOMIC: u32 = 0x2f << 23;
const MI_ATOMIC_INC: u32 = 0x5 << 8;
const MI_ATOMIC_DEC: u32 = 0x6 << 8;
const MI_ATOMIC_OPCODE: u32 = 0xff << 8;
const MEM_COPY: u32 = 0x2 << 29 | 0x5a << 22;
const MEM_COPY_PAGE_MODE: u32 = bit_u32(19);
const MEM_COPY_MATRIX: u32 = bit_u32(17);

/// The bits of a header that identify a command of the command streamer.
const MI_COMMAND: u32 = 0x1ff << 23;
/// The bits of a header that identify a command of the blitter.
const BLT_COMMAND: u32 = 0x3ff << 22;
/// The bits of a header with the number of dwords, less two.
const LENGTH: u32 = 0xff;

/// The unit of a copy in page mode and the alignment of its addresses, in bytes.
const COPY_PAGE: u64 = 256;

/// Why dwords are not a valid command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// The header is not that of a known command.
    Unknown,
    /// The length in the header is wrong for the command.
    Length,
    /// The header has an undefined or unsupported bit set.
    Reserved,
    /// An address is not aligned as the command requires.
    Misaligned,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DecodeError::Unknown => "unknown command",
            DecodeError::Length => "wrong length",
            DecodeError::Reserved => "reserved bits set",
            DecodeError::Misaligned => "misaligned address",
        })
    }
}

/// A command. Addresses are as in the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Does nothing.
    Noop,
    /// Ends the batch.
    End,
    /// Stores a 32-bit value.
    Store {
        /// The address, aligned.
        addr: u64,
        /// The value.
        value: u32,
    },
    /// Adds to a 32-bit value atomically; wraps around.
    Add {
        /// The address, aligned.
        addr: u64,
        /// The addend: 1, or `u32::MAX` to subtract 1.
        delta: u32,
    },
    /// Copies memory.
    Copy(Copy2d),
}

/// A copy of rows of bytes. A linear copy has one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copy2d {
    /// The address of the first source row.
    pub(super) src: u64,
    /// The address of the first destination row.
    pub(super) dst: u64,
    /// Bytes of a row; at most 2^40.
    pub(super) width: u64,
    /// Rows; at least one, at most 2^32.
    pub(super) rows: u64,
    /// Bytes from one source row to the next; at most 2^32.
    pub(super) src_pitch: u64,
    /// Bytes from one destination row to the next; at most 2^32.
    pub(super) dst_pitch: u64,
}

/// Returns how many dwords the command with this header has: 1 to [`MAX_DWORDS`].
pub(super) fn length(header: u32) -> Result<usize, DecodeError> {
    let dwords = match header & MI_COMMAND {
        MI_NOOP | MI_BATCH_BUFFER_END => return Ok(1),
        MI_STORE_DWORD_IMM => 4,
        MI_ATOMIC => 3,
        _ if header & BLT_COMMAND == MEM_COPY => 10,
        _ => return Err(DecodeError::Unknown),
    };
    // CAST: At most 255.
    if (header & LENGTH) as usize + 2 != dwords {
        return Err(DecodeError::Length);
    }
    Ok(dwords)
}

/// Decodes the command at the start of `dwords`.
///
/// There must be as many dwords as [`length`] returns; additional ones are ignored.
pub(super) fn decode(dwords: &[u32]) -> Result<Command, DecodeError> {
    let header = *dwords.first().ok_or(DecodeError::Length)?;
    let dwords = dwords.get(..length(header)?).ok_or(DecodeError::Length)?;

    match *dwords {
        [MI_NOOP] => Ok(Command::Noop),
        [MI_BATCH_BUFFER_END] => Ok(Command::End),
        [header, low, high, value] => {
            if header & !LENGTH != MI_STORE_DWORD_IMM {
                return Err(DecodeError::Reserved);
            }
            let addr = aligned(low, high, 4)?;
            Ok(Command::Store { addr, value })
        }
        [header, low, high] => {
            let delta = match header & MI_ATOMIC_OPCODE {
                MI_ATOMIC_INC => 1,
                MI_ATOMIC_DEC => u32::MAX,
                _ => return Err(DecodeError::Unknown),
            };
            if header & !(LENGTH | MI_ATOMIC_OPCODE) != MI_ATOMIC {
                return Err(DecodeError::Reserved);
            }
            let addr = aligned(low, high, 4)?;
            Ok(Command::Add { addr, delta })
        }
        [header, width, height, src_pitch, dst_pitch, src_low, src_high, dst_low, dst_high, _mocs] =>
        {
            let (unit, align, matrix) = match header & !LENGTH & !BLT_COMMAND {
                0 => (1, 1, false),
                MEM_COPY_MATRIX => (1, 1, true),
                MEM_COPY_PAGE_MODE => (COPY_PAGE, COPY_PAGE, false),
                _ => return Err(DecodeError::Reserved),
            };
            // The fields hold sizes less one. Cannot overflow: 32 bits times 256.
            let size = |field: u32| u64::from(field) + 1;
            Ok(Command::Copy(Copy2d {
                src: aligned(src_low, src_high, align)?,
                dst: aligned(dst_low, dst_high, align)?,
                width: size(width) * unit,
                rows: if matrix { size(height) } else { 1 },
                src_pitch: size(src_pitch),
                dst_pitch: size(dst_pitch),
            }))
        }
        // A command of one dword with other bits set in its header.
        _ => Err(DecodeError::Reserved),
    }
}

/// Returns the address in two dwords, which must be a multiple of `align`.
fn aligned(low: u32, high: u32, align: u64) -> Result<u64, DecodeError> {
    let addr = u64::from(high) << 32 | u64::from(low);
    if addr % align != 0 {
        return Err(DecodeError::Misaligned);
    }
    Ok(addr)
}

#[kunit_tests(vxe_gpu_command)]
mod tests {
    use super::*;

    const LOW: u32 = 0x789a_bc00;
    const HIGH: u32 = 0x7f12_3456;
    const ADDR: u64 = 0x7f12_3456_789a_bc00;

    fn copy(header: u32, width: u32, height: u32) -> [u32; 10] {
        [header, width, height, 4095, 8191, LOW, HIGH, 0x1000, 2, 3]
    }

    #[test]
    fn noop_and_end_are_one_dword() {
        assert_eq!(decode(&[0]), Ok(Command::Noop));
        assert_eq!(decode(&[0x0500_0000, 1, 2]), Ok(Command::End));
        assert_eq!(length(0), Ok(1));
        assert_eq!(length(0x0500_0000), Ok(1));
    }

    #[test]
    fn store() {
        assert_eq!(
            decode(&[0x1000_0002, LOW, HIGH, 0xdead_beef]),
            Ok(Command::Store {
                addr: ADDR,
                value: 0xdead_beef
            })
        );
    }

    #[test]
    fn atomics_add_and_subtract_one() {
        let add = |delta| Ok(Command::Add { addr: ADDR, delta });
        assert_eq!(decode(&[0x1780_0501, LOW, HIGH]), add(1));
        assert_eq!(decode(&[0x1780_0601, LOW, HIGH]), add(u32::MAX));
    }

    #[test]
    fn copy_in_page_mode_counts_256_bytes() {
        assert_eq!(
            decode(&copy(0x5688_0008, 15, 7)),
            Ok(Command::Copy(Copy2d {
                src: ADDR,
                dst: 0x2_0000_1000,
                width: 4096,
                rows: 1,
                src_pitch: 4096,
                dst_pitch: 8192,
            }))
        );
    }

    #[test]
    fn copy_in_byte_mode_counts_bytes_and_rows() {
        let Ok(Command::Copy(linear)) = decode(&copy(0x5680_0008, 15, 7)) else {
            return assert!(false);
        };
        assert_eq!((linear.width, linear.rows), (16, 1));

        let Ok(Command::Copy(matrix)) = decode(&copy(0x5682_0008, 15, 7)) else {
            return assert!(false);
        };
        assert_eq!((matrix.width, matrix.rows), (16, 8));
    }

    #[test]
    fn sizes_of_copies_do_not_overflow() {
        let Ok(Command::Copy(copy)) = decode(&copy(0x5688_0008, u32::MAX, u32::MAX)) else {
            return assert!(false);
        };
        assert_eq!(copy.width, 1 << 40);
    }

    #[test]
    fn unknown_commands() {
        // A small number, text, a command of another engine, MI_BATCH_BUFFER_START.
        for header in [0x6c6c_6548, 0x7a00_0004, 0x1880_0001, u32::MAX] {
            assert_eq!(length(header), Err(DecodeError::Unknown));
            assert_eq!(decode(&[header; MAX_DWORDS]), Err(DecodeError::Unknown));
        }
        assert_eq!(decode(&[0x1780_0701, LOW, HIGH]), Err(DecodeError::Unknown));
    }

    #[test]
    fn wrong_lengths() {
        for header in [
            0x1000_0003,
            0x1000_0000,
            0x1780_0502,
            0x5688_0007,
            0x5688_00ff,
        ] {
            assert_eq!(length(header), Err(DecodeError::Length));
            assert_eq!(decode(&[header; MAX_DWORDS]), Err(DecodeError::Length));
        }
        assert_eq!(decode(&[]), Err(DecodeError::Length));
        assert_eq!(decode(&[0x1000_0002, LOW, HIGH]), Err(DecodeError::Length));
    }

    #[test]
    fn reserved_bits() {
        // A number that is not a header, MI_BATCH_BUFFER_END with a flag, GGTT and 64-bit stores,
        // 64-bit atomics, atomics with a return value, two copy modes at once, compression.
        for header in [
            0x0000_1234,
            0x0500_0001,
            0x1040_0002,
            0x1020_0002,
            0x1788_0501,
            0x1781_0501,
            0x568a_0008,
            0x5688_0108,
        ] {
            assert_eq!(decode(&[header; MAX_DWORDS]), Err(DecodeError::Reserved));
        }
    }

    #[test]
    fn misaligned_addresses() {
        let reject = Err(DecodeError::Misaligned);
        assert_eq!(decode(&[0x1000_0002, LOW + 2, HIGH, 0]), reject);
        assert_eq!(decode(&[0x1780_0501, LOW + 1, HIGH]), reject);

        let mut page = copy(0x5688_0008, 0, 0);
        page[5] = LOW + 128;
        assert_eq!(decode(&page), reject);
        let mut bytes = copy(0x5680_0008, 0, 0);
        bytes[5] = LOW + 1;
        assert!(decode(&bytes).is_ok());
    }
}
