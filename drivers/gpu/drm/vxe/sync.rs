// SPDX-License-Identifier: GPL-2.0

//! User fences and their waiters.
//!
//! A user fence is a 64-bit word that is set to a value when an operation is complete. Waiters are
//! in the device's list, [`FenceWaiters`]. A thread that writes a fence, or changes anything else
//! that a waiter checks, calls [`FenceWaiters::signal`] afterwards.
//!
//! The fence of a VM_BIND is at a CPU address of the calling process, a [`BindFence`]; the ioctl
//! writes it once the bind is complete. The fence of an EXEC is at a GPU address; the queue writes
//! it.

use crate::{
    check::ensure,
    ioctl::Ioctl,
    uapi, //
};
use kernel::prelude::*;
use vxe_sim::drm_dbg;

mod waiters;

pub(crate) use waiters::{
    FenceWaiters,
    Waited, //
};

/// A user fence: a 64-bit word, and the value it is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserFence {
    /// The address, 8-byte aligned: a GPU address for the fence of a job, a CPU address for that of
    /// a bind.
    pub(crate) addr: u64,
    pub(crate) value: u64,
}

/// A fence at a CPU address that was readable.
pub(crate) struct BindFence(UserFence);

impl BindFence {
    /// Signals the fence.
    ///
    /// The calling thread writes the word itself, so that a page that userspace holds back delays
    /// only this thread. The caller must hold no locks. A fence whose page the process has unmapped
    /// is not written.
    pub(crate) fn signal(self, ioctl: &mut Ioctl<'_>) {
        let dev = ioctl.dev();
        let UserFence { addr, value } = self.0;
        if let Err(e) = ioctl.write(addr, &value) {
            drm_dbg!(dev, "user fence at {addr:#x} not written: {e:?}");
        }
        dev.fences.signal(kernel::current!().mm().map(|mm| &**mm));
    }
}

/// Reads the fence of a VM_BIND from the `num` sync entries at user address `syncs`.
///
/// Fails as [`fence`] does, and with `EFAULT` unless the fence is readable.
pub(crate) fn bind_fence(ioctl: &mut Ioctl<'_>, syncs: u64, num: u32) -> Result<Option<BindFence>> {
    let Some(fence) = fence(ioctl, syncs, num)? else {
        return Ok(None);
    };
    let _: u64 = ioctl.read(fence.addr)?;
    Ok(Some(BindFence(fence)))
}

/// Reads the fence of an EXEC or VM_BIND from the `num` sync entries at user address `syncs`. All
/// VMs are in long-running mode, without DMA fences, so one user fence to signal is the only entry
/// allowed.
///
/// The device has no sync objects, so a handle never names one.
///
/// Fails with `EFAULT`; `EINVAL` for too many entries, unknown types or flags, non-zero reserved
/// fields, a misaligned address, and a second user fence; `EOPNOTSUPP` for a sync object to signal,
/// and for a user fence to wait for; `ENOENT` for a sync object to wait for.
pub(crate) fn fence(ioctl: &mut Ioctl<'_>, syncs: u64, num: u32) -> Result<Option<UserFence>> {
    let dev = ioctl.dev();
    ensure!(dev, num <= uapi::DRM_XE_MAX_SYNCS, EINVAL);
    let mut found = None;
    // CAST: `num` is at most `DRM_XE_MAX_SYNCS`.
    let len = num as usize * size_of::<uapi::drm_xe_sync>();
    let mut entries = ioctl.reader(syncs, len);
    for _ in 0..num {
        let sync: uapi::drm_xe_sync = entries.read()?;
        ensure!(dev, sync.extensions == 0, EINVAL);
        ensure!(
            dev,
            sync.flags & !uapi::DRM_XE_SYNC_FLAG_SIGNAL == 0,
            EINVAL
        );
        ensure!(dev, sync.reserved == [0; 2], EINVAL);
        match sync.type_ {
            uapi::DRM_XE_SYNC_TYPE_USER_FENCE => {
                ensure!(dev, sync.flags == uapi::DRM_XE_SYNC_FLAG_SIGNAL, EOPNOTSUPP);
                ensure!(dev, sync.addr() & 7 == 0, EINVAL);
                ensure!(dev, found.is_none(), EINVAL);
                found = Some(UserFence {
                    addr: sync.addr(),
                    value: sync.timeline_value,
                });
            }
            uapi::DRM_XE_SYNC_TYPE_SYNCOBJ | uapi::DRM_XE_SYNC_TYPE_TIMELINE_SYNCOBJ => {
                let timeline = sync.type_ == uapi::DRM_XE_SYNC_TYPE_TIMELINE_SYNCOBJ;
                ensure!(dev, sync.flags == 0, EOPNOTSUPP);
                ensure!(dev, sync.addr() >> 32 == 0, EINVAL);
                ensure!(dev, !timeline || sync.timeline_value != 0, EINVAL);
                drm_dbg!(dev, "there are no sync objects: {}", sync.handle());
                return Err(ENOENT);
            }
            _ => {
                drm_dbg!(dev, "unknown type of sync: {}", sync.type_);
                return Err(EINVAL);
            }
        }
    }
    Ok(found)
}
