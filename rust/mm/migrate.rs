// SPDX-License-Identifier: GPL-2.0

//! Moving a process's pages from one kind of memory to another.
//!
//! A [`Migration`] goes through three states:
//!
//! - *collected*: the pages that can move are locked, and taken from all page tables, where a fault
//!   waits for them; nobody changes their contents. Destinations are allocated, noted and filled;
//! - *migrated*: [`Migration::migrate`] made the destinations what the sources were, and
//!   [`Migration::entries`] says which of them;
//! - *finished*, when it is dropped: the page tables have the destinations, or the sources where
//!   there is no destination or it could not take over. What was not migrated is as it was.
//!
//! # Huge folios
//!
//! 7.3 splits a folio that is taken from page tables already in one of them only
//! (`migrate_vma_split_unmapped_folio()`): where another process maps it by one entry as well, since a
//! `fork()`, that entry then names a folio that is no more, and the end of the migration finds it. So a
//! folio that has been collected is never split here: it moves as it is, or stays. What is to move in
//! pieces is [collected in pieces](Huge::Split): the kernel splits the folio while it is mapped, which
//! splits the entries of all processes.
//!
//! C header: [`include/linux/migrate.h`](srctree/include/linux/migrate.h)

use crate::{
    bindings::{
        self,
        migrate_vma, //
    },
    mm::{
        anon_vma::AnonVmas,
        folio::LockedFolio,
        hmm,
        zone_device, //
    }, //
};
use core::{
    ffi::c_void,
    marker::PhantomData,
    ops::Range,
    ptr::{self, NonNull}, //
};
use kernel::{
    bindings::page,
    error::to_result,
    ffi::c_ulong,
    mm::virt::VmaRef,
    page::PAGE_SHIFT,
    prelude::*, //
};

const VALID: c_ulong = bindings::MIGRATE_PFN_VALID as c_ulong;
const MIGRATE: c_ulong = bindings::MIGRATE_PFN_MIGRATE as c_ulong;
const COMPOUND: c_ulong = bindings::MIGRATE_PFN_COMPOUND as c_ulong;
const SHIFT: u32 = bindings::MIGRATE_PFN_SHIFT;

/// What is known of one page of a migration, a `migrate_pfn`.
///
/// A folio of several pages that moves as a whole has one entry, its first; the entries of its other
/// pages are empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Entry(c_ulong);

impl Entry {
    /// The entry of a folio.
    fn of(frame: usize, order: u32) -> Self {
        Self((frame << SHIFT) | VALID | if order == 0 { 0 } else { COMPOUND })
    }

    /// Whether there is something to move, or, afterwards, something has moved: a page, or the
    /// place of one that was never written.
    pub fn is_migrating(self) -> bool {
        self.0 & MIGRATE != 0
    }

    /// Whether it stands for a whole folio of [`HUGE_PAGES`](zone_device::HUGE_PAGES), or the place
    /// of one: those of [`Huge::Whole`] only.
    pub fn is_huge(self) -> bool {
        self.0 & COMPOUND != 0
    }

    /// The page; none where none was ever written.
    pub fn page(self) -> Option<NonNull<page>> {
        // SAFETY: An entry with a frame was made by the kernel, or from a folio.
        (self.0 & VALID != 0).then(|| unsafe { zone_device::page_of(self.0 >> SHIFT) })
    }

    /// How many pages it stands for.
    pub fn pages(self) -> usize {
        if self.is_huge() {
            zone_device::HUGE_PAGES
        } else {
            1
        }
    }
}

/// What is collected from a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// RAM, and places where nothing was ever written.
    System,
    /// Device-private memory of the owner.
    DevicePrivate,
    /// Both.
    Any,
}

impl Select {
    fn flags(self) -> u32 {
        const SYSTEM: u32 = bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_SYSTEM;
        const DEVICE: u32 = bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_DEVICE_PRIVATE;
        match self {
            Select::System => SYSTEM,
            Select::DevicePrivate => DEVICE,
            Select::Any => SYSTEM | DEVICE,
        }
    }
}

/// How a huge folio, mapped by one entry of the page table, is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Huge {
    /// As one: it moves to a huge folio, or not at all.
    Whole,
    /// Split before it is taken from page tables, for all processes that map it. One that cannot be split
    /// is not collected: somebody has a reference to it.
    Split,
}

