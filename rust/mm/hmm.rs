// SPDX-License-Identifier: GPL-2.0

//! Heterogeneous memory management: walks of a process's page tables for a device.
//!
//! A [`Walk`] walks a span of a process's page tables, and may fault pages in. The result is a snapshot. A caller may
//! use it while it holds the lock that its invalidation callback takes, if [`MmuIntervalNotifier::read_retry`] says
//! that no invalidation came since the walk.
//!
//! This module faults pages in itself and does not call `hmm_range_fault_unlocked_timeout()`: that function restarts
//! its time-out whenever a fault drops the mmap lock, so that the process decides how long the call takes. Here
//! `hmm_range_fault()` only reads the page tables, and `handle_mm_fault()` is called for the pages that are missing.
//!
//! C header: [`include/linux/hmm.h`](srctree/include/linux/hmm.h)

mod pfn;

pub use pfn::{
    block_pages,
    Blocks,
    Pfn,
    PfnBlock,
    ResolvedPage, //
};

use crate::{
    bindings,
    mm::{
        mmap_lock::MmapReadGuard,
        mmu_notifier::MmuIntervalNotifier,
        zone_device::{
            HUGE_ORDER,
            HUGE_PAGES, //
        }, //
    },
    sched,
    time::jiffies, //
};
use core::{ffi::c_void, ops::Range, ptr};
use kernel::{
    bindings::mm_struct,
    error::to_result,
    ffi::c_ulong,
    page::PAGE_SHIFT,
    prelude::*,
    sync::atomic::{Atomic, Relaxed}, //
};

/// The number of page-table walks since the module was loaded, to map pages or to migrate them.
static WALKS: Atomic<u64> = Atomic::new(0);

/// Returns the number of walks of process page tables since the module was loaded, to map pages or to migrate them. For
/// statistics and tests.
pub fn walks() -> u64 {
    WALKS.load(Relaxed)
}

/// Counts a walk.
pub(crate) fn count_walk() {
    WALKS.fetch_add(1, Relaxed);
}

/// What a walk requires of every page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HmmRequest {
    /// Nothing; no page is faulted in.
    Snapshot,
    /// The page is present and readable. Missing pages are faulted in as by a read of the CPU.
    Read,
    /// The page is present and writable. Missing pages are faulted in as by a write of the CPU.
    Write,
}

impl HmmRequest {
    /// Returns the flags that the entry of a page of RAM has if the page is as required.
    fn flags(self) -> c_ulong {
        const VALID: c_ulong = bindings::hmm_pfn_flags_HMM_PFN_VALID as c_ulong;
        const WRITE: c_ulong = bindings::hmm_pfn_flags_HMM_PFN_WRITE as c_ulong;
        match self {
            HmmRequest::Snapshot => 0,
            HmmRequest::Read => VALID,
            HmmRequest::Write => VALID | WRITE,
        }
    }
}

/// Returns the first run of entries that do not [have](Pfn::has) `flags`: all with `HMM_PFN_ERROR` or all without.
fn first_run(pfns: &[Pfn], flags: c_ulong) -> Option<Range<usize>> {
    let is_missing = |pfn: &Pfn| !pfn.has(flags);
    let start = pfns.iter().position(is_missing)?;
    let rest = pfns.get(start..)?;
    let first = *rest.first()?;
    // The entries of a hole are equal.
    let is_alike = |pfn: &&Pfn| {
        **pfn == first || (is_missing(pfn) && pfn.is_unusable() == first.is_unusable())
    };
    let count = rest.iter().take_while(is_alike).count();
    Some(start..start + count)
}

/// Corrects the frames of the entries of a huge page. `page` is the virtual page number of the first entry.
///
/// For a huge page of device memory HMM returns the frame of its first page for the first address that it walks, even
/// if that address is in the middle of the huge page. For huge pages of RAM it returns the right frame.
fn correct_frames(pfns: &mut [Pfn], page: usize) {
    let Some(frame) = pfns.first().map(|pfn| pfn.frame()) else {
        return;
    };
    let offset = page % HUGE_PAGES;
    if frame % HUGE_PAGES == offset {
        return;
    }
    let right = frame - frame % HUGE_PAGES + offset;
    for (index, pfn) in pfns.iter_mut().enumerate() {
        *pfn = pfn.moved_to(right + index);
    }
}

/// A walk of the page tables of a span. The memory for the result is kept for the next walk.
pub struct Walk {
    pfns: KVVec<Pfn>,
    span: Range<usize>,
    owner: *mut c_void,
    seq: usize,
    request: Option<HmmRequest>,
}

