// SPDX-License-Identifier: GPL-2.0

//! The flag words of ranges and of pages.
//!
//! A range's flags describe the CPU's address space, a pages object's flags one device's mapping.
//! Readers may read a word without a lock, for opportunistic checks. A word is written as a whole,
//! so that no reader sees half an update. Writers hold the notifier lock, except before the object
//! is shared with another thread.
//!
//! C: `struct drm_gpusvm_range_flags`, `struct drm_gpusvm_pages_flags`, whose bit-fields are
//! laid out from the lowest bit.

use kernel::sync::atomic::{Atomic, Relaxed};

#[cfg(not(target_endian = "little"))]
compile_error!("the bits of C's bit-fields are known for little-endian machines only");

/// A flag of a [`RangeFlags`] word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum RangeFlag {
    /// The range may migrate to device memory. Set when the range is created.
    MigrateDevmem = 1 << 0,
    /// The CPU unmapped the range, or part of it.
    Unmapped = 1 << 1,
    /// The CPU unmapped part of the range.
    PartialUnmap = 1 << 2,
}

/// A flag of a [`PagesFlags`] word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum PagesFlag {
    /// The CPU unmapped the range, or the range was removed: the pages may not be mapped again.
    Unmapped = 1 << 0,
    /// Some of the mapped pages are device memory.
    HasDevmemPages = 1 << 1,
    /// All pages are mapped.
    HasDmaMapping = 1 << 2,
}

macro_rules! flag_word {
    ($(#[$doc:meta])* $word:ident, $flag:ident) => {
        $(#[$doc])*
        #[repr(transparent)]
        pub struct $word(Atomic<i16>);

        impl $word {
            /// Creates a word with no flag set.
            pub const fn new() -> Self {
                Self(Atomic::new(0))
            }

            /// Returns whether `flag` was set at some recent time.
            pub fn has(&self, flag: $flag) -> bool {
                self.0.load(Relaxed) & flag as i16 != 0
            }

            /// Clears `clear` and sets `set` at once. The caller holds the notifier lock, or the
            /// object is not shared with another thread yet.
            pub fn update(&self, set: &[$flag], clear: &[$flag]) {
                let mut word = self.0.load(Relaxed);
                for &flag in clear {
                    word &= !(flag as i16);
                }
                for &flag in set {
                    word |= flag as i16;
                }
                self.0.store(word, Relaxed);
            }
        }

        impl Default for $word {
            fn default() -> Self {
                Self::new()
            }
        }
    };
}

flag_word! {
    /// The flags of a range, `struct drm_gpusvm_range_flags`.
    RangeFlags, RangeFlag
}

flag_word! {
    /// The flags of a pages object, `struct drm_gpusvm_pages_flags`.
    PagesFlags, PagesFlag
}
