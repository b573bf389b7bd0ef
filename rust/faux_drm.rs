// SPDX-License-Identifier: GPL-2.0

//! A DRM device on a faux device.
//!
//! C headers: [`include/drm/drm_drv.h`](srctree/include/drm/drm_drv.h),
//! [`include/linux/device/faux.h`](srctree/include/linux/device/faux.h)

use crate::{
    drm_debugfs::Tree,
    drm_device::DrmDevice,
    faux_dma, //
};
use kernel::{
    device,
    drm,
    faux,
    prelude::*, //
};

/// A registered DRM device, the faux device that it sits on, and its debugfs files.
///
/// Dropping it takes away the files, then unplugs the DRM device, then removes the faux device.
pub struct FauxDrm<T>
where
    T: drm::Driver,
{
    // The order of the fields is the order in which they go, and what makes this sound: the files
    // need the DRM device to be registered, its registration needs the faux device to be bound.
    debugfs: Tree,
    drm: drm::Registration<'static, T>,
    _faux: faux_dma::Registration,
}

impl<T> FauxDrm<T>
where
    T: drm::Driver<ParentDevice<device::Bound> = faux::Device<device::Bound>>,
    T: for<'a> drm::Driver<RegistrationData<'a> = ()>,
{
    /// Makes a DRM device on `faux` with the data that `data` makes for it, and shows it to
    /// userspace after `prepare` has worked on it.
    pub fn new<I: PinInit<T::Data, Error>>(
        faux: faux_dma::Registration,
        data: impl FnOnce(&device::Device<device::Bound>) -> Result<I>,
        prepare: impl FnOnce(&drm::Device<T>) -> Result,
    ) -> Result<Self> {
        let parent: &faux::Device<device::Bound> = faux.as_ref();
        let dev: &device::Device<device::Bound> = parent.as_ref();
        let drm = drm::UnregisteredDevice::<T>::new(parent, data(dev)?)?;
        prepare(&drm)?;
        let dev: *const device::Device<device::Bound> = dev;
        // SAFETY: The faux device stays registered and bound as long as `faux`, which `Self` keeps
        // until after the registration is dropped; nothing takes the registration out.
        let dev: &'static device::Device<device::Bound> = unsafe { &*dev };
        // SAFETY: The registration is dropped with `Self`, and its data borrows nothing, so that
        // forgetting `Self` harms nothing.
        let drm = unsafe { drm::Registration::new(dev, drm, Ok::<(), Error>(()), 0)? };
        // SAFETY: `Self` drops the tree before it drops the registration.
        let debugfs = unsafe { Tree::new(DrmDevice::of(drm.device()).as_raw()) };
        Ok(Self {
            debugfs,
            drm,
            _faux: faux,
        })
    }

    /// The DRM device.
    pub fn device(&self) -> &drm::Device<T> {
        self.drm.device()
    }

    /// The files in the device's debugfs directory.
    pub fn debugfs(&mut self) -> &mut Tree {
        &mut self.debugfs
    }
}
