// SPDX-License-Identifier: GPL-2.0

//! Devices whose memory others may use, each found by an open file of it.
//!
//! A driver offers the memory of a device ([`Offered`]), from when it is bound until it is unbound.
//! Who is told by a process to use it finds it by the process's file ([`Place::from_fd`]), whatever
//! modules the two drivers are in, and may remember it as long as it likes: a [`Place`] keeps neither
//! the device nor its driver, and when they are gone just leads nowhere.
//!
//! # Locking
//!
//! A mutex protects the list of offers, and a mutex each offer: held while its driver is asked,
//! outside of whatever that takes. The latter is taken under a driver's SVM lock, and never under the
//! mmap lock.
//!
//! C: what `xe_drm_pagemap_from_fd()` is to xe alone, where what was found is kept.

use super::page_map::PageMapRef;
use core::ptr;
use kernel::{
    prelude::*,
    sync::{global_lock, new_mutex, Arc, Mutex}, //
};
use kernel_ext::drm::{
    device::DrmDevice,
    file::OpenFile, //
};

/// What a device offers.
pub trait Offer: Send + Sync {
    /// The memory of the region with this number. May sleep. Fails with `ENOENT` for a region that
    /// there is not, or that is no memory of the device's own.
    fn open(&self, region: u32) -> Result<PageMapRef>;
}

/// A device's offer, as long as anybody remembers it.
#[pin_data]
struct Slot {
    /// Only compared, and that while the device is open.
    drm: *const DrmDevice,
    /// None when the device is gone.
    #[pin]
    offer: Mutex<Option<KBox<dyn Offer>>>,
}

// SAFETY: The pointer is not followed; the rest is for any thread.
unsafe impl Send for Slot {}
// SAFETY: As above.
unsafe impl Sync for Slot {}

global_lock! {
    // SAFETY: `init()` is called before any driver can know of it.
    unsafe(uninit) static OFFERS: Mutex<KVec<Arc<Slot>>> = KVec::new();
}

/// Makes the list ready.
///
/// # Safety
///
/// To be called once, when the module is loaded.
pub(super) unsafe fn init() {
    // SAFETY: By this function's requirements.
    unsafe { OFFERS.init() };
}

/// Gives the list's memory up. To be called once, when the module is unloaded: it is empty then.
pub(super) fn exit() {
    let list = core::mem::replace(&mut *OFFERS.lock(), KVec::new());
    drop(list);
}

/// An offer that stands until this is dropped: then nobody is in the driver's [`Offer`] any more, nor
/// will be. To be dropped when the device is unbound.
#[must_use = "the offer ends when this is dropped"]
pub struct Offered(Arc<Slot>);

impl Offered {
    /// Offers the memory of `drm`, which has not offered any yet. Fails with `ENOMEM`.
    pub fn new(drm: &DrmDevice, offer: KBox<dyn Offer>) -> Result<Self> {
        let slot = Arc::pin_init(
            pin_init!(Slot {
                drm,
                offer <- new_mutex!(Some(offer), "gpusvm.offer"),
            }),
            GFP_KERNEL,
        )?;
        OFFERS.lock().push(slot.clone(), GFP_KERNEL)?;
        Ok(Self(slot))
    }

    /// The region with this number, for others to use.
    pub fn place(&self, region: u32) -> Place {
        Place {
            slot: self.0.clone(),
            region,
        }
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        let listed = {
            let mut offers = OFFERS.lock();
            let place = offers.iter().position(|slot| Arc::ptr_eq(slot, &self.0));
            place.and_then(|place| offers.remove(place).ok())
        };
        let offer = self.0.offer.lock().take();
        // The driver's, and so without locks.
        drop(offer);
        drop(listed);
    }
}

/// A region of a device's memory, which may be gone.
#[derive(Clone)]
pub struct Place {
    slot: Arc<Slot>,
    region: u32,
}

impl Place {
    /// The region with this number of the device that the calling process has open as `fd`. It may
    /// turn out not to be there when it is [opened](Self::open).
    ///
    /// Fails as xe does: with `ENOENT` for no file of a device that offers memory, and with `ENODEV`
    /// for a device that is gone.
    pub fn from_fd(fd: u32, region: u32) -> Result<Self> {
        let file = OpenFile::from_fd(fd)?;
        let drm = file.device();
        let slot = {
            let offers = OFFERS.lock();
            let mut found = offers.iter().filter(|slot| ptr::eq(slot.drm, drm));
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
    /// Fails with `ENODEV` when the device is gone, and as the driver's [`Offer::open`] does.
    pub fn open(&self) -> Result<PageMapRef> {
        let offer = self.slot.offer.lock();
        offer.as_ref().ok_or(ENODEV)?.open(self.region)
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.slot, &other.slot) && self.region == other.region
    }
}

impl Eq for Place {}
