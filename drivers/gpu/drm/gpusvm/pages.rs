// SPDX-License-Identifier: GPL-2.0

//! The device level: one device's mapping of the pages of a range.
//!
//! A pages object is of one device, which whoever made it keeps: the [SVM](crate::driver::Svm) of a driver in Rust. It
//! is always in one of these states, which change only under the notifier lock:
//!
//! - *unmapped*: nothing is mapped;
//! - *partly mapped*: a transaction (see [`get_pages`](crate::get_pages)) is under way and let the
//!   lock go to let a writer in; an invalidation undoes what it did so far, and it notices;
//! - *mapped*: all pages are mapped, their addresses may be used under the lock;
//! - *retired*: unmapped for good, as the range was unmapped by the CPU or removed.
//!
//! Addresses are reached only through a [`View`](crate::view::View), which exists under the lock.
//!
//! # Locking
//!
//! What is behind the cells is read under the notifier lock; it is written by who holds that lock
//! for writing, or for reading together with the driver's SVM lock. So a writer excludes all others.
//!
//! C: `struct drm_gpusvm_pages`.

use crate::{
    ctx::Access,
    dma_device::Attachments,
    flags::{PagesFlag, PagesFlags},
    pagemap::{Pagemap, PagemapRef},
    segment::{Appender, Protocol, Segment, SegmentArray}, //
};
use core::{cell::UnsafeCell, ptr::NonNull};
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Relaxed}, //
};
use kernel_ext::{
    dma::{
        self,
        Direction,
        IovaState, //
    },
    drm::device::DrmDevice,
    mm::hmm::PfnBlock, //
};

/// One device's mapping of a range; it has the layout of `struct drm_gpusvm_pages`.
///
/// # Invariants
///
/// `drm` is a DRM device that outlives the object, as the module of its driver does. The first `mapped` of `segments` are exactly what is mapped for the device, and `read_only` is set if
/// one of them may not be written. If `state` holds a reservation, the segments of system memory are
/// linked in it without gaps from its start, in `state_offset` bytes altogether. All segments that are
/// not of system memory are of `dpagemap`, which is there while there are any.
#[repr(C)]
pub struct Pages {
    pub(crate) drm: NonNull<DrmDevice>,
    pub(crate) segments: UnsafeCell<Option<SegmentArray>>,
    pub(crate) dpagemap: UnsafeCell<Option<PagemapRef>>,
    pub(crate) state: UnsafeCell<IovaState>,
    pub(crate) state_offset: UnsafeCell<usize>,
    pub(crate) notifier_seq: Atomic<usize>,
    pub(crate) flags: PagesFlags,
    // What follows is padding in C.
    read_only: UnsafeCell<bool>,
    mapped: UnsafeCell<u32>,
}

// SAFETY: Pages may be used and freed from any thread.
unsafe impl Send for Pages {}
// SAFETY: The cells are protected as the module's documentation says.
unsafe impl Sync for Pages {}

impl Pages {
    /// Pages of `drm`, not mapped. C: `drm_gpusvm_init_pages()`.
    ///
    /// DMA goes through the device's parent, `drm->dev`.
    ///
    /// # Safety
    ///
    /// The DRM device and the module of its driver must outlive the result, and its parent be bound, with a DMA
    /// mask, while anything is mapped.
    pub unsafe fn new(drm: &DrmDevice) -> Self {
        // INVARIANT: By this function's requirements; nothing is mapped.
        Self {
            drm: NonNull::from(drm),
            segments: UnsafeCell::new(None),
            dpagemap: UnsafeCell::new(None),
            state: UnsafeCell::new(IovaState::default()),
            state_offset: UnsafeCell::new(0),
            notifier_seq: Atomic::new(isize::MAX as usize),
            flags: PagesFlags::new(),
            read_only: UnsafeCell::new(false),
            mapped: UnsafeCell::new(0),
        }
    }

    /// The device that the pages are mapped for.
    pub fn device(&self) -> &DrmDevice {
        // SAFETY: By the type invariants.
        unsafe { self.drm.as_ref() }
    }

    /// The device that DMA goes through.
    fn dma_device(&self) -> *mut kernel::bindings::device {
        self.device().dma_device()
    }

    /// Whether `flag` is set, at some recent time.
    pub fn has(&self, flag: PagesFlag) -> bool {
        self.flags.has(flag)
    }

