// SPDX-License-Identifier: GPL-2.0

//! Moving a process's pages to a device.
//!
//! What can move moves. A page that cannot (it is pinned, on the device already, or the device's
//! only in part) stays where it is, and costs no other its place. So pages are collected first;
//! then memory is allocated for those, and no more; and only they are copied. A place that was never
//! written needs no copy: it is cleared.
//!
//! C: `drm_pagemap_migrate_to_devmem()`.

use super::{
    devmem::Allocation,
    mapping::Mapping,
    page_map::PageMap,
    zdd::Zdd, //
};
use core::{ops::Range, ptr::NonNull};
use kernel::{
    error::to_result,
    ffi::c_ulong,
    mm::virt::{flags, VmaRef},
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, //
    }, //
};
use kernel_ext::{
    bindings as ext,
    dma::Direction,
    folio::LockedFolio,
    migrate::{Entry, Migration, Select},
    zone_device::{self, HUGE_ORDER}, //
};

/// What came of a migration to a device, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// What is on the device now, and was not before.
    pub moved: usize,
    /// What was copied for that; the rest was cleared.
    pub copied: usize,
    /// What could not be moved, or was on a device already.
    pub left: usize,
}

impl Moved {
    /// Adds what came of another migration.
    pub(crate) fn add(&mut self, other: &Self) {
        self.moved += other.moved;
        self.copied += other.copied;
        self.left += other.left;
    }
}

/// Something that is to move as a whole: a page, or a huge folio.
#[derive(Clone, Copy)]
struct Piece {
    /// The place of its first page in the span.
    index: usize,
    /// Log2 of its number of pages, 0 or [`HUGE_ORDER`].
    order: u32,
}

/// The memory that a migration needs.
pub struct Request<'a> {
    pieces: &'a [Piece],
}

impl Request<'_> {
    /// How many pages.
    pub fn pages(&self) -> usize {
        self.orders().map(|order| 1 << order).sum()
    }

    /// Log2 of the numbers of pages of its pieces, in the order of their addresses.
    ///
    /// A piece of several pages is best contiguous and aligned to its size; if it is not, it is
    /// moved page by page.
    pub fn orders(&self) -> impl Iterator<Item = u32> + '_ {
        self.pieces.iter().map(|piece| piece.order)
    }

    /// The places of its pages in the span that is to be moved, in the order of their addresses.
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> + '_ {
        self.pieces
            .iter()
            .flat_map(|piece| piece.index..piece.index + (1 << piece.order))
    }
}

