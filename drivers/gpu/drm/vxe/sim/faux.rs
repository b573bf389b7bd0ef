// SPDX-License-Identifier: GPL-2.0

//! A faux device that memory can be mapped for.
//!
//! A faux device comes without a DMA mask, and every mapping for it fails. This one has the widest
//! mask and no limit to the length of a segment: what it reaches, it reaches by the CPU.
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
    /// Makes a faux device with the given name, under `parent` if there is one.
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
        // INVARIANT: `dma_parms` is set before anyone else learns of the device.
        let mut this = Self {
            faux: faux::Registration::new(name, parent)?,
            parms,
        };
        let dev = this.raw();
        let parms: *mut bindings::device_dma_parameters = &mut *this.parms;
        // SAFETY: The device was just made: no driver but the caller's uses it, so that nobody
        // reads these fields now. The mask's storage is in the device itself, `parms` outlives the
        // registration, and `drop()` takes it away.
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
        // SAFETY: The device is still registered. What is mapped for it, or being mapped, is single pages, for which
        // nobody looks at these parameters, and is unmapped when the device is unbound, right after this; other
        // references, which may last longer, only look at its name.
        unsafe { (*self.raw()).dma_parms = core::ptr::null_mut() };
    }
}
