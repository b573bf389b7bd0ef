// SPDX-License-Identifier: GPL-2.0

//! Migration of a process's pages to a device.
//!
//! A migration moves all pages that can be moved. A page that cannot be moved (a pinned one, for example) stays where
//! it is and does not stop the others; no memory is allocated for it, nor for a page that is on the device already. So
//! the migration first collects pages, then allocates device memory for those only, and copies them. Pages that were
//! never written are cleared on the device instead of copied.
//!
//! Collected pages are locked and unmapped from all page tables: a thread that accesses one waits, and cannot be
//! killed. So nothing waits for memory while pages are collected. The core's own memory is allocated before. The
//! provider is first asked for device memory that is available without waiting. If there is none, the migration puts
//! all pages back and the caller drops `mmap_lock`; the provider allocates, however long that takes; and the migration
//! collects the pages again. Pages that only the second collection finds have no device memory, and stay where they
//! are.
//!
//! Pages may be in system memory, or in the memory of another device of the same owner. In the latter case that other
//! device copies them directly to their new location: it can certainly read its own memory, and the destination's
//! pagemap decides whether it can write to the destination. Pages in the memory of a device with another owner stay;
//! they must be migrated to system memory first.
//!
//! C: `drm_pagemap_migrate_to_devmem()`.

use super::{
    copies::{can_be_folio, Copies},
    devmem::Devmem,
    drm_pagemap::Pagemap,
    to_ram,
    zdd::{self, Zdd}, //
};
use core::{
    mem::MaybeUninit,
    ops::Range,
    ptr::{self, NonNull}, //
};
use kernel::{
    bindings::page,
    mm::{
        virt::{flags, VmaRef},
        Mm, //
    },
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
        UniqueArc, //
    }, //
};
use kernel_ext::{
    bindings as ext,
    mm::{
        migrate::{
            Entry,
            Huge,
            Migration,
            Select, //
        },
        zone_device::{
            self,
            HUGE_ORDER, //
        }, //
    }, //
};

/// The result of a migration to a device, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Migrated to the device.
    pub moved: usize,
    /// The part of `moved` that was copied; the rest was cleared.
    pub copied: usize,
    /// Never written, and not migrated for that reason: see [`Sources::Populated`].
    pub holes: usize,
    /// On the device before the migration. Zero for [`Sources::Populated`] and [`Sources::System`]: such a migration
    /// does not collect device pages.
    pub local: usize,
    /// Not migrated, and not counted as `local` or `holes`. The page is pinned, locked by another user, in swap, in a
    /// file mapping, in memory that KSM may merge, or on a device with another owner; or it is counted in `unreachable`
    /// or `raced`; or it is on a device, and only system memory was to be migrated.
    pub left: usize,
    /// The part of `left` that is in the memory of another device which cannot reach this one.
    pub unreachable: usize,
    /// The part of `left` that changed during the migration: another attempt may succeed.
    pub raced: usize,
}

impl Moved {
    /// Adds the result of another migration.
    pub(crate) fn add(&mut self, other: &Self) {
        self.moved += other.moved;
        self.copied += other.copied;
        self.holes += other.holes;
        self.local += other.local;
        self.left += other.left;
        self.unreachable += other.unreachable;
        self.raced += other.raced;
    }
}

/// Where the contents of a unit are.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// Nowhere: no page was ever written there.
    Nowhere,
    /// In system memory, from this page on.
    Ram(NonNull<page>),
    /// In device memory, from this page on.
    Device(NonNull<page>),
}

/// A single page or a huge folio, which migrates as a whole.
#[derive(Clone, Copy)]
pub(super) struct MigrationUnit {
    /// The index of its first page in the span.
    pub(super) index: usize,
    /// Log2 of its number of pages: 0 or [`HUGE_ORDER`].
    pub(super) order: u32,
    pub(super) source: Source,
}

impl MigrationUnit {
    pub(super) fn pages(&self) -> usize {
        1 << self.order
    }

    /// Returns the indices of its pages in the span.
    pub(super) fn indices(&self) -> Range<usize> {
        self.index..self.index + self.pages()
    }