impl Walk {
    /// Makes an empty walk; allocates nothing.
    pub const fn new() -> Self {
        Self {
            pfns: KVVec::new(),
            span: 0..0,
            owner: ptr::null_mut(),
            seq: 0,
            request: None,
        }
    }

    /// Discards the result.
    pub fn forget(&mut self) {
        self.request = None;
    }

    /// Returns the result of the walk: one entry for each page, from the start of the span.
    pub fn pfns(&self) -> &[Pfn] {
        if self.request.is_some() {
            &self.pfns
        } else {
            &[]
        }
    }

    /// Returns the notifier's sequence number at the time of the walk.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Whether the result, if still valid, meets `request` for `span`. The walk that chose a chunk is then used to map
    /// it, too.
    pub fn answers(&self, span: &Range<usize>, request: HmmRequest, owner: *mut c_void) -> bool {
        self.request.is_some()
            && self.span == *span
            && self.owner == owner
            && self.pfns.iter().all(|pfn| match request {
                HmmRequest::Snapshot => true,
                HmmRequest::Read => pfn.is_valid(),
                HmmRequest::Write => pfn.is_valid() && pfn.is_writable(),
            })
    }

    fn prepare(
        &mut self,
        notifier: &MmuIntervalNotifier,
        span: &Range<usize>,
        owner: *mut c_void,
    ) -> Result<bindings::hmm_range> {
        self.request = None;
        let pages = span.end.saturating_sub(span.start) >> PAGE_SHIFT;
        // HMM keeps some flags that it finds in an entry. The memory of the last walk is used again if it suffices.
        self.pfns.clear();
        // Userspace chooses the size of a userptr.
        let flags = if pages > HUGE_PAGES {
            GFP_KERNEL_ACCOUNT | __GFP_NOWARN
        } else {
            GFP_KERNEL
        };
        self.pfns.reserve(pages, flags)?;
        // SAFETY: `reserve()` made room for `pages` entries, and zeroes are an entry.
        unsafe {
            self.pfns.as_mut_ptr().write_bytes(0, pages);
            self.pfns.inc_len(pages);
        }
        self.span = span.clone();
        self.owner = owner;
        count_walk();
        Ok(bindings::hmm_range {
            notifier: notifier.as_raw(),
            notifier_seq: 0,
            start: span.start as c_ulong,
            end: span.end as c_ulong,
            hmm_pfns: self.pfns.as_mut_ptr().cast(),
            default_flags: 0,
            pfn_flags_mask: 0,
            dev_private_owner: owner,
        })
    }

    /// Records the sequence number and the request of a walk that succeeded.
    fn finish(&mut self, seq: usize, request: HmmRequest) {
        self.seq = seq;
        self.request = Some(request);
    }

    /// Returns the index of the first page after the huge-page-aligned block that contains page `index`, at most the
    /// number of pages.
    fn huge_end(&self, index: usize) -> usize {
        let page = (self.span.start >> PAGE_SHIFT) + index;
        (index + HUGE_PAGES - page % HUGE_PAGES).min(self.pfns.len())
    }

    /// Returns the pages to walk next, from index `from` on, which lie in one huge-page-aligned block.
    ///
    /// Of a whole block that is its first page only: the page's entry may be that of a huge page, and a fault on it may
    /// allocate one.
    fn next_pages(&self, from: usize) -> Range<usize> {
        let end = self.huge_end(from);
        match end - from {
            HUGE_PAGES => from..from + 1,
            _ => from..end,
        }
    }

    /// Returns the index after the pages whose entries are known, once the [next pages](Self::next_pages) were walked.
    ///
    /// If the last of them is mapped by a huge page, the entries of the rest of the block are filled in as HMM would.
    fn known_end(&mut self, walked: Range<usize>) -> usize {
        let end = self.huge_end(walked.start);
        match self.pfns.get_mut(walked.end - 1..end) {
            Some([last, others @ ..]) if last.is_valid() && last.map_order() >= HUGE_ORDER => {
                let mut pfn = *last;
                for other in others {
                    pfn = pfn.following();
                    *other = pfn;
                }
                end
            }
            _ => walked.end,
        }
    }

