// SPDX-License-Identifier: GPL-2.0

//! DRM drivers of platform devices, which may be unbound at any moment.
//!
//! A driver says by [`Driver`] what it does when a device comes and goes, and registers an
//! [`Adapter`] of itself as a platform driver. The DRM device is unplugged when the platform device
//! is unbound: ioctls fail from then on, and what is open stays open.
//!
//! C headers: [`include/drm/drm_drv.h`](srctree/include/drm/drm_drv.h),
//! [`include/linux/platform_device.h`](srctree/include/linux/platform_device.h)

use crate::{
    bindings as ext,
    debugfs::Tree, //
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
    /// The data of a device that comes.
    fn data(parent: &platform::Device<device::Bound>) -> Result<impl PinInit<Self::Data, Error>>;

    /// Works on a device, which sits on `parent`, before it is shown to userspace.
    fn prepare(parent: &platform::Device<device::Bound>, dev: &drm::Device<Self>) -> Result;

    /// Makes the files of a device in its debugfs directory, when it is shown to userspace.
    fn files(dev: &drm::Device<Self>, tree: &mut Tree) -> Result;

    /// Ends all work of a device that userspace does not reach any more: no ioctl is under way that
    /// has seen it registered. It is bound still. On return nothing may be mapped for it.
    fn gone(dev: &drm::Device<Self>);
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
        // What such a device reaches, it reaches by the CPU.
        // SAFETY: Nothing is mapped for a device that is being probed.
        unsafe { dev.dma_set_mask_and_coherent(dma::DmaMask::new::<64>()) }
            .and_then(|()| Instance::new(dev))
    }
}

/// A DRM device while its platform device is bound; the driver core has it.
pub struct Instance<'bound, T: Driver> {
    // The order of the fields is the order in which they go, and what makes this sound: the files
    // need the DRM device to be registered.
    debugfs: Tree,
    _drm: drm::Registration<'bound, T>,
    dev: Gone<T>,
}

impl<'bound, T: Driver> Instance<'bound, T> {
    fn new(parent: &'bound platform::Device<device::Bound>) -> Result<Self> {
        let drm = drm::UnregisteredDevice::<T>::new(parent, T::data(parent)?)?;
        // SAFETY: The device is new: nobody else knows it, and it has no objects.
        unsafe { ext::drm_widen_offsets(DrmDevice::of(&*drm).as_raw()) };
        T::prepare(parent, &drm)?;
        let dev = Gone((&*drm).into());
        // SAFETY: It becomes a part of what the driver core drops when the device is unbound; nobody
        // else can take it out. Its data borrows nothing.
        let drm = unsafe { drm::Registration::new(parent.as_ref(), drm, Ok::<(), Error>(()), 0)? };
        let mut this = Self {
            // SAFETY: The tree is dropped before the registration.
            debugfs: unsafe { Tree::new(DrmDevice::of(drm.device()).as_raw()) },
            _drm: drm,
            dev,
        };
        T::files(&this.dev.0, &mut this.debugfs)?;
        Ok(this)
    }
}

/// Tells the driver that a device is gone, when it is dropped.
struct Gone<T: Driver>(ARef<drm::Device<T>>);

impl<T: Driver> Drop for Gone<T> {
    fn drop(&mut self) {
        T::gone(&self.0);
    }
}