    /// Returns whether the unit can migrate to the entries of `frames` for its pages, or has none there: a huge folio
    /// migrates only as one folio.
    fn fits(&self, frames: &[usize]) -> bool {
        let Some(frames) = frames.get(self.indices()) else {
            return false;
        };
        matches!(self.source, Source::Nowhere)
            || can_be_folio(frames)
            || frames.iter().all(|frame| *frame == NO_FRAME)
    }

    /// Returns whether `frames` has a frame for each of its pages.
    fn has_memory(&self, frames: &[usize]) -> bool {
        let frames = frames.get(self.indices());
        frames.is_some_and(|frames| frames.iter().all(|frame| *frame != NO_FRAME))
    }
}

/// A request for the device memory of a migration.
pub struct AllocRequest<'a> {
    mm: &'a Mm,
    units: &'a [MigrationUnit],
}

impl AllocRequest<'_> {
    /// Returns the address space whose pages are to be migrated. The memory is [charged](super::dmem) to its process.
    pub fn mm(&self) -> &Mm {
        self.mm
    }

    /// Returns the number of pages.
    pub fn pages(&self) -> usize {
        self.units.iter().map(MigrationUnit::pages).sum()
    }

    /// Returns log2 of the number of pages of each unit, in ascending order of addresses.
    ///
    /// The memory for a unit of several pages should be contiguous and aligned to its size. If it is not, the unit is
    /// split, and its pages migrate one by one.
    pub fn orders(&self) -> impl Iterator<Item = u32> + '_ {
        self.units.iter().map(|unit| unit.order)
    }

    /// Returns the indices of the pages in the span of the migration, in ascending order.
    pub(crate) fn indices(&self) -> impl Iterator<Item = usize> + '_ {
        self.units.iter().flat_map(MigrationUnit::indices)
    }
}

/// Allocates device memory for a request: writes a frame at each [index](AllocRequest::indices) of the request, and
/// hands over a reference to the block. The frames belong to the pagemap, are free, and are in no other block. Returns
/// none if no memory is available without waiting.
pub(crate) type Target<'a> =
    dyn FnMut(&AllocRequest<'_>, &mut [usize]) -> Result<Option<NonNull<Devmem>>> + 'a;

/// The pages that a migration moves to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sources {
    /// Pages in system memory. Pages that were never written are not populated: a device that only reads takes no
    /// memory.
    Populated,
    /// Pages in system memory, and pages that were never written.
    System,
    /// Also pages in the memory of other devices of the same owner.
    Devices,
    /// Also pages on the device itself, which move to a new block. C: `can_migrate_same_pagemap`.
    All,
}

/// The options of a migration.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    /// The number of jiffies for which CPU faults do not migrate the pages back.
    pub(crate) timeslice: usize,
    /// The pages to migrate.
    pub(crate) sources: Sources,
}

/// A migration of a span of one VMA to the memory of a pagemap. The block is not released while this object exists.
pub(crate) struct Move<'a> {
    pagemap: &'a Pagemap,
    options: Options,
    span: Range<usize>,
    /// A frame for each page of the span, once there is device memory; [`NO_FRAME`] for a page without one.
    frames: KVVec<usize>,
    collected: Collected,
    copies: Option<Copies<'a>>,
    /// The memory for `zdd`, until there is device memory.
    reserved: Option<UniqueArc<MaybeUninit<Zdd>>>,
    /// The zone-device data of the folios, once there is device memory.
    zdd: Option<Arc<Zdd>>,
}

impl<'a> Move<'a> {
    /// Allocates everything but the device memory. Fails with `EINVAL` if the span is empty or not page-aligned, and
    /// with `ENOMEM`. Sleeps.
    pub(crate) fn new(pagemap: &'a Pagemap, options: Options, span: Range<usize>) -> Result<Self> {
        if span.start >= span.end || span.start % PAGE_SIZE != 0 || span.end % PAGE_SIZE != 0 {
            return Err(EINVAL);
        }
        let pages = span.len() >> PAGE_SHIFT;
        Ok(Self {
            pagemap,
            options,
            span,
            frames: KVVec::from_elem(NO_FRAME, pages, GFP_KERNEL)?,
            collected: Collected::new(pages)?,
            copies: Some(Copies::new(pagemap, pages)?),
            reserved: Some(Zdd::reserve()?),
            zdd: None,
        })
    }

