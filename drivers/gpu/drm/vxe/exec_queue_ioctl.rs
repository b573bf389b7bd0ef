// SPDX-License-Identifier: GPL-2.0

//! EXEC_QUEUE_CREATE, _DESTROY, _GET_PROPERTY and _SET_PROPERTY.

use crate::{
    check::ensure,
    driver::Device,
    exec_queue::QueueKind,
    ioctl::Ioctl,
    uapi, //
};
use kernel::prelude::*;
use vxe_sim::sysinfo::capable_sys_nice;

/// The most engines that a queue may name: as many as xe has instances of a class.
const MAX_QUEUE_ENGINES: u32 = 9;

/// The default priority, and the highest one without `CAP_SYS_NICE`.
const PRIORITY_NORMAL: u64 = 1;

/// The highest priority of a queue.
const PRIORITY_HIGH: u64 = 2;

/// Returns the highest priority that the caller may set.
pub(crate) fn max_priority() -> u64 {
    if capable_sys_nice() {
        PRIORITY_HIGH
    } else {
        PRIORITY_NORMAL
    }
}

/// `DRM_IOCTL_XE_EXEC_QUEUE_CREATE`.
///
/// A queue has a width of one and one placement: the copy engine, or the VM_BIND class for a queue
/// that orders binds.
///
/// Fails with `EINVAL`, `EFAULT`, `ENOENT` for an unknown VM, `ENOSPC` if the process that created
/// the VM has too many queues, `ENOMEM`, and as [`set_property`] does.
pub(crate) fn create_ioctl(
    ioctl: &mut Ioctl<'_>,
    args: &mut uapi::drm_xe_exec_queue_create,
) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    const FLAGS: u32 = uapi::DRM_XE_EXEC_QUEUE_LOW_LATENCY_HINT;
    ensure!(dev, args.flags & !FLAGS == 0, EINVAL);
    ensure!(dev, args.reserved == [0; 2], EINVAL);

    let engines = u32::from(args.width) * u32::from(args.num_placements);
    ensure!(dev, engines != 0 && engines <= MAX_QUEUE_ENGINES, EINVAL);
    let engine: uapi::drm_xe_engine_class_instance = ioctl.read(args.instances)?;
    // There is one engine of each class, and a queue cannot name an engine twice.
    ensure!(dev, engines == 1, EINVAL);
    ensure!(dev, engine.gt_id == 0 && engine.pad == 0, EINVAL);
    ensure!(dev, engine.engine_instance == 0, EINVAL);
    let is_bind = match u32::from(engine.engine_class) {
        uapi::DRM_XE_ENGINE_CLASS_COPY => false,
        uapi::DRM_XE_ENGINE_CLASS_VM_BIND => true,
        class => {
            vxe_sim::drm_dbg!(dev, "no engine of class {}", class);
            return Err(EINVAL);
        }
    };

    let vm = file.inner().vm(args.vm_id)?;
    ensure!(dev, !vm.is_closed(), ENOENT);
    let mut timeslice = dev.engine_class.timeslice();
    uapi::for_each_property(ioctl, args.extensions, |property, value| {
        set_property(dev, property, value, &mut timeslice)
    })?;

    let kind = match is_bind {
        true => QueueKind::Bind,
        false => QueueKind::Copy { timeslice },
    };
    args.exec_queue_id = file.inner().create_queue(vm, kind)?;
    Ok(0)
}

/// Sets a property of a queue at its creation. A priority has no effect.
///
/// Fails with `EINVAL`, also for a time slice out of the limits; `EPERM` for a priority that needs
/// `CAP_SYS_NICE`; `ENODEV` for protected content and queue groups; `EOPNOTSUPP` for a property of
/// the render engine.
fn set_property(dev: &Device, property: u32, value: u64, timeslice: &mut u32) -> Result {
    match property {
        uapi::DRM_XE_EXEC_QUEUE_SET_PROPERTY_PRIORITY => {
            ensure!(dev, value <= PRIORITY_HIGH, EINVAL);
            ensure!(dev, value <= max_priority(), EPERM);
            Ok(())
        }
        uapi::DRM_XE_EXEC_QUEUE_SET_PROPERTY_TIMESLICE => {
            let allowed = dev.engine_class.timeslices(capable_sys_nice());
            let value = u32::try_from(value).unwrap_or(u32::MAX);
            ensure!(dev, allowed.contains(&value), EINVAL);
            *timeslice = value;
            Ok(())
        }
        uapi::DRM_XE_EXEC_QUEUE_SET_PROPERTY_PXP_TYPE => uapi::check_pxp_type(dev, value),
        uapi::DRM_XE_EXEC_QUEUE_SET_PROPERTY_MULTI_GROUP => Err(ENODEV),
        uapi::DRM_XE_EXEC_QUEUE_SET_DISABLE_STATE_CACHE_PERF_FIX => Err(EOPNOTSUPP),
        // Not supported: the priority within a group, as there are no groups, and the replay state
        // of a render context.
        _ => {
            vxe_sim::drm_dbg!(dev, "no property {} of a queue", property);
            Err(EINVAL)
        }
    }
}

/// `DRM_IOCTL_XE_EXEC_QUEUE_DESTROY`.
///
/// Waits until the running job has stopped. Fails with `EINVAL`, and with `ENOENT` for an unknown
/// queue.
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
/// Fails with `EINVAL`, and with `ENOENT` for an unknown queue.
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
/// The only property that can change is the priority within a queue group, and there are no groups.
/// So this fails with `ENOENT` for an unknown queue, and with `EINVAL` otherwise.
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
