// SPDX-License-Identifier: GPL-2.0

//! A pagemap with its provider, and the operations that C code calls: each finds the provider, and calls the
//! corresponding function of [`Provider`].

use super::{
    super::{
        claims::Claims,
        detach::{self, Detachable, Detaching},
        devmem,
        drm_pagemap::{self, Pagemap},
        to_device::Sources,
        zdd, //
    },
    block::Block,
    Copy,
    MapRequest,
    Provider, //
};
use crate::segment::Segment;
use core::{ptr::NonNull, slice};
use kernel::{
    bindings::{device, dma_data_direction, dma_fence, page},
    device::Device,
    ffi::{c_int, c_uint, c_ulong},
    mm::MmWithUser,
    prelude::*,
    sync::Arc, //
};
use kernel_ext::{
    bindings as ext,
    dma::Direction,
    mm::{
        memremap::DevPagemap,
        zone_device, //
    }, //
};

/// A [`Pagemap`] with its provider.
///
/// # Invariants
///
/// `pagemap` describes `memory`.
#[repr(C)]
#[pin_data]
pub(super) struct Inner<P: Provider> {
    #[pin]
    pub(super) pagemap: Pagemap,
    pub(super) memory: DevPagemap,
    pub(super) claims: Claims,
    pub(super) detaching: Arc<Detaching>,
    pub(super) provider: P,
}

impl<P: Provider> Inner<P> {
    pub(super) const OPS: drm_pagemap::Ops = drm_pagemap::Ops {
        device_map: Some(Self::device_map),
        device_unmap: Some(Self::device_unmap),
        populate_mm: Some(Self::populate_mm),
        destroy: Some(Self::destroy),
    };

    pub(super) const DEVMEM_OPS: devmem::Ops = devmem::Ops {
        devmem_release: Some(detach::release),
        populate_devmem_pfn: Some(Self::populate_devmem_pfn),
        copy_to_devmem: Some(Self::copy_to_devmem),
        copy_to_ram: Some(Self::copy_to_ram),
    };

    /// Returns the object of a pagemap.
    ///
    /// # Safety
    ///
    /// `pagemap` must be the first field of an `Inner<P>`, and have a reference during `'a`.
    pub(super) unsafe fn of<'a>(pagemap: *mut ext::drm_pagemap) -> &'a Self {
        // SAFETY: By this function's requirements.
        unsafe { &*pagemap.cast() }
    }

    /// Returns the number of a device page.
    ///
    /// # Safety
    ///
    /// The page must be one of this memory.
    unsafe fn device_page(&self, page: *mut page) -> usize {
        NonNull::new(page).map_or(0, |page| {
            // SAFETY: The caller guarantees that it is a page.
            let frame = unsafe { zone_device::frame_of(page) };
            frame - self.memory.frames().start
        })
    }

    /// # Safety
    ///
    /// Called as an operation of the pagemap, for a page that is in use.
    unsafe extern "C" fn device_map(
        pagemap: *mut ext::drm_pagemap,
        dev: *mut device,
        page: *mut page,
        order: c_uint,
        dir: dma_data_direction,
    ) -> ext::drm_pagemap_addr {
        // SAFETY: By this function's requirements.
        let (this, page, device) = unsafe {
            let this = Self::of(pagemap);
            (this, this.device_page(page), Device::from_raw(dev))
        };
        let dir = Direction::from_raw(dir.0);
        let request = MapRequest {
            device,
            is_own: this.pagemap.drm().dma_device() == dev,
            page,
            order,
            dir,
        };
        let segment = match this.provider.map(&request) {
            Ok((addr, proto)) => Segment::new(addr, proto, order, dir),
            Err(_) => Segment::failed(),
        };
        segment.into_raw()
    }

    /// # Safety
    ///
    /// Called as an operation of the pagemap, with a segment that [`device_map`](Self::device_map) returned.
    unsafe extern "C" fn device_unmap(
        pagemap: *mut ext::drm_pagemap,
        dev: *mut device,
        addr: *const ext::drm_pagemap_addr,
    ) {
        // SAFETY: By this function's requirements; `Segment` has the layout of `struct drm_pagemap_addr`.
        let (this, device, segment) = unsafe {
            (
                Self::of(pagemap),
                Device::from_raw(dev),
                &*addr.cast::<Segment>(),
            )
        };
        this.provider.unmap(device, segment);
    }

