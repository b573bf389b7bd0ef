// SPDX-License-Identifier: GPL-2.0

//! Memory that the CPU and a device share.
//!
//! A GPU writes memory behind Rust's back, and Rust has a type for memory that others write at any
//! moment: atomics. `&[AtomicU32]` can be a stack array, a `Vec`, a static, or a [`Mapping`] made
//! here, and all of them can be given to the GPU by safe code.

use crate::{Error, Result};
use std::{
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

/// A mapping of memory into the process, unmapped when dropped.
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping is memory, and is only reached as atomics or raw pointers.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private, zeroed memory.
    ///
    /// # Errors
    ///
    /// What `mmap(2)` says.
    pub fn anonymous(length: usize) -> Result<Self> {
        Self::map(
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            None,
        )
    }

    /// A shared mapping of a file, from its start.
    ///
    /// # Errors
    ///
    /// What `mmap(2)` says.
    pub fn file(length: usize, file: BorrowedFd<'_>) -> Result<Self> {
        Self::map(length, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, Some((file, 0)))
    }

    /// `mmap(2)` at an address of the kernel's choice. MAP_FIXED in `flags` is refused, for it
    /// could replace memory that others use.
    ///
    /// # Errors
    ///
    /// What `mmap(2)` says; EINVAL for MAP_FIXED.
    pub fn map(
        length: usize,
        protection: i32,
        flags: i32,
        file: Option<(BorrowedFd<'_>, i64)>,
    ) -> Result<Self> {
        if flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) != 0 {
            return Err(Error::new("mmap", libc::EINVAL));
        }
        let (fd, offset) = file.map_or((-1, 0), |(fd, offset)| (fd.as_raw_fd(), offset));
        // SAFETY: a new mapping at a free address disturbs nobody.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(Error::last("mmap"));
        }
        let start = NonNull::new(start.cast()).ok_or(Error::new("mmap", libc::EFAULT))?;
        Ok(Self { start, length })
    }

    /// Parts the mapping in two, each of which is unmapped on its own.
    ///
    /// # Panics
    ///
    /// If `length` is not a number of pages, or leaves one of the two without any.
    pub fn split(self, length: usize) -> (Self, Self) {
        assert!(
            length % 4096 == 0 && length > 0 && length < self.length,
            "a mapping of {:#x} bytes cannot be split after {length:#x}",
            self.length
        );
        let whole = std::mem::ManuallyDrop::new(self);
        // SAFETY: the offset is inside the mapping.
        let second = unsafe { whole.start.add(length) };
        (Self { start: whole.start, length }, Self { start: second, length: whole.length - length })
    }

    /// Asks for huge pages.
    ///
    /// # Errors
    ///
    /// What `madvise(2)` says.
    pub fn advise_huge(&self) -> Result<()> {
        // SAFETY: the range is ours, and its contents do not change.
        match unsafe { libc::madvise(self.as_ptr().cast(), self.length, libc::MADV_HUGEPAGE) } {
            0 => Ok(()),
            _ => Err(Error::last("madvise")),
        }
    }

    /// Where it starts.
    pub const fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Where it starts, as the GPU of a mirrored VM sees it.
    pub fn address(&self) -> u64 {
        self.as_ptr() as u64
    }

    /// Its length in bytes.
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no bytes: never, as `mmap(2)` refuses that.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The memory as 32-bit words that anyone may change at any moment.
    ///
    /// The mapping may lack the permission for an access: the process then gets the signal that a
    /// C program would get.
    pub const fn words(&self) -> &[AtomicU32] {
        // SAFETY: the mapping is page-aligned and lives as long as `self`; all that use it, the
        // GPU included, may only do so as shared memory, which is what atomics are for.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length / 4) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whatever borrowed from it is gone.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// Writes `value(i)` to each word `i`.
pub fn fill(words: &[AtomicU32], value: impl Fn(usize) -> u32) {
    for (i, word) in words.iter().enumerate() {
        word.store(value(i), Ordering::Relaxed);
    }
}

/// The first word that is not `value(i)`: its index, and what is there.
pub fn first_difference(words: &[AtomicU32], value: impl Fn(usize) -> u32) -> Option<(usize, u32)> {
    words
        .iter()
        .map(|word| word.load(Ordering::Relaxed))
        .enumerate()
        .find(|&(i, found)| found != value(i))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_can_be_written_and_compared() {
        let m = Mapping::anonymous(4096).unwrap();
        assert_eq!(m.words().len(), 1024);
        assert_eq!(first_difference(m.words(), |_| 0), None);
        fill(m.words(), |i| i as u32 * 3);
        assert_eq!(first_difference(m.words(), |i| i as u32 * 3), None);
        m.words()[5].store(1, Ordering::Relaxed);
        assert_eq!(first_difference(m.words(), |i| i as u32 * 3), Some((5, 1)));
    }

    #[test]
    fn a_part_can_go_without_the_other() {
        let (a, b) = Mapping::anonymous(3 * 4096).unwrap().split(4096);
        assert_eq!((a.len(), b.len()), (4096, 8192));
        assert_eq!(a.address() + 4096, b.address());
        fill(a.words(), |_| 7);
        drop(b);
        assert_eq!(first_difference(a.words(), |_| 7), None);
    }

    #[test]
    fn replacing_the_memory_of_others_is_refused() {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let e = Mapping::map(4096, libc::PROT_READ, flags, None).err();
        assert_eq!(e.map(|e| e.errno()), Some(libc::EINVAL));
    }
}
