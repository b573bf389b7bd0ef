// SPDX-License-Identifier: GPL-2.0

//! Moving a process's pages to a device.
//!
//! What can move moves. A page that cannot (it is pinned, say) stays where it is, and costs no other
//! its place; one that is on the device already costs nothing. So pages are collected first; then
//! memory is allocated for those, and no more; and only they are copied. A place that was never
//! written needs no copy: it is cleared.
//!
//! Pages that are collected are locked and in no page table: whoever touches one waits, and cannot be killed.
//! So nobody waits for memory meanwhile. The core's own is there before. Device memory is asked for once
//! without waiting. If there is none, all pages are let go, and the mmap lock, too; it is allocated, however
//! long that takes; and the pages are collected again. What has come there in the meantime has no memory,
//! and stays where it is.
//!
//! Pages may come from RAM, and from the memory of another device of the same owner. The device that
//! has them copies them then, straight to their new place: who can read memory without the CPU is
//! known, and who can write there is for the new place's pagemap to say. Memory of a device with
//! another owner stays; it has to be brought back to RAM first.
//!
//! C: `drm_pagemap_migrate_to_devmem()`.

use super::{
    copies::{are_block, Copies},
    devmem::Devmem,
    drm_pagemap::Pagemap,
    to_ram,
    zdd::{self, Vacant, Zdd}, //
};
use core::{
    mem,
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
        Arc, //
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

/// What came of a migration to a device, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// What is on the device now, and was not before.
    pub moved: usize,
    /// What was copied for that; the rest was cleared.
    pub copied: usize,
    /// What was never written, and so was not to move: see [`Sources::Populated`].
    pub holes: usize,
    /// What was on the device before. Not told by a migration of [what is in RAM](Sources::System) only,
    /// which does not look at what devices have.
    pub local: usize,
    /// What did not move, and is neither `local` nor one of the `holes`: it is pinned, or worked on by
    /// somebody, in swap, of a file, in memory that KSM may merge, or of a device with another owner; or
    /// one of those that follow; or, if only what is in RAM was to move, on a device.
    pub left: usize,
    /// What is left since it is in the memory of another device that does not reach this one.
    pub unreachable: usize,
    /// What is left since it changed before it was moved: trying again may help.
    pub raced: usize,
}

impl Moved {
    /// Adds what came of another migration.
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

/// Where the contents of something come from.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// From nowhere: nothing was ever written there.
    Nowhere,
    /// From RAM, at this page.
    Ram(NonNull<page>),
    /// From device memory, at this page.
    Device(NonNull<page>),
}

/// Something that is to move as a whole: a page, or a huge folio.
#[derive(Clone, Copy)]
pub(super) struct MigrationUnit {
    /// The place of its first page in the span.
    pub(super) index: usize,
    /// Log2 of its number of pages, 0 or [`HUGE_ORDER`].
    pub(super) order: u32,
    pub(super) source: Source,
}

impl MigrationUnit {
    pub(super) fn pages(&self) -> usize {
        1 << self.order
    }

    /// The places of its pages in the span.
    pub(super) fn places(&self) -> Range<usize> {
        self.index..self.index + self.pages()
    }

    /// Whether it can move to those of `frames` that are at its places, or there is none: a huge folio moves as
    /// one only.
    fn fits(&self, frames: &[usize]) -> bool {
        let Some(frames) = frames.get(self.places()) else {
            return false;
        };
        matches!(self.source, Source::Nowhere)
            || are_block(frames)
            || frames.iter().all(|frame| *frame == NO_FRAME)
    }

    /// Whether there is one of `frames` at each of its places.
    fn has_memory(&self, frames: &[usize]) -> bool {
        let frames = frames.get(self.places());
        frames.is_some_and(|frames| frames.iter().all(|frame| *frame != NO_FRAME))
    }
}

/// The memory that a migration needs.
pub struct AllocRequest<'a> {
    mm: &'a Mm,
    pieces: &'a [MigrationUnit],
}

impl AllocRequest<'_> {
    /// The address space whose pages are to move: the memory is [charged](super::dmem) to that process.
    pub fn mm(&self) -> &Mm {
        self.mm
    }

    /// How many pages.
    pub fn pages(&self) -> usize {
        self.pieces.iter().map(MigrationUnit::pages).sum()
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
        self.pieces.iter().flat_map(MigrationUnit::places)
    }
}

