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
//! C header: [`include/linux/migrate.h`](srctree/include/linux/migrate.h)

use crate::{
    anon_vma::AnonVmas,
    bindings::{self, migrate_vma},
    folio::LockedFolio,
    hmm,
    zone_device, //
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
    /// of one.
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
    fn flags(self) -> c_ulong {
        const SYSTEM: u32 = bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_SYSTEM;
        const DEVICE: u32 = bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_DEVICE_PRIVATE;
        let what = match self {
            Select::System => SYSTEM,
            Select::DevicePrivate => DEVICE,
            Select::Any => SYSTEM | DEVICE,
        };
        // CAST: Flags are small.
        (what | bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_COMPOUND) as c_ulong
    }
}

enum By {
    /// Addresses of a process.
    Vma(migrate_vma),
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
/// migration owns.
#[must_use = "a migration that is dropped is finished"]
pub struct Migration<'a> {
    src: KVVec<Entry>,
    dst: KVVec<Entry>,
    by: By,
    migrated: bool,
    _vma: PhantomData<&'a VmaRef>,
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
    /// pages never migrate, `ENOMEM`.
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
        owner: *mut c_void,
        fault_page: Option<NonNull<page>>,
    ) -> Result<Self> {
        let pages = span.end.saturating_sub(span.start) >> PAGE_SHIFT;
        let mut src = empty(pages)?;
        let mut dst = empty(pages)?;
        let mut args = migrate_vma {
            vma: vma.as_ptr(),
            src: src.as_mut_ptr().cast(),
            dst: dst.as_mut_ptr().cast(),
            start: span.start,
            end: span.end,
            pgmap_owner: owner,
            flags: select.flags(),
            fault_page: fault_page.map_or(ptr::null_mut(), NonNull::as_ptr),
            ..Default::default()
        };
        hmm::count_walk();
        // SAFETY: The arguments are complete, the arrays have an entry for each page; the rest is by
        // this function's requirements.
        to_result(unsafe { bindings::migrate_vma_setup(&raw mut args) })?;
        // INVARIANT: It was set up; no destination is noted. The arrays do not move with the vectors.
        Ok(Self {
            src,
            dst,
            by: By::Vma(args),
            migrated: false,
            _vma: PhantomData,
        })
    }

    /// Collects those of some frames of device memory that are mapped, in whatever processes. Needs
    /// no process. Sleeps; calls MMU notifiers.
    ///
    /// Folios must be covered whole. The entries are in the order of the frames, without those that
    /// are not mapped. Fails with `ENOMEM`.
    ///
    /// # Safety
    ///
    /// The frames must be of a [`DevPagemap`](crate::dev_pagemap::DevPagemap), and handed to nobody
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
        probe::seen();
        // SAFETY: All are frames of device memory; the array has so many entries.
        to_result(unsafe {
            bindings::migrate_device_pfns(src.as_mut_ptr().cast(), src.len() as c_ulong)
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

    /// Whether a huge folio may have single pages as destinations: it is split then. So it cannot be
    /// where only its frames are known.
    pub fn can_split(&self) -> bool {
        matches!(self.by, By::Vma(_))
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
    /// A huge folio goes to a huge folio, or, if [it can be split](Self::can_split), to single
    /// pages, each of which is noted, the first one at least. Fails with `EINVAL`, and gives the
    /// folio back, if there is no such entry or it has a destination.
    pub fn set_destination(&mut self, index: usize, folio: LockedFolio) -> Result {
        let entry = self
            .dst
            .get_mut(index)
            .filter(|entry| **entry == Entry::default())
            .ok_or(EINVAL)?;
        let order = folio.order();
        // INVARIANT: The folio is handed over to the array.
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
                // SAFETY: By the type invariants; the lock is held still.
                By::Vma(args) => unsafe { bindings::migrate_vma_pages(args) },
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
            // SAFETY: By the type invariants, once; the lock is held still.
            By::Vma(args) => unsafe { bindings::migrate_vma_finalize(args) },
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

/// Where tests come in: between the look at which frames are mapped, and the moment from which on they
/// cannot go elsewhere.
#[cfg(CONFIG_KUNIT = "y")]
pub mod probe {
    use kernel::sync::atomic::{Acquire, Atomic, Full, Release};

    /// 0, or a `fn()`.
    static NEXT: Atomic<usize> = Atomic::new(0);

    /// Has `f` run when frames are collected next, once.
    pub fn once(f: fn()) {
        NEXT.store(f as usize, Release);
    }

    pub(super) fn seen() {
        if NEXT.load(Acquire) == 0 {
            return;
        }
        let f = NEXT.xchg(0, Full);
        if f != 0 {
            // SAFETY: Whatever is not 0 was a `fn()` when it was stored.
            let f = unsafe { core::mem::transmute::<usize, fn()>(f) };
            f();
        }
    }
}

#[cfg(not(CONFIG_KUNIT = "y"))]
mod probe {
    #[inline(always)]
    pub(super) fn seen() {}
}