    /// Reads the page tables for these pages, which lie in one huge-page-aligned block.
    ///
    /// Fails with `EBUSY` if an invalidation came since the sequence number was read, and with `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `range` must be that of [`prepare`](Self::prepare). The caller must hold the mmap lock of the notifier's mm.
    #[inline(always)]
    unsafe fn read_pages(
        &mut self,
        range: &mut bindings::hmm_range,
        pages: Range<usize>,
    ) -> Result {
        range.start = (self.span.start + (pages.start << PAGE_SHIFT)) as c_ulong;
        range.end = (self.span.start + (pages.end << PAGE_SHIFT)) as c_ulong;
        let pfns = self.pfns.get_mut(pages).ok_or(EINVAL)?;
        range.hmm_pfns = pfns.as_mut_ptr().cast();
        // SAFETY: `range` is complete, its array has an entry for each page, and the caller holds the mmap lock.
        let error = unsafe { bindings::hmm_range_fault(range) };
        if error != 0 {
            return to_result(error);
        }
        match pfns.first() {
            Some(first) if first.map_order() == HUGE_ORDER => {
                correct_frames(pfns, range.start >> PAGE_SHIFT);
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns the first run of these pages that do not meet `request`, see [`first_run`].
    #[inline(always)]
    fn missing(&self, pages: Range<usize>, request: HmmRequest) -> Option<Range<usize>> {
        let flags = request.flags();
        let pfns = self.pfns.get(pages.clone())?;
        // Mostly all of them meet it. The AND of all entries says so without a branch for each.
        if pfns.iter().fold(flags, |common, pfn| common & pfn.0) == flags {
            return None;
        }
        let run = first_run(pfns, flags)?;
        Some(pages.start + run.start..pages.start + run.end)
    }

    /// Walks `span` and faults in the pages that do not meet `request`.
    ///
    /// `timeout` is in jiffies, for the whole call. After it has expired, pages are faulted in only while the first
    /// missing page is further on than in any walk before: a process that gives a page and takes it away again does not
    /// keep the call going. A single fault may sleep longer, until userfaultfd or FUSE provides the page or the thread
    /// is killed.
    ///
    /// Takes the mmap lock. Fails with `EBUSY` if the time-out has expired, `EFAULT` for a page that cannot be faulted
    /// in, `EPERM` for a page that may not be written, `EINTR` if the thread is being killed, `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `notifier` must be inserted and include `span`; its mm must have users. `owner` is null or
    /// an owner of device-private pages.
    pub unsafe fn fault(
        &mut self,
        notifier: &MmuIntervalNotifier,
        span: &Range<usize>,
        request: HmmRequest,
        owner: *mut c_void,
        timeout: usize,
    ) -> Result {
        let mut range = self.prepare(notifier, span, owner)?;
        let mut deadline = Deadline::new(timeout);
        loop {
            // SAFETY: `notifier` is inserted.
            range.notifier_seq = unsafe { notifier.read_begin() };
            // SAFETY: The notifier's mm is valid.
            let mut lock = unsafe { MmapLock::take((*notifier.as_raw()).mm) }?;
            // SAFETY: The lock is held; the caller guarantees the rest.
            match unsafe { self.fault_locked(&mut range, request, &mut lock, &mut deadline) } {
                Ok(true) => break,
                // A fault dropped the mmap lock: walk again.
                Ok(false) => {}
                Err(e) if e == EBUSY && !deadline.has_expired() => {}
                Err(e) => return Err(e),
            }
        }
        self.finish(range.notifier_seq, request);
        Ok(())
    }

    /// Walks the span and faults in missing pages until none is missing. Returns false if a fault dropped the mmap
    /// lock. Fails as [`fault`](Self::fault) does, and with `EBUSY` also if an invalidation came.
    ///
    /// # Safety
    ///
    /// As for [`read_pages`](Self::read_pages).
    unsafe fn fault_locked(
        &mut self,
        range: &mut bindings::hmm_range,
        request: HmmRequest,
        lock: &mut MmapLock,
        deadline: &mut Deadline,
    ) -> Result<bool> {
        let mut from = 0;
        while from < self.pfns.len() {
            let pages = self.next_pages(from);
            // SAFETY: By this function's requirements. The entries of earlier pages stay valid: an invalidation makes
            // the next `hmm_range_fault()` fail.
            if !unsafe { self.fault_pages(range, pages.clone(), request, lock, deadline) }? {
                return Ok(false);
            }
            from = self.known_end(pages);
            if from < self.pfns.len() {
                sched::check_killed()?;
            }
        }
        Ok(true)
    }

    /// As [`fault_locked`](Self::fault_locked), for the [next pages](Self::next_pages).
    ///
    /// # Safety
    ///
    /// As for [`read_pages`](Self::read_pages).
    unsafe fn fault_pages(
        &mut self,
        range: &mut bindings::hmm_range,
        mut pages: Range<usize>,
        request: HmmRequest,
        lock: &mut MmapLock,
        deadline: &mut Deadline,
    ) -> Result<bool> {
        loop {
            // SAFETY: By this function's requirements.
            unsafe { self.read_pages(range, pages.clone()) }?;
            let Some(mut run) = self.missing(pages.clone(), request) else {
                return Ok(true);
            };
            if !deadline.allows(run.start) {
                return Err(EBUSY);
            }
            pages.start = run.start;
            loop {
                self.fault_in(&run, request, lock)?;
                if !lock.held {
                    return Ok(false);
                }
                match self.missing(run.end..pages.end, request) {
                    Some(next) if !deadline.has_expired() => run = next,
                    Some(_) => break,
                    None => {
                        // The entries after the run are known already.
                        pages.end = run.end;
                        break;
                    }
                }
            }
        }
    }

    /// Faults in the pages of `run` that lie in the VMA of its first page. Clears `lock.held` if a fault drops the
    /// lock.
    fn fault_in(&self, run: &Range<usize>, request: HmmRequest, lock: &mut MmapLock) -> Result {
        let at = |index: usize| self.span.start + (index << PAGE_SHIFT);
        let pfns = self.pfns.get(run.clone()).ok_or(EINVAL)?;
        let unusable = pfns.first().is_some_and(|pfn| pfn.is_unusable());
        // SAFETY: The mmap lock is held; `fault_in()` clears `held` if it is dropped. `pfns` has an
        // entry for each page.
        to_result(unsafe {
            bindings::fault_in(
                lock.mm,
                at(run.start),
                at(run.end),
                pfns.as_ptr().cast(),
                request == HmmRequest::Write,
                unusable,
                &raw mut lock.held,
            )
        })
    }

    /// Walks `span` once, with the mmap lock held by the caller, and faults nothing in.
    ///
    /// Fails with `EBUSY` if an invalidation came meanwhile, `EFAULT`, `ENOMEM`.
    ///
    /// # Safety
    ///
    /// As for [`fault`](Self::fault), and `_mmap` must be of the notifier's mm.
    pub unsafe fn snapshot(
        &mut self,
        _mmap: &MmapReadGuard<'_>,
        notifier: &MmuIntervalNotifier,
        span: &Range<usize>,
        owner: *mut c_void,
    ) -> Result {
        let mut range = self.prepare(notifier, span, owner)?;
        // SAFETY: `notifier` is inserted.
        range.notifier_seq = unsafe { notifier.read_begin() };
        let mut from = 0;
        while from < self.pfns.len() {
            let pages = self.next_pages(from);
            // SAFETY: `_mmap` says that the mmap lock is held.
            unsafe { self.read_pages(&mut range, pages.clone()) }?;
            from = self.known_end(pages);
        }
        self.finish(range.notifier_seq, HmmRequest::Snapshot);
        Ok(())
    }

    /// Returns the blocks of the result in ascending order, each as large as can be mapped in one piece.
    pub fn blocks(&self) -> Blocks<'_> {
        Blocks::of(self.pfns())
    }
}

impl Default for Walk {
    fn default() -> Self {
        Self::new()
    }
}

/// The mmap lock, held for reading; a fault may drop it.
///
/// # Invariants
///
/// If `held`, this thread holds the mmap lock of `mm` for reading.
struct MmapLock {
    mm: *mut mm_struct,
    held: bool,
}

impl MmapLock {
    /// Takes the lock. Fails with `EINTR` if the thread is being killed, and with `EFAULT` if the OOM reaper unmaps the
    /// memory of the process.
    ///
    /// # Safety
    ///
    /// `mm` must be valid as long as the result.
    unsafe fn take(mm: *mut mm_struct) -> Result<Self> {
        // SAFETY: By this function's requirements.
        to_result(unsafe { bindings::mmap_read_lock_killable(mm) })?;
        // INVARIANT: `mmap_read_lock_killable()` succeeded.
        let lock = Self { mm, held: true };
        // SAFETY: As above.
        if unsafe { bindings::is_stable_address_space(mm) } {
            Ok(lock)
        } else {
            Err(EFAULT)
        }
    }
}

impl Drop for MmapLock {
    fn drop(&mut self) {
        if self.held {
            // SAFETY: By the type invariants.
            unsafe { bindings::mmap_read_unlock(self.mm) }
        }
    }
}

/// The time-out for all faults of a walk.
struct Deadline {
    /// The start of the walk, in jiffies.
    begun: usize,
    /// In jiffies.
    timeout: usize,
    /// The largest index of a first missing page so far.
    reached: Option<usize>,
}

impl Deadline {
    fn new(timeout: usize) -> Self {
        Self {
            begun: jiffies::now(),
            timeout,
            reached: None,
        }
    }

    fn has_expired(&self) -> bool {
        jiffies::since(self.begun) > self.timeout
    }

    /// Whether page `first`, the first missing one, may be faulted in: the time-out has not expired, or no walk got so
    /// far before.
    fn allows(&mut self, first: usize) -> bool {
        let further = self.reached.is_none_or(|reached| first > reached);
        if further {
            self.reached = Some(first);
        }
        further || !self.has_expired()
    }
}