impl Huge {
    fn flags(self) -> u32 {
        match self {
            Huge::Whole => bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_COMPOUND,
            Huge::Split => 0,
        }
    }
}

enum By {
    /// Addresses of a process: parts of the span, in order, each with its part of the arrays.
    Vma(KVec<migrate_vma>),
    /// Frames of device memory, with what their mappings are found by at the end.
    Frames {
        /// References, for the time after the end.
        _anon_vmas: AnonVmas,
    },
}

/// A migration under way; see the [module](self)'s documentation for its states.
///
/// # Invariants
///
/// `src` and `dst` have the same length, and are the arrays of a migration that was set up and not
/// finalized. An entry of `dst` that is not empty is a folio whose lock and one reference the
/// migration owns. It is as large as the folio in the same entry of `src`, if that is a folio; but for
/// the one of [`split_mapping`](Migration::split_mapping), which cannot be split.
#[must_use = "a migration that is dropped is finished"]
pub struct Migration<'a> {
    src: KVVec<Entry>,
    dst: KVVec<Entry>,
    by: By,
    migrated: bool,
    _vma: PhantomData<&'a VmaRef>,
}

/// The parts of a span that one entry each of a page table could map.
///
/// `migrate_vma_collect_hole()` of 7.3 notes the place of one huge page where there is nothing, however large the
/// hole is: one without page tables may have many. So each part of a span is set up by itself where what was
/// never written is to move as huge pages.
fn huge_parts(span: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    const SIZE: usize = zone_device::HUGE_PAGES << PAGE_SHIFT;
    let (start, end) = (span.start, span.end);
    (start - start % SIZE..end)
        .step_by(SIZE)
        .map(move |at| at.max(start)..at.saturating_add(SIZE).min(end))
}

fn empty(pages: usize) -> Result<KVVec<Entry>> {
    Ok(KVVec::from_elem(Entry::default(), pages, GFP_KERNEL)?)
}

/// Holds what the mappings of a frame's folio are found by. Returns how many pages there are from the
/// frame to the end of the folio, as far as that is known, and whether it is held: it is not if the
/// folio is not mapped, or on its way elsewhere.
///
/// # Safety
///
/// As for [`Migration::collect_frames`].
unsafe fn hold(frame: usize, anon_vmas: &mut AnonVmas) -> Result<(usize, bool)> {
    // SAFETY: By this function's requirements.
    let page = unsafe { zone_device::page_of(frame) };
    // SAFETY: It is a page.
    if !unsafe { bindings::page_folio_try_get(page.as_ptr()) } {
        return Ok((1, false));
    }
    // SAFETY: There is a reference, which is given back at the end. Device-private memory goes from
    // one `anon_vma` to another only by way of RAM.
    unsafe {
        let pages = 1 << zone_device::order_of(page);
        let is_held = anon_vmas.hold(page);
        bindings::page_folio_put(page.as_ptr());
        Ok((pages - frame % pages, is_held?))
    }
}

