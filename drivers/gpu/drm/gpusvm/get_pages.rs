// SPDX-License-Identifier: GPL-2.0

//! Maps the pages of a range for its devices: one walk of the CPU's page tables, one
//! transaction.
//!
//! The transaction maps pages under the notifier lock: an invalidation of a page that was mapped waits for
//! the lock. The transaction drops the lock after every [`BATCH`] segments, so that a thread that waits for the lock
//! for writing (any `munmap()` of the process) waits for a bounded time, whatever the size of the range. If the range
//! is invalidated in between, the notifier callback unmaps the segments mapped so far; the transaction detects that and
//! fails with `EAGAIN`. A transaction that is dropped without a commit unmaps its segments.
//!
//! Pages of device memory are mapped by their pagemap, to which the pages object then holds a reference. Where
//! userfaultfd tracks accesses, such pages are first migrated to RAM: the page-table entries of device memory do not
//! say, on 7.3, which accesses are tracked.
//!
//! C: `drm_gpusvm_get_pages()`.

use crate::{
    ctx::{Access, Ctx},
    flags::PagesFlag,
    pagemap,
    pages::{Pages, PagesMapper},
    retry::Attempt,
    scan::first_vma,
    segment::SegmentArray,
    svm::GpuSvm, //
};
use core::{
    ops::Range,
    ptr::{self, NonNull},
};
use kernel::{
    bindings::page,
    mm::{Mm, MmWithUser},
    page::PAGE_SHIFT,
    prelude::*, //
};
use kernel_ext::{
    bindings as ext,
    dma::Direction,
    mm::{
        hmm::{
            Blocks,
            PfnBlock,
            ResolvedPage,
            Walk, //
        },
        live_mm,
        mmap_lock::MmapReadGuard,
        mmu_notifier::MmuIntervalNotifier,
        zone_device::HUGE_PAGES, //
    },
    sync::rwsem::ReadGuard, //
};

/// The number of segments that are mapped before the notifier lock is dropped and taken again.
pub const BATCH: usize = 64;

/// The memory to be mapped, and its notifier.
pub struct Source<'a> {
    /// The SVM whose notifier lock is taken.
    pub svm: &'a GpuSvm,
    /// The process.
    pub mm: &'a Mm,
    /// The notifier; its interval includes `span`.
    pub notifier: &'a MmuIntervalNotifier,
    /// Addresses, in bytes; page-aligned.
    pub span: Range<usize>,
}

