// SPDX-License-Identifier: GPL-2.0

//! Commands of the blitter: bits 31:29 of the header are 2, bits 28:22 are the opcode.
//!
//! All surfaces are linear and uncompressed. A rectangle whose right or lower edge is not beyond
//! the opposite one is empty, as on hardware.
//!
//! C header: `drivers/gpu/drm/xe/instructions/xe_gpu_commands.h`

use super::{
    address,
    aligned,
    Command,
    Copy2d,
    DecodeError,
    Fill2d, //
};
use kernel::bits::{bit_u32, genmask_u32};

const fn opcode(header: u32) -> u32 {
    header >> 22 & 0x7f
}

const XY_BLOCK_COPY_BLT: u32 = 0x41;
const XY_FAST_COPY_BLT: u32 = 0x42;
const XY_FAST_COLOR_BLT: u32 = 0x44;
const XY_CTRL_SURF_COPY_BLT: u32 = 0x48;
const MEM_COPY: u32 = 0x5a;
const MEM_SET: u32 = 0x5b;

/// Type and opcode.
const OPCODE: u32 = genmask_u32(22..=31);
/// The number of dwords, less two.
const LENGTH: u32 = genmask_u32(0..=7);

const COPY_PAGE_MODE: u32 = bit_u32(19);
const MATRIX: u32 = bit_u32(17);
/// The unit of a copy in page mode and the alignment of its addresses, in bytes.
const COPY_PAGE: u64 = 256;

/// The colour depth of XY_BLOCK_COPY_BLT and XY_FAST_COLOR_BLT, in their headers.
const DEPTH: u32 = genmask_u32(19..=21);
/// That of XY_FAST_COPY_BLT, in its second dword.
const FAST_DEPTH: u32 = genmask_u32(24..=26);
/// The tilings of XY_FAST_COPY_BLT: in its header and its second dword.
const FAST_TILING: u32 = genmask_u32(20..=21) | genmask_u32(13..=14);
const FAST_TILING_Y: u32 = genmask_u32(30..=31);
const FAST_PITCH: u32 = genmask_u32(0..=14);
const FAST_PITCH_SIGN: u32 = bit_u32(15);
const FAST_ENCRYPT: u32 = bit_u32(17);

/// The dword with the pitch of a surface, its tiling and its compression.
const PITCH: u32 = genmask_u32(0..=17);
const COMPRESSION: u32 = genmask_u32(18..=20) | genmask_u32(28..=29);
const ENCRYPT: u32 = bit_u32(21);
const TILING: u32 = genmask_u32(30..=31);

/// The offsets of a surface, in pixels.
const X_OFFSET: u32 = genmask_u32(0..=13);
const Y_OFFSET: u32 = genmask_u32(16..=29);

/// The level of detail of a surface, and its index in an array.
const LEVEL: u32 = genmask_u32(0..=3);
const ARRAY_INDEX: u32 = genmask_u32(21..=31);

/// Returns how many dwords the command has.
pub(super) fn length(header: u32) -> Result<usize, DecodeError> {
    // CAST: At most 8 bits.
    let dwords = (header & LENGTH) as usize + 2;
    let known = match opcode(header) {
        MEM_COPY | XY_FAST_COPY_BLT => dwords == 10,
        MEM_SET => dwords == 7,
        XY_BLOCK_COPY_BLT => dwords == 12 || dwords == 22,
        XY_FAST_COLOR_BLT => dwords == 16,
        XY_CTRL_SURF_COPY_BLT => return Err(DecodeError::Compression),
        _ => return Err(DecodeError::Unknown),
    };
    known.then_some(dwords).ok_or(DecodeError::Length)
}

/// Decodes a command of as many dwords as [`length`] returns.
pub(super) fn decode(dwords: &[u32]) -> Result<Command, DecodeError> {
    let header = *dwords.first().ok_or(DecodeError::Length)?;
    match opcode(header) {
        MEM_COPY => mem_copy(dwords),
        MEM_SET => mem_set(dwords),
        XY_FAST_COPY_BLT => fast_copy(dwords),
        XY_BLOCK_COPY_BLT => block_copy(dwords),
        XY_FAST_COLOR_BLT => fast_color(dwords),
        _ => Err(DecodeError::Unknown),
    }
}

/// Fails unless the bits of `header` that are neither opcode, length nor `known` are zero.
fn only(header: u32, known: u32) -> Result<(), DecodeError> {
    if header & !(OPCODE | LENGTH | known) != 0 {
        return Err(DecodeError::Reserved);
    }
    Ok(())
}