/// Allocates device memory for a request: writes the frame of each of its
/// [places](Request::places), and hands over a reference to the allocation. The frames are of the
/// pagemap, free, and nobody else's.
pub(crate) type Target<'a> =
    dyn FnMut(&Request<'_>, &mut [usize]) -> Result<NonNull<Allocation>> + 'a;

/// Moves what is in `span` of `vma` to the memory of `pagemap`, where it stays for `timeslice`
/// jiffies even if a CPU faults on it. The allocation is not released as long as the caller keeps
/// what is returned with the result.
///
/// Sleeps; calls MMU notifiers. Errors, after which everything is where it was:
/// - `EBUSY`: the VMA is of a kind that cannot move;
/// - `EINVAL`: the span is not within the VMA;
/// - `EFAULT`: the device cannot reach a page;
/// - `ENOMEM`, or an error of the provider's.
///
/// # Safety
///
/// The mmap lock must be held; `target` must keep what its type says.
pub(crate) unsafe fn migrate(
    vma: &VmaRef,
    span: Range<usize>,
    pagemap: &PageMap,
    timeslice: usize,
    target: &mut Target<'_>,
) -> Result<(Moved, Option<Arc<Zdd>>)> {
    if span.start >= span.end
        || span.start % PAGE_SIZE != 0
        || span.end % PAGE_SIZE != 0
        || span.start < vma.start()
        || span.end > vma.end()
    {
        return Err(EINVAL);
    }
    // SAFETY: The VMA is valid.
    if !unsafe { ext::vma_is_anonymous(vma.as_ptr()) } {
        return Err(EBUSY);
    }
    // A page that KSM is about to merge is in no list yet by which its places in page tables are found;
    // what 7.3's `migrate_vma_setup()` writes there while it has the page would stay for ever.
    if vma.flags() & flags::MERGEABLE != 0 {
        return Err(EBUSY);
    }
    let pages = (span.end - span.start) >> PAGE_SHIFT;
    let mut pieces = KVVec::with_capacity(pages, GFP_KERNEL)?;
    let mut frames = KVVec::from_elem(0usize, pages, GFP_KERNEL)?;

    // SAFETY: The lock is held, and the span within the VMA.
    let collected = unsafe { Migration::collect(vma, span, Select::System, pagemap.owner(), None) };
    let mut migration = collected?;
    for (index, entry) in migration.entries().iter().enumerate() {
        if entry.is_migrating() {
            pieces.push(piece(index, *entry), GFP_KERNEL)?;
        }
    }
    let nothing = Moved {
        left: pages << PAGE_SHIFT,
        ..Moved::default()
    };
    if pieces.is_empty() {
        return Ok((nothing, None));
    }

    let allocation = target(&Request { pieces: &pieces }, &mut frames)?;
    // SAFETY: The reference was handed over.
    let zdd = unsafe { Zdd::new(allocation, pagemap) }?;
    let allocation = zdd.allocation();
    // SAFETY: The device lives as long as the allocation.
    let mut mapping = unsafe { Mapping::new(allocation.dma_device(), Direction::ToDevice, pages) }?;
    let mut copied = 0;
    for piece in &pieces {
        // SAFETY: By what `Target` says.
        copied += unsafe { prepare(&mut migration, &mut mapping, &frames, piece, pagemap, &zdd) }?;
    }
    copy(allocation, &mut mapping)?;
    drop(mapping);

    allocation.begin_timeslice(timeslice);
    let moved = migration.migrate() << PAGE_SHIFT;
    // The page tables have the device's pages from here on.
    drop(migration);
    let moved = Moved {
        moved,
        copied: copied << PAGE_SHIFT,
        left: nothing.left - moved,
    };
    Ok((moved, Some(zdd)))
}

fn piece(index: usize, entry: Entry) -> Piece {
    Piece {
        index,
        order: if entry.is_huge() { HUGE_ORDER } else { 0 },
    }
}

/// Whether huge pages of RAM become huge pages of device memory. If not, they become as many small
/// ones, next to each other where the provider has them so.
static HUGE_PAGES_ALLOWED: Atomic<bool> = Atomic::new(false);

/// Sets whether huge pages may move as such, from now on.
///
/// They should not, on a kernel where `zap_huge_pmd()` takes the entry of a migration under way for a
/// mapping, if the folio is a device's (7.3 does): a process that unmaps a huge page while it comes
/// back has the folio freed under the migration.
pub fn allow_huge_pages(allow: bool) {
    HUGE_PAGES_ALLOWED.store(allow, Relaxed);
}

/// Whether `frames` can be one folio.
fn are_block(frames: &[usize]) -> bool {
    let Some(&first) = frames.first() else {
        return false;
    };
    first % frames.len() == 0
        && frames
            .iter()
            .enumerate()
            .all(|(index, frame)| *frame == first + index)
}

/// Makes the folios of a piece ready to be filled, and maps what is to be copied. Returns how many
/// pages that are.
///
/// # Safety
///
/// The frames must be of the pagemap, free, and nobody else's.
unsafe fn prepare(
    migration: &mut Migration<'_>,
    mapping: &mut Mapping,
    frames: &[usize],
    piece: &Piece,
    pagemap: &PageMap,
    zdd: &Arc<Zdd>,
) -> Result<usize> {
    let pages = 1 << piece.order;
    let places = piece.index..piece.index + pages;
    let frames = frames.get(places.clone()).ok_or(EINVAL)?;
    let source = migration
        .entries()
        .get(piece.index)
        .and_then(|entry| entry.page());

    // A huge folio, or single pages.
    let whole = pages == 1 || (HUGE_PAGES_ALLOWED.load(Relaxed) && are_block(frames));
    let (order, step) = if whole { (piece.order, pages) } else { (0, 1) };
    for (place, frame) in places.zip(frames).step_by(step) {
        // SAFETY: By this function's requirements; what frees folios of the pagemap is `fault`'s,
        // which takes the word for a reference.
        let folio = unsafe {
            LockedFolio::device(
                pagemap.dev_pagemap(),
                *frame,
                order,
                zdd.clone().into_data(),
            )
        };
        mapping.set_page(place, folio.page())?;
        migration.set_destination(place, folio)?;
        if let Some(source) = source {
            // SAFETY: A huge folio's pages are contiguous, and their frames in ascending order.
            let page = unsafe {
                zone_device::page_of(zone_device::frame_of(source) + place - piece.index)
            };
            // SAFETY: The source is isolated RAM that the migration holds.
            unsafe { mapping.map(place, page, order) }?;
        }
    }
    Ok(if source.is_some() { pages } else { 0 })
}

/// Has the provider fill its memory.
fn copy(allocation: &Allocation, mapping: &mut Mapping) -> Result {
    let copy = allocation.ops().copy_to_devmem.ok_or(EOPNOTSUPP)?;
    let (pages, addrs, count) = mapping.arguments();
    // SAFETY: The arrays are complete and have so many entries; only this migration fills the
    // allocation.
    unsafe {
        to_result(copy(pages, addrs, count as c_ulong, allocation.fence()))?;
        allocation.put_fence();
    }
    Ok(())
}
