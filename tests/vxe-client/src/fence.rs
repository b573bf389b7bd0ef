// SPDX-License-Identifier: GPL-2.0

//! User fences: 64-bit words in memory that the device writes when it is done, and the wait for
//! them.

use crate::{request, sys, Device, Result};
use std::time::Duration;

/// Where and what to write when something is done. For work on a queue the address is the GPU's,
/// for a bind it is the CPU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The address, a multiple of 8.
    pub address: u64,
    /// The value.
    pub value: u64,
}

impl Fence {
    /// The struct of the uAPI.
    pub fn to_sync(self) -> sys::drm_xe_sync {
        let mut sync = sys::drm_xe_sync {
            type_: sys::DRM_XE_SYNC_TYPE_USER_FENCE,
            flags: sys::DRM_XE_SYNC_FLAG_SIGNAL,
            timeline_value: self.value,
            ..Default::default()
        };
        sync.__bindgen_anon_1.addr = self.address;
        sync
    }
}

/// How a fence's word is compared with the value waited for: `word op value`, unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum WaitOp {
    /// Equal.
    Eq = sys::DRM_XE_UFENCE_WAIT_OP_EQ as u16,
    /// Not equal.
    Neq = sys::DRM_XE_UFENCE_WAIT_OP_NEQ as u16,
    /// Greater.
    Gt = sys::DRM_XE_UFENCE_WAIT_OP_GT as u16,
    /// Greater or equal.
    Gte = sys::DRM_XE_UFENCE_WAIT_OP_GTE as u16,
    /// Less.
    Lt = sys::DRM_XE_UFENCE_WAIT_OP_LT as u16,
    /// Less or equal.
    Lte = sys::DRM_XE_UFENCE_WAIT_OP_LTE as u16,
}

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// For a time from now.
    Relative(Duration),
    /// Until CLOCK_MONOTONIC shows this.
    Absolute(Duration),
    /// For ever.
    Forever,
}

impl Timeout {
    /// A relative time-out in milliseconds.
    pub const fn ms(ms: u64) -> Self {
        Self::Relative(Duration::from_millis(ms))
    }

    fn nanoseconds(self) -> i64 {
        match self {
            Self::Relative(t) | Self::Absolute(t) => t.as_nanos().try_into().unwrap_or(i64::MAX),
            Self::Forever => -1,
        }
    }
}

/// CLOCK_MONOTONIC now, in the form that [`Timeout::Absolute`] takes.
pub fn monotonic_now() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills in `now`; it cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// A wait for `(word & mask) op (value & mask)`.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// The CPU's address of the word.
    pub address: u64,
    /// The comparison.
    pub op: WaitOp,
    /// What to compare with.
    pub value: u64,
    /// The bits that count.
    pub mask: u64,
    /// How long.
    pub timeout: Timeout,
    /// A queue whose ban ends the wait with -EIO; 0 for none.
    pub queue: u32,
}

impl Wait {
    /// A wait for the word at `address` to become `value`.
    pub const fn equal(address: u64, value: u64, timeout: Timeout) -> Self {
        Self { address, op: WaitOp::Eq, value, mask: u64::MAX, timeout, queue: 0 }
    }
}

impl Device {
    /// Waits for a user fence. Returns what is left of a relative time-out.
    ///
    /// # Errors
    ///
    /// ETIME when the time is over, EIO when the queue was banned, or what else the ioctl says.
    pub fn wait_user_fence(&self, wait: &Wait) -> Result<Duration> {
        let absolute = matches!(wait.timeout, Timeout::Absolute(_));
        let mut args = sys::drm_xe_wait_user_fence {
            addr: wait.address,
            op: wait.op as u16,
            flags: if absolute { sys::DRM_XE_UFENCE_WAIT_FLAG_ABSTIME as u16 } else { 0 },
            value: wait.value,
            mask: wait.mask,
            timeout: wait.timeout.nanoseconds(),
            exec_queue_id: wait.queue,
            ..Default::default()
        };
        // SAFETY: the kernel reads the word as it reads all that a user names: a bad address is
        // -EFAULT. It writes nothing but `args`.
        unsafe { self.call(&request::WAIT_USER_FENCE, &mut args) }?;
        Ok(Duration::from_nanos(args.timeout.max(0) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_outs_saturate_and_for_ever_is_negative() {
        assert_eq!(Timeout::ms(2).nanoseconds(), 2_000_000);
        assert_eq!(Timeout::Relative(Duration::MAX).nanoseconds(), i64::MAX);
        assert!(Timeout::Forever.nanoseconds() < 0);
    }

    #[test]
    fn the_clock_goes_forward() {
        let a = monotonic_now();
        assert!(a > Duration::ZERO && monotonic_now() >= a);
    }
}
