// SPDX-License-Identifier: GPL-2.0

//! Migration of a process's pages between RAM and device memory.
//!
//! A [`Migration`] goes through three states:
//!
//! - *collected*: the pages that can migrate are locked, and migration entries replace them in all page tables. A
//!   thread that faults on such an entry sleeps, so that the contents do not change. The owner of the [`Migration`]
//!   allocates destinations, sets them, and copies the contents;
//! - *migrated*: [`Migration::migrate`] has moved the mapping of the sources to the destinations;
//!   [`Migration::entries`] tells for which pages;
//! - *finished*, when the [`Migration`] is dropped: the page tables map the destinations of the pages that were
//!   migrated, and the sources of all others.
//!
//! # Huge folios
//!
//! When 7.3 splits a folio that has been unmapped already (`migrate_vma_split_unmapped_folio()`), it splits the
//! migration entry of one process only. If another process maps the folio by a PMD, too, since a `fork()`, the PMD
//! migration entry of that process then names a folio that does not exist any more, which the end of the migration
//! trips over. Therefore this module never splits a folio that has been collected: it migrates whole, or not at all.
//! A folio that is to migrate in small pages is [split when it is collected](Huge::Split), while it is mapped; this
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

/// The state of one page of a migration, a `migrate_pfn`.
///
/// A folio of several pages that migrates as a whole has one entry, that of its first page; the entries of its other
/// pages are empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Entry(c_ulong);

impl Entry {
    /// Returns the entry of a folio.
    fn of(frame: usize, order: u32) -> Self {
        Self((frame << SHIFT) | VALID | if order == 0 { 0 } else { COMPOUND })
    }

    /// Whether the page, or the hole at its address, was collected; after [`Migration::migrate`], whether it has
    /// migrated.
    pub fn is_migrating(self) -> bool {
        self.0 & MIGRATE != 0
    }

    /// Whether the entry is that of a folio of [`HUGE_PAGES`](zone_device::HUGE_PAGES) pages, or of a hole of that
    /// size; only with [`Huge::Whole`].
    pub fn is_huge(self) -> bool {
        self.0 & COMPOUND != 0
    }

    /// Returns the page; none for a hole.
    pub fn page(self) -> Option<NonNull<page>> {
        // SAFETY: A valid entry was made by the kernel, or from a folio.
        (self.0 & VALID != 0).then(|| unsafe { zone_device::page_of(self.0 >> SHIFT) })
    }

    /// Returns the number of pages that the entry is for.
    pub fn pages(self) -> usize {
        if self.is_huge() {
            zone_device::HUGE_PAGES
        } else {
            1
        }
    }
}

/// Which pages of a process are collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// RAM, and holes of anonymous memory.
    System,
    /// Device-private pages of the owner.
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

/// How a huge folio that is mapped by a PMD is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Huge {
    /// Whole: it migrates to a huge folio, or not at all.
    Whole,
    /// Split before it is unmapped, in all processes that map it. A folio to which there are other references cannot be
    /// split, and is not collected.
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
    /// By addresses of a process: the parts of the span in order, each with its part of the arrays.
    Vma(KVec<migrate_vma>),
    /// By frames of device memory.
    Frames {
        /// References to the `anon_vma`s by which the end of the migration finds the page tables; dropped after that.
        _anon_vmas: AnonVmas,
    },
}

/// A migration in progress; see the [module](self)'s documentation for its states.
///
/// # Invariants
///
/// `src` and `dst` have the same length, and are the arrays of a migration that was set up and not
/// finalized. An entry of `dst` that is not empty is a folio whose lock and one reference the
/// migration owns. The folio is as large as the one in the same entry of `src`, if there is one, except for the page of
/// [`split_mapping`](Migration::split_mapping).
#[must_use = "a migration that is dropped is finished"]
pub struct Migration<'a> {
    src: KVVec<Entry>,
    dst: KVVec<Entry>,
    by: By,
    migrated: bool,
    _vma: PhantomData<&'a VmaRef>,
}

/// Splits a span at multiples of the size of a huge page.
///
/// For a hole without page tables, `migrate_vma_collect_hole()` of 7.3 makes one huge entry, even if the hole has room
/// for several huge pages. Therefore each part of a span is set up separately where holes may migrate as huge pages.
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

/// Takes a reference to the `anon_vma` of a frame's folio. Returns the number of pages from the frame to the end of the
/// folio (1 if there is no folio), and whether the reference was taken: not if the folio is free, not mapped, or being
/// migrated.
///
/// # Safety
///
/// As for [`Migration::collect_frames`].
unsafe fn hold(frame: usize, anon_vmas: &mut AnonVmas) -> Result<(usize, bool)> {
    // SAFETY: By this function's requirements.
    let page = unsafe { zone_device::page_of(frame) };
    // SAFETY: `page` is a page of device memory.
    if !unsafe { bindings::page_folio_try_get(page.as_ptr()) } {
        return Ok((1, false));
    }
    // SAFETY: This thread holds a reference to the folio, until `page_folio_put()`. A device-private folio does not
    // change its `anon_vma`.
    unsafe {
        let pages = 1 << zone_device::order_of(page);
        let is_held = anon_vmas.hold(page);
        bindings::page_folio_put(page.as_ptr());
        Ok((pages - frame % pages, is_held?))
    }
}

