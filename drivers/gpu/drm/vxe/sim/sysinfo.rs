// SPDX-License-Identifier: GPL-2.0

//! Facts about the machine, the calling task and the time.
//!
//! C headers: [`include/linux/mm.h`](srctree/include/linux/mm.h),
//! [`include/linux/capability.h`](srctree/include/linux/capability.h),
//! [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::Jiffies, //
};

/// Returns the size of system memory in bytes.
pub fn total_ram() -> u64 {
    let mut info = bindings::sysinfo::default();
    // SAFETY: `si_meminfo()` fills in the structure.
    unsafe { bindings::si_meminfo(&mut info) };
    // CAST: `unsigned long` has at most 64 bits.
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

/// Returns how many CPUs are online at the moment.
pub fn online_cpus() -> usize {
    // SAFETY: A static counter that the kernel changes with atomic operations.
    let count = unsafe { Atomic::from_ptr(&raw mut bindings::__num_online_cpus.counter) };
    // The count is not negative.
    count.load(Relaxed).try_into().unwrap_or(1)
}

/// Returns whether the caller has `CAP_SYS_NICE` in the initial user namespace.
pub fn capable_sys_nice() -> bool {
    // SAFETY: `capable()` only uses `current`.
    unsafe { bindings::capable(bindings::CAP_SYS_NICE as c_int) }
}

/// A clock of `clock_gettime()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// `CLOCK_MONOTONIC`.
    Monotonic,
    /// `CLOCK_MONOTONIC_RAW`.
    MonotonicRaw,
    /// `CLOCK_REALTIME`.
    RealTime,
    /// `CLOCK_BOOTTIME`.
    BootTime,
    /// `CLOCK_TAI`.
    Tai,
}

impl Clock {
    /// Returns the clock with the uAPI id `id`, if it is one of these.
    pub fn from_id(id: i32) -> Option<Self> {
        match u32::try_from(id).ok()? {
            bindings::CLOCK_MONOTONIC => Some(Self::Monotonic),
            bindings::CLOCK_MONOTONIC_RAW => Some(Self::MonotonicRaw),
            bindings::CLOCK_REALTIME => Some(Self::RealTime),
            bindings::CLOCK_BOOTTIME => Some(Self::BootTime),
            bindings::CLOCK_TAI => Some(Self::Tai),
            _ => None,
        }
    }

    /// Returns the current time, in nanoseconds since the clock's epoch.
    pub fn now_ns(self) -> i64 {
        // SAFETY: The timekeeping functions may be called at any time.
        unsafe {
            match self {
                Self::Monotonic => bindings::ktime_get(),
                Self::MonotonicRaw => bindings::ktime_get_raw(),
                Self::RealTime => bindings::ktime_get_real(),
                Self::BootTime => bindings::ktime_get_boottime(),
                Self::Tai => bindings::ktime_get_clocktai(),
            }
        }
    }
}

/// Converts nanoseconds to jiffies, rounded down. C: `nsecs_to_jiffies()`.
pub fn nsecs_to_jiffies(ns: u64) -> Jiffies {
    // SAFETY: A pure computation.
    unsafe { bindings::nsecs_to_jiffies(ns) }
}