/// Allocates device memory for a request: writes the frame of each of its
/// [places](AllocRequest::places), and hands over a reference to the allocation. The frames are of the
/// pagemap, free, and nobody else's. None if that is not to be had without waiting.
pub(crate) type Target<'a> =
    dyn FnMut(&AllocRequest<'_>, &mut [usize]) -> Result<Option<NonNull<Devmem>>> + 'a;

/// What moves to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sources {
    /// What is in RAM. What was never written stays nowhere: a device that only reads takes no memory.
    Populated,
    /// What is in RAM, and what was never written.
    System,
    /// Also what is in the memory of other devices of the same owner.
    Devices,
    /// Also what is on the device already, to other places there. C: `can_migrate_same_pagemap`.
    All,
}

/// How a migration is to be done.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    /// For how many jiffies the pages stay even if a CPU faults on them.
    pub(crate) timeslice: usize,
    /// What moves.
    pub(crate) sources: Sources,
}

/// A migration of a span of one VMA to the memory of a pagemap. The allocation is not released as long as it is
/// kept.
pub(crate) struct Move<'a> {
    pagemap: &'a Pagemap,
    options: Options,
    span: Range<usize>,
    /// The frame for each page of the span, once there is memory: [`NO_FRAME`] for one that has none.
    frames: KVVec<usize>,
    found: Collected,
    copies: Option<Copies<'a>>,
    memory: Memory,
}

/// The device memory of a migration.
enum Memory {
    /// There is none yet.
    None(Vacant),
    /// There is what the folios carry.
    Some(Arc<Zdd>),
    /// It was to be allocated, and that failed.
    Failed,
}