    /// # Safety
    ///
    /// Called as an operation of the pagemap, with the mmap lock of `mm` held.
    unsafe extern "C" fn populate_mm(
        pagemap: *mut ext::drm_pagemap,
        start: c_ulong,
        end: c_ulong,
        mm: *mut kernel::bindings::mm_struct,
        timeslice_ms: c_ulong,
    ) -> c_int {
        // SAFETY: By this function's requirements.
        let (this, mm) = unsafe { (Self::of(pagemap), MmWithUser::from_raw(mm)) };
        let timeslice_ms = u32::try_from(timeslice_ms).unwrap_or(u32::MAX);
        // SAFETY: The caller holds the mmap lock.
        match unsafe { this.populate_locked(mm, start..end, timeslice_ms, Sources::Devices) } {
            Ok(_) => 0,
            Err(e) => e.to_errno(),
        }
    }

    /// # Safety
    ///
    /// Called once, when the pagemap has no references any more.
    unsafe extern "C" fn destroy(pagemap: *mut ext::drm_pagemap, _is_atomic_or_reclaim: bool) {
        // SAFETY: `DeviceMemory::new()` created the object in a box.
        drop(unsafe { KBox::from_raw(pagemap.cast::<Self>()) });
    }

    /// # Safety
    ///
    /// Called as an operation of a block of this provider.
    unsafe extern "C" fn populate_devmem_pfn(
        devmem: *mut ext::drm_pagemap_devmem,
        pages: c_ulong,
        frames: *mut c_ulong,
    ) -> c_int {
        // SAFETY: By this function's requirements.
        let (this, frames) = unsafe {
            (
                &*devmem.cast::<Block<P>>(),
                slice::from_raw_parts_mut(frames, pages),
            )
        };
        if frames.len() > this.pages() {
            return EINVAL.to_errno();
        }
        for (slot, frame) in frames.iter_mut().zip(this.frames()) {
            *slot = frame;
        }
        0
    }

    /// # Safety
    ///
    /// The arrays must have `count` entries. The pages must be of this provider's memory, and the caller must hold
    /// references to them.
    unsafe fn copy(
        pages: *mut *mut page,
        others: *mut ext::drm_pagemap_addr,
        count: c_ulong,
        to_device: bool,
    ) -> c_int {
        // SAFETY: By this function's requirements; `Segment` has the layout of `struct drm_pagemap_addr`.
        let (pages, others) = unsafe {
            (
                slice::from_raw_parts(pages, count),
                slice::from_raw_parts(others.cast::<Segment>(), count),
            )
        };
        let Some(first) = pages.iter().find_map(|page| NonNull::new(*page)) else {
            return 0;
        };
        // SAFETY: The page is of this provider's memory, and the caller holds a reference to it.
        let this = unsafe { Self::of(zdd::pagemap_of_page(first).as_raw()) };
        let copy = Copy {
            to_device,
            base: this.memory.frames().start,
            pages,
            others,
        };
        match this.provider.copy(&copy) {
            Ok(()) => 0,
            Err(e) => e.to_errno(),
        }
    }

    /// # Safety
    ///
    /// As for [`copy`](Self::copy). There is never a fence.
    unsafe extern "C" fn copy_to_devmem(
        pages: *mut *mut page,
        others: *mut ext::drm_pagemap_addr,
        count: c_ulong,
        _fence: *mut dma_fence,
    ) -> c_int {
        // SAFETY: By this function's requirements.
        unsafe { Self::copy(pages, others, count, true) }
    }

    /// # Safety
    ///
    /// As for [`copy`](Self::copy). There is never a fence.
    unsafe extern "C" fn copy_to_ram(
        pages: *mut *mut page,
        others: *mut ext::drm_pagemap_addr,
        count: c_ulong,
        _fence: *mut dma_fence,
    ) -> c_int {
        // SAFETY: By this function's requirements.
        unsafe { Self::copy(pages, others, count, false) }
    }

    /// Tells the provider that no folio is left in a block.
    ///
    /// # Safety
    ///
    /// As for [`Detached`](detach::Detached).
    pub(super) unsafe fn detached(block: NonNull<Detachable>) {
        // SAFETY: The block is one of this provider's, in an `Arc`; the caller hands the folios' reference over.
        let block = unsafe { Arc::from_raw(block.cast::<Block<P>>().as_ptr()) };
        block.detached();
    }
}
