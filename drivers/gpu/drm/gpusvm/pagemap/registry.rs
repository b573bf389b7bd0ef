// SPDX-License-Identifier: GPL-2.0

//! Devices whose memory others may use, each found by an open file of it.
//!
//! A driver devices the memory of a device ([`Registration`]), from when it is bound until it is unbound.
//! Who is told by a process to use it finds it by the process's file ([`RegionRef::from_fd`]), whatever
//! modules the two drivers are in, and may remember it as long as it likes: a [`RegionRef`] keeps neither
//! the device nor its driver, and when they are gone just leads nowhere.
//!
//! # Locking
//!
//! A mutex protects the list of devices, and a mutex each registry: held while its driver is asked,
//! outside of whatever that takes. The latter is taken under a driver's SVM lock, and never under the
//! mmap lock.
//!
//! C: what `xe_drm_pagemap_from_fd()` is to xe alone, where what was found is kept.

use super::drm_pagemap::PagemapRef;
use core::ptr;
use kernel::{
    prelude::*,
    sync::{global_lock, new_mutex, Arc, Mutex}, //
};
use kernel_ext::drm::{
    device::DrmDevice,
    file::OpenFile, //
};

/// What a device devices.
pub trait Regions: Send + Sync {
    /// The memory of the region with this number. May sleep. Fails with `ENOENT` for a region that
    /// there is not, or that is no memory of the device's own.
    fn open(&self, region: u32) -> Result<PagemapRef>;
}

/// A device's registry, as long as anybody remembers it.
#[pin_data]
struct Slot {
    /// Only compared, and that while the device is open.
    drm: *const DrmDevice,
    /// None when the device is gone.
    #[pin]
    registry: Mutex<Option<KBox<dyn Regions>>>,
}

// SAFETY: The pointer is not followed; the rest is for any thread.
unsafe impl Send for Slot {}
// SAFETY: As above.
unsafe impl Sync for Slot {}

global_lock! {
    // SAFETY: `init()` is called before any driver can know of it.
    unsafe(uninit) static DEVICES: Mutex<KVec<Arc<Slot>>> = KVec::new();
}

/// Makes the list ready.
///
/// # Safety
///
/// To be called once, when the module is loaded.
pub(super) unsafe fn init() {
    // SAFETY: By this function's requirements.
    unsafe { DEVICES.init() };
}

/// Gives the list's memory up. To be called once, when the module is unloaded: it is empty then.
pub(super) fn exit() {
    let list = core::mem::replace(&mut *DEVICES.lock(), KVec::new());
    drop(list);
}

/// An registry that stands until this is dropped: then nobody is in the driver's [`Regions`] any more, nor
/// will be. To be dropped when the device is unbound.
#[must_use = "the registry ends when this is dropped"]
pub struct Registration(Arc<Slot>);

impl Registration {
    /// Offers the memory of `drm`, which has not offered any yet. Fails with `ENOMEM`.
    pub fn new(drm: &DrmDevice, registry: KBox<dyn Regions>) -> Result<Self> {
        let slot = Arc::pin_init(
            pin_init!(Slot {
                drm,
                registry <- new_mutex!(Some(registry), "gpusvm.registry"),
            }),
            GFP_KERNEL,
        )?;
        DEVICES.lock().push(slot.clone(), GFP_KERNEL)?;
        Ok(Self(slot))
    }

    /// The region with this number, for others to use.
    pub fn place(&self, region: u32) -> RegionRef {
        RegionRef {
            slot: self.0.clone(),
            region,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let listed = {
            let mut devices = DEVICES.lock();
            let place = devices.iter().position(|slot| Arc::ptr_eq(slot, &self.0));
            place.and_then(|place| devices.remove(place).ok())
        };
        let registry = self.0.registry.lock().take();
        // The driver's, and so without locks.
        drop(registry);
        drop(listed);
    }
}

/// A region of a device's memory, which may be gone.
#[derive(Clone)]
pub struct RegionRef {
    slot: Arc<Slot>,
    region: u32,
}

impl RegionRef {
    /// The region with this number of the device that the calling process has open as `fd`. It may
    /// turn out not to be there when it is [opened](Self::open).
    ///
    /// Fails as xe does: with `ENOENT` for no file of a device that devices memory, and with `ENODEV`
    /// for a device that is gone.
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

    /// The memory, in use as long as the result is kept. May sleep.
    ///
    /// Fails with `ENODEV` when the device is gone, and as the driver's [`Regions::open`] does.
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
