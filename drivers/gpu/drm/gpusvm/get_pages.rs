// SPDX-License-Identifier: GPL-2.0

//! PagesMapper the pages of a range for its devices: one walk of the CPU's page tables, one
//! transaction.
//!
//! The transaction maps under the notifier lock, so that a page is either known to be the CPU's
//! still, or its invalidation waits. It lets the lock go after every [`BATCH`] segments, so that a
//! writer (any `munmap()` of the process) waits a bounded time, whatever the range's size. Whoever
//! invalidates the range in between undoes what was mapped so far; the transaction sees that and
//! begins anew. Not committed, it undoes the rest itself.
//!
//! Pages of a device's memory are mapped by its pagemap, which the pages object then keeps. Where
//! userfaultfd tracks accesses, they are brought back to RAM first: for RAM the CPU's page tables say what
//! may be accessed without telling, and for device memory, on 7.3, they do not.
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
        mmu_notifier::MmuIntervalNotifier, //
    },
    sync::rwsem::ReadGuard, //
};

/// How many segments are mapped in one hold of the notifier lock.
pub const BATCH: usize = 64;

/// The memory to be mapped, and who is told when the CPU changes its mappings of it.
pub struct Source<'a> {
    /// The SVM whose notifier lock is taken.
    pub svm: &'a GpuSvm,
    /// The process.
    pub mm: &'a Mm,
    /// Watches `span`.
    pub notifier: &'a MmuIntervalNotifier,
    /// Addresses, in bytes; page-aligned.
    pub span: Range<usize>,
}

