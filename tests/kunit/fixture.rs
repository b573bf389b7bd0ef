// SPDX-License-Identifier: GPL-2.0

//! The environment of the core's tests: a process's memory, devices to map it for, a driver that
//! mirrors it, and counters of all resources that must be released.

pub(crate) mod device;
pub(crate) mod dma;
pub(crate) mod driver;
pub(crate) mod failure;
pub(crate) mod file;
pub(crate) mod gate;
pub(crate) mod migration;
pub(crate) mod mm;
pub(crate) mod provider;
mod stub;
pub(crate) mod syscall;
pub(crate) mod thread;
pub(crate) mod touch;
pub(crate) mod use_mm;
pub(crate) mod vram;

use core::ops::Range;
use device::Device;
use driver::{Mirror, Vm};
use gpusvm::{pages::Pages, Config, DmaDevice, Svm};
use kernel::{
    mm::MmWithUser,
    page::PAGE_SIZE,
    prelude::*,
    sizes::SZ_512M,
    sync::{aref::ARef, Arc}, //
};
use use_mm::with_mm;

/// The size of a large chunk: 2 MiB where pages are of 4 KiB, and as many pages elsewhere.
pub(crate) const LARGE: usize = 512 * PAGE_SIZE;
/// The size of a middle chunk: 64 KiB where pages are of 4 KiB, and as many pages elsewhere.
pub(crate) const MIDDLE: usize = 16 * PAGE_SIZE;

/// The chunk sizes that tests use, unless they name others.
pub(crate) const SIZES: &[usize] = &[LARGE, MIDDLE, PAGE_SIZE];

/// A well aligned address. Nothing is mapped there, or in the 64 GiB behind it, when a test begins.
pub(crate) const BASE: usize = 0x10_0000_0000;

/// The configuration that tests use unless they name another.
pub(crate) const CONFIG: Config = Config {
    start: 0,
    size: 1 << 47,
    notifier_size: SZ_512M,
    chunk_sizes: SIZES,
};

/// Returns the addresses of `count` pages, the first of them `first` pages behind [`BASE`].
pub(crate) fn pages(first: usize, count: usize) -> Range<usize> {
    let start = BASE + first * PAGE_SIZE;
    start..start + count * PAGE_SIZE
}

/// The environment of a test.
pub(crate) struct Env {
    /// The process.
    pub(crate) mm: ARef<MmWithUser>,
    /// The devices.
    pub(crate) devices: KVec<Device>,
}

impl Env {
    fn new(mm: &ARef<MmWithUser>, devices: impl FnOnce() -> Result<KVec<Device>>) -> Result<Self> {
        Ok(Self {
            mm: mm.clone(),
            devices: devices()?,
        })
    }

    /// Returns an SVM with [`CONFIG`] whose ranges are mapped for all devices.
    pub(crate) fn svm(&self) -> Result<Pin<KBox<Svm<Mirror>>>> {
        self.svm_with(CONFIG)
    }

    /// Returns an SVM whose ranges are mapped for all devices.
    pub(crate) fn svm_with(&self, config: Config) -> Result<Pin<KBox<Svm<Mirror>>>> {
        self.svm_of(&self.mm, config)
    }

    /// Returns an SVM of the process of `mm`, whose ranges are mapped for all devices.
    pub(crate) fn svm_of(&self, mm: &MmWithUser, config: Config) -> Result<Pin<KBox<Svm<Mirror>>>> {
        let (devices, vm) = (self.dma()?, Vm::new()?);
        let svm = KBox::pin_init(Svm::<Mirror>::new(mm, config, &devices, vm), GFP_KERNEL)?;
        // SAFETY: `Vm` takes the notifier lock by `down_read_trylock()` only, and releases it at
        // once.
        svm.vm().attach(unsafe { svm.core() });
        Ok(svm)
    }

    /// Returns the only device.
    pub(crate) fn device(&self) -> &Device {
        &self.devices[0]
    }

    /// Returns the DMA devices of all devices.
    fn dma(&self) -> Result<KVec<Arc<DmaDevice>>> {
        let mut all = KVec::with_capacity(self.devices.len(), GFP_KERNEL)?;
        for device in &self.devices {
            all.push(device.dma().clone(), GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// Returns pages objects for all devices.
    ///
    /// # Safety
    ///
    /// They must be dropped before `self`.
    pub(crate) unsafe fn pages(&self) -> Result<KVec<Pages>> {
        let mut all = KVec::with_capacity(self.devices.len(), GFP_KERNEL)?;
        for device in &self.devices {
            // SAFETY: The caller drops the pages before the devices; the devices' driver is this
            // module.
            all.push(unsafe { Pages::new(device.drm()) }, GFP_KERNEL)?;
        }
        Ok(all)
    }
}

/// Runs a test in a new process, with `devices` devices without DMA translation, and checks that it
/// releases all resources. Skips it on a kernel without the means to check that.
pub(crate) fn with_devices(devices: usize, test: impl FnOnce(&Env) -> Result) -> Result {
    run(
        || {
            let mut made = KVec::new();
            for index in 0..devices {
                made.push(Device::new(index)?, GFP_KERNEL)?;
            }
            Ok(made)
        },
        test,
    )
}

/// Runs a test in a new process, with one device without DMA translation, and checks that it
/// releases all resources.
pub(crate) fn with_device(test: impl FnOnce(&Env) -> Result) -> Result {
    with_devices(1, test)
}

/// Runs a test in a new process, with one device behind an IOMMU, and checks that it releases all
/// resources. Skips it if there is no such device.
pub(crate) fn with_iommu_device(test: impl FnOnce(&Env) -> Result) -> Result {
    let Some(device) = Device::behind_iommu()? else {
        crate::check::skip("no device behind an IOMMU");
        return Ok(());
    };
    run(
        || {
            let mut made = KVec::new();
            made.push(device, GFP_KERNEL)?;
            Ok(made)
        },
        test,
    )
}

fn run(
    devices: impl FnOnce() -> Result<KVec<Device>>,
    test: impl FnOnce(&Env) -> Result,
) -> Result {
    let Some(account) = dma::Account::open() else {
        crate::check::skip("the kernel has no CONFIG_DMA_API_DEBUG");
        return Ok(());
    };
    // Not by `kunit_attach_mm()`, whose thread never calls `kthread_unuse_mm()`: the `mm_struct` leaks.
    let mm = mm::process()?;
    let result = with_mm(&mm, || test(&Env::new(&mm, devices)?))?;
    if let Err(e) = result {
        // A function that the test depends on may skip it.
        if crate::check::is_skipped() {
            return Ok(());
        }
        pr_info!("the test ended with {e:?}\n");
        return Err(e);
    }
    // The test has dropped its objects.
    ensure_eq!(driver::alive(), (0, 0));
    ensure_eq!(account.mapped(), 0);
    ensure_eq!(account.violations(), 0);
    Ok(())
}
