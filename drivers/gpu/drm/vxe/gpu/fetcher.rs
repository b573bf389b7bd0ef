// SPDX-License-Identifier: GPL-2.0

//! The fetcher of the command streamer: reads the dwords of a batch, and follows it to others.

use super::{
    access::Accessor,
    command::{self, Command, DecodeError, MAX_DWORDS},
    engine::{EngineError, StepError}, //
};
use kernel::prelude::*;

/// How many bytes of a batch are fetched at once.
const LINE: usize = 64;

/// Fetches commands through a buffer of one line. As on hardware, a command that changes after its
/// line was fetched runs in its old form.
pub(super) struct Fetcher {
    /// The address of the next dword.
    at: u64,
    line: [u8; LINE],
    /// The address of the line in the buffer.
    line_at: Option<u64>,
    /// The dwords fetched for the command, or for its list.
    dwords: [u32; MAX_DWORDS],
    /// How many of them were fetched.
    count: usize,
    /// The address of the current command, and its header.
    command_at: u64,
    header: u32,
    /// In the second level of a batch: where its first level continues.
    return_to: Option<u64>,
}

impl Fetcher {
    /// Fetches a batch from `at`.
    pub(super) fn new(at: u64) -> Self {
        Self {
            at,
            line: [0; LINE],
            line_at: None,
            dwords: [0; MAX_DWORDS],
            count: 0,
            command_at: at,
            header: 0,
            return_to: None,
        }
    }

    /// Fetches the next command, or the rest of it.
    pub(super) fn command(&mut self, accessor: &mut Accessor<'_>) -> Result<Command, StepError> {
        if self.count == 0 {
            self.command_at = self.at;
            self.fetch(accessor, 1)?;
            [self.header, ..] = self.dwords;
        }
        let wanted = command::length(self.header).map_err(|error| self.error(error))?;
        self.fetch(accessor, wanted)?;
        let dwords = self.dwords.get(..self.count).unwrap_or(&[]);
        let command = command::decode(dwords).map_err(|error| self.error(error))?;
        self.count = 0;
        Ok(command)
    }

    /// Fetches the next `N` dwords of the command's list, or the rest of them. They are the same
    /// until [`consume`](Self::consume) is called.
    pub(super) fn list<const N: usize>(
        &mut self,
        accessor: &mut Accessor<'_>,
    ) -> Result<[u32; N], StepError> {
        const { assert!(N <= MAX_DWORDS) };
        self.fetch(accessor, N)?;
        Ok(self.dwords.first_chunk().copied().unwrap_or([0; N]))
    }

    /// Moves on in the command's list.
    pub(super) fn consume(&mut self) {
        self.count = 0;
    }

    /// Returns the error for the current command.
    pub(super) fn error(&self, error: DecodeError) -> EngineError {
        EngineError::Command {
            at: self.command_at,
            header: self.header,
            error,
        }
    }

    /// Continues at `at`: in the same level of the batch, or in a second level, which returns here.
    /// A second level has no further level: there a jump without return also leaves it.
    pub(super) fn jump(&mut self, at: u64, second_level: bool) {
        self.return_to = match (second_level, self.return_to) {
            (false, _) => None,
            (true, Some(first)) => Some(first),
            (true, None) => Some(self.at),
        };
        self.at = at;
        // What is at the target may have been written since the line was fetched.
        self.line_at = None;
    }

    /// Ends the level of the batch, or all levels. Returns whether there is another level, which
    /// then continues.
    pub(super) fn end(&mut self, all_levels: bool) -> bool {
        self.line_at = None;
        match self.return_to.take() {
            Some(at) if !all_levels => {
                self.at = at;
                true
            }
            _ => false,
        }
    }

    /// Fetches dwords until there are `wanted`, at most [`MAX_DWORDS`].
    fn fetch(&mut self, accessor: &mut Accessor<'_>, wanted: usize) -> Result<(), StepError> {
        while self.count < wanted {
            let dword = self.dword(accessor)?;
            // Does not fail: no command has more dwords.
            let Some(place) = self.dwords.get_mut(self.count) else {
                return Err(self.error(DecodeError::Length).into());
            };
            *place = dword;
            self.count += 1;
        }
        Ok(())
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