    /// Returns the result of a migration that moved nothing because another thread changed the VMA.
    pub(crate) fn raced(&self) -> Moved {
        Moved {
            left: self.span.len(),
            raced: self.span.len(),
            ..Moved::default()
        }
    }

    /// Migrates the pages of the span. If there is no device memory yet, `target` allocates it, which must not wait. If
    /// `target` returns none, this returns none with all pages back in place; the caller calls this again after
    /// [`allocate`](Self::allocate).
    ///
    /// Sleeps; calls MMU notifiers. Errors, after which all pages are where they were:
    /// - `EINVAL`: the span is not within the VMA;
    /// - `EFAULT`: the device cannot reach a page of system memory;
    /// - `ENOMEM`, or an error of the provider's.
    ///
    /// # Safety
    ///
    /// The caller must hold the mmap lock of the VMA's mm; `target` must do what [`Target`] says.
    pub(crate) unsafe fn run(
        &mut self,
        vma: &VmaRef,
        target: &mut Target<'_>,
    ) -> Result<Option<Moved>> {
        if self.span.start < vma.start() || self.span.end > vma.end() {
            return Err(EINVAL);
        }
        if let Some(why) = why_unmovable(vma) {
            kernel_ext::debug!(
                "memory at {:#x?} does not move to a device: {why}",
                self.span
            );
            return Ok(Some(self.unmovable()));
        }
        let huge = if are_huge_pages_allowed() {
            Huge::Whole
        } else {
            Huge::Split
        };
        // SAFETY: The caller holds the mmap lock, and the span is within the VMA.
        let Some(mut migration) = unsafe { self.collect(vma, huge) }? else {
            return Ok(Some(self.unmovable()));
        };
        if self.collected.units.is_empty() {
            return Ok(Some(self.collected.unmoved()));
        }
        if self.zdd.is_none() && !self.fill(vma.mm(), target)? {
            return Ok(None);
        }
        let zdd = self.zdd.clone().ok_or(EINVAL)?;
        if self
            .collected
            .units
            .iter()
            .any(|unit| !unit.fits(&self.frames))
        {
            // A huge folio's frames are not contiguous. Collect again, and split it.
            drop(migration);
            // SAFETY: The caller holds the mmap lock, and the span is within the VMA.
            migration = match unsafe { self.collect(vma, Huge::Split) }? {
                Some(migration) => migration,
                None => return Ok(Some(self.unmovable())),
            };
        }
        let wanted: usize = self.collected.units.iter().map(MigrationUnit::pages).sum();
        // Pages that the allocation did not know of have no memory.
        self.collected
            .units
            .retain(|unit| unit.has_memory(&self.frames));
        let unmoved = self.collected.unmoved();
        let mut copies = self.copies.take().ok_or(EINVAL)?;
        let (mut copied, mut unreachable) = (0, 0);
        for unit in &self.collected.units {
            // SAFETY: `Target` guarantees what is required of the frames; the unit is the migration's.
            let prepared = unsafe { copies.prepare(&zdd, &mut migration, &self.frames, unit) }?;
            copied += prepared.copied;
            unreachable += prepared.unreachable;
        }
        copies.run(zdd.devmem())?;
        drop(copies);

        zdd.devmem().begin_timeslice(self.options.timeslice);
        let moved = migration.migrate();
        to_ram::retire(&migration);
        // This maps the device pages.
        drop(migration);
        Ok(Some(Moved {
            moved: moved << PAGE_SHIFT,
            copied: copied << PAGE_SHIFT,
            left: unmoved.left - (moved << PAGE_SHIFT),
            unreachable: unreachable << PAGE_SHIFT,
            raced: (wanted - unreachable - moved) << PAGE_SHIFT,
            ..unmoved
        }))
    }

