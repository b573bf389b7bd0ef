// SPDX-License-Identifier: GPL-2.0

//! Device memory of Rust drivers: what a driver implements, and what it gets.
//!
//! A driver implements [`Provider`] for what stands behind one device's memory, and makes a
//! [`Pagemap`] of it. Then [`Pagemap::populate`] moves parts of a process there, and
//! [`Handle::evict`] takes the memory of an allocation back.

use super::{
    claims::Claims,
    devmem,
    evict,
    fault,
    mapping::is_mapped,
    owned::{self, Owned, OwnedRef, Vtable},
    page_map::{self, PageMap, PageMapRef},
    to_device::{self, Moved, Options, Request},
    zdd, //
};
use crate::{
    scan::first_vma_locked,
    segment::{Protocol, Segment}, //
};
use core::{ffi::c_void, marker::PhantomData, ops::Range, ptr::NonNull, slice};
use kernel::{
    bindings::{device, dma_data_direction, dma_fence, page},
    device::Device,
    ffi::{c_int, c_uint, c_ulong},
    mm::Mm,
    prelude::*,
    sync::aref::ARef,
    time::msecs_to_jiffies, //
};
use kernel_ext::{
    bindings as ext,
    dev_pagemap::DevPagemap,
    dma::Direction,
    drm_device::DrmDevice,
    zone_device, //
};

/// The memory of one device.
///
/// Memory is named by *device pages*: its pages, numbered from 0.
pub trait Provider: Send + Sync + Sized + 'static {
    /// Some device pages that are in use together. Dropped in process context, when no page of a
    /// process is there any more and all [`Handle`]s are gone.
    type Memory: Send + Sync + 'static;

    /// Allocates memory for a migration; may [evict](Handle::evict) for that. Its contents need not
    /// be defined.
    ///
    /// Called with the mmap lock of some process held for reading, and pages of it isolated: must
    /// take no mmap lock, nor touch user memory.
    fn allocate(&self, request: &Request<'_>) -> Result<Self::Memory>;

    /// The device page that number `index` of an allocation is at; of as many as were requested. A
    /// page is in one allocation at a time, and once; one that is not, or is not there at all, is
    /// refused.
    fn page(memory: &Self::Memory, index: usize) -> usize;

    /// Copies and clears, and waits for the end of that. Called under the same conditions as
    /// [`allocate`](Self::allocate).
    fn copy(&self, copy: &Copy<'_>) -> Result;

    /// Maps device pages for a device, its own or another, until [`unmap`](Self::unmap). The
    /// protocol says what the address means to that device, and is not
    /// [`SYSTEM`](Protocol::SYSTEM). Called under the notifier lock, or for a copy to these pages: must
    /// not sleep for long, nor allocate. Errors come out as `EFAULT`, or leave those pages where they
    /// are.
    fn map(&self, request: &Mapping<'_>) -> Result<(u64, Protocol)>;

    /// Undoes [`map`](Self::map), once for each that succeeded, under the same conditions.
    fn unmap(&self, device: &Device, segment: &Segment) {
        let _ = (device, segment);
    }

    /// Pages of a process are in this memory. A driver that evicts keeps the handle until
    /// [`detached`](Self::detached), which comes after this.
    fn attached(&self, handle: Handle<Self>) {
        drop(handle);
    }

    /// No page of a process is in this memory any more, or none ever was, if the migration failed.
    fn detached(&self, memory: &Self::Memory) {
        let _ = memory;
    }
}

/// Something to do in a [`struct@Copy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Copy between device pages and RAM, or from device pages to those of another device.
    Copy {
        /// The first device page.
        page: usize,
        /// The other side: as many pages, contiguous on both. RAM, if its protocol is
        /// [`SYSTEM`](Protocol::SYSTEM); else what the [`map`](Provider::map) of the other device's
        /// provider has for this device.
        other: Segment,
    },
    /// Clear device pages.
    Clear {
        /// The first device page.
        page: usize,
        /// How many.
        pages: usize,
    },
}

/// What is to be copied, all in one direction.
pub struct Copy<'a> {
    to_device: bool,
    base: usize,
    pages: &'a [*mut page],
    others: &'a [Segment],
}