    /// Whether the pages are mapped, all of them. Only a caller with the notifier lock knows that
    /// they still are when it looks at the answer. C: `drm_gpusvm_pages_valid()`.
    pub fn is_valid(&self) -> bool {
        self.has(PagesFlag::HasDevmemPages) || self.has(PagesFlag::HasDmaMapping)
    }

    /// The segments that are mapped.
    ///
    /// # Safety
    ///
    /// The caller must hold the notifier lock as long as it uses the result.
    pub(crate) unsafe fn mapped(&self) -> &[Segment] {
        // SAFETY: Nobody writes while the lock is held, but who has the driver's lock as well, and
        // does not call this meanwhile. By the type invariants so many segments are mapped.
        unsafe {
            match &*self.segments.get() {
                Some(array) => array.first(*self.mapped.get()),
                None => &[],
            }
        }
    }

    /// Whether any page is mapped, by a transaction under way as well. The notifier lock is held.
    pub(crate) fn is_any_mapped(&self) -> bool {
        // SAFETY: The notifier lock is held.
        unsafe { *self.mapped.get() != 0 }
    }

    /// Whether the pages are mapped, all of them, for `access`.
    ///
    /// # Safety
    ///
    /// The caller must hold the notifier lock.
    pub(crate) unsafe fn is_valid_for(&self, access: Access) -> bool {
        self.is_valid()
            && (access == Access::Read
                // SAFETY: As this function requires.
                || unsafe { !*self.read_only.get() })
    }

    /// Takes `array` for the segments that are mapped next, and gives the old one.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock and the notifier lock; nothing may be mapped.
    pub(crate) unsafe fn install(&self, array: &mut Option<SegmentArray>) {
        // SAFETY: The caller excludes all others.
        unsafe { core::ptr::swap(self.segments.get(), array) }
    }

    /// Reserves IOVA space for `size` bytes, if the device has an IOMMU that this works with.
    ///
    /// # Safety
    ///
    /// As for [`install`](Self::install).
    pub(crate) unsafe fn reserve(&self, size: usize) {
        // SAFETY: The caller excludes all others; nothing is mapped, so that nothing is reserved.
        unsafe {
            *self.state_offset.get() = 0;
            dma::iova_try_alloc(self.dma_device(), &mut *self.state.get(), 0, size);
        }
    }

