// SPDX-License-Identifier: GPL-2.0

//! Memory that a test maps, cuts and protects at will.
//!
//! A [`Map`] is but an address and a length: the test decides what is there. It is never memory of
//! the Rust allocator, nothing but volatile accesses reach it, and an access to what is not mapped
//! ends the subtest by a signal. Nothing is unmapped unless the test says so; the end of the
//! subtest's process does the rest.

use std::os::fd::AsRawFd;

/// Size of a page, on the kernel that programs are built for; [`Program`](crate::Program) runs on no other.
pub const PAGE: usize = if cfg!(page_64k) { 64 << 10 } else { 4 << 10 };
/// 16 pages: with pages of 4 KiB, the size of a middle chunk.
pub const MIDDLE: usize = 16 * PAGE;
/// Size of the smallest chunk that a fault migrates; with pages of 64 KiB, a page.
pub const CHUNK: usize = 64 << 10;
/// Size of the largest chunk; with pages of 4 KiB, that of a huge page.
pub const SZ_2M: usize = 2 << 20;
/// Size of a transparent huge page: as many pages as a page has entries of 8 bytes.
pub const HUGE: usize = PAGE / 8 * PAGE;

/// Reading and writing.
pub const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Reading only.
pub const RO: i32 = libc::PROT_READ;
/// Nothing.
pub const NONE: i32 = libc::PROT_NONE;

const ANON: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// A range of addresses of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    start: usize,
    length: usize,
}

impl Map {
    /// What lies at an address already: the heap, a stack, a mapping made elsewhere.
    pub const fn existing(start: usize, length: usize) -> Self {
        Self { start, length }
    }

    /// `mmap(2)`; fails the subtest if it fails.
    #[track_caller]
    pub fn mmap(start: usize, length: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> Self {
        Self::try_mmap(start, length, prot, flags, fd, offset)
            .unwrap_or_else(|e| panic!("mmap of {length:#x} bytes: {e}"))
    }

    /// `mmap(2)`.
    pub fn try_mmap(
        start: usize,
        length: usize,
        prot: i32,
        flags: i32,
        fd: i32,
        offset: i64,
    ) -> std::io::Result<Self> {
        // SAFETY: with MAP_FIXED it is only called on what this type made.
        let p = unsafe { libc::mmap(start as *mut _, length, prot, flags, fd, offset) };
        if p == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self { start: p as usize, length })
    }

    /// Private memory.
    #[track_caller]
    pub fn anon(length: usize) -> Self {
        Self::mmap(0, length, RW, ANON, -1, 0)
    }

    /// Private memory with the given permissions.
    #[track_caller]
    pub fn anon_prot(length: usize, prot: i32) -> Self {
        Self::mmap(0, length, prot, ANON, -1, 0)
    }

    /// Private memory at a multiple of `align`, with nothing mapped in the `align` bytes on either
    /// side, so that no neighbour shares its chunk.
    #[track_caller]
    pub fn aligned(length: usize, align: usize) -> Self {
        let room = Self::reserve(length, align);
        room.replace_anon(RW)
    }

    /// An aligned range of addresses with nothing in it or within `align` bytes of it; nothing else
    /// will come there, as it is mapped without any permission.
    ///
    /// What the test unmaps in it stays empty, too: the kernel puts new mappings into the highest
    /// gap that is large enough, and a large one is left right above.
    #[track_caller]
    pub fn reserve(length: usize, align: usize) -> Self {
        const GAP: usize = 64 << 20;
        let room = length + 3 * align;
        let flags = ANON | libc::MAP_NORESERVE;
        let all = Self::mmap(0, room + GAP, NONE, flags, -1, 0);
        all.part(room, GAP).unmap();
        let start = (all.start + align).next_multiple_of(align);
        Self { start, length }
    }

    /// Memory shared with children.
    #[track_caller]
    pub fn shared(length: usize) -> Self {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        Self::mmap(0, length, RW, flags, -1, 0)
    }

    /// A mapping of a file.
    #[track_caller]
    pub fn file(file: &impl AsRawFd, length: usize, prot: i32, flags: i32) -> Self {
        Self::mmap(0, length, prot, flags, file.as_raw_fd(), 0)
    }

    /// Maps fresh private memory here, in place of what is there.
    #[track_caller]
    pub fn replace_anon(&self, prot: i32) -> Self {
        let flags = ANON | libc::MAP_FIXED;
        Self::mmap(self.start, self.length, prot, flags, -1, 0)
    }

    /// Maps a file here, in place of what is there.
    #[track_caller]
    pub fn replace_file(&self, file: &impl AsRawFd, prot: i32, flags: i32) -> Self {
        Self::mmap(self.start, self.length, prot, flags | libc::MAP_FIXED, file.as_raw_fd(), 0)
    }

