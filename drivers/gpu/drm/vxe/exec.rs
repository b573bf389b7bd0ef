// SPDX-License-Identifier: GPL-2.0

//! EXEC: submits a batch to a queue.

use crate::{
    check::ensure,
    ioctl::Ioctl,
    sync,
    uapi, //
};
use kernel::prelude::*;

/// `DRM_IOCTL_XE_EXEC`.
///
/// Without a batch this does nothing and signals no fence, as in every long-running VM of xe.
///
/// Fails with `EINVAL`; with `ENOENT` for an unknown queue; `ECANCELED` for a queue that is banned,
/// or whose VM is closed; `EAGAIN` for a full queue, or a process with too many jobs; and as
/// [`sync::fence`] and allocation do.
pub(crate) fn ioctl(ioctl: &mut Ioctl<'_>, args: &mut uapi::drm_xe_exec) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    ensure!(dev, args.extensions == 0, EINVAL);
    ensure!(dev, args.pad == [0; 3] && args.reserved == [0; 2], EINVAL);
    ensure!(dev, args.num_syncs <= uapi::DRM_XE_MAX_SYNCS, EINVAL);

    let queue = file.inner().queue(args.exec_queue_id)?;
    ensure!(dev, !queue.is_bind(), EINVAL);
    // Queues have a width of one.
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
