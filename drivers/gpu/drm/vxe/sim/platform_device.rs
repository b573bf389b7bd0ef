// SPDX-License-Identifier: GPL-2.0

//! Platform devices that a module registers, each with data for its driver.
//!
//! The driver gets the data by [`platform_data`], which fails for devices that firmware or other
//! modules registered. The devices can be bound and unbound through sysfs like any other.
//!
//! C headers: [`include/linux/platform_device.h`](srctree/include/linux/platform_device.h),
//! [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use crate::bindings as ext;
use core::{
    any::TypeId,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    device::Bound,
    error::to_result,
    platform,
    prelude::*, //
};

/// The widest DMA mask, since the CPU makes the device's accesses.
const DMA_MASK: u64 = u64::MAX;

/// Returns the name of the module that this code is part of: one object may be linked into several.
pub fn module_name(module: &'static ThisModule) -> &'static CStr {
    // SAFETY: A loaded module has a NUL-terminated name that never changes; its code does not
    // outlive it.
    unsafe { CStr::from_char_ptr((&raw const (*module.as_ptr()).name).cast()) }
}

/// `device::type` of the devices registered here, and of no others.
static DEVICE_TYPE: DeviceType = DeviceType(pin_init::zeroed());

#[repr(transparent)]
struct DeviceType(bindings::device_type);

// SAFETY: It is never written.
unsafe impl Sync for DeviceType {}

/// `platform_data` of a device registered here.
#[repr(C)]
struct TaggedData<T> {
    // First, so that it can be read before the type is known.
    id: TypeId,
    data: T,
}

/// A registered platform device.
///
/// Dropping it unbinds the device from its driver, waits for that, and removes it.
///
/// # Invariants
///
/// The device is registered, its type is `DEVICE_TYPE`, and its platform data is `data`.
pub struct Registration<T> {
    pdev: NonNull<bindings::platform_device>,
    // Dropped after the device is unbound.
    data: KBox<TaggedData<T>>,
}

// SAFETY: A platform device may be removed from any thread, and a `Send` type may be dropped by
// any.
unsafe impl<T: Send> Send for Registration<T> {}
// SAFETY: A shared registration only gives access to a shared `T`.
unsafe impl<T: Sync> Sync for Registration<T> {}

impl<T: Send + Sync + 'static> Registration<T> {
    /// Registers the device `name.id`, which binds it to the driver called `name` if there is one:
    /// the probe function runs before this returns. A failure of the probe is only logged.
    ///
    /// Fails with `ENOMEM`, and with `EEXIST` if there is such a device.
    pub fn new(name: &CStr, id: u16, data: T) -> Result<Self> {
        let data = TaggedData {
            id: TypeId::of::<T>(),
            data,
        };
        let data = KBox::new(data, GFP_KERNEL)?;
        // SAFETY: The name is copied.
        let pdev = unsafe { bindings::platform_device_alloc(name.as_char_ptr(), id.into()) };
        let pdev = NonNull::new(pdev).ok_or(ENOMEM)?;
        let ptr: *const TaggedData<T> = &*data;
        // SAFETY: Only this function knows the device until it is added. `dma_mask` and `dma_parms`
        // point into the device.
        unsafe {
            let pdev = pdev.as_ptr();
            (*pdev).platform_dma_mask = DMA_MASK;
            (*pdev).dma_parms.max_segment_size = u32::MAX;
            (*pdev).dma_parms.segment_boundary_mask = usize::MAX;
            (*pdev).dev.coherent_dma_mask = DMA_MASK;
            ext::dma_set_coherent(&raw mut (*pdev).dev);
            (*pdev).dev.type_ = &raw const DEVICE_TYPE.0;
            (*pdev).dev.platform_data = ptr.cast_mut().cast();
        }
        // SAFETY: The device was created by `platform_device_alloc()`.
        if let Err(e) = to_result(unsafe { bindings::platform_device_add(pdev.as_ptr()) }) {
            // SAFETY: As above; it was not added, and only this function knows it.
            unsafe { put(pdev) };
            return Err(e);
        }
        // INVARIANT: The device was added, with this type and platform data.
        Ok(Self { pdev, data })
    }

    /// Returns whether a driver has bound the device. Sleeps.
    pub fn is_bound(&self) -> bool {
        // SAFETY: By the type invariant the device is registered.
        unsafe { ext::device_is_bound(&raw mut (*self.pdev.as_ptr()).dev) }
    }

    /// Returns the data that the device was registered with.
    pub fn data(&self) -> &T {
        &self.data.data
    }
}

impl<T> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the device is registered. After its removal no driver is
        // bound to it, and none will be.
        unsafe {
            bindings::platform_device_del(self.pdev.as_ptr());
            put(self.pdev);
        }
    }
}

/// Drops the reference to a device. Other references that remain only use its name.
///
/// # Safety
///
/// `pdev` must be created by [`Registration::new`], and be not added yet, or removed.
unsafe fn put(pdev: NonNull<bindings::platform_device>) {
    // SAFETY: No driver is bound to the device, so nothing uses these fields now. The device's
    // release function would free the platform data, which the device does not own.
    unsafe {
        (*pdev.as_ptr()).dev.type_ = core::ptr::null();
        (*pdev.as_ptr()).dev.platform_data = core::ptr::null_mut();
        bindings::platform_device_put(pdev.as_ptr());
    }
}

const _: () =
    assert!(size_of::<platform::Device<Bound>>() == size_of::<bindings::platform_device>());

/// Returns the data that `dev` was registered with, if that was by [`Registration::new`] with a
/// `T`.
///
/// Fails with `ENODEV` otherwise.
pub fn platform_data<T: Send + Sync + 'static>(dev: &platform::Device<Bound>) -> Result<&T> {
    let dev: *const platform::Device<Bound> = dev;
    // CAST: `platform::Device` is transparent over `struct platform_device`.
    let dev: *const bindings::platform_device = dev.cast();
    // SAFETY: The device is valid. Both fields were set before it was added, and only change after
    // it is unbound.
    let (kind, data) = unsafe { ((*dev).dev.type_, (*dev).dev.platform_data) };
    if !core::ptr::eq(kind, &raw const DEVICE_TYPE.0) {
        return Err(ENODEV);
    }
    // SAFETY: The device's type is only set by `Registration::new()`, so the data is a
    // `TaggedData`, which begins with the id of its type and is freed only after the device is
    // unbound.
    if unsafe { *data.cast::<TypeId>() } != TypeId::of::<T>() {
        return Err(ENODEV);
    }
    // SAFETY: As above, and of this type.
    Ok(unsafe { &(*data.cast::<TaggedData<T>>()).data })
}
