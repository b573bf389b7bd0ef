// SPDX-License-Identifier: GPL-2.0

//! EXEC_QUEUE_CREATE, _DESTROY, _GET_PROPERTY and _SET_PROPERTY.

use crate::{
    check::ensure,
    driver::Device,
    exec_queue::{
        ExecQueue,
        Kind, //
    },
    ioctl::Ioctl,
    uapi, //
};
use kernel::prelude::*;
use vxe_sim::sysinfo::capable_sys_nice;

/// The most engines that a queue may name: as many as xe has instances of one class.
const MAX_ENGINES: u32 = 9;

/// The priority of a queue that asks for none, and of those of programs without `CAP_SYS_NICE`.
const PRIORITY_NORMAL: u64 = 1;

/// The highest priority of a queue.
const PRIORITY_HIGH: u64 = 2;

/// The longest time slice that a program without `CAP_SYS_NICE` may ask for, in microseconds.
const TIMESLICE_MAX: u64 = 10_000_000;

/// The highest priority that the caller may ask for.
pub(crate) fn max_priority() -> u64 {
    if capable_sys_nice() {
        PRIORITY_HIGH
    } else {
        PRIORITY_NORMAL
    }
}

/// `DRM_IOCTL_XE_EXEC_QUEUE_CREATE`.
///
/// A queue is one wide and has one placement: the copy engine, or the VM_BIND class for a queue that
/// orders binds.
///
/// Fails with `EINVAL`, with `EFAULT`, with `ENOENT` for a VM that is none, with what
/// [`set_property`] fails with, with `ENOSPC` if the process that made the VM has too many queues, and
/// with `ENOMEM`.
pub(crate) fn create_ioctl(
    ioctl: &mut Ioctl<'_>,
    args: &mut uapi::drm_xe_exec_queue_create,
) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    const FLAGS: u32 = uapi::DRM_XE_EXEC_QUEUE_LOW_LATENCY_HINT;
    ensure!(dev, args.flags & !FLAGS == 0, EINVAL);
    ensure!(dev, args.reserved == [0; 2], EINVAL);

    let engines = u32::from(args.width) * u32::from(args.num_placements);
    ensure!(dev, engines != 0 && engines <= MAX_ENGINES, EINVAL);
    let engine: uapi::drm_xe_engine_class_instance = ioctl.read(args.instances)?;
    // There is but one engine of a class, which cannot be named twice.
    ensure!(dev, engines == 1, EINVAL);
    ensure!(dev, engine.gt_id == 0 && engine.pad == 0, EINVAL);
    ensure!(dev, engine.engine_instance == 0, EINVAL);
    let kind = match u32::from(engine.engine_class) {
        uapi::DRM_XE_ENGINE_CLASS_COPY => Kind::Copy,
        uapi::DRM_XE_ENGINE_CLASS_VM_BIND => Kind::Bind,
        class => {
            vxe_sim::drm_dbg!(dev, "no engine of class {}", class);
            return Err(EINVAL);
        }
    };

    let vm = file.inner().vm(args.vm_id)?;
    ensure!(dev, !vm.is_closed(), ENOENT);
    uapi::for_each_property(ioctl, args.extensions, |property, value| {
        set_property(dev, property, value)
    })?;

    let queue = ExecQueue::new(dev, vm, kind)?;
    args.exec_queue_id = file.inner().add_queue(queue)?;
    Ok(0)
}

/// Takes a property of a queue that is being made. What is taken has no effect: all queues have the
/// same time slices and no priority.
///
/// Fails with `EINVAL`; with `EPERM` for a priority that takes `CAP_SYS_NICE`; with `ENODEV` for
/// protected content and queue groups, and with `EOPNOTSUPP` for what is the render engine's.
fn set_property(dev: &Device, property: u32, value: u64) -> Result {
    match property {
        uapi::DRM_XE_EXEC_QUEUE_SET_PROPERTY_PRIORITY => {
            ensure!(dev, value <= PRIORITY_HIGH, EINVAL);
            ensure!(dev, value <= max_priority(), EPERM);
            Ok(())
        }
        uapi::DRM_XE_EXEC_QUEUE_SET_PROPERTY_TIMESLICE => {
            let within = (1..=TIMESLICE_MAX).contains(&value);
            ensure!(dev, within || capable_sys_nice(), EINVAL);
            Ok(())
        }
        uapi::DRM_XE_EXEC_QUEUE_SET_PROPERTY_PXP_TYPE => uapi::check_pxp_type(dev, value),
        uapi::DRM_XE_EXEC_QUEUE_SET_PROPERTY_MULTI_GROUP => Err(ENODEV),
        uapi::DRM_XE_EXEC_QUEUE_SET_DISABLE_STATE_CACHE_PERF_FIX => Err(EOPNOTSUPP),
        // The priority within a group is for queues of a group, and no queue is; a state to replay
        // is a render context's.
        _ => {
            vxe_sim::drm_dbg!(dev, "no property {} of a queue", property);
            Err(EINVAL)
        }
    }
}

/// `DRM_IOCTL_XE_EXEC_QUEUE_DESTROY`.
///
/// Waits for the running job, which is stopped. Fails with `EINVAL`, and with `ENOENT` for a queue
/// that is none.
pub(crate) fn destroy_ioctl(
    ioctl: &mut Ioctl<'_>,
    args: &mut uapi::drm_xe_exec_queue_destroy,
) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    ensure!(dev, args.pad == 0 && args.reserved == [0; 2], EINVAL);
    file.inner().remove_queue(args.exec_queue_id)?;
    Ok(0)
}

/// `DRM_IOCTL_XE_EXEC_QUEUE_GET_PROPERTY`: whether the queue is banned.
///
/// Fails with `EINVAL`, and with `ENOENT` for a queue that is none.
pub(crate) fn get_property_ioctl(
    ioctl: &mut Ioctl<'_>,
    args: &mut uapi::drm_xe_exec_queue_get_property,
) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    const BAN: u32 = uapi::DRM_XE_EXEC_QUEUE_GET_PROPERTY_BAN;
    ensure!(dev, args.extensions == 0, EINVAL);
    ensure!(dev, args.reserved == [0; 2], EINVAL);
    let queue = file.inner().queue(args.exec_queue_id)?;
    ensure!(dev, args.property == BAN, EINVAL);
    args.value = u64::from(queue.is_dead());
    Ok(0)
}

/// `DRM_IOCTL_XE_EXEC_QUEUE_SET_PROPERTY`.
///
/// The only property that can change is a queue's priority within its group, and no queue is in one.
/// So this fails: with `ENOENT` for a queue that is none, else with `EINVAL`.
pub(crate) fn set_property_ioctl(
    ioctl: &mut Ioctl<'_>,
    args: &mut uapi::drm_xe_exec_queue_set_property,
) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    const PRIORITY: u32 = uapi::DRM_XE_EXEC_QUEUE_SET_PROPERTY_MULTI_QUEUE_PRIORITY;
    ensure!(dev, args.extensions == 0, EINVAL);
    ensure!(dev, args.reserved == [0; 2], EINVAL);
    ensure!(dev, args.property == PRIORITY, EINVAL);
    file.inner().queue(args.exec_queue_id)?;
    Err(EINVAL)
}