    /// Where it starts.
    pub const fn start(&self) -> usize {
        self.start
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether it is no memory at all.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// A GPU address of a mirrored VM.
    #[track_caller]
    pub const fn at(&self, offset: usize) -> u64 {
        assert!(offset < self.length);
        (self.start + offset) as u64
    }

    /// A part of it.
    #[track_caller]
    pub const fn part(&self, offset: usize, length: usize) -> Self {
        assert!(offset + length <= self.length);
        Self { start: self.start + offset, length }
    }

    /// Reads a word.
    #[track_caller]
    pub fn read(&self, offset: usize) -> u32 {
        assert!(offset % 4 == 0 && offset + 4 <= self.length);
        // SAFETY: aligned, within a range that the test mapped; else a signal ends the subtest.
        unsafe { ((self.start + offset) as *const u32).read_volatile() }
    }

    /// Writes a word.
    #[track_caller]
    pub fn write(&self, offset: usize, value: u32) {
        assert!(offset % 4 == 0 && offset + 4 <= self.length);
        // SAFETY: as above.
        unsafe { ((self.start + offset) as *mut u32).write_volatile(value) }
    }

    /// Writes words, from an offset on.
    #[track_caller]
    pub fn write_words(&self, offset: usize, words: &[u32]) {
        for (i, &word) in words.iter().enumerate() {
            self.write(offset + i * 4, word);
        }
    }

    /// The word as an atomic.
    #[track_caller]
    pub fn atomic(&self, offset: usize) -> &'static std::sync::atomic::AtomicU32 {
        assert!(offset % 4 == 0 && offset + 4 <= self.length);
        // SAFETY: aligned; the test keeps it mapped while it uses it, else a signal ends the
        // subtest.
        unsafe { std::sync::atomic::AtomicU32::from_ptr((self.start + offset) as *mut u32) }
    }

    /// Writes every word: `value(offset)`.
    pub fn fill(&self, value: impl Fn(usize) -> u32) {
        for offset in (0..self.length).step_by(4) {
            self.write(offset, value(offset));
        }
    }

    /// Fails the subtest unless every word is `value(offset)`.
    #[track_caller]
    pub fn expect(&self, what: &str, value: impl Fn(usize) -> u32) {
        for offset in (0..self.length).step_by(4) {
            let (found, wanted) = (self.read(offset), value(offset));
            assert!(
                found == wanted,
                "{what}: {found:#x} instead of {wanted:#x} at offset {offset:#x} of {:#x}",
                self.length
            );
        }
    }

    /// Fails the subtest unless the word is `wanted`.
    #[track_caller]
    pub fn expect_word(&self, what: &str, offset: usize, wanted: u32) {
        let found = self.read(offset);
        assert!(found == wanted, "{what}: {found:#x} instead of {wanted:#x} at offset {offset:#x}");
    }

    /// `mprotect(2)`.
    #[track_caller]
    pub fn protect(&self, prot: i32) {
        // SAFETY: the range is the test's own.
        let result = unsafe { libc::mprotect(self.start as *mut _, self.length, prot) };
        check(result, "mprotect");
    }

    /// `munmap(2)`.
    #[track_caller]
    pub fn unmap(&self) {
        // SAFETY: the range is the test's own.
        let result = unsafe { libc::munmap(self.start as *mut _, self.length) };
        check(result, "munmap");
    }

    /// `madvise(2)`.
    #[track_caller]
    pub fn madvise(&self, advice: i32) {
        self.try_madvise(advice).unwrap_or_else(|e| panic!("madvise({advice}): {e}"));
    }

    /// `madvise(2)`, which not every kernel knows all of.
    pub fn try_madvise(&self, advice: i32) -> std::io::Result<()> {
        // SAFETY: the range is the test's own.
        match unsafe { libc::madvise(self.start as *mut _, self.length, advice) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    /// `mremap(2)` to a place of the given length, or to where the kernel likes.
    #[track_caller]
    pub fn remap(&self, length: usize, flags: i32, to: Option<Map>) -> Self {
        let target = to.map_or(0, |m| m.start);
        // SAFETY: both ranges are the test's own.
        let p = unsafe {
            libc::mremap(
                self.start as *mut _,
                self.length,
                length,
                flags,
                target as *mut libc::c_void,
            )
        };
        assert!(p != libc::MAP_FAILED, "mremap: {}", std::io::Error::last_os_error());
        Self { start: p as usize, length }
    }
}

#[track_caller]
fn check(result: i32, call: &str) {
    assert!(result == 0, "{call}: {}", std::io::Error::last_os_error());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_memory_has_no_neighbours() {
        let m = Map::aligned(MIDDLE, SZ_2M);
        assert_eq!(m.start() % SZ_2M, 0);
        m.fill(|o| o as u32);
        m.expect("filled", |o| o as u32);
        let next = Map::existing(m.start() + MIDDLE, SZ_2M - MIDDLE);
        assert!(next.try_madvise(libc::MADV_POPULATE_READ).is_err());
    }

    #[test]
    fn holes_stay_empty() {
        let m = Map::aligned(SZ_2M, SZ_2M);
        let hole = m.part(MIDDLE, 4 * PAGE);
        hole.unmap();
        for _ in 0..100 {
            let other = Map::anon(PAGE);
            assert!(other.start < hole.start || other.start >= hole.start + hole.length);
        }
    }

    #[test]
    fn contents_move_with_mremap() {
        let m = Map::anon(2 * PAGE);
        m.fill(|o| o as u32 + 1);
        let to = Map::reserve(2 * PAGE, PAGE);
        let moved = m.remap(2 * PAGE, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, Some(to));
        assert_eq!(moved, to);
        moved.expect("moved", |o| o as u32 + 1);
    }
}
