// SPDX-License-Identifier: GPL-2.0

//! Decides whether a fault of a device may populate a whole span.
//!
//! A range is mapped as a whole, so that a fault on one page populates all of them. Where the CPU has most of
//! the pages this saves faults. In a sparse mapping, a device that accesses single words would make the kernel allocate
//! all memory around them. See [`Ctx::with_fault_around`].
//!
//! C has no such check: a fault populates 2 MiB where it can.

use crate::ctx::{Access, Ctx};
use core::{ffi::c_void, ops::Range};
use kernel::{
    mm::virt::{flags, VmaRef},
    page::PAGE_SIZE, //
};
use kernel_ext::mm::{
    hmm::{
        Pfn,
        Walk, //
    },
    mmap_lock::MmapReadGuard,
    mmu_notifier::MmuIntervalNotifier,
    zone_device::HUGE_PAGES, //
};

/// Whether `access` to the page of this entry allocates no page.
fn is_present(pfn: &Pfn, access: Access) -> bool {
    match access {
        Access::Read => pfn.is_valid(),
        // A write to the zero page, or to a page that is shared with another process, allocates a page.
        Access::Write => pfn.is_valid() && pfn.is_writable(),
    }
}

/// Whether at least half of the pages with these entries are present for `access`.
pub fn is_dense(pfns: &[Pfn], access: Access) -> bool {
    let present = pfns.iter().filter(|pfn| is_present(pfn, access)).count();
    present >= pfns.len().div_ceil(2)
}

/// Whether a fault for `ctx` may populate all of `span`, which lies in `vma`: at least half of it is present, or the
/// first fault of the CPU would populate it with a huge page.
///
/// Walks the page tables once, and faults nothing in. If the CPU changes its mappings meanwhile, returns false: the
/// caller then uses a smaller range and does not retry. If the answer is yes and the entries of all pages were read,
/// they stay in `walk`.
///
/// # Safety
///
/// `notifier` must be inserted in the mm of `mmap`, and include `span`.
pub(crate) unsafe fn allows(
    mmap: &MmapReadGuard<'_>,
    vma: &VmaRef,
    notifier: &MmuIntervalNotifier,
    span: &Range<usize>,
    ctx: &Ctx,
    walk: &mut Walk,
) -> bool {
    let owner = ctx.fault_around().owner();
    // SAFETY: By this function's requirements.
    let allowed = unsafe {
        // For a huge page the entry of the first page suffices.
        is_one_page(mmap, notifier, span, ctx.access, owner, walk)
            || (walk.snapshot(mmap, notifier, span, owner).is_ok()
                && (is_dense(walk.pfns(), ctx.access) || is_huge_hole(vma, walk.pfns())))
    };
    if !allowed {
        walk.forget();
    }
    allowed
}

/// Whether one entry of the CPU's page tables maps all of `span` as `access` needs it. Leaves no result in
/// `walk`.
///
/// # Safety
///
/// As for [`allows`].
unsafe fn is_one_page(
    mmap: &MmapReadGuard<'_>,
    notifier: &MmuIntervalNotifier,
    span: &Range<usize>,
    access: Access,
    owner: *mut c_void,
    walk: &mut Walk,
) -> bool {
    let first = span.start..span.start + PAGE_SIZE;
    // SAFETY: By this function's requirements.
    let seen = unsafe { walk.snapshot(mmap, notifier, &first, owner) };
    let whole = seen.is_ok()
        && walk.pfns().first().is_some_and(|pfn| {
            let size = PAGE_SIZE << pfn.map_order();
            is_present(pfn, access) && span.start % size == 0 && span.end - span.start <= size
        });
    walk.forget();
    whole
}

/// Whether no page is present, and the first fault of the CPU allocates a huge page.
fn is_huge_hole(vma: &VmaRef, pfns: &[Pfn]) -> bool {
    vma.flags() & (flags::HUGEPAGE | flags::HUGETLB) != 0
        && pfns.len() >= HUGE_PAGES
        && pfns.iter().all(|pfn| !pfn.is_valid())
}
