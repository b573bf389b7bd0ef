// SPDX-License-Identifier: GPL-2.0

//! The commands that the GPU runs.
//!
//! [`Commands`] encodes commands on any address. [`Batch`] does so for memory that the borrow
//! checker knows, so that safe code can run it.

use std::{marker::PhantomData, sync::atomic::AtomicU32};

/// MI_NOOP.
pub const MI_NOOP: u32 = 0;
/// MI_BATCH_BUFFER_END.
pub const MI_BATCH_BUFFER_END: u32 = 0xa << 23;
/// MI_STORE_DWORD_IMM of one dword: four dwords, the length field counting those after the second.
pub const MI_STORE_DWORD_IMM: u32 = (0x20 << 23) | 2;
/// MI_ATOMIC on a dword, without its operation.
pub const MI_ATOMIC: u32 = (0x2f << 23) | 1;
/// The operation "add one" of [`MI_ATOMIC`].
pub const MI_ATOMIC_INC: u32 = 0x5 << 8;
/// The operation "subtract one" of [`MI_ATOMIC`].
pub const MI_ATOMIC_DEC: u32 = 0x6 << 8;
/// MEM_COPY.
pub const MEM_COPY: u32 = (0x2 << 29) | (0x5a << 22) | 8;
/// In [`MEM_COPY`]: the width counts blocks of [`COPY_BLOCK`] bytes.
pub const MEM_COPY_PAGE_MODE: u32 = 1 << 19;

/// The unit of a copy in page mode; addresses and sizes are multiples of it.
pub const COPY_BLOCK: usize = 256;

/// The most that one MEM_COPY is asked to do: its width field has 16 bits that all parts honour.
const COPY_MAX: usize = COPY_BLOCK << 15;

/// A sequence of commands on GPU virtual addresses.
///
/// Encoding commands has no effect; to let a GPU run them on raw addresses is what needs `unsafe`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commands {
    dwords: Vec<u32>,
}

impl Commands {
    /// No commands.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends dwords as they are.
    pub fn raw(&mut self, dwords: &[u32]) -> &mut Self {
        self.dwords.extend_from_slice(dwords);
        self
    }

    /// Does nothing.
    pub fn noop(&mut self) -> &mut Self {
        self.raw(&[MI_NOOP])
    }

    /// Stores a dword.
    pub fn store(&mut self, address: u64, value: u32) -> &mut Self {
        self.raw(&[MI_STORE_DWORD_IMM, low(address), high(address), value])
    }

    /// Adds one to a dword, atomically.
    pub fn increment(&mut self, address: u64) -> &mut Self {
        self.raw(&[MI_ATOMIC | MI_ATOMIC_INC, low(address), high(address)])
    }

    /// Subtracts one from a dword, atomically.
    pub fn decrement(&mut self, address: u64) -> &mut Self {
        self.raw(&[MI_ATOMIC | MI_ATOMIC_DEC, low(address), high(address)])
    }

    /// Copies `length` bytes, a multiple of [`COPY_BLOCK`]; as many commands as it takes.
    ///
    /// # Panics
    ///
    /// If `length` is no multiple of [`COPY_BLOCK`].
    pub fn copy(&mut self, source: u64, destination: u64, length: usize) -> &mut Self {
        assert!(
            length % COPY_BLOCK == 0,
            "a copy of {length} bytes is no multiple of {COPY_BLOCK}"
        );
        let mut done = 0;
        while done < length {
            let part = (length - done).min(COPY_MAX);
            let (from, to) = (source + done as u64, destination + done as u64);
            self.raw(&[
                MEM_COPY | MEM_COPY_PAGE_MODE,
                (part / COPY_BLOCK) as u32 - 1,
                0,
                COPY_BLOCK as u32 - 1,
                COPY_BLOCK as u32 - 1,
                low(from),
                high(from),
                low(to),
                high(to),
                0,
            ]);
            done += part;
        }
        self
    }

    /// Ends the batch.
    pub fn end(&mut self) -> &mut Self {
        self.raw(&[MI_BATCH_BUFFER_END])
    }

    /// The dwords encoded so far.
    pub fn dwords(&self) -> &[u32] {
        &self.dwords
    }

    /// Forgets the commands and keeps the memory.
    pub fn clear(&mut self) -> &mut Self {
        self.dwords.clear();
        self
    }
}

const fn low(address: u64) -> u32 {
    address as u32
}

