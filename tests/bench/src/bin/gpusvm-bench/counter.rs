// SPDX-License-Identifier: GPL-2.0

//! The counter that costs are measured by: the processor's time-stamp counter.
//!
//! Under QEMU's `-icount shift=0` it goes up by one with every instruction of an x86 guest, the same
//! in the kernel and in a program; that of an arm64 guest goes up more slowly.
//! [`counts_instructions`] says if that is so.

use std::{arch::asm, hint::black_box};

/// Reads the counter.
#[inline(always)]
pub fn now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(target_arch = "aarch64")]
    {
        let now;
        // SAFETY: Linux lets every program read the virtual counter.
        unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) now, options(nomem, nostack)) };
        now
    }
}

/// What two readings in a row differ by.
pub fn empty() -> u64 {
    (0..16).map(|_| cost_gross(|| ())).min().unwrap_or(0)
}

/// What `f` costs, reading the counter included.
#[inline(always)]
fn cost_gross(f: impl FnOnce()) -> u64 {
    let begin = now();
    f();
    now().wrapping_sub(begin)
}

/// What `f` costs.
#[inline(always)]
pub fn cost(empty: u64, f: impl FnOnce()) -> u64 {
    cost_gross(f).saturating_sub(empty)
}

/// Runs a loop of two instructions `times` times; `times` is not 0.
#[inline(never)]
fn spin(times: u64) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: counts a register down to zero.
    unsafe {
        asm!("2:", "dec {n}", "jnz 2b", n = inout(reg) times => _, options(nomem, nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: counts a register down to zero.
    unsafe {
        asm!("2:", "subs {n}, {n}, #1", "b.ne 2b", n = inout(reg) times => _, options(nomem, nostack));
    }
}

/// Whether the counter counts instructions: a thousand more turns of a loop of two instructions
/// then cost two thousand more, neither more nor less.
pub fn counts_instructions() -> bool {
    let least = |turns: u64| (0..32).map(|_| cost_gross(|| spin(black_box(turns)))).min();
    match (least(1000), least(2000)) {
        (Some(short), Some(long)) => long.wrapping_sub(short) == 2000,
        _ => false,
    }
}
