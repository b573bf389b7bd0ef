// SPDX-License-Identifier: GPL-2.0

//! The device level: one device's mapping of the pages of a range.
//!
//! A pages object belongs to one device, which the creator of the object keeps alive: the
//! [SVM](crate::driver::Svm), for a driver in Rust. The object is always in one of these states,
//! which change only under the notifier lock:
//!
//! - *unmapped*: no page is mapped;
//! - *partly mapped*: a transaction (see [`get_pages`](crate::get_pages)) is under way, and has
//!   released the notifier lock for a waiting writer; an invalidation unmaps the pages that were
//!   mapped so far, and the transaction notices that when it continues;
//! - *mapped*: all pages are mapped, and their addresses may be used under the notifier lock;
//! - *stale*: all pages are still mapped, but the device's use of them is being ended, and their
//!   addresses are given to nobody (only of a [userptr](crate::userptr));
//! - *retired*: unmapped for good, as the CPU unmapped the range or the range was removed.
//!
//! Addresses are reached only through a [`View`](crate::view::View), which exists under the
//! notifier lock.
//!
//! # Locking
//!
//! The cells are read under the notifier lock. They are written by a thread that holds the notifier
//! lock for writing, or for reading together with the driver's SVM lock. So a writer excludes all
//! others.
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
/// `drm` is a DRM device that outlives the object, and so does the module of its driver. The first
/// `mapped` entries of `segments` are exactly what is mapped for the device, and `read_only` is set
/// if the device may not write to one of them. If `state` holds an IOVA reservation, the segments
/// of system memory are linked in it without gaps from its start, in `state_offset` bytes
/// altogether. All other segments are memory of `dpagemap`, which is set while there are any.
#[repr(C)]
pub struct Pages {
    pub(crate) drm: NonNull<DrmDevice>,
    pub(crate) segments: UnsafeCell<Option<SegmentArray>>,
    pub(crate) dpagemap: UnsafeCell<Option<PagemapRef>>,
    pub(crate) state: UnsafeCell<IovaState>,
    pub(crate) state_offset: UnsafeCell<usize>,
    pub(crate) notifier_seq: Atomic<usize>,
    pub(crate) flags: PagesFlags,
    // The fields below are padding in C.
    read_only: UnsafeCell<bool>,
    mapped: UnsafeCell<u32>,
}

// SAFETY: No field is bound to a thread: any thread may unmap and free pages.
unsafe impl Send for Pages {}
// SAFETY: The cells are protected as the module's documentation says.
unsafe impl Sync for Pages {}