impl Source<'_> {
    /// Maps the memory for the device of each of `pages`: all of them or none.
    ///
    /// If they are mapped for the access already, does nothing and walks no page table. Otherwise uses the result of
    /// `walk` if it meets the request, and walks the page tables if not. Takes the mmap lock.
    ///
    /// Errors, after which nothing is mapped:
    /// - `EAGAIN`: the CPU changed its mappings meanwhile; try again;
    /// - `EBUSY`: the CPU kept changing its mappings until the time-out of `attempt` expired;
    /// - `EFAULT`: a page cannot be faulted in, the range was unmapped, the SVM is shut, the process is gone or
    ///   exiting, or the device cannot reach a page;
    /// - `EPERM`: a page may not be written;
    /// - `EOPNOTSUPP`: a page of a kind that cannot be mapped, such as another device's memory;
    /// - `EINTR`: the thread is being killed;
    /// - `ENOMEM`.
    ///
    /// # Safety
    ///
    /// The caller must hold the lock that serializes changes of the pages (the driver's SVM lock)
    /// and not the notifier lock. `self.notifier` must be inserted, and its callback must unmap all of
    /// `pages` with the notifier lock held for writing. Pages that are valid, but not for the
    /// access, must have been invalidated before.
    pub unsafe fn get(
        &self,
        pages: &[Pages],
        ctx: &Ctx,
        attempt: &Attempt<'_>,
        walk: &mut Walk,
    ) -> Result {
        self.svm.assert_driver_lock();
        let mm = live_mm::get(self.mm, self.step())?;
        {
            let lock = self.svm.read_lock();
            // SAFETY: The notifier lock is held.
            if unsafe { self.check(&lock, pages, ctx) }? {
                // An invalidation of another part of the notifier's span changed the number.
                let seq = self.notifier.seq();
                pages.iter().for_each(|pages| pages.set_seq(seq));
                return Ok(());
            }
        }
        if !walk.answers(&self.span, ctx.access.into(), ctx.owner()) {
            // SAFETY: The notifier is inserted, includes the span, and the process has users.
            unsafe {
                walk.fault(
                    self.notifier,
                    &self.span,
                    ctx.access.into(),
                    ctx.owner(),
                    attempt.timeout(),
                )
            }?;
        }
        // HMM accepts a device-private page of the owner that is not writable, for instance one that is shared with a
        // child. A write fault of the CPU migrates such a page to RAM and makes it writable.
        if ctx.access == Access::Write
            && !ctx.owner().is_null()
            && !walk.pfns().iter().all(|pfn| pfn.is_writable())
        {
            // SAFETY: As above.
            unsafe { self.walk_in_ram(ctx, attempt, walk) }?;
        }
        drop(mm);

        // SAFETY: As this function requires.
        let mut result = unsafe { self.map(pages, ctx, walk, None) };
        if matches!(result, Err(Stop::Unchecked)) {
            let mm = live_mm::get(self.mm, self.step())?;
            // This check comes after the walk: a thread that starts to track accesses later invalidates the addresses
            // that it protects, and so the walk.
            let untracked = self.check_tracking(&mm)?;
            if untracked.is_none() {
                kernel_ext::debug!(
                    "accesses to {:#x?} are tracked: migrating it to RAM",
                    self.span
                );
                // SAFETY: The notifier is inserted, includes the span, and the process has users.
                unsafe { self.walk_in_ram(ctx, attempt, walk) }?;
            }
            drop(mm);
            // SAFETY: As this function requires.
            result = unsafe { self.map(pages, ctx, walk, untracked) };
        }
        // The result of the walk is used once.
        walk.forget();
        match result {
            Ok(()) => Ok(()),
            Err(Stop::Error(e)) => Err(e),
            Err(Stop::Unchecked) => Err(EAGAIN),
        }
    }

    /// Returns how many pages one step may allocate for the process, for [`live_mm::get`]: at most a
    /// huge page. The pages of a larger span have been faulted in before, except for those that the
    /// CPU took away meanwhile.
    fn step(&self) -> usize {
        (self.span.len() >> PAGE_SHIFT).min(HUGE_PAGES)
    }

    /// Walks the page tables, and migrates device-private pages to RAM by faults of the CPU.
    ///
    /// # Safety
    ///
    /// As for [`get`](Self::get), with a process that has users.
    unsafe fn walk_in_ram(&self, ctx: &Ctx, attempt: &Attempt<'_>, walk: &mut Walk) -> Result {
        // SAFETY: The caller guarantees that the notifier is inserted and the process has users; the notifier
        // includes the span.
        unsafe {
            walk.fault(
                self.notifier,
                &self.span,
                ctx.access.into(),
                ptr::null_mut(),
                attempt.timeout(),
            )
        }
    }

    /// Checks that userfaultfd tracks no accesses to the span at this time, so that device memory may be mapped. Takes
    /// the mmap lock; fails with `EINTR` if the thread is being killed.
    fn check_tracking(&self, mm: &MmWithUser) -> Result<Option<Untracked>> {
        let mmap = MmapReadGuard::lock_killable(mm)?;
        let mut rest = self.span.clone();
        while let Some(vma) = first_vma(&mmap, mm, rest.clone()) {
            // SAFETY: The VMA is valid while the mmap lock is held.
            if unsafe { ext::vma_is_tracked(vma.as_ptr()) } {
                return Ok(None);
            }
            rest.start = vma.end();
        }
        Ok(Some(Untracked(())))
    }

    /// Whether all of `pages` are mapped for the access already. Fails with `EFAULT` if they may not be mapped.
    ///
    /// # Safety
    ///
    /// `_lock` must be the notifier lock.
    unsafe fn check(&self, _lock: &ReadGuard<'_>, pages: &[Pages], ctx: &Ctx) -> Result<bool> {
        if self.svm.is_shut() || pages.iter().any(|pages| pages.has(PagesFlag::Unmapped)) {
            return Err(EFAULT);
        }
        Ok(pages
            .iter()
            // SAFETY: The notifier lock is held.
            .all(|pages| unsafe { pages.is_valid_for(ctx.access) }))
    }

    /// Runs the transaction. Fails with [`Stop::Unchecked`] at device memory if `untracked` is none.
    ///
    /// # Safety
    ///
    /// As for [`get`](Self::get).
    unsafe fn map(
        &self,
        pages: &[Pages],
        ctx: &Ctx,
        walk: &Walk,
        untracked: Option<Untracked>,
    ) -> Result<(), Stop> {
        let room = walk.blocks().count();
        // Declared before the transaction, and so dropped after it: replaced arrays are freed without locks held.
        let mut arrays = Arrays::new(pages.len(), room)?;
        let mut transaction = Transaction {
            source: self,
            pages,
            room,
            done: 0,
            committed: false,
            untracked,
            lock: Some(self.svm.read_lock()),
        };
        // SAFETY: The caller holds the SVM lock, the transaction the notifier lock, here and below.
        if unsafe { transaction.check(ctx) }? || self.notifier.read_retry(walk.seq()) {
            return Err(EAGAIN.into());
        }
        // Device memory needs no IOVA space. A range with device memory mostly starts with it.
        let reserve = walk
            .blocks()
            .next()
            // SAFETY: The walk is valid while the notifier lock is held.
            .is_some_and(|block| !unsafe { ext::is_zone_device_page(block.pfn.page()) });
        if !reserve && transaction.untracked.is_none() {
            return Err(Stop::Unchecked);
        }
        for (pages, array) in pages.iter().zip(arrays.as_mut_slice()) {
            // SAFETY: Both locks are held. Pages that are not valid have no segments, as there is no other
            // transaction; pages that are valid for another access were invalidated.
            unsafe {
                pages.unmap();
                pages.install(array);
                if reserve {
                    pages.reserve(self.span.end - self.span.start);
                }
            }
        }
        let mut blocks = walk.blocks();
        loop {
            // SAFETY: As above. The walk is valid, as the notifier lock is held and the span was not invalidated
            // since the walk.
            unsafe { transaction.map(&mut blocks, ctx) }?;
            if transaction.done == room {
                break;
            }
            // SAFETY: As above.
            unsafe { transaction.relock() }?;
        }
        // SAFETY: As above; all blocks are mapped.
        let result = unsafe { transaction.commit(walk.seq()) };
        drop(transaction);
        Ok(result?)
    }
}