    /// What it takes to map blocks one after the other. Fails with `ENOSPC` when no array was
    /// installed.
    ///
    /// # Safety
    ///
    /// As for [`install`](Self::install), as long as the result is there; but segments may be mapped.
    /// The array that was installed must have been made for `room` segments.
    #[inline]
    pub(crate) unsafe fn mapper(&self, room: usize) -> Result<PagesMapper<'_>> {
        // SAFETY: The caller excludes all others; by the type invariants so many segments were added
        // to the array.
        unsafe {
            let array = (*self.segments.get()).as_mut().ok_or(ENOSPC)?;
            let state = &mut *self.state.get();
            Ok(PagesMapper {
                dev: self.dma_device(),
                iova: dma::use_iova(state).then_some((state, &mut *self.state_offset.get())),
                pagemap: &mut *self.dpagemap.get(),
                segments: Appender::new(
                    array,
                    room,
                    &mut *self.mapped.get(),
                    &mut *self.read_only.get(),
                ),
            })
        }
    }

    /// Ends a transaction well: from now on the pages are mapped, all of them.
    ///
    /// Fails, with nothing changed, if the IOMMU cannot make the links visible.
    ///
    /// # Safety
    ///
    /// As for [`install`](Self::install); all pages of the range must be mapped.
    pub(crate) unsafe fn finish(&self, seq: usize) -> Result {
        // SAFETY: The caller excludes all others; all of the reservation up to the offset is
        // linked.
        unsafe {
            let state = &mut *self.state.get();
            let offset = *self.state_offset.get();
            if dma::use_iova(state) && offset != 0 {
                dma::iova_sync(self.dma_device(), state, 0, offset)?;
            }
        }
        // SAFETY: The caller excludes all others.
        if unsafe { &*self.dpagemap.get() }.is_some() {
            self.flags
                .update(&[PagesFlag::HasDmaMapping, PagesFlag::HasDevmemPages], &[]);
        } else {
            self.flags.update(&[PagesFlag::HasDmaMapping], &[]);
        }
        self.set_seq(seq);
        Ok(())
    }

    /// Notes the notifier's sequence number as of which the pages are known to be right.
    pub(crate) fn set_seq(&self, seq: usize) {
        self.notifier_seq.store(seq, Relaxed);
    }

    /// The notifier's sequence number as of which the pages were known to be right.
    pub fn notifier_seq(&self) -> usize {
        self.notifier_seq.load(Relaxed)
    }

    /// Unmaps whatever is mapped. The memory for addresses is kept.
    /// C: `drm_gpusvm_unmap_pages()`.
    ///
    /// # Safety
    ///
    /// The caller must hold the notifier lock for writing, or for reading together with the driver's
    /// SVM lock. The device must not use the addresses any more.
    pub unsafe fn unmap(&self) {
        let dev = self.dma_device();
        // SAFETY: The caller excludes all others.
        let (mapped, state, pagemap) = unsafe {
            (
                self.mapped(),
                &mut *self.state.get(),
                (*self.dpagemap.get()).take(),
            )
        };
        self.flags
            .update(&[], &[PagesFlag::HasDmaMapping, PagesFlag::HasDevmemPages]);
        if dma::use_iova(state) {
            // SAFETY: By the type invariants the segments of system memory are linked, without
            // gaps; the reservation is empty after.
            unsafe {
                unlink(dev, state, mapped);
                dma::iova_free(dev, state);
            }
        // SAFETY: The device is valid, and what is mapped was mapped before.
        } else if !mapped.is_empty() && unsafe { dma::need_unmap(dev) } {
            for segment in mapped.iter().filter(|segment| segment.is_system()) {
                // SAFETY: By the type invariants the segment is mapped, just so.
                unsafe { dma::unmap_page(dev, segment.addr(), segment.size(), segment.dir()) };
            }
        }
        if let Some(pagemap) = pagemap {
            // SAFETY: By the type invariants the segments are mapped, by the pagemap's operations.
            unsafe { unmap_device(dev, &pagemap, mapped) };
        }
        // INVARIANT: Nothing is mapped, and nothing is noted.
        // SAFETY: The caller excludes all others.
        unsafe {
            *self.mapped.get() = 0;
            *self.read_only.get() = false;
            *self.state_offset.get() = 0;
        }
    }

    /// Marks the pages as not to be mapped again. The notifier lock is held for writing.
    /// C: a part of `drm_gpusvm_range_set_unmapped()`.
    pub fn set_unmapped(&self) {
        self.flags.update(&[PagesFlag::Unmapped], &[]);
    }

    /// Unmaps the pages for good.
    ///
    /// # Safety
    ///
    /// As for [`unmap`](Self::unmap).
    pub(crate) unsafe fn retire(&self) {
        // SAFETY: As this function requires.
        unsafe { self.unmap() };
        self.set_unmapped();
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // The range was removed, and unmapped with that, or never inserted: nothing is mapped.
        if kernel::warn_on!(self.is_any_mapped()) {
            // SAFETY: Nobody else has the pages.
            unsafe { self.unmap() };
        }
    }
}

/// Pages that are being mapped: all that mapping a block needs, looked up once for many of them.
pub(crate) struct PagesMapper<'a> {
    dev: *mut kernel::bindings::device,
    /// The reservation, if there is one, and how much of it is linked.
    iova: Option<(&'a mut IovaState, &'a mut usize)>,
    /// Whose device memory is mapped.
    pagemap: &'a mut Option<PagemapRef>,
    segments: Appender<'a>,
}