impl<'a> Migration<'a> {
    /// Collects what is in `span` of `vma`. Sleeps; calls MMU notifiers, `MMU_NOTIFY_MIGRATE` with
    /// `owner`.
    ///
    /// `fault_page` is the page that a fault is about. Fails with `EINVAL` for a VMA of a kind whose
    /// pages never migrate, `EBUSY` if KSM has one of the pages, `ENOMEM`.
    ///
    /// RAM that other processes share, since a `fork()`, is walked once more, to look for pages of KSM's.
    /// Such a page is taken from the page table of `vma` by its address, and put back, or what it
    /// became, where KSM knows that it was. KSM does not know of a process that had the page before a
    /// `fork()`, if it was the child who had it merged: there the entry of the migration would stay.
    ///
    /// # Safety
    ///
    /// The mmap lock must be held during `'a`, and `span` be page-aligned, not empty and within
    /// `vma`. `fault_page` must be none, or a device-private page that the caller has locked and
    /// holds a reference to.
    pub unsafe fn collect(
        vma: &'a VmaRef,
        span: Range<usize>,
        select: Select,
        huge: Huge,
        owner: *mut c_void,
        fault_page: Option<NonNull<page>>,
    ) -> Result<Self> {
        let pages = span.end.saturating_sub(span.start) >> PAGE_SHIFT;
        let mut src = empty(pages)?;
        let dst = empty(pages)?;
        // SAFETY: The VMA is valid.
        if select != Select::DevicePrivate && unsafe { bindings::vma_has_relatives(vma.as_ptr()) } {
            hmm::count_walk();
            // SAFETY: The array has an entry for each page; by this function's requirements.
            let result = unsafe {
                bindings::mm_maps_ksm(
                    (*vma.as_ptr()).vm_mm,
                    span.start,
                    span.end,
                    src.as_mut_ptr().cast(),
                )
            };
            to_result(result)?;
            if result != 0 {
                return Err(EBUSY);
            }
        }
        let parts = if huge == Huge::Whole && select != Select::DevicePrivate {
            huge_parts(&span).count()
        } else {
            1
        };
        // INVARIANT: No destination is noted. The arrays do not move with the vectors. What is set up is in `by`,
        // and finished when this is dropped.
        let mut this = Self {
            src,
            dst,
            by: By::Vma(KVec::with_capacity(parts, GFP_KERNEL)?),
            migrated: false,
            _vma: PhantomData,
        };
        hmm::count_walk();
        let mut done = span.start;
        for part in huge_parts(&span).take(parts) {
            let end = if parts == 1 { span.end } else { part.end };
            let index = (done - span.start) >> PAGE_SHIFT;
            let mut args = migrate_vma {
                vma: vma.as_ptr(),
                src: this.src.get_mut(index..).ok_or(EINVAL)?.as_mut_ptr().cast(),
                dst: this.dst.get_mut(index..).ok_or(EINVAL)?.as_mut_ptr().cast(),
                start: done,
                end,
                pgmap_owner: owner,
                // CAST: Flags are small.
                flags: (select.flags() | huge.flags()) as c_ulong,
                fault_page: fault_page.map_or(ptr::null_mut(), NonNull::as_ptr),
                ..Default::default()
            };
            // SAFETY: The arguments are complete, the arrays have an entry for each page; the rest is by
            // this function's requirements.
            to_result(unsafe { bindings::migrate_vma_setup(&raw mut args) })?;
            if let By::Vma(set_up) = &mut this.by {
                set_up.push_within_capacity(args)?;
            }
            done = end;
        }
        Ok(this)
    }

