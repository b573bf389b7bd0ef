// SPDX-License-Identifier: GPL-2.0

//! A faux device with DMA.
//!
//! A plain faux device has no DMA mask, so every DMA mapping for it fails. This one has the widest
//! mask and no limit to the length of a segment, since the CPU makes its accesses.
//!
//! C headers: [`include/linux/device/faux.h`](srctree/include/linux/device/faux.h),
//! [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use crate::bindings as ext;
use kernel::{
    bindings,
    device,
    error::to_result,
    faux,
    prelude::*, //
};

/// The widest DMA mask.
const DMA_MASK: u64 = u64::MAX;

// `device::Device` is a transparent wrapper; the cast below relies on it.
const _: () = assert!(size_of::<device::Device>() == size_of::<bindings::device>());
const _: () = assert!(align_of::<device::Device>() == align_of::<bindings::device>());

fn as_raw<Ctx: device::DeviceContext>(dev: &device::Device<Ctx>) -> *mut bindings::device {
    // CAST: `device::Device` is transparent over `Opaque<struct device>`, checked above.
    core::ptr::from_ref(dev).cast_mut().cast()
}

/// A registered faux device with a DMA mask.
///
/// # Invariants
///
/// While the device is registered, its `dma_parms` is `parms`.
pub struct Registration {
    // Dropped before `parms`.
    faux: faux::Registration,
    parms: KBox<bindings::device_dma_parameters>,
}

impl Registration {
    /// Registers a faux device with the given name, under `parent` if there is one.
    ///
    /// Fails with `ENODEV` if the name is taken, or with `EIO` if DMA is not possible at all.
    pub fn new(name: &CStr, parent: Option<&device::Device>) -> Result<Self> {
        let parms = KBox::new(
            bindings::device_dma_parameters {
                max_segment_size: u32::MAX,
                min_align_mask: 0,
                segment_boundary_mask: usize::MAX,
            },
            GFP_KERNEL,
        )?;
        // INVARIANT: `dma_parms` is set before the caller can use the device.
        let mut this = Self {
            faux: faux::Registration::new(name, parent)?,
            parms,
        };
        let dev = this.raw();
        let parms: *mut bindings::device_dma_parameters = &mut *this.parms;
        // SAFETY: The device was just created, so nothing maps memory for it and reads these fields
        // now. The mask's storage is in the device itself; `parms` outlives the registration, and
        // `drop()` clears the pointer.
        unsafe {
            (*dev).dma_mask = &raw mut (*dev).coherent_dma_mask;
            (*dev).dma_parms = parms;
            ext::dma_set_coherent(dev);
        }
        // SAFETY: `dev` is registered and has storage for a mask.
        to_result(unsafe { bindings::dma_set_mask(dev, DMA_MASK) })?;
        // SAFETY: As above.
        to_result(unsafe { bindings::dma_set_coherent_mask(dev, DMA_MASK) })?;
        Ok(this)
    }

    fn raw(&self) -> *mut bindings::device {
        let faux: &faux::Device<device::Bound> = self.faux.as_ref();
        as_raw::<device::Bound>(faux.as_ref())
    }
}

impl AsRef<faux::Device<device::Bound>> for Registration {
    fn as_ref(&self) -> &faux::Device<device::Bound> {
        self.faux.as_ref()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: The device is still registered. DMA mappings of it are of single pages, which do
        // not use these parameters, and end when the device is unbound, right after this. Other
        // references, which may last longer, only use its name.
        unsafe { (*self.raw()).dma_parms = core::ptr::null_mut() };
    }
}
