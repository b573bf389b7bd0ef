// SPDX-License-Identifier: GPL-2.0

//! The DRM driver, its platform devices and its DRM devices.
//!
//! The module registers platform devices ([`devices`](crate::devices)), each with its
//! [`PlatformData`]. The driver core binds them when they are registered or when a user writes to
//! `bind` in sysfs. Each probe creates a DRM
//! device, [`Device`], which dereferences to its [`Data`]. When a platform device is unbound, its
//! DRM device is unplugged: its VMs are closed, its jobs fail, and open files only serve to be
//! closed.

use crate::{
    bo::{
        self,
        Bo,
        BoKind, //
    },
    debugfs,
    devices::Settings,
    engine_class::EngineClass,
    file::{
        File,
        VmList, //
    },
    gpu::CopyEngine,
    ioctl,
    memory::LocalMemory,
    objects::Objects,
    queues::{
        Boards,
        Queues,
        QueuesRef, //
    },
    region::Regions,
    stats::Stats,
    sync::FenceWaiters,
    sysfs,
    vram::Vram,
};
use gpusvm::{
    DmaDevice,
    DrmDevice, //
};
use kernel::{
    device, drm, platform,
    prelude::*,
    sync::{
        Arc,
        SetOnce, //
    },
};
use vxe_sim::{
    bus::Bus,
    debugfs::DebugfsFiles,
    drm_name,
    fdinfo,
    platform_device,
    platform_driver,
    port::{
        self,
        Port, //
    },
    sysfs::SysfsFiles, //
};

/// The revision that the device reports.
pub(crate) const REVISION: u8 = 0;

/// The width of a GPU address in bits.
pub(crate) const VA_BITS: u32 = 48;

/// The DRM driver.
pub(crate) struct VxeDriver;

/// A DRM device of this driver.
pub(crate) type Device = drm::Device<VxeDriver>;

/// A DRM device whose platform device is bound.
pub(crate) type RegisteredDevice = drm::Device<VxeDriver, drm::Registered>;

/// A DRM device in an ioctl. `registration_guard()` tells whether it is still registered.
pub(crate) type IoctlDevice = drm::Device<VxeDriver, drm::Ioctl>;

/// An open file of this driver.
pub(crate) type DrmFile = drm::File<File>;

/// The data of a device. The DRM device dereferences to it.
#[pin_data]
pub(crate) struct Data {
    /// The path from the GPU to memory.
    pub(crate) bus: Arc<Bus>,
    /// Copies and clears memory for the driver.
    pub(crate) copies: CopyEngine,
    /// The memory regions.
    pub(crate) regions: Regions,
    /// The device's memory, as the core migrates pages of processes to it.
    #[pin]
    pub(crate) memory: LocalMemory,
    /// The device that the core maps memory of processes for. Set before the device is registered
    /// with DRM.
    pub(crate) dma: SetOnce<Arc<DmaDevice>>,
    /// Tells buffer objects of this driver from others.
    pub(crate) bo_kind: SetOnce<BoKind>,
    /// The counters of the one GT.
    pub(crate) stats: Stats,
    /// Counts the objects of each kind.
    pub(crate) objects: Arc<Objects>,
    /// The threads that wait for user fences.
    pub(crate) fences: Arc<FenceWaiters>,
    /// The VMs that are not torn down yet.
    pub(crate) vms: Arc<VmList>,
    /// The PCI ID that the device reports.
    pub(crate) device_id: u16,
    /// The engines, clients and work queue.
    pub(crate) queues: QueuesRef,
    /// The scheduling properties of the engines.
    pub(crate) engine_class: Arc<EngineClass>,
}

