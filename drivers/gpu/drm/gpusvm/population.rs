// SPDX-License-Identifier: GPL-2.0

//! How much of a span is populated, and whether a fault of a device may populate the rest.
//!
//! A range is mapped whole, so that a fault on one page populates all of them. Where the CPU has most of
//! the pages that saves faults; where it has few, a device that touches a word here and there would make
//! memory of everything around. See [`Ctx::with_fault_around`].
//!
//! C has nothing like it: a fault populates 2 MiB where it can.

use crate::ctx::{Access, Ctx};
use core::{ffi::c_void, ops::Range};
use kernel::{
    mm::{
        virt::{flags, VmaRef},
        MmapReadGuard, //
    },
    page::PAGE_SIZE, //
};
use kernel_ext::mm::{
    hmm::{
        Pfn,
        Walk, //
    },
    mmu_notifier::MmuIntervalNotifier,
    zone_device::HUGE_PAGES, //
};

/// Whether `access` populates nothing at a page with this entry.
fn is_there(pfn: &Pfn, access: Access) -> bool {
    match access {
        Access::Read => pfn.is_valid(),
        // A write to the zero page, or to a page that is shared with another process, makes a page.
        Access::Write => pfn.is_valid() && pfn.is_writable(),
    }
}

/// Whether most of the pages with these entries, at least half, are there for `access`.
pub fn is_dense(pfns: &[Pfn], access: Access) -> bool {
    let there = pfns.iter().filter(|pfn| is_there(pfn, access)).count();
    there >= pfns.len().div_ceil(2)
}

/// Whether a fault for `ctx` may populate all of `span`, which lies in `vma`: most of it is there, or the
/// CPU would populate it at once.
///
/// Looks once, and faults nothing in. If the CPU changes its mappings meanwhile the answer is no: then a
/// smaller range is right as well, and no writer waits. What it saw of all pages stays in `walk`, if the
/// answer is yes.
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
        // One entry tells of a huge page, where a walk of all of them says the same 512 times.
        is_one_page(mmap, notifier, span, ctx.access, owner, walk)
            || (walk.snapshot(mmap, notifier, span, owner).is_ok()
                && (is_dense(walk.pfns(), ctx.access) || is_huge_hole(vma, walk.pfns())))
    };
    if !allowed {
        walk.forget();
    }
    allowed
}

/// Whether one entry of the CPU's page table maps all of `span`, as `access` needs it. Leaves nothing in
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
            is_there(pfn, access) && span.start % size == 0 && span.end - span.start <= size
        });
    walk.forget();
    whole
}

/// Whether nothing is there, and the CPU's first touch takes a huge page.
fn is_huge_hole(vma: &VmaRef, pfns: &[Pfn]) -> bool {
    vma.flags() & (flags::HUGEPAGE | flags::HUGETLB) != 0
        && pfns.len() >= HUGE_PAGES
        && pfns.iter().all(|pfn| !pfn.is_valid())
}