impl Pages {
    /// Creates pages of `drm`, not mapped. C: `drm_gpusvm_init_pages()`.
    ///
    /// DMA goes through the device's parent, `drm->dev`.
    ///
    /// # Safety
    ///
    /// The DRM device and the module of its driver must outlive the result. The device's parent
    /// must be bound, with a DMA mask, while pages are mapped.
    pub unsafe fn new(drm: &DrmDevice) -> Self {
        // INVARIANT: The caller guarantees that `drm` and its module outlive the object; nothing is
        // mapped.
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

    /// Returns the device that the pages are mapped for.
    pub fn device(&self) -> &DrmDevice {
        // SAFETY: By the type invariants `drm` is valid.
        unsafe { self.drm.as_ref() }
    }

    /// Returns the device that does the DMA.
    fn dma_device(&self) -> *mut kernel::bindings::device {
        self.device().dma_device()
    }

    /// Returns whether `flag` was set at some recent time.
    pub fn has(&self, flag: PagesFlag) -> bool {
        self.flags.has(flag)
    }

    /// Returns whether all pages are mapped. Without the notifier lock the answer may be outdated
    /// when the caller reads it. C: `drm_gpusvm_pages_valid()`.
    pub fn is_valid(&self) -> bool {
        self.has(PagesFlag::HasDevmemPages) || self.has(PagesFlag::HasDmaMapping)
    }

    /// Returns the segments that are mapped.
    ///
    /// # Safety
    ///
    /// The caller must hold the notifier lock as long as it uses the result.
    pub(crate) unsafe fn mapped(&self) -> &[Segment] {
        // SAFETY: The caller holds the notifier lock. Then the only possible writer is a thread
        // that holds the driver's SVM lock as well, and it does not write while it uses the result.
        // By the type invariants `mapped` segments are initialized.
        unsafe {
            match &*self.segments.get() {
                Some(array) => array.first(*self.mapped.get()),
                None => &[],
            }
        }
    }

    /// Returns whether any page is mapped, be it by a transaction under way. The caller holds the
    /// notifier lock.
    pub(crate) fn is_any_mapped(&self) -> bool {
        // SAFETY: The notifier lock is held, so that no other thread writes.
        unsafe { *self.mapped.get() != 0 }
    }

    /// Returns whether all pages are mapped for `access`.
    ///
    /// # Safety
    ///
    /// The caller must hold the notifier lock.
    pub(crate) unsafe fn is_valid_for(&self, access: Access) -> bool {
        self.is_valid()
            && (access == Access::Read
                // SAFETY: The caller holds the notifier lock.
                || unsafe { !*self.read_only.get() })
    }

    /// Installs `array` for the segments that are mapped next, and swaps the old array into
    /// `array`.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock and the notifier lock; nothing may be mapped.
    pub(crate) unsafe fn install(&self, array: &mut Option<SegmentArray>) {
        // SAFETY: The caller holds both locks, which excludes all other users of the cells.
        unsafe { core::ptr::swap(self.segments.get(), array) }
    }

    /// Reserves IOVA space for `size` bytes, if the device has an IOMMU that supports it.
    ///
    /// # Safety
    ///
    /// As for [`install`](Self::install).
    pub(crate) unsafe fn reserve(&self, size: usize) {
        // SAFETY: The caller holds both locks; no page is mapped, so that `state` holds no
        // reservation.
        unsafe {
            *self.state_offset.get() = 0;
            dma::iova_try_alloc(self.dma_device(), &mut *self.state.get(), 0, size);
        }
    }

    /// Returns the state for mapping blocks one after the other. Fails with `ENOSPC` if no array
    /// was installed.
    ///
    /// # Safety
    ///
    /// As for [`install`](Self::install), as long as the result exists, but segments may be mapped.
    /// The installed array must have been created for `room` segments.
    #[inline]
    pub(crate) unsafe fn mapper(&self, room: usize) -> Result<PagesMapper<'_>> {
        // SAFETY: The caller holds both locks; by the type invariants the array has `mapped`
        // initialized segments.
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

    /// Completes a transaction: from now on all pages count as mapped.
    ///
    /// Fails, with no change, if the IOMMU driver cannot synchronize the links.
    ///
    /// # Safety
    ///
    /// As for [`install`](Self::install); all pages of the range must be mapped.
    pub(crate) unsafe fn finish(&self, seq: usize) -> Result {
        // SAFETY: The caller holds both locks; the reservation is linked up to the offset.
        unsafe {
            let state = &mut *self.state.get();
            let offset = *self.state_offset.get();
            if dma::use_iova(state) && offset != 0 {
                dma::iova_sync(self.dma_device(), state, 0, offset)?;
            }
        }
        // SAFETY: The caller holds both locks.
        if unsafe { &*self.dpagemap.get() }.is_some() {
            self.flags
                .update(&[PagesFlag::HasDmaMapping, PagesFlag::HasDevmemPages], &[]);
        } else {
            self.flags.update(&[PagesFlag::HasDmaMapping], &[]);
        }
        self.set_seq(seq);
        Ok(())
    }

    /// Sets the notifier's sequence number at which the pages are known to be valid.
    pub(crate) fn set_seq(&self, seq: usize) {
        self.notifier_seq.store(seq, Relaxed);
    }

    /// Returns the notifier's sequence number at which the pages were known to be valid.
    pub fn notifier_seq(&self) -> usize {
        self.notifier_seq.load(Relaxed)
    }

    /// Unmaps all mapped pages. Keeps the array for the segments. C: `drm_gpusvm_unmap_pages()`.
    ///
    /// # Safety
    ///
    /// The caller must hold the notifier lock for writing, or for reading together with the driver's
    /// SVM lock. The device must not use the addresses any more.
    pub unsafe fn unmap(&self) {
        let dev = self.dma_device();
        // SAFETY: The caller holds the notifier lock for writing, or both locks, which excludes all
        // others.
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
            // SAFETY: By the type invariants the segments of system memory are linked without gaps;
            // after unlinking them the reservation has no links.
            unsafe {
                unlink(dev, state, mapped);
                dma::iova_free(dev, state);
            }
        // SAFETY: The device is valid, and has mapped the segments.
        } else if !mapped.is_empty() && unsafe { dma::need_unmap(dev) } {
            for segment in mapped.iter().filter(|segment| segment.is_system()) {
                // SAFETY: By the type invariants the segment is mapped with this address, size and
                // direction.
                unsafe { dma::unmap_page(dev, segment.addr(), segment.size(), segment.dir()) };
            }
        }
        if let Some(pagemap) = pagemap {
            // SAFETY: By the type invariants the other segments were mapped by the pagemap's
            // operations.
            unsafe { unmap_device(dev, &pagemap, mapped) };
        }
        // INVARIANT: No segment is mapped, and none is counted.
        // SAFETY: The caller excludes all others, as above.
        unsafe {
            *self.mapped.get() = 0;
            *self.read_only.get() = false;
            *self.state_offset.get() = 0;
        }
    }

    /// Makes the addresses invalid, as [`unmap`](Self::unmap) does, but leaves the pages mapped
    /// until that is called. The caller holds the notifier lock for writing.
    pub(crate) fn set_stale(&self) {
        self.flags
            .update(&[], &[PagesFlag::HasDmaMapping, PagesFlag::HasDevmemPages]);
    }

    /// Marks the pages as not to be mapped again. The caller holds the notifier lock for writing.
    /// C: a part of `drm_gpusvm_range_set_unmapped()`.
    pub fn set_unmapped(&self) {
        self.flags.update(&[PagesFlag::Unmapped], &[]);
    }

