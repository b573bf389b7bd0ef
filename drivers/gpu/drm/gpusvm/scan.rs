// SPDX-License-Identifier: GPL-2.0

//! Finds out where the pages of a range are, and migrates them back to system memory.
//!
//! C: `drm_gpusvm_scan_mm()`, `drm_gpusvm_range_evict()`.

use crate::{
    range::SvmRange,
    retry::Attempt,
    svm::GpuSvm, //
};
use core::{ffi::c_void, ops::Range, ptr};
use kernel::{
    bindings,
    ffi::c_ulong,
    mm::{virt::VmaRef, Mm, MmWithUser},
    page::PAGE_SHIFT,
    prelude::*, //
};
use kernel_ext::{
    bindings as ext,
    mm::{
        hmm::{
            HmmRequest,
            Pfn,
            Walk, //
        },
        live_mm,
        mmap_lock::MmapReadGuard, //
    }, //
};

/// Where the pages of a range are, `enum drm_gpusvm_scan_result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ScanResult {
    /// At least one page is not present, or not accessible.
    Unpopulated = ext::drm_gpusvm_scan_result_DRM_GPUSVM_SCAN_UNPOPULATED,
    /// All pages belong to the provider that the caller asked for.
    Equal = ext::drm_gpusvm_scan_result_DRM_GPUSVM_SCAN_EQUAL,
    /// All pages belong to one other provider.
    Other = ext::drm_gpusvm_scan_result_DRM_GPUSVM_SCAN_OTHER,
    /// All pages are system memory.
    System = ext::drm_gpusvm_scan_result_DRM_GPUSVM_SCAN_SYSTEM,
    /// All pages are device memory, of several providers.
    MixedDevice = ext::drm_gpusvm_scan_result_DRM_GPUSVM_SCAN_MIXED_DEVICE,
    /// Some pages are system memory, some device memory.
    Mixed = ext::drm_gpusvm_scan_result_DRM_GPUSVM_SCAN_MIXED,
}

/// Where one page is; the providers are told apart by their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// No page is present, or it is not accessible.
    Absent,
    /// The page is in system memory.
    System,
    /// The page is in the memory of the provider with this address.
    Device(usize),
}

/// Combines the locations of a range's pages, for a caller that asks for the provider `wanted`.
pub fn classify(places: impl Iterator<Item = Location>, wanted: Option<usize>) -> ScanResult {
    let mut system = false;
    let mut equal = false;
    let mut other: Option<usize> = None;
    let mut others = false;
    for place in places {
        match place {
            Location::Absent => return ScanResult::Unpopulated,
            Location::System => system = true,
            Location::Device(provider) if Some(provider) == wanted => equal = true,
            Location::Device(provider) => match other {
                Some(known) if known != provider => others = true,
                _ => other = Some(provider),
            },
        }
    }
    match (system, equal, other) {
        (false, false, None) => ScanResult::Unpopulated,
        (true, false, None) => ScanResult::System,
        (true, _, _) => ScanResult::Mixed,
        (false, true, None) => ScanResult::Equal,
        (false, false, Some(_)) if !others => ScanResult::Other,
        (false, _, Some(_)) => ScanResult::MixedDevice,
    }
}

/// Returns where a page is.
///
/// # Safety
///
/// The CPU must still have the page mapped: the walk is valid, and the notifier lock is held.
unsafe fn place(pfn: Pfn) -> Location {
    if !pfn.is_valid() {
        return Location::Absent;
    }
    // SAFETY: The caller guarantees that the CPU has the page mapped, so that it exists.
    let pagemap = unsafe { ext::device_page_pgmap(pfn.page()) };
    if pagemap.is_null() {
        Location::System
    } else {
        Location::Device(pagemap as usize)
    }
}

/// Returns the first VMA that overlaps `span`.
pub(crate) fn first_vma<'a>(
    _mmap: &'a MmapReadGuard<'_>,
    mm: &MmWithUser,
    span: Range<usize>,
) -> Option<&'a VmaRef> {
    // SAFETY: `mmap_lock` is held, as `_mmap` proves.
    unsafe { first_vma_locked(mm, span) }
}

