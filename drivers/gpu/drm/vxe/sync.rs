// SPDX-License-Identifier: GPL-2.0

//! User fences, and those who wait for them.
//!
//! A user fence is a 64-bit word that gets a value when something is done. Who waits for one is one of the
//! [`FenceWaiters`] of the device: whoever writes a fence, or changes what a waiter looks at, calls
//! [`FenceWaiters::signal`] afterwards.
//!
//! The fence of a VM_BIND is at a CPU address of the process that binds, a [`BindFence`], which the
//! ioctl writes when all is done; that of an EXEC is at a GPU address, which the queue stores to.

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

/// A user fence: a 64-bit word, and the value that it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserFence {
    /// An address, 8-byte aligned: the GPU's of a fence that a job signals, the CPU's of one that a
    /// bind signals.
    pub(crate) addr: u64,
    pub(crate) value: u64,
}

/// A fence at an address of the CPU, which could be read.
pub(crate) struct BindFence(UserFence);

impl BindFence {
    /// Signals the fence.
    ///
    /// The calling thread writes it, so that a page which does not come holds up nobody else. No lock
    /// may be held. What cannot be written, since the process has unmapped it, is left.
    pub(crate) fn signal(self, ioctl: &mut Ioctl<'_>) {
        let dev = ioctl.dev();
        let UserFence { addr, value } = self.0;
        if let Err(e) = ioctl.write(addr, &value) {
            drm_dbg!(dev, "user fence at {addr:#x} not written: {e:?}");
        }
        dev.fences.signal(kernel::current!().mm().map(|mm| &**mm));
    }
}

/// The fence that a VM_BIND asks for with the `num` sync entries at user address `syncs`.
///
/// Fails as [`fence`] does, and with `EFAULT` unless the fence can be read.
pub(crate) fn bind_fence(ioctl: &mut Ioctl<'_>, syncs: u64, num: u32) -> Result<Option<BindFence>> {
    let Some(fence) = fence(ioctl, syncs, num)? else {
        return Ok(None);
    };
    let _: u64 = ioctl.read(fence.addr)?;
    Ok(Some(BindFence(fence)))
}

/// The fence that an EXEC or VM_BIND asks for with the `num` sync entries at user address `syncs`. All VMs
/// are of the kind that never signals a DMA fence, so that the only entry there may be is one user fence to
/// signal.
///
/// The device has no sync objects, so that a handle of one never names any.
///
/// Fails with `EFAULT`; with `EINVAL` for too many entries, unknown types or flags, non-zero
/// reserved fields, a misaligned address, and a second user fence; with `EOPNOTSUPP` for a sync
/// object to signal, and for a user fence to wait for; with `ENOENT` for a sync object to wait for.
pub(crate) fn fence(ioctl: &mut Ioctl<'_>, syncs: u64, num: u32) -> Result<Option<UserFence>> {
    let dev = ioctl.dev();
    ensure!(dev, num <= uapi::DRM_XE_MAX_SYNCS, EINVAL);
    let mut found = None;
    // CAST: `num` was checked to be small.
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
