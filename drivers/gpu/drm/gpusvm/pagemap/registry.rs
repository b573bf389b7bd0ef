// SPDX-License-Identifier: GPL-2.0

//! Devices whose memory other devices may use, found by an open file.
//!
//! A driver registers the memory of a device ([`Registration`]) from bind to unbind. When a process tells another
//! driver to use that memory, that driver finds it by the process's file descriptor ([`RegionRef::from_fd`]), whatever
//! modules the two drivers are in, and may keep the [`RegionRef`] for any time: it keeps neither the device nor its
//! driver. [`RegionRef::open`] fails when the device has been unbound.
//!
//! # Locking
//!
//! A mutex protects the list of devices. Each device has another mutex, which is held while its driver's
//! [`Regions::open`] is called, and so nests outside the locks of that function. It nests inside a driver's SVM lock,
//! and is never taken under the mmap lock.
//!
//! C: `xe_drm_pagemap_from_fd()`, which finds devices of xe only, and whose result keeps the pagemap.

use super::{
    drm_pagemap::PagemapRef,
    shrinker::check_parent, //
};
use core::ptr;
use kernel::{
    device::{Bound, Device},
    devres,
    prelude::*,
    sync::{global_lock, new_mutex, Arc, Mutex}, //
};
use kernel_ext::drm::{
    device::DrmDevice,
    file::OpenFile, //
};

/// The regions of memory of a registered device.
pub trait Regions: Send + Sync {
    /// Returns the memory of the region with this number. May sleep. Fails with `ENOENT` if there is no such region, or
    /// if it is not memory of the device's own.
    fn open(&self, region: u32) -> Result<PagemapRef>;
}

/// A registered device. References to its regions keep this object after it is unregistered.
#[pin_data]
struct Slot {
    /// Only compared, and only while the device is open.
    drm: *const DrmDevice,
    /// None when the device is unregistered.
    #[pin]
    registry: Mutex<Option<KBox<dyn Regions>>>,
}

// SAFETY: The pointer is not dereferenced; any thread may use the other field.
unsafe impl Send for Slot {}
// SAFETY: As above.
unsafe impl Sync for Slot {}

global_lock! {
    // SAFETY: `init()` runs before any driver can register a device.
    unsafe(uninit) static DEVICES: Mutex<KVec<Arc<Slot>>> = KVec::new();
}

/// Initializes the list.
///
/// # Safety
///
/// Must be called once, when the module is loaded.
pub(super) unsafe fn init() {
    // SAFETY: By this function's requirements.
    unsafe { DEVICES.init() };
}

/// Frees the memory of the list. Called once, when the module is unloaded: the list is empty then.
pub(super) fn exit() {
    let list = core::mem::replace(&mut *DEVICES.lock(), KVec::new());
    drop(list);
}

/// Unregisters a device, and drops the driver's [`Regions`]. Does nothing if it is not registered any more.
fn unregister(slot: &Arc<Slot>) {
    let listed = {
        let mut devices = DEVICES.lock();
        let index = devices.iter().position(|other| Arc::ptr_eq(other, slot));
        index.and_then(|index| devices.remove(index).ok())
    };
    let registry = slot.registry.lock().take();
    // This calls code of the driver, and so is done without locks.
    drop(registry);
    drop(listed);
}

/// Unregisters a device when it is dropped, which devres does when the device is unbound.
struct UnregisterOnUnbind(Arc<Slot>);

impl Drop for UnregisterOnUnbind {
    fn drop(&mut self) {
        unregister(&self.0);
    }
}

/// Registers a device until this is dropped, or until it is unbound: then no thread calls the driver's [`Regions`] any
/// more.
#[must_use = "the device is unregistered when this is dropped"]
pub struct Registration(Arc<Slot>);

impl Registration {
    /// Registers the memory of `drm`, which must not be registered yet. `dev` must be the parent of `drm`. Fails with
    /// `EINVAL` if it is another device, and with `ENOMEM`.
    pub fn new_devm(
        dev: &Device<Bound>,
        drm: &DrmDevice,
        registry: KBox<dyn Regions>,
    ) -> Result<Self> {
        check_parent(dev, drm)?;
        let slot = Arc::pin_init(
            pin_init!(Slot {
                drm,
                registry <- new_mutex!(Some(registry), "gpusvm.registry"),
            }),
            GFP_KERNEL,
        )?;
        DEVICES.lock().push(slot.clone(), GFP_KERNEL)?;
        devres::register(dev, UnregisterOnUnbind(slot.clone()), GFP_KERNEL)?;
        Ok(Self(slot))
    }

    /// Returns a reference to the region with this number, for use by other drivers.
    pub fn region(&self, number: u32) -> RegionRef {
        RegionRef {
            slot: self.0.clone(),
            region: number,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        unregister(&self.0);
    }
}

/// A reference to a region of a device's memory. The device may have been unbound.
#[derive(Clone)]
pub struct RegionRef {
    slot: Arc<Slot>,
    region: u32,
}

impl RegionRef {
    /// Returns a reference to the region with this number of the device that the calling process has open as `fd`.
    /// Whether the region exists is checked when it is [opened](Self::open).
    ///
    /// Fails as xe does: with `ENOENT` if `fd` is not a file of a registered device, and with `ENODEV` if the device
    /// has been unbound.
    pub fn from_fd(fd: u32, region: u32) -> Result<Self> {
        let file = OpenFile::from_fd(fd)?;
        let drm = file.device();
        let slot = {
            let devices = DEVICES.lock();
            let mut found = devices.iter().filter(|slot| ptr::eq(slot.drm, drm));
            found.next().cloned()
        };
        match (slot, drm.enter()) {
            (Some(slot), _) => Ok(Self { slot, region }),
            (None, Some(_)) => Err(ENOENT),
            (None, None) => Err(ENODEV),
        }
    }

    /// Returns the memory, which stays in use while the result is kept. May sleep.
    ///
    /// Fails with `ENODEV` if the device has been unbound, and as the driver's [`Regions::open`] does.
    pub fn open(&self) -> Result<PagemapRef> {
        let registry = self.slot.registry.lock();
        registry.as_ref().ok_or(ENODEV)?.open(self.region)
    }
}

impl PartialEq for RegionRef {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.slot, &other.slot) && self.region == other.region
    }
}

impl Eq for RegionRef {}