    /// Unmaps all mapped pages, and marks the pages as not to be mapped again.
    ///
    /// # Safety
    ///
    /// As for [`unmap`](Self::unmap).
    pub(crate) unsafe fn retire(&self) {
        // SAFETY: The caller's guarantees are those of `unmap()`.
        unsafe { self.unmap() };
        self.set_unmapped();
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // The removal of the range has unmapped the pages, or the range was never inserted.
        if kernel::warn_on!(self.is_any_mapped()) {
            // SAFETY: No other thread has a reference to the pages.
            unsafe { self.unmap() };
        }
    }
}

/// The state of a mapping under way, looked up once for many blocks.
pub(crate) struct PagesMapper<'a> {
    dev: *mut kernel::bindings::device,
    /// The IOVA reservation, if there is one, and the size of its linked part.
    iova: Option<(&'a mut IovaState, &'a mut usize)>,
    /// The pagemap whose device memory is mapped.
    pagemap: &'a mut Option<PagemapRef>,
    segments: Appender<'a>,
}

impl PagesMapper<'_> {
    /// Maps one block of system memory, whose first page is `page`, for `dir`, and appends its
    /// segment.
    ///
    /// Fails with `EFAULT` if the block cannot be mapped, and with `ENOSPC` if the array is full;
    /// then nothing has changed.
    ///
    /// # Safety
    ///
    /// The CPU must have the block's pages mapped: a thread that takes them away invalidates the
    /// range, and waits for the notifier lock, first.
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
                // SAFETY: The reservation has the size of the range, of which this block is a part;
                // the linked part of the reservation ends at `offset`.
                unsafe { dma::iova_link(self.dev, state, block.pfn.phys(), **offset, size, dir) }?;
                let addr = state.addr.wrapping_add(**offset as u64);
                **offset += size;
                addr
            }
            // SAFETY: The device lives as long as its DRM device. The pages are contiguous, and
            // stay allocated until an invalidation, which unmaps them first.
            None => unsafe { dma::map_page(self.dev, page, size, dir) }?,
        };
        // INVARIANT: The block that was mapped is counted.
        self.segments
            .push(Segment::new(addr, Protocol::SYSTEM, block.order, dir))
    }

    /// Maps one block of the memory of `pagemap`, whose first page is `page`, for `dir`, and
    /// appends its segment.
    ///
    /// Fails as [`Pagemap::map_for`] does; with `EOPNOTSUPP` also if memory of another pagemap is
    /// mapped; and with `ENOSPC` if the array is full. Then nothing is mapped.
    ///
    /// # Safety
    ///
    /// As for [`system`](Self::system); the pages must belong to `pagemap`.
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
        // SAFETY: The page belongs to the pagemap, and is not moved before an invalidation, which
        // unmaps it first.
        let segment = unsafe { pagemap.map_for(self.dev, page, block.order, dir) }?;
        // INVARIANT: The block that was mapped is counted, and `dpagemap` is its pagemap.
        self.segments.push(segment)
    }

    /// Returns whether device memory is mapped.
    pub(crate) fn has_device_memory(&self) -> bool {
        self.pagemap.is_some()
    }
}

/// Unlinks the segments of system memory in `mapped`. Adjacent segments of the same direction are
/// unlinked together.
///
/// # Safety
///
/// For the device `dev`, the segments of system memory in `mapped` must be linked in `state`
/// without gaps from offset 0 on.
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
        // SAFETY: The segments from `first` on are linked at `offset`, in `size` bytes, with this
        // direction.
        unsafe { dma::iova_unlink(dev, state, offset, size, first.dir()) };
        offset += size;
    }
}

/// Unmaps the segments of device memory in `mapped` by the operations of `pagemap`.
///
/// # Safety
///
/// The segments must be mapped by `pagemap`, for the device `dev`.
#[cold]
unsafe fn unmap_device(dev: *mut kernel::bindings::device, pagemap: &Pagemap, mapped: &[Segment]) {
    for segment in mapped.iter().filter(|segment| !segment.is_system()) {
        // SAFETY: The caller guarantees that `pagemap` mapped the segment for `dev`.
        unsafe { pagemap.unmap_for(dev, segment) };
    }
}

/// The pages objects of one range: one for each device that maps it.
pub(crate) enum PageSet {
    /// The pages of one device, in place.
    One(Pages),
    /// The pages of several devices, in an array.
    Many(KVec<Pages>),
}

impl PageSet {
    /// Creates pages of all devices. Fails with `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `devices` must outlive the result. All pages must be unmapped before one of the devices is
    /// unbound.
    pub(crate) unsafe fn new(devices: &Attachments) -> Result<Self> {
        // SAFETY: The attachments keep the device and its driver's module. The caller guarantees
        // that they outlive the result, and that the pages are unmapped before the device is
        // unbound.
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

    /// Returns the pages of all devices, at least one.
    pub(crate) fn as_slice(&self) -> &[Pages] {
        match self {
            PageSet::One(pages) => core::slice::from_ref(pages),
            PageSet::Many(pages) => pages,
        }
    }
}
