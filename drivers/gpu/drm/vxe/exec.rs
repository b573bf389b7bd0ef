// SPDX-License-Identifier: GPL-2.0

//! EXEC: a batch for a queue.

use crate::{
    check::ensure,
    driver::{
        Device,
        DrmFile, //
    },
    sync::exec_fence,
    uapi, //
};
use kernel::prelude::*;

/// `DRM_IOCTL_XE_EXEC`.
///
/// Without a batch nothing happens, and no fence is signalled: as in every long-running VM of xe.
///
/// Fails with `EINVAL`; with `ENOENT` for a queue that is none; with `ECANCELED` for a queue that is
/// banned, or whose VM is closed; with `EAGAIN` for a queue that is full, or a process that has too
/// many jobs; and as [`exec_fence`] and allocation fail.
pub(crate) fn ioctl(dev: &Device, args: &mut uapi::drm_xe_exec, file: &DrmFile) -> Result<u32> {
    ensure!(dev, args.extensions == 0, EINVAL);
    ensure!(dev, args.pad == [0; 3] && args.reserved == [0; 2], EINVAL);
    ensure!(dev, args.num_syncs <= uapi::DRM_XE_MAX_SYNCS, EINVAL);

    let queue = file.inner().queue(args.exec_queue_id)?;
    ensure!(dev, !queue.is_bind(), EINVAL);
    // Queues are one wide.
    ensure!(dev, args.num_batch_buffer <= 1, EINVAL);
    ensure!(dev, !queue.is_dead(), ECANCELED);

    let fence = exec_fence(dev, args.syncs, args.num_syncs)?;
    if args.num_batch_buffer == 0 {
        return Ok(0);
    }
    ensure!(dev, !queue.vm().is_closed(), ECANCELED);
    queue.submit(args.address, fence)?;
    Ok(0)
}