impl Source<'_> {
    /// Maps the memory for the device of each of `pages`: all of them or none.
    ///
    /// Does nothing for pages that are mapped for the access already; then no page table is
    /// walked. Otherwise `walk` is used if it has the answer, and made anew if not. Takes the mmap
    /// lock.
    ///
    /// Errors, after which nothing is mapped:
    /// - `EAGAIN`: the CPU changed its mappings meanwhile; try again;
    /// - `EBUSY`: it kept doing so until the time of `attempt` was spent;
    /// - `EFAULT`: a page cannot be had, the pages are retired, the SVM is shut, the process is gone or exiting,
    ///   or the device cannot reach a page;
    /// - `EPERM`: a page may not be written;
    /// - `EOPNOTSUPP`: a page of a kind that cannot be mapped, such as another device's memory;
    /// - `EINTR`: the thread is being killed;
    /// - `ENOMEM`.
    ///
    /// # Safety
    ///
    /// The caller must hold the lock that serializes changes of the pages (the driver's SVM lock)
    /// and not the notifier lock. `self.notifier` must be inserted, and its callback unmap all of
    /// `pages` under the notifier lock, held for writing. Pages that are valid, but not for the
    /// access, must have been invalidated before.
    pub unsafe fn get(
        &self,
        pages: &[Pages],
        ctx: &Ctx,
        attempt: &Attempt<'_>,
        walk: &mut Walk,
    ) -> Result {
        self.svm.assert_driver_lock();
        let mm = live_mm::get(self.mm, self.span.len() >> PAGE_SHIFT)?;
        {
            let lock = self.svm.read_lock();
            // SAFETY: The notifier lock is held.
            if unsafe { self.check(&lock, pages, ctx) }? {
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
        // A page of the owner's is taken as it is, even one that may not be written: shared with a
        // child, say. What breaks that is a fault of the CPU, which brings the page back.
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
        if matches!(result, Err(Stop::Look)) {
            let mm = live_mm::get(self.mm, self.span.len() >> PAGE_SHIFT)?;
            // The look is taken after the walk: who begins to track accesses later invalidates what he
            // protects, and so the walk.
            let untracked = self.look(&mm);
            if untracked.is_none() {
                kernel_ext::debug!(
                    "accesses to {:#x?} are tracked: it comes back from the device",
                    self.span
                );
                // SAFETY: The notifier is inserted, includes the span, and the process has users.
                unsafe { self.walk_in_ram(ctx, attempt, walk) }?;
            }
            drop(mm);
            // SAFETY: As this function requires.
            result = unsafe { self.map(pages, ctx, walk, untracked) };
        }
        // Whatever came of it, the walk is history.
        walk.forget();
        match result {
            Ok(()) => Ok(()),
            Err(Stop::Error(e)) => Err(e),
            Err(Stop::Look) => Err(EAGAIN),
        }
    }

    /// Walks the page tables, with all that is on a device brought back by faults of the CPU.
    ///
    /// # Safety
    ///
    /// As for [`get`](Self::get), with a process that has users.
    unsafe fn walk_in_ram(&self, ctx: &Ctx, attempt: &Attempt<'_>, walk: &mut Walk) -> Result {
        // SAFETY: By this function's requirements; the notifier includes the span.
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

    /// Looks whether device memory may be mapped: nobody tracks accesses to the span just now. Takes the
    /// mmap lock.
    fn look(&self, mm: &MmWithUser) -> Option<Untracked> {
        let mmap = mm.mmap_read_lock();
        let mut rest = self.span.clone();
        while let Some(vma) = first_vma(&mmap, mm, rest.clone()) {
            // SAFETY: The VMA is valid.
            if unsafe { ext::vma_is_tracked(vma.as_ptr()) } {
                return None;
            }
            rest.start = vma.end();
        }
        Some(Untracked(()))
    }

    /// Whether all of `pages` are mapped for the access already; an error if they may not be.
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

    /// The transaction. Stops at device memory of which it is not known that it may be mapped.
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
        // Goes after the transaction: what is replaced is freed when all locks are gone.
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
        // SAFETY: Locked as required, here and below.
        if unsafe { transaction.check(ctx) }? || self.notifier.read_retry(walk.seq()) {
            return Err(EAGAIN.into());
        }
        // Device memory needs no addresses of the IOMMU's. Where there is any, it mostly comes first.
        let reserve = walk
            .blocks()
            .next()
            // SAFETY: The walk is valid, and stays so as the notifier lock is held.
            .is_some_and(|block| !unsafe { ext::is_zone_device_page(block.pfn.page()) });
        if !reserve && transaction.untracked.is_none() {
            return Err(Stop::Look);
        }
        for (pages, array) in pages.iter().zip(arrays.as_mut_slice()) {
            // SAFETY: Both locks are held; pages that are not valid have nothing mapped, as no
            // transaction is under way, and those that are were invalidated.
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
            // SAFETY: As above; the walk is valid, as the notifier lock is held and nothing of the
            // span was invalidated since.
            unsafe { transaction.map(&mut blocks, ctx) }?;
            if transaction.done == room {
                break;
            }
            // SAFETY: As above.
            unsafe { transaction.breathe() }?;
        }
        // SAFETY: As above; all blocks are mapped.
        let result = unsafe { transaction.commit(walk.seq()) };
        drop(transaction);
        Ok(result?)
    }
}

/// Says that nobody tracked accesses to the memory of a walk by userfaultfd after it was done. If somebody
/// does by now, the walk is not valid any more.
struct Untracked(());

/// Why a transaction was not done.
enum Stop {
    /// It failed.
    Error(Error),
    /// There is device memory, and nobody has looked whether it may be mapped.
    Look,
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Self::Error(e)
    }
}

/// An array for each of the pages objects of a transaction.
enum Arrays {
    One(Option<SegmentArray>),
    Many(KVec<Option<SegmentArray>>),
}

impl Arrays {
    /// `count` arrays, each for `segments` segments.
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

/// Pages that are being mapped. Dropped, it undoes what it did, unless committed.
struct Transaction<'a> {
    source: &'a Source<'a>,
    pages: &'a [Pages],
    /// How many blocks there are, for which the arrays of `pages` were made.
    room: usize,
    /// How many of them are mapped, for each of `pages`.
    done: usize,
    committed: bool,
    /// Whether device memory may be mapped.
    untracked: Option<Untracked>,
    /// The notifier lock; always there but inside `breathe()`.
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