/// Returns the size in a field, which holds it less one.
fn size(field: u32) -> u64 {
    u64::from(field) + 1
}

fn mem_copy(dwords: &[u32]) -> Result<Command, DecodeError> {
    let &[header, width, height, src_pitch, dst_pitch, src_low, src_high, dst_low, dst_high, _mocs] =
        dwords
    else {
        return Err(DecodeError::Length);
    };
    // Programs put the MOCS indices where Xe2 has the bits for encryption.
    only(header, MATRIX | COPY_PAGE_MODE)?;
    let (unit, matrix) = match header & (MATRIX | COPY_PAGE_MODE) {
        0 => (1, false),
        MATRIX => (1, true),
        COPY_PAGE_MODE => (COPY_PAGE, false),
        _ => return Err(DecodeError::Reserved),
    };
    Ok(Command::Copy(Copy2d {
        src: aligned(src_low, src_high, unit)?,
        dst: aligned(dst_low, dst_high, unit)?,
        // Cannot overflow: 33 bits times 256.
        width: size(width) * unit,
        rows: if matrix { size(height) } else { 1 },
        src_pitch: size(src_pitch),
        dst_pitch: size(dst_pitch),
    }))
}

fn mem_set(dwords: &[u32]) -> Result<Command, DecodeError> {
    let &[header, width, height, pitch, low, high, last] = dwords else {
        return Err(DecodeError::Length);
    };
    only(header, MATRIX)?;
    let [.., value] = last.to_le_bytes();
    Ok(Command::Fill(Fill2d {
        dst: address(low, high),
        width: size(width),
        rows: if header & MATRIX != 0 {
            size(height)
        } else {
            1
        },
        pitch: size(pitch),
        pattern: [value; 16],
        period: 1,
    }))
}

/// Returns the bytes of a pixel of XY_BLOCK_COPY_BLT and XY_FAST_COLOR_BLT.
fn depth(header: u32) -> Result<u64, DecodeError> {
    match (header & DEPTH) >> 19 {
        shift @ 0..=3 => Ok(1 << shift),
        5 => Ok(16),
        _ => Err(DecodeError::Depth),
    }
}

/// A rectangle in a linear surface.
struct Rectangle {
    /// The address of the first pixel.
    addr: u64,
    pitch: u64,
}

impl Rectangle {
    /// The rectangle at the pixel (`x`, `y`) of the surface at `base`.
    fn new(base: u64, pitch: u64, depth: u64, (x, y): (u64, u64)) -> Result<Self, DecodeError> {
        // Cannot overflow: coordinates have less than 17 bits, and a pitch at most 19.
        let offset = y * pitch + x * depth;
        let addr = base.checked_add(offset).ok_or(DecodeError::Rectangle)?;
        Ok(Self { addr, pitch })
    }
}

/// Returns the coordinates in a dword, which must not be negative.
fn corner(dword: u32) -> Result<(u64, u64), DecodeError> {
    let (x, y) = (dword & 0xffff, dword >> 16);
    if (x | y) & 0x8000 != 0 {
        return Err(DecodeError::Rectangle);
    }
    Ok((x.into(), y.into()))
}

/// Returns the pitch in the dword of a linear, uncompressed surface.
fn linear(dword: u32) -> Result<u64, DecodeError> {
    if dword & TILING != 0 {
        return Err(DecodeError::Tiling);
    }
    if dword & COMPRESSION != 0 {
        return Err(DecodeError::Compression);
    }
    if dword & ENCRYPT != 0 {
        return Err(DecodeError::Encryption);
    }
    Ok(size(dword & PITCH))
}

/// Returns the corner moved by the offsets in a dword.
fn moved((x, y): (u64, u64), offsets: u32) -> (u64, u64) {
    let (dx, dy) = (offsets & X_OFFSET, (offsets & Y_OFFSET) >> 16);
    (x + u64::from(dx), y + u64::from(dy))
}

/// Fails if the dwords, of compression and address, ask for compression or a clear colour.
fn uncompressed(dwords: [u32; 2]) -> Result<(), DecodeError> {
    if dwords != [0; 2] {
        return Err(DecodeError::Compression);
    }
    Ok(())
}

/// Fails unless the dwords describe a surface that is no part of another.
fn whole(level: u32, index: u32) -> Result<(), DecodeError> {
    if level & LEVEL != 0 || index & ARRAY_INDEX != 0 {
        return Err(DecodeError::Surface);
    }
    Ok(())
}

