// SPDX-License-Identifier: GPL-2.0

//! Platform devices that a module makes itself, each with what its driver has to know of it.
//!
//! The driver finds what a device was made with by [`board`], which knows such devices from those
//! that firmware or other modules made. They are bound and unbound through sysfs like any other.
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

/// The widest DMA mask: what such a device reaches, it reaches by the CPU.
const DMA_MASK: u64 = u64::MAX;

/// The name of the module that this code is part of: one object may be linked into several.
pub fn module_name(module: &'static ThisModule) -> &'static CStr {
    // SAFETY: A loaded module has a name, which ends with a zero and never changes; its code lives no
    // longer.
    unsafe { CStr::from_char_ptr((&raw const (*module.as_ptr()).name).cast()) }
}

/// `device::type` of the devices made here, and of no others.
static DEVICE_TYPE: DeviceType = DeviceType(pin_init::zeroed());

#[repr(transparent)]
struct DeviceType(bindings::device_type);

// SAFETY: It is never written.
unsafe impl Sync for DeviceType {}

/// What `platform_data` of a device made here points to.
#[repr(C)]
struct Board<T> {
    // First, so that it can be looked at before the type is known.
    id: TypeId,
    data: T,
}

/// A registered platform device.
///
/// Dropping it unbinds the device from its driver, waits for that, and removes it.
///
/// # Invariants
///
/// The device is registered, its type is `DEVICE_TYPE`, and its platform data is `board`.
pub struct Registration<T> {
    pdev: NonNull<bindings::platform_device>,
    // Dropped after the device is unbound.
    board: KBox<Board<T>>,
}

// SAFETY: A platform device may be removed from any thread; `T` may be dropped by any.
unsafe impl<T: Send> Send for Registration<T> {}
// SAFETY: A shared registration gives access to a shared `T` only.
unsafe impl<T: Sync> Sync for Registration<T> {}

impl<T: Send + Sync + 'static> Registration<T> {
    /// Makes the device `name.id`, and binds it to the driver called `name` if there is one: its
    /// probe function runs before this returns. That it failed is for the log to say.
    ///
    /// Fails with `ENOMEM`, and with `EEXIST` if there is such a device.
    pub fn new(name: &CStr, id: u16, data: T) -> Result<Self> {
        let board = Board {
            id: TypeId::of::<T>(),
            data,
        };
        let board = KBox::new(board, GFP_KERNEL)?;
        // SAFETY: The name is copied.
        let pdev = unsafe { bindings::platform_device_alloc(name.as_char_ptr(), id.into()) };
        let pdev = NonNull::new(pdev).ok_or(ENOMEM)?;
        let ptr: *const Board<T> = &*board;
        // SAFETY: The device is this function's alone until it is added. `dma_mask` and `dma_parms`
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
        // SAFETY: The device was made by `platform_device_alloc()`.
        if let Err(e) = to_result(unsafe { bindings::platform_device_add(pdev.as_ptr()) }) {
            // SAFETY: As above; it was not added, and nobody else knows of it.
            unsafe { put(pdev) };
            return Err(e);
        }
        // INVARIANT: Just so.
        Ok(Self { pdev, board })
    }

    /// What the device was made with.
    pub fn board(&self) -> &T {
        &self.board.data
    }
}

impl<T> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the device is registered. When it is removed, no driver is
        // bound to it, and none will be.
        unsafe {
            bindings::platform_device_del(self.pdev.as_ptr());
            put(self.pdev);
        }
    }
}

/// Gives up a device. What may still have a reference to it only looks at its name.
///
/// # Safety
///
/// `pdev` must be made by [`Registration::new`] and not be added, or not any more.
unsafe fn put(pdev: NonNull<bindings::platform_device>) {
    // SAFETY: No driver uses the device, so that nobody looks at these fields now. The release of
    // the device would free the platform data, which is not its own.
    unsafe {
        (*pdev.as_ptr()).dev.type_ = core::ptr::null();
        (*pdev.as_ptr()).dev.platform_data = core::ptr::null_mut();
        bindings::platform_device_put(pdev.as_ptr());
    }
}

const _: () =
    assert!(size_of::<platform::Device<Bound>>() == size_of::<bindings::platform_device>());

/// What `dev` was made with, if that was done by [`Registration::new`] with a `T`.
///
/// Fails with `ENODEV` otherwise.
pub fn board<T: Send + Sync + 'static>(dev: &platform::Device<Bound>) -> Result<&T> {
    let dev: *const platform::Device<Bound> = dev;
    // CAST: `platform::Device` is transparent over `struct platform_device`.
    let dev: *const bindings::platform_device = dev.cast();
    // SAFETY: The device is valid; both fields were set before it was added, and change only when
    // it is not bound any more.
    let (kind, data) = unsafe { ((*dev).dev.type_, (*dev).dev.platform_data) };
    if !core::ptr::eq(kind, &raw const DEVICE_TYPE.0) {
        return Err(ENODEV);
    }
    // SAFETY: The device's type says that it was made here, so that its data is a `Board`, which
    // begins with the id of its type and outlives its being bound.
    if unsafe { *data.cast::<TypeId>() } != TypeId::of::<T>() {
        return Err(ENODEV);
    }
    // SAFETY: As above, and of this type.
    Ok(unsafe { &(*data.cast::<Board<T>>()).data })
}
