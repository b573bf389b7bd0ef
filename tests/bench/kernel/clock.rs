// SPDX-License-Identifier: GPL-2.0

//! The counter that costs are measured by.
//!
//! Under QEMU's `-icount shift=0` the time-stamp counter of the guest goes up by one with every
//! instruction, so that a difference of two readings is a count of instructions. Anywhere else it
//! is a time. The program tells the two apart before it measures anything.

use core::hint::black_box;
use kernel_ext::time::jiffies;

/// Reads the counter.
#[inline(always)]
pub(crate) fn now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: Every x86-64 processor has the instruction, and the kernel may use it.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: May be called in any context.
    unsafe {
        // CAST: A time since the boot is not negative.
        kernel::bindings::ktime_get() as u64
    }
}

/// The cost of an empty measurement: what two readings in a row differ by.
pub(crate) fn empty() -> u64 {
    // The first readings may differ, as code is translated; the smallest is right.
    (0..16).fold(u64::MAX, |least, _| {
        let begin = now();
        least.min(now().wrapping_sub(begin))
    })
}

/// The cost of `f`, and its result.
#[inline(always)]
pub(crate) fn cost<R>(f: impl FnOnce() -> R) -> (u64, R) {
    let begin = now();
    let result = black_box(f());
    (now().wrapping_sub(begin), result)
}

/// Measures one operation: keeps what an empty measurement costs, and notes disturbance.
pub(crate) struct Clock {
    empty: u64,
    jiffies: usize,
}

impl Clock {
    /// Begins.
    pub(crate) fn begin() -> Self {
        Self {
            empty: empty(),
            jiffies: jiffies::now(),
        }
    }

    /// A difference of two readings of the counter, with `between` readings in between, less what
    /// reading took.
    pub(crate) fn net(&self, difference: u64, between: u64) -> u64 {
        difference.saturating_sub(self.empty.saturating_mul(between.saturating_add(1)))
    }

    /// How many timer ticks came since the beginning.
    pub(crate) fn disturbed(&self) -> u64 {
        jiffies::since(self.jiffies) as u64
    }
}