    /// Allocates by `target` the memory that [`run`](Self::run) did not get. No page is collected meanwhile. `mm` is
    /// the address space of the VMA. Fails with `ENOMEM`, and as `target` does.
    ///
    /// # Safety
    ///
    /// `target` must do what [`Target`] says.
    pub(crate) unsafe fn allocate(&mut self, mm: &Mm, target: &mut Target<'_>) -> Result {
        if self.fill(mm, target)? {
            Ok(())
        } else {
            Err(ENOMEM)
        }
    }

    /// Allocates device memory for the collected units. Returns whether there is any now.
    fn fill(&mut self, mm: &Mm, target: &mut Target<'_>) -> Result<bool> {
        // Before `target` hands a reference over, which the `Zdd` then owns.
        let reserved = self.reserved.take().ok_or(EINVAL)?;
        let request = AllocRequest {
            mm,
            units: &self.collected.units,
        };
        let Some(devmem) = target(&request, &mut self.frames)? else {
            self.reserved = Some(reserved);
            return Ok(false);
        };
        // SAFETY: `target` handed its reference over.
        self.zdd = Some(unsafe { Zdd::init(reserved, devmem, self.pagemap) });
        Ok(true)
    }

    /// Collects the pages of the span and classifies them. Returns none if KSM holds a page. Fails as
    /// [`Migration::collect`] does.
    ///
    /// # Safety
    ///
    /// As for [`run`](Self::run); the span must be within the VMA.
    unsafe fn collect<'v>(&mut self, vma: &'v VmaRef, huge: Huge) -> Result<Option<Migration<'v>>> {
        // Pages that are not to be migrated are not collected: that would unmap them from all page tables, and map them
        // again.
        let select = match self.options.sources {
            Sources::Populated | Sources::System => Select::System,
            Sources::Devices | Sources::All => Select::Any,
        };
        let owner = self.pagemap.owner_ptr();
        // SAFETY: The caller holds the mmap lock, and the span is within the VMA.
        let migration = match unsafe {
            Migration::collect(vma, self.span.clone(), select, huge, owner, None)
        } {
            Err(e) if e == EBUSY => return Ok(None),
            done => done?,
        };
        self.collected
            .update(&migration, self.pagemap, self.options.sources)?;
        Ok(Some(migration))
    }

    /// Returns the result of a migration of a VMA whose pages cannot be moved.
    fn unmovable(&self) -> Moved {
        Moved {
            left: self.span.len(),
            ..Moved::default()
        }
    }
}

/// Stands for no frame: frame 0 is system memory, never a device's.
const NO_FRAME: usize = 0;

/// The pages that a migration to a device has collected.
struct Collected {
    /// The number of pages of the span.
    pages: usize,
    /// The units to migrate, in ascending order of addresses.
    units: KVVec<MigrationUnit>,
    /// The number of pages that were never written and are not to be migrated.
    holes: usize,
    /// The number of pages that are on the device already and stay there.
    local: usize,
}

impl Collected {
    /// Creates an empty collection for a span of `pages` pages. Fails with `ENOMEM`.
    fn new(pages: usize) -> Result<Self> {
        Ok(Self {
            pages,
            units: KVVec::with_capacity(pages, GFP_KERNEL)?,
            holes: 0,
            local: 0,
        })
    }

    /// Replaces the contents by the classified entries of a migration.
    fn update(&mut self, migration: &Migration<'_>, pagemap: &Pagemap, sources: Sources) -> Result {
        self.units.clear();
        (self.holes, self.local) = (0, 0);
        for (index, entry) in migration.entries().iter().enumerate() {
            // SAFETY: The entry is the migration's.
            let source = match unsafe { classify(*entry, pagemap) } {
                EntryKind::Local(page) if sources == Sources::All => Source::Device(page),
                EntryKind::Local(_) => {
                    self.local += entry.pages();
                    continue;
                }
                EntryKind::Movable(Source::Nowhere) if sources == Sources::Populated => {
                    self.holes += entry.pages();
                    continue;
                }
                EntryKind::Movable(source) => source,
                EntryKind::Unmovable => continue,
            };
            let order = if entry.is_huge() { HUGE_ORDER } else { 0 };
            self.units.push(
                MigrationUnit {
                    index,
                    order,
                    source,
                },
                GFP_KERNEL,
            )?;
        }
        Ok(())
    }