    /// Collects those of some frames of device memory that are mapped, in whatever processes. Needs
    /// no process. Sleeps; calls MMU notifiers.
    ///
    /// Folios must be covered whole. The entries are in the order of the frames, without those that
    /// are not mapped. Fails with `ENOMEM`.
    ///
    /// # Safety
    ///
    /// The frames must be of a [`DevPagemap`](crate::mm::memremap::DevPagemap), and handed to nobody
    /// else meanwhile.
    pub unsafe fn collect_frames(frames: &[usize]) -> Result<Migration<'static>> {
        let mut src = KVVec::with_capacity(frames.len(), GFP_KERNEL)?;
        let mut anon_vmas = AnonVmas::default();
        let mut rest = frames;
        while let Some(&frame) = rest.first() {
            // SAFETY: By this function's requirements.
            let (pages, is_held) = unsafe { hold(frame, &mut anon_vmas) }?;
            let (folio, behind) = rest.split_at(pages.min(rest.len()));
            if is_held {
                for &frame in folio {
                    src.push(Entry(frame), GFP_KERNEL)?;
                }
            }
            rest = behind;
        }
        let dst = empty(src.len())?;
        // SAFETY: All are frames of device memory; the array has so many entries.
        to_result(unsafe {
            bindings::lock_device_pfns(src.as_mut_ptr().cast(), src.len() as c_ulong)
        })?;
        // INVARIANT: It was set up; no destination is noted.
        Ok(Migration {
            src,
            dst,
            by: By::Frames {
                _anon_vmas: anon_vmas,
            },
            migrated: false,
            _vma: PhantomData,
        })
    }

    /// What was collected, page by page.
    pub fn entries(&self) -> &[Entry] {
        &self.src
    }

    /// What it is to be migrated to, page by page.
    pub fn destinations(&self) -> &[Entry] {
        &self.dst
    }

    /// Notes where something is migrated to. `folio` is filled before [`migrate`](Self::migrate).
    ///
    /// A folio goes to one of its size. The place of a huge folio that was never written may get single
    /// pages instead, each of which is noted, the first one at least. Fails with `EINVAL`, and gives the
    /// folio back, if there is no such entry, it has a destination, or the sizes differ.
    pub fn set_destination(&mut self, index: usize, folio: LockedFolio) -> Result {
        let source = self.src.get(index).ok_or(EINVAL)?;
        if source.page().is_some() && source.is_huge() != (folio.order() != 0) {
            return Err(EINVAL);
        }
        self.note_destination(index, folio)
    }

    /// Has what maps the huge folio of a fault in the VMA split into entries of single pages, at the end;
    /// nothing of the folio moves. `page` is memory for the first of its pages, which is not needed for
    /// long, and filled like any other.
    ///
    /// Nobody can split a folio that a fault has a reference to. The kernel tries it if it is to go to a
    /// single page, and by then has split the entry of the VMA; those of others stay as they are, and so
    /// does the folio. The next collection finds its pages by single entries, and can split it.
    ///
    /// Fails with `EINVAL`, and gives the page back, if the entry is not of the fault's folio, or has a
    /// destination.
    pub fn split_mapping(&mut self, index: usize, page: LockedFolio) -> Result {
        let By::Vma(parts) = &self.by else {
            return Err(EINVAL);
        };
        let source = self.src.get(index).ok_or(EINVAL)?;
        let fault_page = parts
            .first()
            .map_or(ptr::null_mut(), |args| args.fault_page);
        let fault_page = NonNull::new(fault_page).ok_or(EINVAL)?;
        let head = source.page().ok_or(EINVAL)?;
        // SAFETY: The migration holds the folio of the entry, and its caller that of the fault.
        let is_fault = unsafe { zone_device::is_same_folio(head, fault_page) };
        if !source.is_huge() || !is_fault || page.order() != 0 {
            return Err(EINVAL);
        }
        self.note_destination(index, page)
    }

    fn note_destination(&mut self, index: usize, folio: LockedFolio) -> Result {
        let entry = self
            .dst
            .get_mut(index)
            .filter(|entry| **entry == Entry::default())
            .ok_or(EINVAL)?;
        let order = folio.order();
        // INVARIANT: The folio is handed over to the array; its callers compared the sizes.
        // SAFETY: A folio's page is a page.
        *entry = Entry::of(unsafe { zone_device::frame_of(folio.into_page()) }, order);
        Ok(())
    }

    /// Gives all destinations back, so that nothing moves.
    fn forget_destinations(&mut self) {
        for entry in self.dst.iter_mut() {
            if let Some(page) = core::mem::take(entry).page() {
                // SAFETY: By the type invariants the folio is the migration's, and locked; nothing
                // was migrated to it.
                drop(unsafe { LockedFolio::from_page(page) });
            }
        }
    }

    /// Makes the destinations what the sources were. Sleeps; calls MMU notifiers for places where
    /// there was no page. Returns how many pages have moved.
    pub fn migrate(&mut self) -> usize {
        if !self.migrated {
            self.migrated = true;
            match &mut self.by {
                By::Vma(parts) => {
                    for args in parts.iter_mut() {
                        // SAFETY: By the type invariants; the lock is held still.
                        unsafe { bindings::migrate_vma_pages(args) };
                    }
                }
                // SAFETY: By the type invariants.
                By::Frames { .. } => unsafe {
                    bindings::migrate_device_pages(
                        self.src.as_mut_ptr().cast(),
                        self.dst.as_mut_ptr().cast(),
                        self.src.len() as c_ulong,
                    )
                },
            }
        }
        self.src
            .iter()
            .filter(|entry| entry.is_migrating())
            .map(|entry| entry.pages())
            .sum()
    }
}

impl Drop for Migration<'_> {
    fn drop(&mut self) {
        if !self.migrated {
            self.forget_destinations();
        }
        match &mut self.by {
            By::Vma(parts) => {
                for args in parts.iter_mut() {
                    // SAFETY: By the type invariants, once; the lock is held still.
                    unsafe { bindings::migrate_vma_finalize(args) };
                }
            }
            // SAFETY: By the type invariants, once.
            By::Frames { .. } => unsafe {
                bindings::migrate_device_finalize(
                    self.src.as_mut_ptr().cast(),
                    self.dst.as_mut_ptr().cast(),
                    self.src.len() as c_ulong,
                )
            },
        }
    }
}
