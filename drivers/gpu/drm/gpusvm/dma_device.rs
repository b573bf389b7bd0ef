// SPDX-License-Identifier: GPL-2.0

//! Devices that ranges are mapped for.
//!
//! A [`DmaDevice`] is made of a device that is bound, and knows the SVMs that map for it. When the device is
//! unbound, by its devres and so before its IOMMU domain goes, all of them are shut: what they have mapped is
//! unmapped, and they map no more, whatever their drivers forget. So no mapping outlives the device's being bound.
//!
//! What keeps what:
//!
//! - The devres of the bound device keeps the DRM device, not the module of its driver, which unbinds its devices
//!   before it goes.
//! - An SVM keeps the DRM device and the module ([`DrmRef`]), from when it is made until it is dropped: unbound or
//!   not, its pages refer to the device.
//! - A [`DmaDevice`] that somebody has keeps neither. A driver may keep it where it likes, its DRM device included.
//!
//! # Locking
//!
//! A mutex protects the list of SVMs, and is held while they are shut. Inside of it are the notifier locks of these
//! SVMs, and so what [`Driver::invalidate`] takes. It is taken by who makes or drops an SVM, and by unbinding with
//! the device lock held; never under an SVM lock or `mmap_lock`.
//!
//! C has no such object: a driver has to see to all of that.
//!
//! [`Driver::invalidate`]: crate::driver::Driver::invalidate

use crate::{
    pagemap::shrinker::check_parent,
    svm::GpuSvm, //
};
use core::{
    cell::UnsafeCell,
    ptr::{self, NonNull}, //
};
use kernel::{
    device::{Bound, Device},
    devres,
    interop::list::CListHead,
    prelude::*,
    sync::{new_mutex, Arc, Mutex}, //
};
use kernel_ext::{
    dma,
    drm::device::{DeviceOnly, DrmDevice, DrmRef},
    list, //
};

/// A device that ranges are mapped for, until it is unbound.
#[pin_data]
pub struct DmaDevice {
    #[pin]
    state: Mutex<State>,
}

/// # Invariants
///
/// The list is of [`Attachment`]s, each linked by its `link`, whose SVM is valid and all made. Without `drm` all
/// of them are shut, and none is added.
struct State {
    /// The device, while it is bound.
    drm: Option<DeviceOnly>,
    // In a box, so that who has the lock can have the rest exclusively, and not pinned.
    attached: Pin<KBox<CListHead>>,
}

impl DmaDevice {
    /// Makes ranges mappable for `drm`, until `dev` is unbound. To be called by the driver that probes `dev`, with
    /// its DMA mask set.
    ///
    /// `dev` is what `drm` sits on. Fails with `EINVAL` if it is another device, and with `ENOMEM`. Fails with
    /// `EOPNOTSUPP`, and says why in the kernel log, if the device cannot share memory with the CPU: if its DMA is
    /// bounced, or not coherent.
    pub fn new_devm(dev: &Device<Bound>, drm: &DrmDevice) -> Result<Arc<Self>> {
        check_parent(dev, drm)?;
        // SAFETY: The device is bound, and so valid.
        if let Some(why) = unsafe { dma::obstacle_to_sharing(drm.dma_device()) } {
            dev_err!(dev, "cannot share memory with the CPU: {}\n", why);
            return Err(EOPNOTSUPP);
        }
        let attached = KBox::pin_init(CListHead::new(), GFP_KERNEL)?;
        // INVARIANT: There are none.
        let state = State {
            // SAFETY: It is dropped by devres, in process context, before the driver's module goes.
            drm: Some(unsafe { DeviceOnly::new(drm) }),
            attached,
        };
        let this = Arc::pin_init(
            pin_init!(Self {
                state <- new_mutex!(state, "gpusvm.dma_device"),
            }),
            GFP_KERNEL,
        )?;
        devres::register(dev, Closer(this.clone()), GFP_KERNEL)?;
        Ok(this)
    }

    /// The DRM device with its driver's module. Fails with `ENODEV` if the device is unbound, or the module on its
    /// way out.
    fn drm(&self) -> Result<DrmRef> {
        DrmRef::new(self.state.lock().drm.as_ref().ok_or(ENODEV)?)
    }

