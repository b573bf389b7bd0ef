// SPDX-License-Identifier: GPL-2.0

//! The DRM driver, its platform devices and its DRM devices.
//!
//! The module registers platform devices, each with its [`PlatformData`]. The driver core binds
//! them when they are registered or when a user writes to `bind` in sysfs. Each probe creates a DRM
//! device, [`Device`], which dereferences to its [`Data`]. When a platform device is unbound, its
//! DRM device is unplugged: its VMs are closed, its jobs fail, and open files only serve to be
//! closed.

use crate::{
    bo::{
        self,
        Bo,
        BoKind, //
    },
    client::Clients,
    debugfs,
    engines::Engines,
    file::{
        File,
        VmList, //
    },
    gpu::CopyEngine,
    ioctl,
    memory::LocalMemory,
    objects::Objects,
    region::Regions,
    stats::Stats,
    sync::FenceWaiters,
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
use kernel_ext::workqueue::OwnedQueue;
use vxe_sim::{
    bus::Bus,
    debugfs::DebugfsFiles,
    fdinfo,
    platform_device,
    platform_driver,
    port::{
        self,
        Port, //
    }, //
};

/// The PCI ID of a Battlemage G21, from which programs conclude that the device has faults and SVM.
pub(crate) const DEVICE_ID: u16 = 0xe20b;

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
    /// The engines, clients and work queue.
    pub(crate) queues: Arc<Queues>,
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
            queues,
        }))
    }
}

/// The engines, clients and work queue of a platform device.
///
/// They live as long as the platform device, bound or not: a work item may still wait for userspace
/// long after the DRM device is unplugged.
#[pin_data]
pub(crate) struct Queues {
    /// Run the jobs of exec queues.
    pub(crate) engines: Engines,
    /// The processes that use the device. Each has its own work queue for page faults and garbage
    /// collection.
    #[pin]
    pub(crate) clients: Clients,
    /// Runs short work: dropping clients, looking for exited processes, and waking waiters of
    /// fences.
    pub(crate) work: OwnedQueue,
}

impl Queues {
    fn new() -> Result<Arc<Self>> {
        let clients = Clients::new()?;
        Arc::pin_init(
            try_pin_init!(Self {
                engines: Engines::new()?,
                clients <- clients,
                work: OwnedQueue::new_unbound(c"vxe-work")?,
            }),
            GFP_KERNEL,
        )
    }

    /// Waits for all queued work. Called when nothing is mapped any more and jobs fail. Sleeps.
    fn flush(&self) {
        self.engines.flush(&self.clients);
        self.clients.for_each(|client| client.faults.flush());
        self.work.flush();
    }
}

/// The data of a platform device of this driver, from its registration.
pub(crate) struct PlatformData {
    queues: Arc<Queues>,
    /// The device's port on the fabric. Dropped first, when no access through it is in flight.
    port: Arc<Port>,
    /// The device's memory, if it has any.
    vram: Option<Arc<Vram>>,
}

impl PlatformData {
    /// Registers platform device number `index` for the driver called `name`, with `vram` bytes of
    /// memory.
    ///
    /// Fails with `EINVAL` unless `vram` is a multiple of the large page.
    pub(crate) fn register(
        name: &CStr,
        index: u16,
        vram: u64,
    ) -> Result<platform_device::Registration<Self>> {
        let vram = match vram {
            0 => None,
            size => Some(Vram::new(size)?),
        };
        let port = port::join(vram.as_ref().map(|vram| vram.ram().clone()))?;
        let platform_data = Self {
            queues: Queues::new()?,
            port: Arc::new(port, GFP_KERNEL)?,
            vram,
        };
        platform_device::Registration::new(name, index, platform_data)
    }
}

impl Drop for PlatformData {
    fn drop(&mut self) {
        // The device is unbound, and no file is open: each open file holds a reference to the
        // module. What is left is work that unbinding did not wait for, with its references to DRM
        // devices.
        self.queues.flush();
        self.queues.work.drain();
    }
}

const INFO: drm::DriverInfo = drm::DriverInfo {
    major: 1,
    minor: 1,
    patchlevel: 0,
    // The name that programs look for; the module has another.
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
        // Must be last: only `remove()` undoes it.
        dev.memory.open(parent.as_ref(), dev)
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
