// SPDX-License-Identifier: GPL-2.0

//! DEVICE_QUERY: the properties of the device.
//!
//! A program calls it twice: with size 0, which returns the size of the reply, and then with a
//! buffer of exactly that size.

use crate::{
    check::ensure,
    driver::{
        Device,
        REVISION,
        VA_BITS, //
    },
    exec_queue_ioctl::max_priority,
    gpu::{
        self,
        REFERENCE_CLOCK, //
    },
    ioctl::Ioctl,
    region,
    uapi, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    transmute::AsBytes, //
};
use vxe_sim::sysinfo::Clock;

/// The graphics IP of the GT: Xe2.
pub(crate) const IP_VERSION: (u16, u16, u16) = (20, 1, 4);

/// The size of a mask of subslices in xe, in bytes. The device has no subslices, as it only copies.
const DSS_MASK: [u8; 16] = [0; 16];
/// The size of a mask of execution units in a subslice, in bytes.
const EU_MASK: [u8; 8] = [0; 8];

/// A reply that is being built.
#[derive(Default)]
struct Reply(KVec<u8>);

impl Reply {
    /// Appends a value. Fails with `ENOMEM`.
    fn push<T: AsBytes>(&mut self, value: &T) -> Result {
        Ok(self.0.extend_from_slice(value.as_bytes(), GFP_KERNEL)?)
    }

    /// Appends the count that many replies begin with, and its padding.
    fn push_count(&mut self, count: u32) -> Result {
        self.push(&count)?;
        self.push(&0u32)
    }

    /// Returns the size in `query`, or copies the reply to userspace.
    ///
    /// Fails with `EINVAL` unless the buffer has exactly the size of the reply, and with `fault`
    /// if it cannot be written.
    fn send(
        self,
        ioctl: &mut Ioctl<'_>,
        query: &mut uapi::drm_xe_device_query,
        fault: Error,
    ) -> Result {
        if report_size(ioctl.dev(), query, self.0.len())? {
            return Ok(());
        }
        ioctl
            .writer(query.data, self.0.len())
            .write_bytes(&self.0)
            .map_err(|_| fault)
    }
}

/// Stores the size of a reply in `query` if userspace asked for it, and returns whether it did.
///
/// Fails with `EINVAL` if userspace passed another size.
fn report_size(dev: &Device, query: &mut uapi::drm_xe_device_query, size: usize) -> Result<bool> {
    let size = u32::try_from(size)?;
    let asked = query.size == 0;
    if asked {
        query.size = size;
    }
    ensure!(dev, query.size == size, EINVAL);
    Ok(asked)
}

/// `DRM_IOCTL_XE_DEVICE_QUERY`.
///
/// Fails with `EINVAL`; with `EFAULT` for a bad buffer (`ENOSPC` for memory regions, as in xe); and
/// with `ENODEV` for firmware, protected content and sampling, which the device does not have.
pub(crate) fn ioctl(ioctl: &mut Ioctl<'_>, query: &mut uapi::drm_xe_device_query) -> Result<u32> {
    let dev = ioctl.dev();
    ensure!(dev, query.extensions == 0, EINVAL);
    ensure!(dev, query.reserved == [0; 2], EINVAL);
    match query.query {
        uapi::DRM_XE_DEVICE_QUERY_ENGINES => engines()?.send(ioctl, query, EFAULT)?,
        uapi::DRM_XE_DEVICE_QUERY_MEM_REGIONS => mem_regions(dev)?.send(ioctl, query, ENOSPC)?,
        uapi::DRM_XE_DEVICE_QUERY_CONFIG => config(dev)?.send(ioctl, query, EFAULT)?,
        uapi::DRM_XE_DEVICE_QUERY_GT_LIST => gt_list(dev)?.send(ioctl, query, EFAULT)?,
        // The table of the firmware, which is empty.
        uapi::DRM_XE_DEVICE_QUERY_HWCONFIG => Reply::default().send(ioctl, query, EFAULT)?,
        uapi::DRM_XE_DEVICE_QUERY_GT_TOPOLOGY => gt_topology()?.send(ioctl, query, EFAULT)?,
        uapi::DRM_XE_DEVICE_QUERY_ENGINE_CYCLES => engine_cycles(ioctl, query)?,
        uapi::DRM_XE_DEVICE_QUERY_UC_FW_VERSION => uc_fw_version(ioctl, query)?,
        uapi::DRM_XE_DEVICE_QUERY_OA_UNITS => oa_units()?.send(ioctl, query, EFAULT)?,
        uapi::DRM_XE_DEVICE_QUERY_PXP_STATUS | uapi::DRM_XE_DEVICE_QUERY_EU_STALL => {
            return Err(ENODEV);
        }
        unknown => {
            vxe_sim::drm_dbg!(dev, "no query {}", unknown);
            return Err(EINVAL);
        }
    }
    Ok(0)
}

/// The engines: one copy engine.
fn engines() -> Result<Reply> {
    let mut reply = Reply::default();
    reply.push_count(1)?;
    reply.push(&uapi::drm_xe_engine {
        instance: uapi::drm_xe_engine_class_instance {
            // CAST: The uAPI's field has 16 bits for its few classes.
            engine_class: uapi::DRM_XE_ENGINE_CLASS_COPY as u16,
            ..Default::default()
        },
        ..Default::default()
    })?;
    Ok(reply)
}

