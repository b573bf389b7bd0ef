// SPDX-License-Identifier: GPL-2.0

//! Devices that ranges are mapped for.
//!
//! A [`DmaDevice`] is created for a bound device, and knows the SVMs that map pages for it. When
//! the device is unbound, its devres shuts all of these SVMs before the IOMMU domain is detached:
//! it unmaps all pages that they have mapped, and they cannot map any more, whatever their drivers
//! do. So no mapping outlives the binding of the device.
//!
//! References:
//!
//! - The devres of the bound device keeps the DRM device, but not the module of its driver, which
//!   unbinds its devices before it is unloaded.
//! - An SVM keeps the DRM device and the module ([`DrmRef`]), from its creation until it is
//!   dropped: its pages refer to the DRM device, whether the parent is bound or not.
//! - A [`DmaDevice`] reference keeps neither of them. A driver may store it anywhere, also in its
//!   DRM device.
//!
//! # Locking
//!
//! A mutex protects the list of SVMs, and is held while they are shut. Under it are taken the
//! notifier locks of these SVMs, and so the locks that [`Driver::invalidate`] takes. The mutex is
//! taken by threads that create or drop an SVM, and by the thread that unbinds the device, under
//! the device lock; never under an SVM lock or `mmap_lock`.
//!
//! C has no such object: each driver has to do this itself.
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
/// The list consists of [`Attachment`]s, linked by their `link`, whose SVMs are valid and fully
/// initialized. If `drm` is none, all of these SVMs are shut, and no SVM is added.
struct State {
    /// The DRM device, while its parent is bound.
    drm: Option<DeviceOnly>,
    // The list head is boxed, so that the other fields need no pinning and are accessible by
    // `&mut`.
    attached: Pin<KBox<CListHead>>,
}

impl DmaDevice {
    /// Allows SVMs to map for `drm`, until `dev` is unbound. Called by the driver that probes
    /// `dev`, after it has set the DMA mask.
    ///
    /// `dev` is the parent of `drm`. Fails with `EINVAL` if it is not, and with `ENOMEM`. Fails
    /// with `EOPNOTSUPP`, and logs the reason, if the device cannot share memory with the CPU: if
    /// its DMA is bounced, or not coherent.
    pub fn new_devm(dev: &Device<Bound>, drm: &DrmDevice) -> Result<Arc<Self>> {
        check_parent(dev, drm)?;
        // SAFETY: The device is bound, and so valid.
        if let Some(why) = unsafe { dma::obstacle_to_sharing(drm.dma_device()) } {
            dev_err!(dev, "cannot share memory with the CPU: {}\n", why);
            return Err(EOPNOTSUPP);
        }
        let attached = KBox::pin_init(CListHead::new(), GFP_KERNEL)?;
        // INVARIANT: The list is empty.
        let state = State {
            // SAFETY: devres drops it in process context, before the driver's module is unloaded.
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

    /// Returns the DRM device with its driver's module. Fails with `ENODEV` if the device is
    /// unbound, or the module is being unloaded.
    fn drm(&self) -> Result<DrmRef> {
        DrmRef::new(self.state.lock().drm.as_ref().ok_or(ENODEV)?)
    }

    /// Shuts all SVMs that map for the device, and lets no other SVM attach. Sleeps.
    fn close(&self) {
        let mut state = self.state.lock();
        let drm = state.drm.take();
        let head: *const CListHead = &*state.attached;
        let mut link = state.attached.next();
        while !ptr::eq(link, head) {
            // SAFETY: By the type invariants the link is that of an attachment whose SVM is valid.
            // The mutex is held, so that both stay.
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
        // Dropping the last reference to the DRM device runs the driver's code, and so is done
        // without the mutex.
        drop(drm);
    }
}

/// Closes a [`DmaDevice`] when it is dropped, which devres does when the device is unbound.
struct Closer(Arc<DmaDevice>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A function that shuts an SVM.
///
/// # Safety
///
/// The SVM must be valid and fully initialized, and of the type that the function is for.
pub(crate) type Shut = unsafe fn(NonNull<GpuSvm>);

/// The entry of an SVM in the list of a device that it maps for.
#[pin_data]
struct Attachment {
    #[pin]
    link: CListHead,
    /// The SVM, while the entry is in the list. Changed under the device's mutex.
    svm: UnsafeCell<Option<(NonNull<GpuSvm>, Shut)>>,
    device: Arc<DmaDevice>,
    drm: DrmRef,
}

// SAFETY: The device's mutex protects the fields that change; any thread may use and drop the
// others.
unsafe impl Send for Attachment {}
// SAFETY: As above.
unsafe impl Sync for Attachment {}

impl Attachment {
    /// Returns the attachment that `link` is part of.
    ///
    /// # Safety
    ///
    /// `link` must be the `link` of an attachment that is valid during `'a`.
    unsafe fn of<'a>(link: &CListHead) -> &'a Self {
        let link: *const CListHead = link;
        // SAFETY: The caller guarantees that `link` is part of a valid attachment.
        unsafe { &*link.byte_sub(core::mem::offset_of!(Self, link)).cast() }
    }
}

/// The devices that an SVM maps for, with references to their drivers' modules.
pub(crate) struct Attachments(KVec<Pin<KBox<Attachment>>>);

impl Attachments {
    /// Takes references to the devices, without adding the SVM to their lists.
    ///
    /// Fails with `EINVAL` if `devices` is empty; with `ENODEV` if a device is unbound, or its
    /// driver's module is being unloaded; and with `ENOMEM`.
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

    /// Adds `svm` to the lists of the devices, which shut it when they are unbound. Fails with
    /// `ENODEV` if a device is unbound by now; then `svm` is in no list.
    ///
    /// # Safety
    ///
    /// `svm` must be as `shut` requires until the caller calls [`detach`](Self::detach), which it
    /// must do. Called at most once.
    pub(crate) unsafe fn attach(&self, svm: NonNull<GpuSvm>, shut: Shut) -> Result {
        for attachment in &self.0 {
            let state = attachment.device.state.lock();
            if state.drm.is_none() {
                drop(state);
                self.detach();
                return Err(ENODEV);
            }
            // INVARIANT: The caller guarantees that the SVM is valid and fully initialized.
            // SAFETY: The mutex is held, and the attachment is in no list; it is taken out before
            // it is freed.
            unsafe {
                *attachment.svm.get() = Some((svm, shut));
                list::add_before(&state.attached, &attachment.link);
            }
        }
        Ok(())
    }

    /// Takes the SVM out of the devices' lists; waits for a device that is shutting it. Does
    /// nothing for devices whose list the SVM is not in. Called when nothing is mapped. Sleeps.
    pub(crate) fn detach(&self) {
        for attachment in &self.0 {
            let _state = attachment.device.state.lock();
            // SAFETY: The mutex is held, which protects the list and `svm`.
            unsafe {
                list::del(&attachment.link);
                *attachment.svm.get() = None;
            }
        }
    }

    /// Returns the number of devices; at least one.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the devices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &DrmDevice> {
        self.0.iter().map(|attachment| &*attachment.drm)
    }
}

impl Drop for Attachments {
    fn drop(&mut self) {
        self.detach();
    }
}
