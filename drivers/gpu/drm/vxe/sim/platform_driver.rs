// SPDX-License-Identifier: GPL-2.0

//! DRM drivers of platform devices, which may be unbound at any time.
//!
//! A driver implements [`Driver`] and registers an [`Adapter`] of itself as a platform driver.
//! Unbinding the platform device unplugs the DRM device: later ioctls fail, and open files stay
//! open.
//!
//! C headers: [`include/drm/drm_drv.h`](srctree/include/drm/drm_drv.h),
//! [`include/linux/platform_device.h`](srctree/include/linux/platform_device.h)

use crate::{
    bindings as ext,
    debugfs::DebugfsFiles,
    sysfs::SysfsFiles, //
};
use core::marker::PhantomData;
use kernel::{
    device,
    dma::{
        self,
        Device as _, //
    },
    drm,
    platform,
    prelude::*,
    sync::aref::ARef, //
};
use kernel_ext::drm::device::DrmDevice;

/// A DRM driver of platform devices.
pub trait Driver:
    drm::Driver<ParentDevice<device::Bound> = platform::Device<device::Bound>>
    + for<'a> drm::Driver<RegistrationData<'a> = ()>
    + Sized
    + 'static
{
    /// Creates the data of a new device.
    fn data(parent: &platform::Device<device::Bound>) -> Result<impl PinInit<Self::Data, Error>>;

    /// Prepares a device on `parent` before it is registered.
    fn prepare(parent: &platform::Device<device::Bound>, dev: &drm::Device<Self>) -> Result;

    /// Creates the files in the sysfs directory of the platform device, before the device is
    /// registered. They are removed before it is unplugged.
    fn sysfs_files(dev: &drm::Device<Self>, files: &mut SysfsFiles) -> Result;

    /// Creates the device's debugfs files when it is registered.
    fn debugfs_files(dev: &drm::Device<Self>, tree: &mut DebugfsFiles) -> Result;

    /// Ends all work of an unplugged device: no ioctl that saw the device registered is running.
    /// The device is still bound. On return no memory may be mapped for it.
    fn unplugged(dev: &drm::Device<Self>);
}

/// A DRM driver as a driver of platform devices: register a `platform::Adapter<Adapter<T>>`.
pub struct Adapter<T>(PhantomData<T>);

impl<T: Driver> platform::Driver for Adapter<T> {
    type IdInfo = ();
    type Data<'bound> = Instance<'bound, T>;

    fn probe<'bound>(
        dev: &'bound platform::Device<device::Core<'_>>,
        _info: Option<&'bound ()>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        // The CPU makes the device's accesses, so the device can access all memory.
        // SAFETY: Nothing is mapped for a device that is being probed.
        unsafe { dev.dma_set_mask_and_coherent(dma::DmaMask::new::<64>()) }
            .and_then(|()| Instance::new(dev))
    }
}

/// A DRM device while its platform device is bound; the driver core owns it.
pub struct Instance<'bound, T: Driver> {
    // Fields are dropped in this order, which soundness relies on: the files need the registration.
    debugfs: DebugfsFiles,
    _sysfs: SysfsFiles,
    _drm: drm::Registration<'bound, T>,
    dev: UnplugGuard<T>,
}

impl<'bound, T: Driver> Instance<'bound, T> {
    fn new(parent: &'bound platform::Device<device::Bound>) -> Result<Self> {
        let drm = drm::UnregisteredDevice::<T>::new(parent, T::data(parent)?)?;
        // SAFETY: The device is new: only this function knows it, and it has no objects.
        unsafe { ext::drm_widen_offsets(DrmDevice::of(&*drm).as_raw()) };
        T::prepare(parent, &drm)?;
        let dev = UnplugGuard((&*drm).into());
        // SAFETY: The files are a part of the data that the driver core drops when the device is
        // unbound; a module with code of the driver is unloaded after that.
        let mut sysfs = unsafe { SysfsFiles::new(parent.as_ref()) };
        T::sysfs_files(&dev.0, &mut sysfs)?;
        // SAFETY: The registration is a part of the data that the driver core drops when the device
        // is unbound, and is private. Its own data borrows nothing.
        let drm = unsafe { drm::Registration::new(parent.as_ref(), drm, Ok::<(), Error>(()), 0)? };
        let mut this = Self {
            // SAFETY: The files are dropped before the registration.
            debugfs: unsafe { DebugfsFiles::new(DrmDevice::of(drm.device()).as_raw()) },
            _sysfs: sysfs,
            _drm: drm,
            dev,
        };
        T::debugfs_files(&this.dev.0, &mut this.debugfs)?;
        Ok(this)
    }
}

/// Calls [`Driver::unplugged`] when dropped.
struct UnplugGuard<T: Driver>(ARef<drm::Device<T>>);

impl<T: Driver> Drop for UnplugGuard<T> {
    fn drop(&mut self) {
        T::unplugged(&self.0);
    }
}
