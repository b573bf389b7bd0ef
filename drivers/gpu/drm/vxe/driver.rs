// SPDX-License-Identifier: GPL-2.0

//! The DRM driver, its platform devices and its DRM devices.
//!
//! The module makes platform devices, each with its [`Board`]; the driver core binds them, when they
//! are made or by the hand of somebody in sysfs, and each time that makes a DRM device, [`Device`],
//! which dereferences to its [`Data`]. When a platform device is unbound its DRM device is unplugged:
//! its VMs are closed, its jobs fail, and files that are open only serve to be closed.

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
    debugfs::Tree,
    platform_device,
    platform_driver,
    port::{
        self,
        Port, //
    }, //
};

/// Battlemage G21, which programs know to have faults and SVM.
pub(crate) const DEVICE_ID: u16 = 0xe20b;

/// The revision of the device.
pub(crate) const REVISION: u8 = 0;

/// The width of a GPU address in bits.
pub(crate) const VA_BITS: u32 = 48;

/// The driver, as DRM knows it.
pub(crate) struct VxeDriver;

/// A DRM device of this driver.
pub(crate) type Device = drm::Device<VxeDriver>;

/// The same while it is registered: its platform device is bound.
pub(crate) type RegisteredDevice = drm::Device<VxeDriver, drm::Registered>;

/// The same in an ioctl: it may be registered, which `registration_guard()` tells.
pub(crate) type IoctlDevice = drm::Device<VxeDriver, drm::Ioctl>;

/// An open file of this driver.
pub(crate) type DrmFile = drm::File<File>;

/// What belongs to a device. The DRM device dereferences to it.
#[pin_data]
pub(crate) struct Data {
    /// The way from the GPU to memory.
    pub(crate) bus: Arc<Bus>,
    /// Moves memory.
    pub(crate) copies: CopyEngine,
    /// The memory regions.
    pub(crate) regions: Regions,
    /// Its memory, as far as pages of processes live there.
    #[pin]
    pub(crate) memory: LocalMemory,
    /// What memory of processes is mapped for; there from when the device is shown to anybody.
    pub(crate) dma: SetOnce<Arc<DmaDevice>>,
    /// What tells buffer objects of this driver from others.
    pub(crate) bo_kind: SetOnce<BoKind>,
    /// The counters of the only GT.
    pub(crate) stats: Stats,
    /// How many objects there are.
    pub(crate) objects: Arc<Objects>,
    /// Who waits for user fences.
    pub(crate) fences: Arc<FenceWaiters>,
    /// The VMs that are open.
    pub(crate) vms: Arc<VmList>,
    /// Where its work is done.
    pub(crate) queues: Arc<Queues>,
}

impl Data {
    fn new(
        parent: &device::Device<device::Bound>,
        board: &Board,
    ) -> Result<impl PinInit<Self, Error> + use<>> {
        let vram = board.vram.clone();
        let bus = Bus::new(parent, vram.as_ref().map(|vram| vram.ram().clone()))?;
        let queues = board.queues.clone();
        let port = board.port.clone();
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

/// What does the work of a board.
///
/// It is there as long as the board, bound or not: the end of work may have to wait for userspace
/// long after its device is gone.
#[pin_data]
pub(crate) struct Queues {
    /// Run the jobs of exec queues.
    pub(crate) engines: Engines,
    /// Who uses the device. Clients have work queues of their own, for what takes long.
    #[pin]
    pub(crate) clients: Clients,
    /// Short work: the end of clients, looking for processes that are gone, and to wake who waits for fences.
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

    /// Waits for the work that there is now: nothing is mapped any more, and no job goes on. Sleeps.
    fn flush(&self) {
        self.engines.flush();
        self.clients.for_each(|client| client.faults.flush());
        self.work.flush();
    }
}

/// What a platform device of this driver consists of, before anybody drives it.
pub(crate) struct Board {
    queues: Arc<Queues>,
    /// Its place on the fabric: first to go, with nothing under way there.
    port: Arc<Port>,
    /// Its memory, if it has any.
    vram: Option<Arc<Vram>>,
}

impl Board {
    /// The platform device with this number for the driver called `name`, and so many bytes of memory.
    /// Fails with `EINVAL` unless that is a number of large pages.
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
        let board = Self {
            queues: Queues::new()?,
            port: Arc::new(port, GFP_KERNEL)?,
            vram,
        };
        platform_device::Registration::new(name, index, board)
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // The device is unbound, and no file is open: each holds a reference to the module. What is
        // left is the end of work that nobody waited for, and references to devices that it holds.
        self.queues.flush();
        self.queues.work.drain();
    }
}

const INFO: drm::DriverInfo = drm::DriverInfo {
    major: 1,
    minor: 1,
    patchlevel: 0,
    // What programs look for; the module's own name is another.
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

/// The driver, as the driver core knows it.
pub(crate) type PlatformDriver = platform::Adapter<platform_driver::Adapter<VxeDriver>>;

impl platform_driver::Driver for VxeDriver {
    fn data(parent: &platform::Device<device::Bound>) -> Result<impl PinInit<Data, Error>> {
        Data::new(parent.as_ref(), platform_device::board(parent)?)
    }

    fn prepare(parent: &platform::Device<device::Bound>, dev: &Device) -> Result {
        // A device that cannot share memory with the CPU is of no use: its buffers are mapped as memory of
        // processes is.
        dev.dma
            .populate(DmaDevice::new_devm(parent.as_ref(), DrmDevice::of(dev))?);
        dev.bo_kind.populate(bo::kind(dev)?);
        // Last: what it made is taken back when the device is gone.
        dev.memory.open(parent.as_ref(), dev)
    }

    fn files(dev: &Device, tree: &mut Tree) -> Result {
        debugfs::init(tree, dev)
    }

    fn gone(dev: &Device) {
        // Nothing is mapped any more, and jobs fail with their next access.
        dev.vms.close_all();
        dev.fences.close();
        // Workers do not wait for userspace any more. They take the rest of the VMs down.
        dev.queues.flush();
        dev.vms.unwatch();
        // After what may still have been on its way there.
        dev.memory.close(dev);
    }
}