/// Returns the first VMA that overlaps `span`.
///
/// # Safety
///
/// `mmap_lock` must be held during `'a`.
pub(crate) unsafe fn first_vma_locked<'a>(mm: &Mm, span: Range<usize>) -> Option<&'a VmaRef> {
    if span.start >= span.end {
        return None;
    }
    // SAFETY: The caller holds `mmap_lock`.
    let vma = unsafe {
        ext::find_vma_intersection(mm.as_raw(), span.start as c_ulong, span.end as c_ulong)
    };
    if vma.is_null() {
        return None;
    }
    // SAFETY: The VMA is valid as long as `mmap_lock` is held.
    Some(unsafe { VmaRef::from_raw(vma) })
}

impl GpuSvm {
    /// Returns where the pages of `range` are. The answer may be outdated when the caller reads it.
    ///
    /// If the CPU changes its mappings meanwhile the walk is repeated, within the bounds of
    /// `attempt`; when these are spent the answer is [`ScanResult::Unpopulated`]. Faults in no
    /// page; takes `mmap_lock`. The result of the walk stays in `walk`.
    ///
    /// Device memory of an owner other than `owner` counts as absent. If `wanted` is null the
    /// answer is never [`Equal`](ScanResult::Equal); C returns that for system memory then.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock, and not the notifier lock. `owner` must be null
    /// or an owner of device-private pages.
    pub unsafe fn scan(
        &self,
        range: &SvmRange,
        owner: *mut c_void,
        wanted: *const bindings::dev_pagemap,
        attempt: &Attempt<'_>,
        walk: &mut Walk,
    ) -> ScanResult {
        let Some(_mm) = self.mm().and_then(|mm| live_mm::get(mm, 0).ok()) else {
            return ScanResult::Unpopulated;
        };
        // SAFETY: The caller holds the driver's SVM lock, which keeps the range in its tree.
        let notifier = unsafe { range.notifier() }.mmu();
        // The walk is called once: it repeats itself until the time of the attempt is spent.
        // SAFETY: The notifier is inserted and includes the span, and `_mm` keeps the process's
        // address space.
        let seen = unsafe {
            walk.fault(
                notifier,
                &range.span(),
                HmmRequest::Snapshot,
                owner,
                attempt.timeout(),
            )
        };
        if seen.is_err() {
            return ScanResult::Unpopulated;
        }
        let _lock = self.read_lock();
        if notifier.read_retry(walk.seq()) {
            return ScanResult::Unpopulated;
        }
        classify(
            // SAFETY: The walk is valid, and the notifier lock is held.
            walk.blocks().map(|block| unsafe { place(block.pfn) }),
            (!wanted.is_null()).then_some(wanted as usize),
        )
    }

    /// Migrates all pages of `range` that are in device memory back to system memory.
    ///
    /// Skips parts of the range without a VMA, and parts whose pages cannot be faulted in, and goes
    /// on behind them while there is time; returns the first error of a part that has a VMA at the
    /// end. Takes `mmap_lock`. Fails with `ETIME` if the CPU kept changing its mappings, and with
    /// `EFAULT` also if the process is gone or exiting.
    ///
    /// # Safety
    ///
    /// As for [`scan`](Self::scan).
    pub unsafe fn evict(&self, range: &SvmRange, attempt: &Attempt<'_>) -> Result {
        let pages = range.size() >> PAGE_SHIFT;
        let mm = live_mm::get(self.mm().ok_or(EFAULT)?, pages)?;
        // SAFETY: The caller holds the driver's SVM lock, which keeps the range in its tree.
        let notifier = unsafe { range.notifier() }.mmu();
        let mut walk = Walk::new();
        let mut rest = range.span();
        let mut result = Ok(());
        while !rest.is_empty() {
            let part = {
                let mmap = MmapReadGuard::lock_killable(&mm)?;
                let Some(vma) = first_vma(&mmap, &mm, rest.clone()) else {
                    break;
                };
                vma.start().max(rest.start)..vma.end().min(rest.end)
            };
            rest.start = part.end;
            // SAFETY: The notifier is inserted and includes the span, and `mm` keeps the process's
            // address space.
            let done = unsafe {
                walk.fault(
                    notifier,
                    &part,
                    HmmRequest::Read,
                    ptr::null_mut(),
                    attempt.timeout(),
                )
            };
            match done {
                Err(e) if e == EINTR => return Err(e),
                Err(e) => {
                    kernel_ext::debug!("evicting {part:#x?} failed: {e:?}");
                    result = result.and(Err(if e == EBUSY { ETIME } else { e }));
                    // The time is spent: the parts behind this one cannot be faulted in, either.
                    if e == EBUSY && attempt.is_last() {
                        break;
                    }
                }
                Ok(()) => {}
            }
        }
        result
    }
}
