// SPDX-License-Identifier: GPL-2.0

//! EXEC: a batch for a queue.

use crate::{
    check::ensure,
    ioctl::Ioctl,
    sync,
    uapi, //
};
use kernel::prelude::*;

/// `DRM_IOCTL_XE_EXEC`.
///
/// Without a batch nothing happens, and no fence is signalled: as in every long-running VM of xe.
///
/// Fails with `EINVAL`; with `ENOENT` for a queue that is none; with `ECANCELED` for a queue that is
/// banned, or whose VM is closed; with `EAGAIN` for a queue that is full, or a process that has too
/// many jobs; and as [`sync::fence`] and allocation fail.
pub(crate) fn ioctl(ioctl: &mut Ioctl<'_>, args: &mut uapi::drm_xe_exec) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    ensure!(dev, args.extensions == 0, EINVAL);
    ensure!(dev, args.pad == [0; 3] && args.reserved == [0; 2], EINVAL);
    ensure!(dev, args.num_syncs <= uapi::DRM_XE_MAX_SYNCS, EINVAL);

    let queue = file.inner().queue(args.exec_queue_id)?;
    ensure!(dev, !queue.is_bind(), EINVAL);
    // Queues are one wide.
    ensure!(dev, args.num_batch_buffer <= 1, EINVAL);
    ensure!(dev, !queue.is_dead(), ECANCELED);

    let fence = sync::fence(ioctl, args.syncs, args.num_syncs)?;
    if args.num_batch_buffer == 0 {
        return Ok(0);
    }
    ensure!(dev, !queue.vm().is_closed(), ECANCELED);
    let _registered = ioctl.registered()?;
    queue.submit(args.address, fence)?;
    Ok(0)
}