impl Copy<'_> {
    /// Whether device memory is written; else it is read.
    pub fn is_to_device(&self) -> bool {
        self.to_device
    }

    /// The pieces, in the order of their addresses.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.pages
            .iter()
            .zip(self.others)
            .filter_map(move |(page, other)| {
                let first = NonNull::new(*page)?;
                // SAFETY: The page is one of a folio that the migration holds.
                let (page, order) = unsafe {
                    (
                        zone_device::frame_of(first) - self.base,
                        zone_device::order_of(first),
                    )
                };
                Some(if is_mapped(other) {
                    Piece::Copy {
                        page,
                        other: *other,
                    }
                } else {
                    Piece::Clear {
                        page,
                        pages: 1 << order,
                    }
                })
            })
    }
}

/// What is to be mapped for a device.
pub struct Mapping<'a> {
    /// The device, which may be the memory's own.
    pub device: &'a Device,
    /// Whether it is.
    pub is_own: bool,
    /// The first device page.
    pub page: usize,
    /// Log2 of the number of pages.
    pub order: u32,
    /// What the device may do with them.
    pub dir: Direction,
}

/// A [`PageMap`] and its provider.
///
/// # Invariants
///
/// `memory` is what `page_map` describes.
#[repr(C)]
#[pin_data]
struct Inner<P: Provider> {
    #[pin]
    page_map: PageMap,
    memory: DevPagemap,
    claims: Claims,
    provider: P,
}

impl<P: Provider> Inner<P> {
    const OPS: page_map::Ops = page_map::Ops {
        device_map: Some(Self::device_map),
        device_unmap: Some(Self::device_unmap),
        populate_mm: Some(Self::populate_mm),
        destroy: Some(Self::destroy),
    };

    const ALLOCATION_OPS: devmem::Ops = devmem::Ops {
        devmem_release: Some(owned::release),
        populate_devmem_pfn: Some(Self::populate_devmem_pfn),
        copy_to_devmem: Some(Self::copy_to_devmem),
        copy_to_ram: Some(Self::copy_to_ram),
    };

    const VTABLE: Vtable = Vtable {
        detached: Self::detached,
        free: Self::free,
    };

    /// # Safety
    ///
    /// `pagemap` must be the first part of an `Inner<P>` that is referred to during `'a`.
    unsafe fn of<'a>(pagemap: *mut ext::drm_pagemap) -> &'a Self {
        // SAFETY: By this function's requirements.
        unsafe { &*pagemap.cast() }
    }

    /// The number of a page.
    ///
    /// # Safety
    ///
    /// The page must be one of this memory's.
    unsafe fn device_page(&self, page: *mut page) -> usize {
        NonNull::new(page).map_or(0, |page| {
            // SAFETY: It is a page, by this function's requirements.
            let frame = unsafe { zone_device::frame_of(page) };
            frame - self.memory.frames().start
        })
    }

