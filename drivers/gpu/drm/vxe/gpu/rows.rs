// SPDX-License-Identifier: GPL-2.0

//! Copies and fills of rows of bytes, in pieces that cross no page boundary.

use super::{
    access::Accessor,
    command::{Copy2d, Fill2d},
    engine::{EngineError, StepError},
    page_table::PAGE_SIZE, //
};
use kernel::prelude::*;

/// The most bytes of a piece: those of one access.
pub(super) const PIECE: usize = PAGE_SIZE as usize;

/// The place in rows of `width` bytes.
#[derive(Clone, Copy)]
struct Cursor {
    /// The current row.
    row: u64,
    /// How many bytes of the row are done.
    done: u64,
}

impl Cursor {
    const START: Self = Self { row: 0, done: 0 };

    /// Returns the virtual address of the next byte, given the address of the first row, the bytes
    /// from one row to the next, and those of a row.
    fn address(
        self,
        accessor: &Accessor<'_>,
        first: u64,
        pitch: u64,
        width: u64,
    ) -> Result<u64, EngineError> {
        // Rows and pitches have at most 33 bits, so only the sum can overflow.
        let row = first.checked_add(self.row.saturating_mul(pitch));
        let row = row.ok_or(EngineError::Address { addr: first })?;
        // Cannot overflow: the row lies within the address space, and `done` is less than a row.
        Ok(accessor.address(row, width)? + self.done)
    }

    /// Moves on by `bytes`, at most up to the end of the row.
    fn advance(&mut self, bytes: u64, width: u64) {
        self.done += bytes;
        if self.done >= width {
            self.done = 0;
            self.row += 1;
        }
    }
}

/// Returns how many bytes there are up to the end of the page.
fn rest_of_page(va: u64) -> u64 {
    PAGE_SIZE - va % PAGE_SIZE
}

/// The progress of a copy: upwards, row by row.
pub(super) struct CopyState {
    copy: Copy2d,
    at: Cursor,
    /// Whether the buffer holds the next piece.
    is_read: bool,
}

impl CopyState {
    pub(super) fn new(copy: Copy2d) -> Self {
        Self {
            copy,
            at: Cursor::START,
            is_read: false,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.at.row >= self.copy.rows
    }

    /// Copies the next piece. A piece that was read is not read again, even if its source changes
    /// before it is written.
    pub(super) fn piece(
        &mut self,
        accessor: &mut Accessor<'_>,
        buffer: &mut [u8; PIECE],
    ) -> Result<(), StepError> {
        let (copy, at) = (&self.copy, self.at);
        let from = at.address(accessor, copy.src, copy.src_pitch, copy.width)?;
        let to = at.address(accessor, copy.dst, copy.dst_pitch, copy.width)?;
        let piece = (copy.width - at.done)
            .min(rest_of_page(from))
            .min(rest_of_page(to));
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
        self.at.advance(piece, copy.width);
        Ok(())
    }
}

/// The progress of a fill: upwards, row by row.
pub(super) struct FillState {
    fill: Fill2d,
    at: Cursor,
}

impl FillState {
    /// Begins a fill. `buffer` is for this fill alone from now on.
    pub(super) fn new(fill: Fill2d, buffer: &mut [u8; PIECE]) -> Self {
        // The period is at most the length of the pattern, and divides that of the buffer.
        let period = fill.period.clamp(1, fill.pattern.len());
        for chunk in buffer.chunks_mut(period) {
            for (to, from) in chunk.iter_mut().zip(fill.pattern) {
                *to = from;
            }
        }
        Self {
            fill,
            at: Cursor::START,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.at.row >= self.fill.rows
    }

    /// Fills the next piece.
    pub(super) fn piece(
        &mut self,
        accessor: &mut Accessor<'_>,
        buffer: &[u8; PIECE],
    ) -> Result<(), StepError> {
        let (fill, at) = (&self.fill, self.at);
        let to = at.address(accessor, fill.dst, fill.pitch, fill.width)?;
        // CAST: Less than the period, at most 15.
        let phase = (at.done % fill.period.max(1) as u64) as usize;
        let piece = (fill.width - at.done)
            .min(rest_of_page(to))
            .min((PIECE - phase) as u64);
        // CAST: At most a page.
        let Some(data) = buffer
            .get(phase..)
            .and_then(|data| data.get(..piece as usize))
        else {
            // Does not happen: `phase` and `piece` are at most a page together.
            return Err(EngineError::Address { addr: to }.into());
        };
        accessor.write(to, data)?;
        self.at.advance(piece, fill.width);
        Ok(())
    }
}