/// Proof that userfaultfd tracked no accesses to the memory of a walk at a time after the walk. If it does so now, the
/// walk is not valid any more.
struct Untracked(());

/// Why a transaction failed.
enum Stop {
    /// With an error.
    Error(Error),
    /// There is device memory, and it was not checked whether accesses to it are tracked.
    Unchecked,
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Self::Error(e)
    }
}

/// One array for each pages object of a transaction.
enum Arrays {
    One(Option<SegmentArray>),
    Many(KVec<Option<SegmentArray>>),
}

impl Arrays {
    /// Allocates `count` arrays, each for `segments` segments. Fails with `ENOMEM`.
    fn new(count: usize, segments: usize) -> Result<Self> {
        if count == 1 {
            return Ok(Self::One(Some(SegmentArray::new(segments)?)));
        }
        let mut arrays = KVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            arrays.push(Some(SegmentArray::new(segments)?), GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self::Many(arrays))
    }

    fn as_mut_slice(&mut self) -> &mut [Option<SegmentArray>] {
        match self {
            Self::One(array) => core::slice::from_mut(array),
            Self::Many(arrays) => arrays,
        }
    }
}

/// Pages that are being mapped. Dropping the transaction unmaps them, unless it was committed.
struct Transaction<'a> {
    source: &'a Source<'a>,
    pages: &'a [Pages],
    /// The number of blocks, and the capacity of the arrays of `pages`.
    room: usize,
    /// The number of blocks that are mapped, for each of `pages`.
    done: usize,
    committed: bool,
    /// Whether device memory may be mapped.
    untracked: Option<Untracked>,
    /// The notifier lock; none only inside `relock()`.
    lock: Option<ReadGuard<'a>>,
}

