// SPDX-License-Identifier: GPL-2.0

//! The DRM driver and its devices.
//!
//! A [`Gpu`] is a device while it is there: the module makes it and drops it. What the rest of the
//! driver works with is its DRM device, [`Device`], which dereferences to its [`Data`].

use crate::{
    bo::{
        self,
        Bo,
        BoKind, //
    },
    debugfs,
    file::{
        File,
        VmList, //
    },
    gpu::Bus,
    ioctl,
    region::Regions,
    stats::Stats,
    sync::FenceWaiters, //
};
use kernel::{
    device,
    drm,
    faux,
    prelude::*,
    str::CString,
    sync::{
        aref::ARef,
        Arc,
        SetOnce, //
    }, //
};
use kernel_ext::{
    faux_dma,
    faux_drm::FauxDrm,
    workqueue::OwnedQueue, //
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

/// The same while it is registered: its faux device is bound.
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
    /// The memory regions.
    pub(crate) regions: Regions,
    /// What tells buffer objects of this driver from others.
    pub(crate) bo_kind: SetOnce<BoKind>,
    /// The counters of the only GT.
    pub(crate) stats: Stats,
    /// Who waits for user fences.
    #[pin]
    pub(crate) fences: FenceWaiters,
    /// The VMs that are open.
    #[pin]
    pub(crate) vms: VmList,
    /// Runs the jobs of exec queues, one work item a queue. Such work may take long, and blocks in
    /// page faults: nothing that a fault needs may run here.
    pub(crate) jobs: OwnedQueue,
    /// Services page faults and collects garbage, a work item a VM. Such work may take as long as the
    /// pages of a process take to come.
    pub(crate) faults: OwnedQueue,
    /// Short work that needs no job to finish: user fences, closing.
    pub(crate) work: OwnedQueue,
}

impl Data {
    fn new(parent: &device::Device<device::Bound>) -> Result<impl PinInit<Self, Error> + use<>> {
        let bus = Bus::new(parent)?;
        Ok(try_pin_init!(Self {
            bus,
            regions: Regions::new()?,
            bo_kind: SetOnce::new(),
            stats: Stats::new(),
            fences <- FenceWaiters::new(),
            vms <- VmList::new(),
            jobs: OwnedQueue::new_unbound(c"vxe-jobs")?,
            faults: OwnedQueue::new_unbound(c"vxe-faults")?,
            work: OwnedQueue::new_unbound(c"vxe-work")?,
        }))
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
    type ParentDevice<Ctx: device::DeviceContext> = faux::Device<Ctx>;

    const INFO: drm::DriverInfo = INFO;
    const IOCTLS: &'static [drm::ioctl::DrmIoctlDescriptor] = ioctl::IOCTLS;
    const FEAT_RENDER: bool = true;
}

/// A device that is there.
pub(crate) struct Gpu {
    _registered: FauxDrm<VxeDriver>,
    // Dropped last: what was still at work held references, too.
    dev: ARef<Device>,
}

impl Gpu {
    /// Makes the device with this number and shows it to userspace.
    pub(crate) fn new(index: usize) -> Result<Self> {
        let name = CString::try_from_fmt(fmt!("vxe.{}", index))?;
        let faux = faux_dma::Registration::new(&name, None)?;
        let mut registered = FauxDrm::<VxeDriver>::new(faux, Data::new, |dev| {
            dev.bo_kind.populate(bo::kind(dev)?);
            Ok(())
        })?;
        let dev: ARef<Device> = registered.device().into();
        debugfs::init(registered.debugfs(), &dev)?;
        Ok(Self {
            _registered: registered,
            dev,
        })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // No file is open: each holds a reference to the module. What is left is the end of work
        // that closing a file did not wait for, and references to the device that it holds.
        self.dev.jobs.drain();
        self.dev.faults.drain();
        self.dev.work.drain();
    }
}
