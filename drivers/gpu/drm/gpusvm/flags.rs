// SPDX-License-Identifier: GPL-2.0

//! The flag words of ranges and of pages.
//!
//! A range's flags are facts of the CPU's address space, a pages object's flags facts of one
//! device's mapping. Each word is read without a lock for opportunistic checks, and written as a
//! whole, so that no reader ever sees half an update; all writers hold the notifier lock, the
//! first of them before anyone else knows the object.
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
    /// The range may move to device memory. Set upon creation.
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
    /// The range was unmapped or removed: the pages may not be mapped again.
    Unmapped = 1 << 0,
    /// Some of the mapped pages are device memory.
    HasDevmemPages = 1 << 1,
    /// The pages are mapped, all of them.
    HasDmaMapping = 1 << 2,
}

macro_rules! flag_word {
    ($(#[$doc:meta])* $word:ident, $flag:ident) => {
        $(#[$doc])*
        #[repr(transparent)]
        pub struct $word(Atomic<i16>);

        impl $word {
            /// A word with no flag set.
            pub const fn new() -> Self {
                Self(Atomic::new(0))
            }

            /// Whether `flag` is set, at some recent time.
            pub fn has(&self, flag: $flag) -> bool {
                self.0.load(Relaxed) & flag as i16 != 0
            }

            /// Sets `set` and clears `clear` at once. The caller holds the notifier lock, or is
            /// the only one who knows the object.
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