/// Makes the copy between two rectangles of `from`'s width and height to `to`, in pixels.
fn copy(
    src: Rectangle,
    dst: Rectangle,
    depth: u64,
    (x1, y1): (u64, u64),
    (x2, y2): (u64, u64),
) -> Command {
    let (width, rows) = (x2.saturating_sub(x1), y2.saturating_sub(y1));
    if width == 0 || rows == 0 {
        return Command::Noop;
    }
    Command::Copy(Copy2d {
        src: src.addr,
        dst: dst.addr,
        width: width * depth,
        rows,
        src_pitch: src.pitch,
        dst_pitch: dst.pitch,
    })
}

fn fast_copy(dwords: &[u32]) -> Result<Command, DecodeError> {
    let &[header, info, first, last, dst_low, dst_high, src_first, src_info, src_low, src_high] =
        dwords
    else {
        return Err(DecodeError::Length);
    };
    if header & FAST_TILING != 0 || info & FAST_TILING_Y != 0 {
        return Err(DecodeError::Tiling);
    }
    only(header, 0)?;
    if (info | src_info) & FAST_ENCRYPT != 0 {
        return Err(DecodeError::Encryption);
    }
    let depth = match (info & FAST_DEPTH) >> 24 {
        0 => 1,
        1 => 2,
        3 => 4,
        4 => 8,
        5 => 16,
        _ => return Err(DecodeError::Depth),
    };
    let pitch = |dword: u32| match dword & (FAST_PITCH | FAST_PITCH_SIGN) {
        pitch @ 1..=FAST_PITCH => Ok(u64::from(pitch)),
        _ => Err(DecodeError::Rectangle),
    };
    let (first, last, src_first) = (corner(first)?, corner(last)?, corner(src_first)?);
    let src = Rectangle::new(
        address(src_low, src_high),
        pitch(src_info)?,
        depth,
        src_first,
    )?;
    let dst = Rectangle::new(address(dst_low, dst_high), pitch(info)?, depth, first)?;
    Ok(copy(src, dst, depth, first, last))
}

fn block_copy(dwords: &[u32]) -> Result<Command, DecodeError> {
    let &[header, dst_info, first, last, dst_low, dst_high, dst_offsets, src_first, src_info, src_low, src_high, src_offsets, ref rest @ ..] =
        dwords
    else {
        return Err(DecodeError::Length);
    };
    only(header, DEPTH)?;
    if let &[src_format, src_clear, dst_format, dst_clear, _, dst_level, dst_index, _, src_level, src_index] =
        rest
    {
        uncompressed([src_format, src_clear])?;
        uncompressed([dst_format, dst_clear])?;
        whole(dst_level, dst_index)?;
        whole(src_level, src_index)?;
    }
    let depth = depth(header)?;
    let (first, last, src_first) = (corner(first)?, corner(last)?, corner(src_first)?);
    let src = Rectangle::new(
        address(src_low, src_high),
        linear(src_info)?,
        depth,
        moved(src_first, src_offsets),
    )?;
    let dst = Rectangle::new(
        address(dst_low, dst_high),
        linear(dst_info)?,
        depth,
        moved(first, dst_offsets),
    )?;
    Ok(copy(src, dst, depth, first, last))
}

fn fast_color(dwords: &[u32]) -> Result<Command, DecodeError> {
    let &[header, info, first, last, low, high, offsets, c0, c1, c2, c3, format, clear, _, level, index] =
        dwords
    else {
        return Err(DecodeError::Length);
    };
    only(header, DEPTH)?;
    uncompressed([format, clear])?;
    whole(level, index)?;
    let depth = depth(header)?;
    let (first, last) = (corner(first)?, corner(last)?);
    let dst = Rectangle::new(
        address(low, high),
        linear(info)?,
        depth,
        moved(first, offsets),
    )?;
    let (width, rows) = (
        last.0.saturating_sub(first.0),
        last.1.saturating_sub(first.1),
    );
    if width == 0 || rows == 0 {
        return Ok(Command::Noop);
    }
    let mut pattern = [0; 16];
    for (to, from) in pattern.chunks_exact_mut(4).zip([c0, c1, c2, c3]) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    Ok(Command::Fill(Fill2d {
        dst: dst.addr,
        width: width * depth,
        rows,
        pitch: dst.pitch,
        pattern,
        // CAST: At most 16.
        period: depth as usize,
    }))
}