impl<'a> Migration<'a> {
    /// Collects the pages in `span` of `vma`. Sleeps; calls MMU notifiers, `MMU_NOTIFY_MIGRATE` with
    /// `owner`.
    ///
    /// `fault_page` is the page on which the CPU faulted. Fails with `EINVAL` for a VMA of a kind whose
    /// pages never migrate, `EBUSY` if one of the pages is a KSM page, `ENOMEM`.
    ///
    /// If the VMA may share RAM with other processes since a `fork()`, the page tables are walked first, to find KSM
    /// pages. The kernel replaces a KSM page in the page table of `vma` by address, but finds the entries to restore by
    /// KSM's reverse map. If a child merged the page after a `fork()`, KSM's reverse map does not have the parent, in
    /// whose page table the migration entry would stay.
    ///
    /// # Safety
    ///
    /// The mmap lock must be held during `'a`, and `span` be page-aligned, not empty and within
    /// `vma`. `fault_page` must be none, or a device-private page that the caller has locked and to which it
    /// holds a reference.
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
        // SAFETY: The VMA is valid, as the mmap lock is held.
        if select != Select::DevicePrivate && unsafe { bindings::vma_has_relatives(vma.as_ptr()) } {
            hmm::count_walk();
            // SAFETY: The array has an entry for each page; the caller holds the mmap lock.
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
        // INVARIANT: No destination is set. The arrays do not move when the vectors are moved. `by` has the parts that
        // are set up, which `drop()` finalizes.
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
            // SAFETY: The arguments are complete, the arrays have an entry for each page; the caller guarantees
            // the rest.
            to_result(unsafe { bindings::migrate_vma_setup(&raw mut args) })?;
            if let By::Vma(set_up) = &mut this.by {
                set_up.push_within_capacity(args)?;
            }
            done = end;
        }
        Ok(this)
    }

    /// Collects those frames of device memory that are mapped, by any process. Needs no reference to a
    /// process. Sleeps; calls MMU notifiers.
    ///
    /// `frames` must include all pages of each folio. The entries are in the order of the frames, without those that
    /// are not mapped. Fails with `ENOMEM`.
    ///
    /// # Safety
    ///
    /// The frames must be of a [`DevPagemap`](crate::mm::memremap::DevPagemap), and not be allocated again during the
    /// call.
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
        // SAFETY: All entries are frames of device memory; the array has `src.len()` entries.
        to_result(unsafe {
            bindings::lock_device_pfns(src.as_mut_ptr().cast(), src.len() as c_ulong)
        })?;
        // INVARIANT: `migrate_device_pfns()` set the migration up; no destination is set.
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

    /// Returns the sources, one entry for each page.
    pub fn entries(&self) -> &[Entry] {
        &self.src
    }

    /// Returns the destinations, one entry for each page.
    pub fn destinations(&self) -> &[Entry] {
        &self.dst
    }

    /// Sets the destination of an entry. The caller copies the contents to `folio` before
    /// [`migrate`](Self::migrate).
    ///
    /// The destination of a folio has the same size. The destinations of a huge hole may be single pages; the first
    /// page must have one. Fails with `EINVAL`, and frees `folio`, if there is no such entry, the entry has a
    /// destination, or the sizes differ.
    pub fn set_destination(&mut self, index: usize, folio: LockedFolio) -> Result {
        let source = self.src.get(index).ok_or(EINVAL)?;
        if source.page().is_some() && source.is_huge() != (folio.order() != 0) {
            return Err(EINVAL);
        }
        self.put_destination(index, folio)
    }

    /// Makes the end of the migration map the huge folio of `fault_page` in the VMA by PTEs; the folio does not
    /// migrate. `page` is a destination for the folio's first page, filled like any other, which the end of the
    /// migration frees.
    ///
    /// The fault holds a reference to the folio, which therefore cannot be split. If the destination is a single page,
    /// `migrate_vma_pages()` splits the PMD of the VMA and then tries to split the folio, which fails; the PMDs of
    /// other processes are not changed. The next collection finds PTEs, and can split the folio.
    ///
    /// Fails with `EINVAL`, and frees `page`, if the entry is not that of the fault's folio, or has a destination.
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
        // SAFETY: The migration has a reference to the folio of the entry, and the thread that handles the fault one
        // to that of `fault_page`.
        let is_fault = unsafe { zone_device::is_same_folio(head, fault_page) };
        if !source.is_huge() || !is_fault || page.order() != 0 {
            return Err(EINVAL);
        }
        self.put_destination(index, page)
    }

    fn put_destination(&mut self, index: usize, folio: LockedFolio) -> Result {
        let entry = self
            .dst
            .get_mut(index)
            .filter(|entry| **entry == Entry::default())
            .ok_or(EINVAL)?;
        let order = folio.order();
        // INVARIANT: The array takes over the lock and the reference; the callers have compared the sizes.
        // SAFETY: `into_page()` returns a page.
        *entry = Entry::of(unsafe { zone_device::frame_of(folio.into_page()) }, order);
        Ok(())
    }

    /// Frees all destinations, so that no page migrates.
    fn forget_destinations(&mut self) {
        for entry in self.dst.iter_mut() {
            if let Some(page) = core::mem::take(entry).page() {
                // SAFETY: By the type invariants the migration owns the folio's lock and reference; no page
                // was migrated to it.
                drop(unsafe { LockedFolio::from_page(page) });
            }
        }
    }

    /// Moves the mappings of the sources to the destinations. Sleeps; calls MMU notifiers for holes.
    /// Returns the number of pages that have migrated.
    pub fn migrate(&mut self) -> usize {
        if !self.migrated {
            self.migrated = true;
            match &mut self.by {
                By::Vma(parts) => {
                    for args in parts.iter_mut() {
                        // SAFETY: By the type invariants; the mmap lock is held during `'a`.
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
                    // SAFETY: By the type invariants, and called once; the mmap lock is held during `'a`.
                    unsafe { bindings::migrate_vma_finalize(args) };
                }
            }
            // SAFETY: By the type invariants, and called once.
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