impl PagesMapper<'_> {
    /// Maps one block of system memory, whose first page is `page`, for `dir`, and notes it.
    ///
    /// Fails with `EFAULT` when it cannot be mapped, `ENOSPC` when there is no room to note it; then
    /// nothing is changed.
    ///
    /// # Safety
    ///
    /// The caller must know that the block's pages are what the CPU has mapped: so that who takes
    /// them away will invalidate, and wait for the notifier lock, first.
    #[inline]
    pub(crate) unsafe fn system(
        &mut self,
        block: &PfnBlock,
        page: *mut kernel::bindings::page,
        dir: Direction,
    ) -> Result {
        if self.segments.is_full() {
            return Err(ENOSPC);
        }
        let size = kernel::page::PAGE_SIZE << block.order;
        let addr = match &mut self.iova {
            Some((state, offset)) => {
                // SAFETY: The reservation is of the size of the range, of which this block is a
                // part; all that is linked ends at `offset`.
                unsafe { dma::iova_link(self.dev, state, block.pfn.phys(), **offset, size, dir) }?;
                let addr = state.addr.wrapping_add(**offset as u64);
                **offset += size;
                addr
            }
            // SAFETY: The device lives as long as its DRM device; the pages are contiguous, and
            // allocated until an invalidation, which unmaps first.
            None => unsafe { dma::map_page(self.dev, page, size, dir) }?,
        };
        // INVARIANT: What was mapped is noted.
        self.segments
            .push(Segment::new(addr, Protocol::SYSTEM, block.order, dir))
    }

    /// Maps one block of the memory of `pagemap`, whose first page is `page`, for `dir`, and notes it.
    ///
    /// Fails as [`Pagemap::map_for`] does, with `EOPNOTSUPP` also if memory of another is mapped, with
    /// `ENOSPC` when there is no room to note it; then nothing is mapped.
    ///
    /// # Safety
    ///
    /// As for [`system`](Self::system); the pages must be of the pagemap.
    #[cold]
    pub(crate) unsafe fn device(
        &mut self,
        block: &PfnBlock,
        page: NonNull<kernel::bindings::page>,
        pagemap: &Pagemap,
        dir: Direction,
    ) -> Result {
        if self.segments.is_full() {
            return Err(ENOSPC);
        }
        match self.pagemap {
            Some(known) if !core::ptr::eq(&**known, pagemap) => return Err(EOPNOTSUPP),
            Some(_) => {}
            None => *self.pagemap = Some(pagemap.into()),
        }
        // SAFETY: The page is of the pagemap, and is not moved before an invalidation, which unmaps
        // first.
        let segment = unsafe { pagemap.map_for(self.dev, page, block.order, dir) }?;
        // INVARIANT: What was mapped is noted, and its pagemap.
        self.segments.push(segment)
    }

    /// Whether device memory is mapped.
    pub(crate) fn has_device_memory(&self) -> bool {
        self.pagemap.is_some()
    }
}

/// Unlinks segments of system memory that are linked in `state` without gaps, a run of the same
/// direction at once.
///
/// # Safety
///
/// So they must be, from offset 0 on, for the device `dev`.
unsafe fn unlink(dev: *mut kernel::bindings::device, state: &mut IovaState, mapped: &[Segment]) {
    let mut offset = 0;
    let mut system = mapped
        .iter()
        .filter(|segment| segment.is_system())
        .peekable();
    while let Some(first) = system.next() {
        let mut size = first.size();
        while let Some(next) = system.next_if(|next| next.dir() == first.dir()) {
            size += next.size();
        }
        // SAFETY: The run is linked at `offset`, with this direction.
        unsafe { dma::iova_unlink(dev, state, offset, size, first.dir()) };
        offset += size;
    }
}

/// Has a pagemap unmap the segments that are not of system memory.
///
/// # Safety
///
/// They must be mapped by `pagemap`, for the device `dev`.
#[cold]
unsafe fn unmap_device(dev: *mut kernel::bindings::device, pagemap: &Pagemap, mapped: &[Segment]) {
    for segment in mapped.iter().filter(|segment| !segment.is_system()) {
        // SAFETY: By this function's requirements.
        unsafe { pagemap.unmap_for(dev, segment) };
    }
}

/// The pages objects of one range: one for each device that maps it.
pub(crate) enum PageSet {
    /// Of one device, in place.
    One(Pages),
    /// Of several devices, in an array.
    Many(KVec<Pages>),
}

impl PageSet {
    /// Pages of all devices, mapped from one look at the CPU's page tables. Fails with `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `devices` must outlive the result, and all be unmapped before one of them is unbound.
    pub(crate) unsafe fn new(devices: &Attachments) -> Result<Self> {
        // SAFETY: The attachments keep the device and its driver's module, and outlive the result; the rest is by
        // this function's requirements.
        let mut each = devices.iter().map(|drm| unsafe { Pages::new(drm) });
        if devices.len() == 1 {
            return Ok(Self::One(each.next().ok_or(EINVAL)?));
        }
        let mut pages = KVec::with_capacity(devices.len(), GFP_KERNEL_ACCOUNT)?;
        for of_device in each {
            pages.push(of_device, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self::Many(pages))
    }

    /// All of them; never empty.
    pub(crate) fn as_slice(&self) -> &[Pages] {
        match self {
            PageSet::One(pages) => core::slice::from_ref(pages),
            PageSet::Many(pages) => pages,
        }
    }
}