const fn high(address: u64) -> u32 {
    (address >> 32) as u32
}

/// A sequence of commands on memory of this process.
///
/// It borrows what the commands touch, and [`ExecQueue::run`](crate::ExecQueue::run) returns only
/// when the GPU is done with it: that is what makes running it safe.
#[derive(Clone, Debug, Default)]
pub struct Batch<'memory> {
    commands: Commands,
    memory: PhantomData<&'memory [AtomicU32]>,
}

impl<'memory> Batch<'memory> {
    /// No commands.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores a value.
    pub fn store(&mut self, to: &'memory AtomicU32, value: u32) -> &mut Self {
        self.commands.store(to.as_ptr() as u64, value);
        self
    }

    /// Adds one, atomically.
    pub fn increment(&mut self, what: &'memory AtomicU32) -> &mut Self {
        self.commands.increment(what.as_ptr() as u64);
        self
    }

    /// Subtracts one, atomically.
    pub fn decrement(&mut self, what: &'memory AtomicU32) -> &mut Self {
        self.commands.decrement(what.as_ptr() as u64);
        self
    }

    /// Copies words.
    ///
    /// # Panics
    ///
    /// If the lengths differ, or addresses and length are no multiples of [`COPY_BLOCK`].
    pub fn copy(&mut self, from: &'memory [AtomicU32], to: &'memory [AtomicU32]) -> &mut Self {
        assert_eq!(from.len(), to.len(), "a copy between different lengths");
        let (source, destination) = (from.as_ptr() as usize, to.as_ptr() as usize);
        assert!(
            source % COPY_BLOCK == 0 && destination % COPY_BLOCK == 0,
            "a copy from {source:#x} to {destination:#x} is not aligned to {COPY_BLOCK}"
        );
        self.commands.copy(source as u64, destination as u64, size_of_val(from));
        self
    }

    /// The commands, with their end.
    pub(crate) fn finished(&self) -> Commands {
        let mut commands = self.commands.clone();
        commands.end();
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: u64 = 0x7f12_3456_789a_bcd0;

    #[test]
    fn each_command_is_encoded_as_documented() {
        let mut c = Commands::new();
        c.noop().store(ADDRESS, 0xdead_beef);
        c.increment(ADDRESS).decrement(ADDRESS).end();
        let (lo, hi) = (0x789a_bcd0, 0x7f12_3456);
        assert_eq!(
            c.dwords(),
            [
                [0x0000_0000].as_slice(),
                &[0x1000_0002, lo, hi, 0xdead_beef],
                &[0x1780_0501, lo, hi],
                &[0x1780_0601, lo, hi],
                &[0x0500_0000],
            ]
            .concat()
        );
    }

    #[test]
    fn a_copy_counts_blocks_of_256_bytes() {
        let mut c = Commands::new();
        c.copy(0x1_0000_1000, 0x2_0000_2000, 4096);
        assert_eq!(c.dwords(), [0x5688_0008, 15, 0, 255, 255, 0x1000, 1, 0x2000, 2, 0]);
    }

    #[test]
    fn a_long_copy_is_several_commands_without_gap_or_overlap() {
        let mut c = Commands::new();
        let length = 20 << 20;
        c.copy(0x1000_0000, 0x9000_0000, length);
        let (mut from, mut to, mut total) = (0x1000_0000, 0x9000_0000u32, 0);
        for command in c.dwords().chunks(10) {
            assert!(command[1] <= 0xffff);
            assert_eq!((command[5], command[7]), (from, to));
            let bytes = (command[1] + 1) * 256;
            from += bytes;
            to += bytes;
            total += bytes as usize;
        }
        assert_eq!(total, length);
    }

    #[test]
    fn a_batch_names_the_memory_that_it_borrows() {
        let words = [AtomicU32::new(0), AtomicU32::new(0)];
        let mut batch = Batch::new();
        batch.store(&words[1], 9);
        let address = words[1].as_ptr() as u64;
        let expected = [0x1000_0002, low(address), high(address), 9, 0x0500_0000];
        assert_eq!(batch.finished().dwords(), expected);
    }

    #[test]
    #[should_panic(expected = "different lengths")]
    fn lengths_must_agree() {
        let words: Vec<AtomicU32> = (0..128).map(AtomicU32::new).collect();
        Batch::new().copy(&words[..64], &words[64..127]);
    }
}