    /// Shuts all SVMs that map for the device, for good. Sleeps.
    fn close(&self) {
        let mut state = self.state.lock();
        let drm = state.drm.take();
        let head: *const CListHead = &*state.attached;
        let mut link = state.attached.next();
        while !ptr::eq(link, head) {
            // SAFETY: By the type invariants; the lock is held, so that the attachment stays, and its SVM.
            let next = unsafe {
                let attachment = Attachment::of(link);
                if let Some((svm, shut)) = *attachment.svm.get() {
                    shut(svm);
                }
                attachment.link.next()
            };
            link = next;
        }
        drop(state);
        // The end of the device may be here, which is the driver's code, and so without the lock.
        drop(drm);
    }
}

/// Closes a [`DmaDevice`] when it is dropped, that is when the device is unbound.
struct Closer(Arc<DmaDevice>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Shuts an SVM.
///
/// # Safety
///
/// The SVM must be valid and all made, and of the type that the function is for.
pub(crate) type Shut = unsafe fn(NonNull<GpuSvm>);

/// The place of an SVM with a device that it maps for.
#[pin_data]
struct Attachment {
    #[pin]
    link: CListHead,
    /// The SVM while it is in the list. Changed under the lock of the device.
    svm: UnsafeCell<Option<(NonNull<GpuSvm>, Shut)>>,
    device: Arc<DmaDevice>,
    drm: DrmRef,
}

// SAFETY: What may be changed is protected by the lock of the device; the rest is for any thread.
unsafe impl Send for Attachment {}
// SAFETY: As above.
unsafe impl Sync for Attachment {}

impl Attachment {
    /// The attachment that `link` is part of.
    ///
    /// # Safety
    ///
    /// `link` must be that of an attachment that is valid during `'a`.
    unsafe fn of<'a>(link: &CListHead) -> &'a Self {
        let link: *const CListHead = link;
        // SAFETY: By this function's requirements.
        unsafe { &*link.byte_sub(core::mem::offset_of!(Self, link)).cast() }
    }
}

/// The devices that an SVM maps for, kept with their drivers' modules.
pub(crate) struct Attachments(KVec<Pin<KBox<Attachment>>>);

impl Attachments {
    /// Takes references to the devices; none of them knows of the SVM yet.
    ///
    /// Fails with `EINVAL` for no device, with `ENODEV` for one that is unbound, or whose driver is on its way out,
    /// and with `ENOMEM`.
    pub(crate) fn new(devices: &[Arc<DmaDevice>]) -> Result<Self> {
        if devices.is_empty() {
            return Err(EINVAL);
        }
        let mut all = KVec::with_capacity(devices.len(), GFP_KERNEL_ACCOUNT)?;
        for device in devices {
            let drm = device.drm()?;
            let attachment = KBox::pin_init(
                pin_init!(Attachment {
                    link <- CListHead::new(),
                    svm: UnsafeCell::new(None),
                    device: device.clone(),
                    drm,
                }),
                GFP_KERNEL_ACCOUNT,
            )?;
            all.push(attachment, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self(all))
    }

    /// Has the devices shut `svm` when they are unbound. Fails with `ENODEV`, and has told none, if one is by now.
    ///
    /// # Safety
    ///
    /// `svm` must be as `shut` requires until [`detach`](Self::detach) is called, which it must be. To be called
    /// once.
    pub(crate) unsafe fn attach(&self, svm: NonNull<GpuSvm>, shut: Shut) -> Result {
        for attachment in &self.0 {
            let state = attachment.device.state.lock();
            if state.drm.is_none() {
                drop(state);
                self.detach();
                return Err(ENODEV);
            }
            // INVARIANT: The SVM is as it must be, by this function's requirements.
            // SAFETY: The lock is held, and the attachment in no list; it leaves before it goes.
            unsafe {
                *attachment.svm.get() = Some((svm, shut));
                list::add_before(&state.attached, &attachment.link);
            }
        }
        Ok(())
    }

    /// Has the devices forget the SVM; waits for one that is shutting it. Does nothing for those that do not know
    /// it. To be called with nothing mapped. Sleeps.
    pub(crate) fn detach(&self) {
        for attachment in &self.0 {
            let _state = attachment.device.state.lock();
            // SAFETY: The lock is held.
            unsafe {
                list::del(&attachment.link);
                *attachment.svm.get() = None;
            }
        }
    }

    /// How many devices there are; at least one.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The devices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &DrmDevice> {
        self.0.iter().map(|attachment| &*attachment.drm)
    }
}

impl Drop for Attachments {
    fn drop(&mut self) {
        self.detach();
    }
}
