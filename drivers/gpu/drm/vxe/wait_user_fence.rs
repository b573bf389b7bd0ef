// SPDX-License-Identifier: GPL-2.0

//! WAIT_USER_FENCE: sleeps until a word in the caller's memory satisfies a condition.
//!
//! The caller may name the queue that is to write the word. The wait fails when that queue is dead
//! and so will never write it.

use crate::{
    check::ensure,
    ioctl::Ioctl,
    sync::Waited,
    uapi, //
};
use gpusvm::pagemap::dmem;
use kernel::{
    prelude::*,
    task::MAX_SCHEDULE_TIMEOUT,
    time::Jiffies, //
};
use kernel_ext::time::jiffies;
use vxe_sim::sysinfo::{nsecs_to_jiffies, Clock};

/// No time-out, in jiffies.
const FOREVER: Jiffies = MAX_SCHEDULE_TIMEOUT as Jiffies;

/// A comparison of the word with a value.
#[derive(Clone, Copy)]
struct Condition {
    op: fn(&u64, &u64) -> bool,
    value: u64,
    mask: u64,
}

impl Condition {
    /// Creates the condition. Fails with `EINVAL` for an unknown operation.
    fn new(args: &uapi::drm_xe_wait_user_fence) -> Result<Self> {
        Ok(Self {
            op: match u32::from(args.op) {
                uapi::DRM_XE_UFENCE_WAIT_OP_EQ => u64::eq,
                uapi::DRM_XE_UFENCE_WAIT_OP_NEQ => u64::ne,
                uapi::DRM_XE_UFENCE_WAIT_OP_GT => u64::gt,
                uapi::DRM_XE_UFENCE_WAIT_OP_GTE => u64::ge,
                uapi::DRM_XE_UFENCE_WAIT_OP_LT => u64::lt,
                uapi::DRM_XE_UFENCE_WAIT_OP_LTE => u64::le,
                _ => return Err(EINVAL),
            },
            value: args.value,
            mask: args.mask,
        })
    }

    /// Returns whether the word at user address `addr` satisfies the condition. Fails with
    /// `EFAULT`.
    fn holds_at(&self, ioctl: &mut Ioctl<'_>, addr: u64) -> Result<bool> {
        let word: u64 = ioctl.read(addr)?;
        Ok((self.op)(&(word & self.mask), &(self.value & self.mask)))
    }
}

/// `DRM_IOCTL_XE_WAIT_USER_FENCE`.
///
/// A time-out is in nanoseconds: relative, or absolute on `CLOCK_MONOTONIC`; a negative one never
/// expires. The remainder of a relative time-out is returned in `args`, also when a signal
/// interrupts the call; the restarted call uses it.
///
/// Fails with `EINVAL`, `EFAULT`, `ENOENT` for an unknown queue, `ETIME` after the time-out, `EIO`
/// when the queue is dead, `ENODEV` when the device is gone, and `ERESTARTSYS` on a signal.
pub(crate) fn ioctl(ioctl: &mut Ioctl<'_>, args: &mut uapi::drm_xe_wait_user_fence) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    ensure!(dev, args.extensions == 0, EINVAL);
    ensure!(dev, args.pad == 0 && args.pad2 == 0, EINVAL);
    ensure!(dev, args.reserved == [0; 2], EINVAL);
    let flags = u32::from(args.flags);
    ensure!(
        dev,
        flags & !uapi::DRM_XE_UFENCE_WAIT_FLAG_ABSTIME == 0,
        EINVAL
    );
    let absolute = flags != 0;
    let wanted = Condition::new(args)?;
    ensure!(dev, args.addr & 7 == 0, EINVAL);
    let queue = match args.exec_queue_id {
        0 => None,
        id => Some(file.inner().queue(id)?),
    };

    if args.timeout < 0 {
        // So that the remainder never gets negative or zero.
        args.timeout = i64::MAX;
    }
    let total = to_jiffies(args.timeout, absolute);
    let (mut timeout, begun) = (total, jiffies::now());
    let waiter = dev.fences.join();
    let start = Clock::Monotonic.now_ns();

    let result = loop {
        // Taken before the checks, so that a signal after them ends the wait.
        let seen = waiter.generation();
        // Checked before the word: a queue may write the word and die afterwards.
        let dead = queue.as_ref().is_some_and(|queue| queue.is_dead());
        match wanted.holds_at(ioctl, args.addr) {
            Ok(true) => break Ok(0),
            Ok(false) if kernel::current!().signal_pending() => break Err(ERESTARTSYS),
            Ok(false) if dead => {
                vxe_sim::drm_dbg!(dev, "waiting for an exec queue that is dead");
                break Err(EIO);
            }
            Ok(false) if ioctl.registered().is_err() => break Err(ENODEV),
            Ok(false) if timeout == 0 => break Err(ETIME),
            Ok(false) => {}
            Err(error) => break Err(error),
        }
        // While this thread waits for the GPU, charges of device memory to the process may
        // interrupt it. Not while it reads the word, since it may wait for a page then.
        let _waiting = dmem::begin_wait();
        timeout = match waiter.wait(seen, timeout) {
            // Check once more.
            Waited::TimedOut => 0,
            // Signals may be so frequent that no sleep takes a jiffy.
            Waited::Signalled | Waited::Interrupted if total != FOREVER => {
                total.saturating_sub(jiffies::since(begun))
            }
            Waited::Signalled | Waited::Interrupted => FOREVER,
        };
    };

    if !absolute {
        let elapsed = Clock::Monotonic.now_ns().saturating_sub(start);
        args.timeout = args.timeout.saturating_sub(elapsed).max(0);
    }
    result
}

/// Converts a time-out to jiffies: at least one, unless `timeout` is zero, at most [`FOREVER`].
fn to_jiffies(timeout: i64, absolute: bool) -> Jiffies {
    if timeout == 0 {
        return 0;
    }
    let ns = if absolute {
        timeout.saturating_sub(Clock::Monotonic.now_ns())
    } else {
        timeout
    };
    // The current jiffy is partly over, so add one in order not to be early.
    match u64::try_from(ns) {
        Ok(ns) => nsecs_to_jiffies(ns).saturating_add(1).min(FOREVER),
        Err(_) => 1,
    }
}