    /// Returns the result if no unit is migrated.
    fn unmoved(&self) -> Moved {
        Moved {
            holes: self.holes << PAGE_SHIFT,
            local: self.local << PAGE_SHIFT,
            left: self.pages.saturating_sub(self.local + self.holes) << PAGE_SHIFT,
            ..Moved::default()
        }
    }
}

/// Whether huge pages of system memory become huge pages of device memory. If not, they are split, and become single
/// pages, which are contiguous if the provider's frames are.
static HUGE_PAGES_ALLOWED: Atomic<bool> = Atomic::new(false);

/// Sets whether huge pages migrate as huge pages, from now on.
///
/// They should not on a kernel whose `zap_huge_pmd()` treats a migration entry for a device folio as a present mapping,
/// as 7.3 does: when a process unmaps a huge page that is being migrated to system memory, that kernel frees the folio
/// under the migration.
///
/// # Safety
///
/// If `allow`, no process may discard a huge page while it is being migrated, or the kernel must cope with that.
pub unsafe fn allow_huge_pages(allow: bool) {
    HUGE_PAGES_ALLOWED.store(allow, Relaxed);
}

/// Returns whether huge pages migrate as huge pages.
fn are_huge_pages_allowed() -> bool {
    HUGE_PAGES_ALLOWED.load(Relaxed)
}

/// Returns why the pages of a VMA never migrate to a device, or none if they may.
fn why_unmovable(vma: &VmaRef) -> Option<&'static str> {
    let has = |flag| vma.flags() & flag != 0;
    // SAFETY: The VMA is valid.
    let (is_anonymous, is_tracked) = unsafe {
        (
            ext::vma_is_anonymous(vma.as_ptr()),
            ext::vma_is_tracked(vma.as_ptr()),
        )
    };
    if !is_anonymous {
        Some("it is not anonymous")
    } else if has(flags::MERGEABLE) {
        // A page that KSM is about to merge is not yet in the reverse map by which its page table entries are found.
        // The migration entry that 7.3's `migrate_vma_setup()` writes while KSM holds the page would stay forever.
        Some("KSM may merge it")
    } else if has(ext::KEXT_VM_LOCKED) {
        // The page must stay in RAM. Besides, 7.3 counts device pages as mlocked, and still does so when they have left
        // the device: `mlock_pte_range()` skips entries that are not present.
        Some("it is locked")
    } else if has(ext::KEXT_VM_MTE) {
        // A copy has no tags, and the CPU's next access to the page would fail.
        Some("its pages have tags (arm64 MTE)")
    } else if is_tracked {
        // A device's accesses to device pages would bypass the protection of userfaultfd.
        Some("userfaultfd tracks accesses to it")
    } else {
        None
    }
}

/// How a migration to a device classifies an entry.
enum EntryKind {
    /// It cannot be migrated.
    Unmovable,
    /// It is on the device already.
    Local(NonNull<page>),
    /// It can be migrated.
    Movable(Source),
}

/// Classifies an entry of a migration to `pagemap`.
///
/// # Safety
///
/// The migration that the entry is of must exist.
unsafe fn classify(entry: Entry, pagemap: &Pagemap) -> EntryKind {
    if !entry.is_migrating() {
        return EntryKind::Unmovable;
    }
    let Some(page) = entry.page() else {
        return EntryKind::Movable(Source::Nowhere);
    };
    // SAFETY: The migration holds a reference to the page. All device-private folios of the core have a `Zdd`.
    unsafe {
        if !zone_device::is_device_private(page) {
            return EntryKind::Movable(Source::Ram(page));
        }
        match zdd::find_pagemap(page) {
            None => EntryKind::Unmovable,
            Some(known) if ptr::eq(known, pagemap) => EntryKind::Local(page),
            Some(_) => EntryKind::Movable(Source::Device(page)),
        }
    }
}