    /// Maps the next [`BATCH`] of `blocks`, or what is left of them, for each device.
    ///
    /// # Safety
    ///
    /// As for [`Source::get`], with the notifier lock held for reading. An array must have been
    /// installed in all pages.
    unsafe fn map(&mut self, blocks: &mut Blocks<'_>, ctx: &Ctx) -> Result<(), Stop> {
        let first = blocks.clone();
        for pages in self.pages {
            let mut batch = first.clone();
            // SAFETY: By this function's requirements.
            let mut mapping = unsafe { pages.mapper(self.room) }?;
            let mut refused = refuses_system(ctx, &mapping);
            for block in batch.by_ref().take(BATCH) {
                // SAFETY: The CPU has the page mapped and it stays allocated: the thread that takes it away
                // invalidates it, and waits for the notifier lock; nor can a file be truncated under it, as
                // that unmaps it first.
                let resolved = unsafe { block.pfn.resolve(ctx.access == Access::Write) };
                let (page, dir) = (resolved.page(), direction(resolved));
                if resolved.is_zone_device() {
                    let untracked = self.untracked.as_ref().ok_or(Stop::Look)?;
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

    /// Lets the lock go for a moment. Fails with `EAGAIN` if the range was invalidated meanwhile.
    ///
    /// # Safety
    ///
    /// As for [`Source::get`], with the notifier lock held for reading.
    unsafe fn breathe(&mut self) -> Result {
        self.lock = None;
        self.lock = Some(self.source.svm.read_lock());
        for pages in self.pages {
            if pages.has(PagesFlag::Unmapped) {
                return Err(EAGAIN);
            }
            // Who invalidates the range unmaps everything: if all is there still, nobody did. A
            // change elsewhere in the notifier's span does not matter here.
            // SAFETY: The notifier lock is held.
            if unsafe { pages.mapped() }.len() != self.done {
                return Err(EAGAIN);
            }
        }
        Ok(())
    }

    /// Ends the transaction well.
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
            // SAFETY: The driver's SVM lock and the notifier lock are held; the addresses were
            // shown to nobody, as the pages were not valid.
            unsafe { pages.unmap() };
        }
    }
}

/// Whether a block of system memory cannot be mapped next, and why.
fn refuses_system(ctx: &Ctx, mapping: &PagesMapper<'_>) -> Option<Error> {
    if ctx.devmem_only {
        Some(EFAULT)
    } else if !ctx.allow_mixed && mapping.has_device_memory() {
        Some(EOPNOTSUPP)
    } else {
        None
    }
}

/// Maps a block of device memory. Pages of the owner that the walk was for are their pagemap's to map;
/// all others cannot be mapped.
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
    // SAFETY: The page is the CPU's still, by this function's requirements.
    let pagemap = unsafe { pagemap::of_page(page) };
    let Some(pagemap) = pagemap.filter(|pagemap| pagemap.owner_ptr() == ctx.owner()) else {
        kernel_ext::debug!("page {} is another device's", block.index);
        return Err(EOPNOTSUPP);
    };
    if !ctx.allow_mixed && block.index != 0 && !mapping.has_device_memory() {
        return Err(EOPNOTSUPP);
    }
    // SAFETY: By this function's requirements.
    unsafe { mapping.device(block, page, pagemap, dir) }
}

/// What the devices may do with a page: as much as the CPU may without a fault, and no store that reclaim and
/// writeback do not see.
///
/// A store of a device leaves no trace in the CPU's page tables. So the page is marked dirty when it
/// is mapped for writing. A page that is mapped for reading makes no file dirty: where a store would
/// be lost it is mapped read-only, and the store faults. Whoever makes the page clean again
/// invalidates it first.
#[inline]
fn direction(page: ResolvedPage) -> Direction {
    if page.keeps_stores() {
        Direction::Bidirectional
    } else {
        Direction::ToDevice
    }
}