impl<'a> Move<'a> {
    /// Allocates what is needed besides the memory of the device. Fails with `EINVAL` if the span is not
    /// page-aligned, or empty, and `ENOMEM`. Sleeps.
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
            found: Collected::new(pages)?,
            copies: Some(Copies::new(pagemap, pages)?),
            memory: Memory::None(Vacant::new()?),
        })
    }

    /// What comes of it if nothing moves as somebody changed the memory meanwhile.
    pub(crate) fn raced(&self) -> Moved {
        Moved {
            left: self.span.len(),
            raced: self.span.len(),
            ..Moved::default()
        }
    }

    /// Moves what is in the span. Without memory, that is allocated by `target`, which must not wait; none is
    /// returned if it has none without, and then everything is where it was. After
    /// [`allocate`](Self::allocate) this is to be called once more.
    ///
    /// Sleeps; calls MMU notifiers. Errors, after which everything is where it was:
    /// - `EINVAL`: the span is not within the VMA;
    /// - `EFAULT`: the device cannot reach a page of RAM;
    /// - `ENOMEM`, or an error of the provider's.
    ///
    /// # Safety
    ///
    /// The mmap lock of the VMA's mm must be held; `target` must keep what its type says.
    pub(crate) unsafe fn run(
        &mut self,
        vma: &VmaRef,
        target: &mut Target<'_>,
    ) -> Result<Option<Moved>> {
        if self.span.start < vma.start() || self.span.end > vma.end() {
            return Err(EINVAL);
        }
        if let Some(why) = fixed(vma) {
            kernel_ext::debug!(
                "memory at {:#x?} does not move to a device: {why}",
                self.span
            );
            return Ok(Some(self.fixed()));
        }
        let huge = if are_huge_pages_allowed() {
            Huge::Whole
        } else {
            Huge::Split
        };
        // SAFETY: By this function's requirements.
        let Some(mut migration) = unsafe { self.collect(vma, huge) }? else {
            return Ok(Some(self.fixed()));
        };
        if self.found.pieces.is_empty() {
            return Ok(Some(self.found.nothing()));
        }
        if matches!(self.memory, Memory::None(_)) && !self.fill(vma.mm(), target)? {
            return Ok(None);
        }
        let Memory::Some(zdd) = &self.memory else {
            return Err(EINVAL);
        };
        let zdd = zdd.clone();
        if self
            .found
            .pieces
            .iter()
            .any(|piece| !piece.fits(&self.frames))
        {
            // The memory is in pieces, and so the folio has to be.
            drop(migration);
            // SAFETY: By this function's requirements.
            migration = match unsafe { self.collect(vma, Huge::Split) }? {
                Some(migration) => migration,
                None => return Ok(Some(self.fixed())),
            };
        }
        let wanted: usize = self.found.pieces.iter().map(MigrationUnit::pages).sum();
        // What came to be collected now, and was not when the memory was allocated, has none.
        self.found
            .pieces
            .retain(|piece| piece.has_memory(&self.frames));
        let nothing = self.found.nothing();
        let mut copies = self.copies.take().ok_or(EINVAL)?;
        let (mut copied, mut unreachable) = (0, 0);
        for piece in &self.found.pieces {
            // SAFETY: By what `Target` says; the piece is the migration's.
            let prepared = unsafe { copies.prepare(&zdd, &mut migration, &self.frames, piece) }?;
            copied += prepared.copied;
            unreachable += prepared.unreachable;
        }
        copies.run(zdd.allocation())?;
        drop(copies);

        zdd.allocation().begin_timeslice(self.options.timeslice);
        let moved = migration.migrate();
        to_ram::retire(&migration);
        // The page tables have the device's pages from here on.
        drop(migration);
        Ok(Some(Moved {
            moved: moved << PAGE_SHIFT,
            copied: copied << PAGE_SHIFT,
            left: nothing.left - (moved << PAGE_SHIFT),
            unreachable: unreachable << PAGE_SHIFT,
            raced: (wanted - unreachable - moved) << PAGE_SHIFT,
            ..nothing
        }))
    }

    /// Allocates memory by `target` for what [`run`](Self::run) found, and had none for. No page is
    /// collected meanwhile. `mm` is the address space. Fails as `target` does.
    ///
    /// # Safety
    ///
    /// `target` must keep what its type says.
    pub(crate) unsafe fn allocate(&mut self, mm: &Mm, target: &mut Target<'_>) -> Result {
        if self.fill(mm, target)? {
            Ok(())
        } else {
            Err(ENOMEM)
        }
    }

    /// Has memory allocated for what was collected; whether there is any now.
    fn fill(&mut self, mm: &Mm, target: &mut Target<'_>) -> Result<bool> {
        let request = AllocRequest {
            mm,
            pieces: &self.found.pieces,
        };
        let Some(allocation) = target(&request, &mut self.frames)? else {
            return Ok(false);
        };
        if let Memory::None(vacant) = mem::replace(&mut self.memory, Memory::Failed) {
            // SAFETY: The reference was handed over.
            self.memory = Memory::Some(unsafe { vacant.fill(allocation, self.pagemap) });
        }
        Ok(true)
    }

    /// Collects what is in the span, and looks at it; none if KSM has one of the pages. Fails as
    /// [`Migration::collect`] does.
    ///
    /// # Safety
    ///
    /// As for [`run`](Self::run); the span must be within the VMA.
    unsafe fn collect<'v>(&mut self, vma: &'v VmaRef, huge: Huge) -> Result<Option<Migration<'v>>> {
        // What is not to move is not collected either: each page would be taken from all page tables, and
        // put back.
        let select = match self.options.sources {
            Sources::Populated | Sources::System => Select::System,
            Sources::Devices | Sources::All => Select::Any,
        };
        let owner = self.pagemap.owner_ptr();
        // SAFETY: By this function's requirements.
        let migration = match unsafe {
            Migration::collect(vma, self.span.clone(), select, huge, owner, None)
        } {
            Err(e) if e == EBUSY => return Ok(None),
            done => done?,
        };
        self.found
            .look(&migration, self.pagemap, self.options.sources)?;
        Ok(Some(migration))
    }

    /// What comes of it if the memory is of a kind that cannot move.
    fn fixed(&self) -> Moved {
        Moved {
            left: self.span.len(),
            ..Moved::default()
        }
    }
}

/// No frame of a device's: that is the first of RAM.
const NO_FRAME: usize = 0;