impl Transaction<'_> {
    /// As [`Source::check`].
    ///
    /// # Safety
    ///
    /// As for [`Source::get`], with the notifier lock held for reading.
    unsafe fn check(&self, ctx: &Ctx) -> Result<bool> {
        match &self.lock {
            // SAFETY: The notifier lock is held.
            Some(lock) => unsafe { self.source.check(lock, self.pages, ctx) },
            None => Err(EAGAIN),
        }
    }

    /// Maps the next [`BATCH`] of `blocks`, or the rest of them, for each device.
    ///
    /// # Safety
    ///
    /// As for [`Source::get`], with the notifier lock held for reading. All pages must have an array
    /// installed.
    unsafe fn map(&mut self, blocks: &mut Blocks<'_>, ctx: &Ctx) -> Result<(), Stop> {
        let first = blocks.clone();
        for pages in self.pages {
            let mut batch = first.clone();
            // SAFETY: By this function's requirements.
            let mut mapping = unsafe { pages.mapper(self.room) }?;
            let mut refused = refuses_system(ctx, &mapping);
            for block in batch.by_ref().take(BATCH) {
                // SAFETY: The CPU maps the page and it stays allocated: the thread that unmaps it calls the notifier
                // callback first, which waits for the notifier lock; truncation of a file unmaps its pages first.
                let resolved = unsafe { block.pfn.resolve(ctx.access == Access::Write) };
                let (page, dir) = (resolved.page(), direction(resolved));
                if resolved.is_zone_device() {
                    let untracked = self.untracked.as_ref().ok_or(Stop::Unchecked)?;
                    // SAFETY: As above.
                    unsafe { map_device(&mut mapping, &block, page, dir, ctx, untracked) }?;
                    refused = refuses_system(ctx, &mapping);
                    continue;
                }
                if let Some(error) = refused {
                    return Err(error.into());
                }
                // SAFETY: As above.
                unsafe { mapping.system(&block, page, dir) }?;
            }
            *blocks = batch;
        }
        self.done = (self.done + BATCH).min(self.room);
        Ok(())
    }

    /// Drops the lock and takes it again. Fails with `EAGAIN` if the range was invalidated meanwhile.
    ///
    /// # Safety
    ///
    /// As for [`Source::get`], with the notifier lock held for reading.
    unsafe fn relock(&mut self) -> Result {
        self.lock = None;
        self.lock = Some(self.source.svm.read_lock());
        for pages in self.pages {
            if pages.has(PagesFlag::Unmapped) {
                return Err(EAGAIN);
            }
            // An invalidation of the range unmaps all segments: if they are still mapped, there was none. An
            // invalidation elsewhere in the notifier's interval does not matter here.
            // SAFETY: The notifier lock is held.
            if unsafe { pages.mapped() }.len() != self.done {
                return Err(EAGAIN);
            }
        }
        Ok(())
    }

    /// Makes the pages valid.
    ///
    /// # Safety
    ///
    /// As for [`Source::get`], with the notifier lock held for reading.
    unsafe fn commit(&mut self, seq: usize) -> Result {
        for pages in self.pages {
            // SAFETY: By this function's requirements; all blocks are mapped.
            unsafe { pages.finish(seq) }?;
        }
        self.committed = true;
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if self.lock.is_none() {
            self.lock = Some(self.source.svm.read_lock());
        }
        for pages in self.pages {
            // SAFETY: The driver's SVM lock and the notifier lock are held. The driver has not seen the addresses,
            // as the pages were not valid.
            unsafe { pages.unmap() };
        }
    }
}

/// Returns the error for a block of system memory, if `ctx` does not allow to map one next.
fn refuses_system(ctx: &Ctx, mapping: &PagesMapper<'_>) -> Option<Error> {
    if ctx.devmem_only {
        Some(EFAULT)
    } else if !ctx.allow_mixed && mapping.has_device_memory() {
        Some(EOPNOTSUPP)
    } else {
        None
    }
}

/// Maps a block of device memory. The pagemap maps pages of the walk's owner; other pages fail with
/// `EOPNOTSUPP`.
///
/// # Safety
///
/// `page` must be the first of `block`, which is as [`PagesMapper::system`] requires.
#[cold]
unsafe fn map_device(
    mapping: &mut PagesMapper<'_>,
    block: &PfnBlock,
    page: *mut page,
    dir: Direction,
    ctx: &Ctx,
    _untracked: &Untracked,
) -> Result {
    let page = NonNull::new(page).ok_or(EINVAL)?;
    // SAFETY: The caller guarantees that the CPU maps the page.
    let pagemap = unsafe { pagemap::of_page(page) };
    let Some(pagemap) = pagemap.filter(|pagemap| pagemap.owner_ptr() == ctx.owner()) else {
        kernel_ext::debug!("page {} is memory of another device", block.index);
        return Err(EOPNOTSUPP);
    };
    if !ctx.allow_mixed && block.index != 0 && !mapping.has_device_memory() {
        return Err(EOPNOTSUPP);
    }
    // SAFETY: By this function's requirements.
    unsafe { mapping.device(block, page, pagemap, dir) }
}

/// Returns the access that the devices get to a page: that of the CPU's mapping, but no write access if reclaim could
/// drop the page with a device's stores.
///
/// A store by a device does not set the dirty bit of the CPU's page-table entry, so that the page is marked dirty when
/// it is mapped for writing. A mapping for reading does not mark a file's page dirty: a clean one is mapped read-only,
/// and a store faults. The thread that cleans a page invalidates it first.
#[inline]
fn direction(page: ResolvedPage) -> Direction {
    if page.keeps_stores() {
        Direction::Bidirectional
    } else {
        Direction::ToDevice
    }
}