    /// # Safety
    ///
    /// As an operation of the pagemap, for a page that is in use.
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
        let request = Mapping {
            device,
            is_own: this.page_map.drm().dma_device() == dev,
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
    /// As an operation of the pagemap, for what [`device_map`](Self::device_map) returned.
    unsafe extern "C" fn device_unmap(
        pagemap: *mut ext::drm_pagemap,
        dev: *mut device,
        addr: *const ext::drm_pagemap_addr,
    ) {
        // SAFETY: By this function's requirements; the layout of segments is that of C.
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
    /// As an operation of the pagemap.
    unsafe extern "C" fn populate_mm(
        pagemap: *mut ext::drm_pagemap,
        start: c_ulong,
        end: c_ulong,
        mm: *mut kernel::bindings::mm_struct,
        timeslice_ms: c_ulong,
    ) -> c_int {
        // SAFETY: By this function's requirements.
        let (this, mm) = unsafe { (Self::of(pagemap), Mm::from_raw(mm)) };
        let timeslice_ms = u32::try_from(timeslice_ms).unwrap_or(u32::MAX);
        // SAFETY: The mmap lock is held by the caller.
        match unsafe { this.populate_locked(mm, start..end, timeslice_ms, false) } {
            Ok(_) => 0,
            Err(e) => e.to_errno(),
        }
    }

    /// # Safety
    ///
    /// To be called once, when nobody refers to the pagemap any more.
    unsafe extern "C" fn destroy(pagemap: *mut ext::drm_pagemap, _is_atomic_or_reclaim: bool) {
        // SAFETY: It was made in a box, by `Pagemap::new()`.
        drop(unsafe { KBox::from_raw(pagemap.cast::<Self>()) });
    }

    /// # Safety
    ///
    /// As an operation of an allocation of this provider's.
    unsafe extern "C" fn populate_devmem_pfn(
        allocation: *mut ext::drm_pagemap_devmem,
        pages: c_ulong,
        frames: *mut c_ulong,
    ) -> c_int {
        // SAFETY: By this function's requirements.
        let (this, frames) = unsafe {
            (
                &*allocation.cast::<Block<P>>(),
                slice::from_raw_parts_mut(frames, pages),
            )
        };
        if frames.len() > this.claim.pages.len() {
            return EINVAL.to_errno();
        }
        for (slot, frame) in frames.iter_mut().zip(this.claim.frames()) {
            *slot = frame;
        }
        0
    }

    /// # Safety
    ///
    /// The arrays must have `count` entries, and the pages be of this provider's memory, held.
    unsafe fn copy(
        pages: *mut *mut page,
        others: *mut ext::drm_pagemap_addr,
        count: c_ulong,
        to_device: bool,
    ) -> c_int {
        // SAFETY: By this function's requirements; the layout of segments is that of C.
        let (pages, others) = unsafe {
            (
                slice::from_raw_parts(pages, count),
                slice::from_raw_parts(others.cast::<Segment>(), count),
            )
        };
        let Some(first) = pages.iter().find_map(|page| NonNull::new(*page)) else {
            return 0;
        };
        // SAFETY: The pages are of this provider's memory, and held.
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

    /// # Safety
    ///
    /// As an entry of a [`Vtable`].
    unsafe fn detached(owned: NonNull<Owned>) {
        // SAFETY: The object is an allocation of this provider's.
        let block = unsafe { owned.cast::<Block<P>>().as_ref() };
        block.inner().provider.detached(&block.memory);
    }

    /// # Safety
    ///
    /// As an entry of a [`Vtable`].
    unsafe fn free(owned: NonNull<Owned>) {
        // SAFETY: The object is an allocation of this provider's, and was made in a box.
        drop(unsafe { KBox::from_raw(owned.cast::<Block<P>>().as_ptr()) });
    }

    /// As [`Pagemap::populate`], or [`gather`](Pagemap::gather).
    ///
    /// # Safety
    ///
    /// The mmap lock of `mm` must be held; and the mm have users.
    unsafe fn populate_locked(
        &self,
        mm: &Mm,
        span: Range<usize>,
        timeslice_ms: u32,
        gather: bool,
    ) -> Result<Moved> {
        let options = Options {
            timeslice: msecs_to_jiffies(timeslice_ms),
            same_pagemap: gather,
        };
        let mut total = Moved::default();
        let mut rest = span;
        // SAFETY: The mmap lock is held.
        while let Some(vma) = unsafe { first_vma_locked(mm, rest.clone()) } {
            let part = vma.start().max(rest.start)..vma.end().min(rest.end);
            rest.start = part.end;
            let mut made = None;
            let size = part.len();
            let result = {
                let mut allocate = |request: &Request<'_>, frames: &mut [usize]| {
                    let block = self.allocate(request, frames, size)?;
                    made = Some(block.clone());
                    Ok(block.into_allocation())
                };
                // SAFETY: The mmap lock is held; what is allocated is as it must be.
                unsafe { to_device::migrate(vma, part, &self.page_map, options, &mut allocate) }
            };
            match result {
                // The provider is not told that the memory is free before it is told that it is in
                // use, as the reference that is held here is the folios'.
                Ok((moved, _folios)) => {
                    total.add(&moved);
                    if let (Some(block), true) = (made, moved.moved != 0) {
                        self.provider.attached(Handle(block, PhantomData));
                    }
                }
                Err(e) if e == EBUSY => total.left += size,
                Err(e) => return Err(e),
            }
        }
        Ok(total)
    }

    /// Allocates what a request asks for, and writes the frames.
    fn allocate(
        &self,
        request: &Request<'_>,
        frames: &mut [usize],
        size: usize,
    ) -> Result<OwnedRef> {
        let mut pages = KVVec::with_capacity(request.pages(), GFP_KERNEL)?;
        let memory = self.provider.allocate(request)?;
        let base = self.memory.frames().start;
        for (index, place) in request.places().enumerate() {
            let page = P::page(&memory, index);
            *frames.get_mut(place).ok_or(EINVAL)? = base.wrapping_add(page);
            pages.push(page, GFP_KERNEL)?;
        }
        let claim = Claim::new((&self.page_map).into(), pages)?;
        let block = KBox::pin_init(
            pin_init!(Block::<P> {
                // SAFETY: The object is a block, which the tables are for; they are constant.
                owned <- unsafe {
                    Owned::new(
                        (&self.page_map).into(),
                        &Self::ALLOCATION_OPS,
                        &Self::VTABLE,
                        size,
                    )
                },
                claim,
                memory,
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The object stays where it is until it is freed; the reference is handed over.
        unsafe {
            let block = KBox::into_raw(Pin::into_inner_unchecked(block));
            Ok(OwnedRef::from_raw(NonNull::new_unchecked(block).cast()))
        }
    }
}

/// Pages that are in an allocation, until it is dropped.
struct Claim<P: Provider> {
    pagemap: Pagemap<P>,
    pages: KVVec<usize>,
}

impl<P: Provider> Claim<P> {
    /// Fails with `EINVAL` as [`Claims::claim`] says.
    fn new(pagemap: PageMapRef, pages: KVVec<usize>) -> Result<Self> {
        let pagemap = Pagemap(pagemap, PhantomData);
        pagemap.inner().claims.claim(&pages)?;
        Ok(Self { pagemap, pages })
    }

    /// The frames of the pages.
    fn frames(&self) -> impl Iterator<Item = usize> + '_ {
        let base = self.pagemap.inner().memory.frames().start;
        self.pages.iter().map(move |page| base + page)
    }
}

impl<P: Provider> Drop for Claim<P> {
    fn drop(&mut self) {
        self.pagemap.inner().claims.release(&self.pages);
    }
}

/// An allocation of a provider's. The claim goes before the memory, which is free for others then.
#[repr(C)]
#[pin_data]
struct Block<P: Provider> {
    #[pin]
    owned: Owned,
    claim: Claim<P>,
    memory: P::Memory,
}

impl<P: Provider> Block<P> {
    fn inner(&self) -> &Inner<P> {
        // SAFETY: The block's pagemap is a provider's of this type, and kept by the block.
        unsafe { Inner::of(self.owned.pagemap().as_raw()) }
    }
}

/// A counted reference to an allocation, which keeps its memory. Dropped in process context.
pub struct Handle<P: Provider>(OwnedRef, PhantomData<P>);

impl<P: Provider> Clone for Handle<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<P: Provider> Handle<P> {
    fn block(&self) -> &Block<P> {
        // SAFETY: The reference is to a block of this type.
        unsafe { self.0.as_raw().cast::<Block<P>>().as_ref() }
    }

    /// The memory.
    pub fn memory(&self) -> &P::Memory {
        &self.block().memory
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.block().claim.pages.len()
    }

    /// What is left of the time that it was promised, in jiffies.
    pub fn timeslice_left(&self) -> usize {
        self.0.allocation().timeslice_left()
    }

    /// Whether no page of a process is in it any more.
    pub fn is_detached(&self) -> bool {
        self.0.allocation().is_detached()
    }

    /// Moves all that is in the memory to RAM, in whatever processes it is. After that, and after
    /// [`Provider::detached`] was called, which this waits for, the memory is free as soon as the
    /// last handle is dropped.
    ///
    /// Needs no process, and no lock of one. Sleeps. No lock may be held that
    /// [`detached`](Provider::detached) or the end of a [`Memory`](Provider::Memory) takes. Errors:
    /// - `EBUSY`: somebody holds a page;
    /// - `ENOMEM`: there is no RAM;
    /// - `EFAULT`: the device cannot reach the RAM;
    /// - an error of the provider's.
    pub fn evict(&self) -> Result {
        let claim = &self.block().claim;
        let mut frames = KVVec::with_capacity(claim.pages.len(), GFP_KERNEL)?;
        for frame in claim.frames() {
            frames.push(frame, GFP_KERNEL)?;
        }
        // SAFETY: The frames are the block's, which the handle keeps.
        unsafe { evict::evict(self.0.allocation(), &frames) }?;
        owned::flush();
        Ok(())
    }
}

/// A device's memory, with a provider. A counted reference.
pub struct Pagemap<P: Provider>(PageMapRef, PhantomData<P>);

impl<P: Provider> Clone for Pagemap<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<P: Provider> Pagemap<P> {
    /// The memory of `device`, `size` bytes. As long as there are references the device and its
    /// driver's module are kept. The provider is dropped after the last, by a work item; one that
    /// was put into a cache when that has no use for it any more.
    ///
    /// `owner` says who may be mapped the pages, and is only compared: that of a group of devices
    /// (see [`Member`](super::Member)), which the provider keeps, or none for nobody else.
    ///
    /// Sleeps. Fails with `ENODEV` when the module is on its way out, as [`DevPagemap::new`] says,
    /// and with `ENOMEM`.
    pub fn new(
        device: &DrmDevice,
        size: usize,
        owner: Option<NonNull<c_void>>,
        provider: P,
    ) -> Result<Self> {
        // SAFETY: The operations are all that there are.
        let memory = unsafe { DevPagemap::new(size, owner, &fault::OPS) }?;
        let claims = Claims::new(memory.frames().len())?;
        let raw = memory.as_raw();
        let inner = KBox::try_pin_init(
            try_pin_init!(Inner {
                // SAFETY: The object is in a box that `destroy` frees; `memory` is in it, too; the
                // operations are for it, and constant.
                page_map <- unsafe { PageMap::new(device, raw, &Inner::<P>::OPS) },
                memory,
                claims,
                provider,
            }? Error),
            GFP_KERNEL,
        )?;
        // SAFETY: The object stays where it is until it is destroyed; its first part is the pagemap,
        // whose first reference this is.
        unsafe {
            let inner = KBox::into_raw(Pin::into_inner_unchecked(inner));
            let page_map = NonNull::new_unchecked(inner).cast();
            Ok(Self(ARef::from_raw(page_map), PhantomData))
        }
    }

    /// The reference without its type.
    pub(super) fn into_page_map(self) -> PageMapRef {
        self.0
    }

    /// The reference with its type.
    ///
    /// # Safety
    ///
    /// The pagemap must have been made by [`new`](Self::new) of this very type.
    pub(super) unsafe fn from_page_map(pagemap: PageMapRef) -> Self {
        Self(pagemap, PhantomData)
    }

    fn inner(&self) -> &Inner<P> {
        // SAFETY: The pagemap was made by `new()`, and is referred to.
        unsafe { Inner::of(self.0.as_raw()) }
    }

    /// The provider.
    pub fn provider(&self) -> &P {
        &self.inner().provider
    }

    /// The memory as others see it.
    pub fn page_map(&self) -> &PageMap {
        &self.0
    }

    /// How many pages there are, at least as many as were asked for.
    pub fn pages(&self) -> usize {
        self.inner().memory.frames().len()
    }

    /// Moves what is in `span` of a process to the device, as far as it can, and has it stay there
    /// for `timeslice_ms` milliseconds even if the CPU touches it.
    ///
    /// What cannot move is not an error, nor is a place without a VMA: [`Moved`] tells. Sleeps; takes the mmap lock;
    /// calls MMU notifiers. What one migration moves of a VMA is evicted, and brought back by a
    /// touch, together.
    ///
    /// Errors, after which the part of the VMA that failed is where it was:
    /// - `EFAULT`: the process is gone, or the device cannot reach a page;
    /// - `EINVAL`: the span is not page-aligned;
    /// - `ENOMEM`, or an error of the provider's.
    pub fn populate(&self, mm: &Mm, span: Range<usize>, timeslice_ms: u32) -> Result<Moved> {
        let mm = mm.mmget_not_zero().ok_or(EFAULT)?;
        let _mmap = mm.mmap_read_lock();
        // SAFETY: The lock is held.
        unsafe { self.inner().populate_locked(&mm, span, timeslice_ms, false) }
    }

    /// As [`populate`](Self::populate), but moves what is on the device already as well, to other places
    /// there: after that, what moved of one VMA is in one allocation.
    pub fn gather(&self, mm: &Mm, span: Range<usize>, timeslice_ms: u32) -> Result<Moved> {
        let mm = mm.mmget_not_zero().ok_or(EFAULT)?;
        let _mmap = mm.mmap_read_lock();
        // SAFETY: The lock is held.
        unsafe { self.inner().populate_locked(&mm, span, timeslice_ms, true) }
    }
}