/// The memory regions, by number.
fn mem_regions(dev: &Device) -> Result<Reply> {
    let mut reply = Reply::default();
    reply.push_count(u32::try_from(dev.regions.iter().count())?)?;
    for (instance, region) in dev.regions.iter().enumerate() {
        reply.push(&uapi::drm_xe_mem_region {
            mem_class: region.kind().class(),
            instance: u16::try_from(instance)?,
            min_page_size: region.min_page_size(),
            total_size: region.total(),
            used: region.used(),
            cpu_visible_size: region.cpu_visible_size(),
            cpu_visible_used: region.cpu_visible_used(),
            ..Default::default()
        })?;
    }
    Ok(reply)
}

/// The configuration of the device.
fn config(dev: &Device) -> Result<Reply> {
    let mut flags = uapi::DRM_XE_QUERY_CONFIG_FLAG_HAS_LOW_LATENCY
        | uapi::DRM_XE_QUERY_CONFIG_FLAG_HAS_CPU_ADDR_MIRROR
        | uapi::DRM_XE_QUERY_CONFIG_FLAG_HAS_NO_COMPRESSION_HINT
        | uapi::DRM_XE_QUERY_CONFIG_FLAG_HAS_PURGING_SUPPORT;
    if dev.regions.has_vram() {
        flags |= uapi::DRM_XE_QUERY_CONFIG_FLAG_HAS_VRAM;
    }
    // In the order of the uAPI's indices.
    let info: [u64; 5] = [
        u64::from(dev.device_id) | u64::from(REVISION) << 16,
        u64::from(flags),
        // Bindings consist of pages of the CPU.
        PAGE_SIZE as u64,
        u64::from(VA_BITS),
        max_priority(),
    ];
    let mut reply = Reply::default();
    reply.push_count(info.len() as u32)?;
    reply.push(&info)?;
    Ok(reply)
}

/// The GTs: one.
fn gt_list(dev: &Device) -> Result<Reply> {
    let near = match dev.regions.has_vram() {
        true => dev.regions.mask() & !(1 << region::SYSTEM),
        false => 1 << region::SYSTEM,
    };
    let mut reply = Reply::default();
    reply.push_count(1)?;
    reply.push(&uapi::drm_xe_gt {
        // CAST: The uAPI's field has 16 bits for its few types.
        type_: uapi::DRM_XE_QUERY_GT_TYPE_MAIN as u16,
        reference_clock: REFERENCE_CLOCK,
        near_mem_regions: u64::from(near),
        far_mem_regions: u64::from(dev.regions.mask() & !near),
        ip_ver_major: IP_VERSION.0,
        ip_ver_minor: IP_VERSION.1,
        ip_ver_rev: IP_VERSION.2,
        ..Default::default()
    })?;
    Ok(reply)
}

/// The subslices and execution units of the GT.
fn gt_topology() -> Result<Reply> {
    let mut reply = Reply::default();
    for (kind, mask) in [
        (uapi::DRM_XE_TOPO_DSS_GEOMETRY, &DSS_MASK[..]),
        (uapi::DRM_XE_TOPO_DSS_COMPUTE, &DSS_MASK[..]),
        (uapi::DRM_XE_TOPO_SIMD16_EU_PER_DSS, &EU_MASK[..]),
    ] {
        reply.push(&uapi::drm_xe_query_topology_mask {
            // CAST: The uAPI's field has 16 bits for its few types.
            type_: kind as u16,
            num_bytes: u32::try_from(mask.len())?,
            ..Default::default()
        })?;
        reply.0.extend_from_slice(mask, GFP_KERNEL)?;
    }
    Ok(reply)
}

/// The observation units: none.
fn oa_units() -> Result<Reply> {
    let mut reply = Reply::default();
    reply.push(&0u64)?;
    reply.push_count(0)?;
    Ok(reply)
}

/// The timestamp of an engine, with that of the CPU clock that the caller names.
fn engine_cycles(ioctl: &mut Ioctl<'_>, query: &mut uapi::drm_xe_device_query) -> Result {
    let dev = ioctl.dev();
    let size = size_of::<uapi::drm_xe_query_engine_cycles>();
    if report_size(dev, query, size)? {
        return Ok(());
    }
    let mut cycles: uapi::drm_xe_query_engine_cycles = ioctl.read(query.data)?;
    let clock = Clock::from_id(cycles.clockid).ok_or(EINVAL)?;
    let eci = &cycles.eci;
    ensure!(dev, eci.gt_id == 0 && eci.engine_instance == 0, EINVAL);
    let class = u32::from(eci.engine_class);
    ensure!(dev, class == uapi::DRM_XE_ENGINE_CLASS_COPY, EINVAL);

    let before = gpu::now_ns();
    let cpu = clock.now_ns();
    let delta = gpu::now_ns().saturating_sub(before);
    cycles.width = 64;
    cycles.engine_cycles = gpu::ticks(before);
    // CAST: The clocks are not negative.
    cycles.cpu_timestamp = cpu as u64;
    cycles.cpu_delta = delta;
    ioctl.write(query.data, &cycles)
}

/// The version of a firmware; the device has none.
fn uc_fw_version(ioctl: &mut Ioctl<'_>, query: &mut uapi::drm_xe_device_query) -> Result {
    let dev = ioctl.dev();
    const GUC: u32 = uapi::XE_QUERY_UC_TYPE_GUC_SUBMISSION;
    const HUC: u32 = uapi::XE_QUERY_UC_TYPE_HUC;
    if report_size(dev, query, size_of::<uapi::drm_xe_query_uc_fw_version>())? {
        return Ok(());
    }
    let version: uapi::drm_xe_query_uc_fw_version = ioctl.read(query.data)?;
    ensure!(dev, version.pad == 0 && version.pad2 == 0, EINVAL);
    ensure!(dev, version.reserved == 0, EINVAL);
    let uc = u32::from(version.uc_type);
    ensure!(dev, uc == GUC || uc == HUC, EINVAL);
    Err(ENODEV)
}
