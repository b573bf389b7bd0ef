// SPDX-License-Identifier: GPL-2.0

//! A driver of no device: it mirrors, is shown addresses, and does nothing with them.
//!
//! So all that an operation costs is the core's, or that of what the core calls.

use core::hint::black_box;
use gpusvm::{DmaDevice, Driver, DrmDevice, Invalidation};
use kernel::{
    device,
    drm::{self, gem},
    faux,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Relaxed},
        Arc, //
    },
};
use vxe_sim::faux as faux_dma;

/// The mirroring driver.
pub(crate) struct Bench;

/// What the driver keeps with an SVM.
pub(crate) struct Vm {
    told: Atomic<u64>,
}

impl Vm {
    pub(crate) fn new() -> Self {
        Self {
            told: Atomic::new(0),
        }
    }

    /// How often the driver was told to let go of ranges since this was last called.
    pub(crate) fn take_told(&self) -> u64 {
        self.told.xchg(0, Relaxed)
    }
}

#[vtable]
impl Driver for Bench {
    const NAME: &'static CStr = c"bench";
    type Vm = Vm;
    type Range = ();

    fn new_range(_vm: &Vm) -> Result {
        Ok(())
    }

    fn invalidate(vm: &Vm, invalidation: &Invalidation<'_, Self>) {
        black_box(invalidation.span());
        vm.told.fetch_add(1, Relaxed);
    }

    fn garbage(_vm: &Vm) {}
}

/// The DRM driver, which nothing is asked of but a device.
pub(crate) struct BenchDrm;

/// A buffer object; there are none.
#[pin_data]
pub(crate) struct Object {}

impl gem::DriverObject for Object {
    type Driver = BenchDrm;
    type Args = ();

    fn new(_dev: &drm::Device<BenchDrm>, _size: usize, _args: ()) -> impl PinInit<Self, Error> {
        try_pin_init!(Object {})
    }
}

/// An open file of the DRM device; there are none, as the device is not registered.
pub(crate) struct File;

impl drm::file::DriverFile for File {
    type Driver = BenchDrm;

    fn open(_dev: &drm::Device<BenchDrm>) -> Result<Pin<KBox<Self>>> {
        Err(ENODEV)
    }
}

#[vtable]
impl drm::Driver for BenchDrm {
    type Data = ();
    type RegistrationData<'a> = ();
    type Object = gem::Object<Object>;
    type File = File;
    type ParentDevice<Ctx: device::DeviceContext> = faux::Device<Ctx>;

    const INFO: drm::DriverInfo = drm::DriverInfo {
        major: 0,
        minor: 0,
        patchlevel: 0,
        name: c"gpusvm_bench",
        desc: c"Benchmarks of gpusvm",
    };
    const IOCTLS: &'static [drm::ioctl::DrmIoctlDescriptor] = &[];
}

/// A device that memory can be mapped for.
pub(crate) struct Gpu {
    // Goes before the device that it sits on.
    drm: ARef<drm::Device<BenchDrm>>,
    dma: Arc<DmaDevice>,
    faux: faux_dma::Registration,
}

impl Gpu {
    /// Fails with `ENODEV` if there is one already.
    pub(crate) fn new() -> Result<Self> {
        let faux = faux_dma::Registration::new(c"gpusvm_bench", None)?;
        let parent: &faux::Device<device::Bound> = faux.as_ref();
        let drm = drm::UnregisteredDevice::<BenchDrm>::new(parent, Ok::<(), Error>(()))?;
        let dma = DmaDevice::new_devm(parent.as_ref(), DrmDevice::of(&*drm))?;
        Ok(Self {
            drm: (&*drm).into(),
            dma,
            faux,
        })
    }

    /// The device that it sits on.
    pub(crate) fn parent(&self) -> &device::Device<device::Bound> {
        let parent: &faux::Device<device::Bound> = self.faux.as_ref();
        parent.as_ref()
    }

    /// What memory is mapped for.
    pub(crate) fn dma(&self) -> &Arc<DmaDevice> {
        &self.dma
    }

    /// The DRM device.
    pub(crate) fn drm(&self) -> &DrmDevice {
        DrmDevice::of(&*self.drm)
    }
}