impl Data {
    fn new(
        parent: &device::Device<device::Bound>,
        platform_data: &PlatformData,
    ) -> Result<impl PinInit<Self, Error> + use<>> {
        let vram = platform_data.vram.clone();
        let bus = Bus::new(parent, vram.as_ref().map(|vram| vram.ram().clone()))?;
        let queues = platform_data.queues.clone();
        let port = platform_data.port.clone();
        let device_id = platform_data.device_id;
        Ok(try_pin_init!(Self {
            copies: CopyEngine::new(bus.clone()),
            bus,
            regions: Regions::new(vram.clone())?,
            memory <- LocalMemory::new(vram, port),
            dma: SetOnce::new(),
            bo_kind: SetOnce::new(),
            stats: Stats::new(),
            objects: Objects::new()?,
            fences: FenceWaiters::new(&queues)?,
            vms: VmList::new(&queues)?,
            device_id,
            engine_class: EngineClass::new(queues.engines.list())?,
            queues,
        }))
    }
}

/// The data of a platform device of this driver, from its registration. DRM devices that programs
/// still use after that is gone keep what they need of it.
pub(crate) struct PlatformData {
    queues: QueuesRef,
    /// The device's port on the fabric.
    port: Arc<Port>,
    /// The device's memory, if it has any.
    vram: Option<Arc<Vram>>,
    device_id: u16,
}

impl PlatformData {
    /// Creates the data of one more device of the module.
    ///
    /// Fails with `ENOMEM`, also if all devices together would have more memory than the machine,
    /// and `ENOSPC` for too many devices.
    pub(crate) fn new(settings: Settings, boards: &Boards) -> Result<Self> {
        let vram = match settings.vram() {
            0 => None,
            size => Some(Vram::new(size)?),
        };
        let port = port::join(vram.as_ref().map(|vram| vram.ram().clone()))?;
        Ok(Self {
            queues: Queues::new(boards)?,
            port: Arc::new(port, GFP_KERNEL)?,
            vram,
            device_id: settings.device_id(),
        })
    }
}

const INFO: drm::DriverInfo = drm::DriverInfo {
    major: 1,
    minor: 1,
    patchlevel: 0,
    // The name that programs look for, unless the module's parameter has another.
    name: c"xe",
    desc: c"Virtual Xe Graphics",
};

#[vtable]
impl drm::Driver for VxeDriver {
    type Data = Data;
    type RegistrationData<'a> = ();
    type Object = Bo;
    type File = File;
    type ParentDevice<Ctx: device::DeviceContext> = platform::Device<Ctx>;

    const INFO: drm::DriverInfo = INFO;
    const IOCTLS: &'static [drm::ioctl::DrmIoctlDescriptor] = ioctl::IOCTLS;
    const FEAT_RENDER: bool = true;
}

/// The platform driver.
pub(crate) type PlatformDriver = platform::Adapter<platform_driver::Adapter<VxeDriver>>;

impl platform_driver::Driver for VxeDriver {
    fn data(parent: &platform::Device<device::Bound>) -> Result<impl PinInit<Data, Error>> {
        Data::new(parent.as_ref(), platform_device::platform_data(parent)?)
    }

    fn prepare(parent: &platform::Device<device::Bound>, dev: &Device) -> Result {
        // The probe fails on a device whose DMA is bounced: buffers and memory of processes are
        // shared with the CPU.
        dev.dma
            .populate(DmaDevice::new_devm(parent.as_ref(), DrmDevice::of(dev))?);
        dev.bo_kind.populate(bo::kind(dev)?);
        fdinfo::show_by::<File>(dev)?;
        drm_name::set(dev, crate::DRM_NAME.value())?;
        // Must be last: only `remove()` undoes it.
        dev.memory.open(parent.as_ref(), dev)
    }

    fn sysfs_files(dev: &Device, files: &mut SysfsFiles) -> Result {
        sysfs::init(files, dev)
    }

    fn debugfs_files(dev: &Device, tree: &mut DebugfsFiles) -> Result {
        debugfs::init(tree, dev)
    }

    fn unplugged(dev: &Device) {
        // Closed VMs have no mappings, and their jobs fail at the next access.
        dev.vms.close_all();
        dev.fences.close();
        // Killed workers no longer wait for userspace. They tear down the remaining VMs.
        dev.queues.flush();
        dev.vms.unwatch();
        // After the flush, since a work item may still have migrated pages to the device.
        dev.memory.close(dev);
    }
}