/// What was collected, as a migration to a device sees it.
struct Collected {
    /// The number of pages of the span.
    pages: usize,
    /// What is to move, in the order of addresses.
    pieces: KVVec<MigrationUnit>,
    /// How many pages were never written, and are not to move.
    holes: usize,
    /// How many pages are on the device already, and stay as they are.
    local: usize,
}

impl Collected {
    /// Nothing yet, of a span of `pages` pages. Fails with `ENOMEM`.
    fn new(pages: usize) -> Result<Self> {
        Ok(Self {
            pages,
            pieces: KVVec::with_capacity(pages, GFP_KERNEL)?,
            holes: 0,
            local: 0,
        })
    }

    /// Looks at what was collected, and forgets what was before.
    fn look(&mut self, migration: &Migration<'_>, pagemap: &Pagemap, sources: Sources) -> Result {
        self.pieces.clear();
        (self.holes, self.local) = (0, 0);
        for (index, entry) in migration.entries().iter().enumerate() {
            // SAFETY: The entry is the migration's.
            let source = match unsafe { look(*entry, pagemap) } {
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
                EntryKind::Fixed => continue,
            };
            let order = if entry.is_huge() { HUGE_ORDER } else { 0 };
            self.pieces.push(
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

    /// What came of it if nothing moves.
    fn nothing(&self) -> Moved {
        Moved {
            holes: self.holes << PAGE_SHIFT,
            local: self.local << PAGE_SHIFT,
            left: self.pages.saturating_sub(self.local + self.holes) << PAGE_SHIFT,
            ..Moved::default()
        }
    }
}

/// Whether huge pages of RAM become huge pages of device memory. If not, they are split, and become as
/// many small ones, next to each other where the provider has them so.
static HUGE_PAGES_ALLOWED: Atomic<bool> = Atomic::new(false);

/// Sets whether huge pages may move as such, from now on.
///
/// They should not, on a kernel where `zap_huge_pmd()` takes the entry of a migration under way for a
/// mapping, if the folio is a device's (7.3 does): a process that unmaps a huge page while it comes
/// back has the folio freed under the migration.
pub fn allow_huge_pages(allow: bool) {
    HUGE_PAGES_ALLOWED.store(allow, Relaxed);
}

/// Whether they may.
fn are_huge_pages_allowed() -> bool {
    HUGE_PAGES_ALLOWED.load(Relaxed)
}

/// Why the pages of a VMA never move to a device; none if they may.
fn fixed(vma: &VmaRef) -> Option<&'static str> {
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
        // A page that KSM is about to merge is in no list yet by which its places in page tables are found;
        // what 7.3's `migrate_vma_setup()` writes there while it has the page would stay for ever.
        Some("KSM may merge it")
    } else if has(ext::KEXT_VM_LOCKED) {
        // It is to stay in RAM. Besides, 7.3 counts what is on a device as locked, and still does so when it
        // is not any more: `mlock_pte_range()` passes by what is not present.
        Some("it is locked")
    } else if is_tracked {
        // What userfaultfd protects is not protected against devices where it is a device's.
        Some("userfaultfd tracks accesses to it")
    } else {
        None
    }
}

/// What is found at a place.
enum EntryKind {
    /// Nothing that can be moved.
    Fixed,
    /// A page that is on the device.
    Local(NonNull<page>),
    /// Something that can be.
    Movable(Source),
}

/// What an entry of a migration to `pagemap` is.
///
/// # Safety
///
/// The migration must be there.
unsafe fn look(entry: Entry, pagemap: &Pagemap) -> EntryKind {
    if !entry.is_migrating() {
        return EntryKind::Fixed;
    }
    let Some(page) = entry.page() else {
        return EntryKind::Movable(Source::Nowhere);
    };
    // SAFETY: The migration holds the page. What is a pagemap's of the core carries what `Zdd` says.
    unsafe {
        if !zone_device::is_device_private(page) {
            return EntryKind::Movable(Source::Ram(page));
        }
        match zdd::find_pagemap(page) {
            None => EntryKind::Fixed,
            Some(known) if ptr::eq(known, pagemap) => EntryKind::Local(page),
            Some(_) => EntryKind::Movable(Source::Device(page)),
        }
    }
}
