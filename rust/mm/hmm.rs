// SPDX-License-Identifier: GPL-2.0

//! Heterogeneous memory management: walking a process's page tables for a device.
//!
//! A [`Walk`] is one look at a span of a process's page tables, with or without faulting pages in.
//! Its result is only a snapshot; it may be acted on while a lock is held under which invalidations
//! arrive, and only if [`MmuIntervalNotifier::read_retry`] says that none came since.
//!
//! Pages are faulted in here, and not by `hmm_range_fault_unlocked_timeout()`: that begins its time-out anew
//! whenever a fault has let the mmap lock go, so that a process decides how long it takes. HMM looks, and
//! what it finds missing is faulted in as HMM does.
//!
//! C header: [`include/linux/hmm.h`](srctree/include/linux/hmm.h)

use crate::{
    bindings,
    mm::{
        mmu_notifier::MmuIntervalNotifier,
        zone_device::{
            HUGE_ORDER,
            HUGE_PAGES, //
        }, //
    },
    time::jiffies, //
};
use core::{ffi::c_void, ops::Range, ptr};
use kernel::{
    bindings::mm_struct,
    error::to_result,
    ffi::c_ulong,
    mm::MmapReadGuard,
    page::PAGE_SHIFT,
    prelude::*,
    sync::atomic::{Atomic, Relaxed}, //
};

/// How many page-table walks were done since the module was loaded, of either kind or to migrate.
static WALKS: Atomic<u64> = Atomic::new(0);

/// How many walks of a process's page tables were done since the module was loaded, to map pages or to
/// migrate them. For statistics and tests.
pub fn walks() -> u64 {
    WALKS.load(Relaxed)
}

/// Counts a walk.
pub(crate) fn count_walk() {
    WALKS.fetch_add(1, Relaxed);
}

/// What a walk demands of every page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HmmRequest {
    /// Nothing: see what is there.
    Snapshot,
    /// That it is present and readable; pages are faulted in as by a read of the CPU.
    Read,
    /// That it is present and writable; pages are faulted in as by a write of the CPU.
    Write,
}

impl HmmRequest {
    /// What an entry has of a page that is as demanded, unless the page is a device's.
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

/// One entry of a walk's result, a `hmm_pfn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Pfn(c_ulong);

impl Pfn {
    /// Whether there is a page, at least readable.
    #[inline]
    pub fn is_valid(self) -> bool {
        self.0 & bindings::hmm_pfn_flags_HMM_PFN_VALID as c_ulong != 0
    }

    /// Whether the CPU may write the page as it is mapped now.
    #[inline]
    pub fn is_writable(self) -> bool {
        self.0 & bindings::hmm_pfn_flags_HMM_PFN_WRITE as c_ulong != 0
    }

    /// Whether there is memory that HMM cannot use, or no memory.
    #[inline]
    fn is_unusable(self) -> bool {
        self.0 & bindings::hmm_pfn_flags_HMM_PFN_ERROR as c_ulong != 0
    }

    /// Whether the page is as is demanded by a request with these [`flags`](HmmRequest::flags). A page of the memory
    /// of a device with the owner of the walk is taken as it is, as by HMM, also one that may not be written.
    #[inline]
    fn has(self, flags: c_ulong) -> bool {
        self.0 & flags == flags
            || (self.is_valid()
                // SAFETY: The page was there when the walk saw it, and has its `struct page`.
                && unsafe { bindings::is_device_private_page(self.page()) })
    }

    /// Log2 of the number of pages that the CPU maps by the entry that this page belongs to.
    #[inline]
    pub fn map_order(self) -> u32 {
        ((self.0 >> bindings::hmm_pfn_flags_HMM_PFN_ORDER_SHIFT) & 0x1f) as u32
    }

    /// The page frame number.
    pub fn frame(self) -> usize {
        self.0 & !(bindings::hmm_pfn_flags_HMM_PFN_FLAGS as c_ulong)
    }

    /// Physical address in bytes.
    pub fn phys(self) -> u64 {
        // SAFETY: Arithmetic on the value.
        unsafe { bindings::hmm_pfn_to_phys(self.0) }
    }

    /// The page. Its target is only safe to touch as the snapshot is known to be valid.
    #[inline]
    pub fn page(self) -> *mut kernel::bindings::page {
        // SAFETY: Arithmetic on the value.
        unsafe { bindings::hmm_pfn_to_page(self.0) }
    }

    /// Resolves the entry to its page, for a device that is to write the page (`write`) or only to read it.
    ///
    /// A store of a device leaves no trace in the CPU's page tables. A page that the CPU may write is therefore
    /// marked dirty if the device is to write it, or if that makes no file dirty.
    ///
    /// # Safety
    ///
    /// The CPU must have the page mapped as the entry says, and the page must stay allocated.
    #[inline]
    pub unsafe fn resolve(self, write: bool) -> ResolvedPage {
        // SAFETY: By this function's requirements.
        ResolvedPage(unsafe { bindings::hmm_pfn_resolve(self.0, write) })
    }

    /// What the flags of this entry are, its frame number left out; see [`Walk::run`].
    fn flags(self) -> c_ulong {
        self.0 & bindings::hmm_pfn_flags_HMM_PFN_FLAGS as c_ulong
    }

    /// The same of another frame.
    fn moved_to(self, frame: usize) -> Self {
        Self(self.flags() | frame as c_ulong)
    }

    /// The same of the next frame; one of a huge page has one.
    #[inline]
    fn following(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// An entry made from its parts, for tests of what is computed from entries.
    pub fn from_parts(frame: usize, order: u32, valid: bool, writable: bool) -> Self {
        let mut v = frame as c_ulong;
        v |= ((order & 0x1f) as c_ulong) << bindings::hmm_pfn_flags_HMM_PFN_ORDER_SHIFT;
        if valid {
            v |= bindings::hmm_pfn_flags_HMM_PFN_VALID as c_ulong;
        }
        if writable {
            v |= bindings::hmm_pfn_flags_HMM_PFN_WRITE as c_ulong;
        }
        Self(v)
    }
}

/// A page as [`Pfn::resolve`] finds it: its address, and two bits.
#[derive(Clone, Copy, Debug)]
pub struct ResolvedPage(c_ulong);

impl ResolvedPage {
    const ZONE_DEVICE: c_ulong = 1;
    const KEEPS_STORES: c_ulong = 2;

    /// The page.
    #[inline]
    pub fn page(self) -> *mut kernel::bindings::page {
        // CAST: An address.
        (self.0 & !(Self::ZONE_DEVICE | Self::KEEPS_STORES)) as *mut _
    }

    /// Whether it is memory of a device.
    #[inline]
    pub fn is_zone_device(self) -> bool {
        self.0 & Self::ZONE_DEVICE != 0
    }

    /// Whether the CPU may write it, and reclaim and writeback see that it was written.
    #[inline]
    pub fn keeps_stores(self) -> bool {
        self.0 & Self::KEEPS_STORES != 0
    }
}

/// The number of pages of the largest power-of-two block that starts at entry `index` and lies both
/// in the CPU's mapping of that entry and in the `pages` entries of the walk.
///
/// C's `drm_gpusvm_hmm_pfn_to_order()`, in pages instead of its logarithm.
pub fn block_pages(pfn: Pfn, index: usize, pages: usize) -> usize {
    let whole = 1usize << pfn.map_order();
    // What is left of the CPU's mapping, which is aligned to its size.
    let left = whole - (pfn.frame() & (whole - 1));
    let left = left.min(pages.saturating_sub(index)).max(1);
    // The largest power of two that is not above `left`.
    1usize << (usize::BITS - 1 - left.leading_zeros())
}

/// The first of these entries that do not [have](Pfn::has) `flags`, all for the same reason.
fn first_run(pfns: &[Pfn], flags: c_ulong) -> Option<Range<usize>> {
    let is_missing = |pfn: &Pfn| !pfn.has(flags);
    let start = pfns.iter().position(is_missing)?;
    let rest = pfns.get(start..)?;
    let first = *rest.first()?;
    // Where there is nothing the entries are the same.
    let is_alike = |pfn: &&Pfn| {
        **pfn == first || (is_missing(pfn) && pfn.is_unusable() == first.is_unusable())
    };
    let count = rest.iter().take_while(is_alike).count();
    Some(start..start + count)
}

/// Corrects the frames of entries that HMM made from one of a huge page, of pages from number `page` of the address
/// space on.
///
/// HMM takes the first page of a huge page of device memory for that at the start of what it looks at,
/// wherever in the huge page that is. (Of huge pages of RAM it does not.)
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

/// A look at the page tables of a span, and the memory for its result, which is kept for the next.
pub struct Walk {
    pfns: KVVec<Pfn>,
    span: Range<usize>,
    owner: *mut c_void,
    seq: usize,
    request: Option<HmmRequest>,
}

impl Walk {
    /// An empty walk; allocates nothing.
    pub const fn new() -> Self {
        Self {
            pfns: KVVec::new(),
            span: 0..0,
            owner: ptr::null_mut(),
            seq: 0,
            request: None,
        }
    }

    /// Forgets the result.
    pub fn forget(&mut self) {
        self.request = None;
    }

    /// The result of the walk: one entry a page, from the span's start.
    pub fn pfns(&self) -> &[Pfn] {
        if self.request.is_some() {
            &self.pfns
        } else {
            &[]
        }
    }

    /// The notifier's sequence number as of the walk.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Whether the result, if still valid, already answers `request` for `span`: this is how one
    /// walk serves both the choice of a chunk and its mapping.
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
        // Zeroed at once, in the memory of the last walk if that is enough: what HMM finds in an entry
        // may stay in it.
        self.pfns.clear();
        self.pfns.reserve(pages, GFP_KERNEL)?;
        // SAFETY: There is room for so many entries, and zeroes are an entry.
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

    /// Notes how a walk that succeeded was done.
    fn finish(&mut self, seq: usize, request: HmmRequest) {
        self.seq = seq;
        self.request = Some(request);
    }

    /// The number of the page behind the huge page that the page with the number `index` lies in, if it does; at
    /// most how many pages there are.
    fn huge_end(&self, index: usize) -> usize {
        let page = (self.span.start >> PAGE_SHIFT) + index;
        (index + HUGE_PAGES - page % HUGE_PAGES).min(self.pfns.len())
    }

    /// The pages from number `from` on that are looked at next. They lie in one huge page, if that is how they are
    /// mapped. Of a whole one it is the first: its entry may tell of all, and a fault of it bring all.
    fn next(&self, from: usize) -> Range<usize> {
        let end = self.huge_end(from);
        match end - from {
            HUGE_PAGES => from..from + 1,
            _ => from..end,
        }
    }

    /// The number of the page behind the [`next`](Self::next) pages, which were looked at, and all that their last
    /// entry tells of: if the page table has one entry for a huge page, the others are made as HMM makes them.
    fn behind(&mut self, seen: Range<usize>) -> usize {
        let end = self.huge_end(seen.start);
        match self.pfns.get_mut(seen.end - 1..end) {
            Some([last, others @ ..]) if last.is_valid() && last.map_order() >= HUGE_ORDER => {
                let mut pfn = *last;
                for other in others {
                    pfn = pfn.following();
                    *other = pfn;
                }
                end
            }
            _ => seen.end,
        }
    }

    /// Has HMM look at the pages with these numbers, all in one huge page if they are mapped by one. Fails
    /// with `EBUSY` when an invalidation came since the sequence number was read, and `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `range` must be that of [`prepare`](Self::prepare), and the mmap lock of its notifier's mm be held.
    #[inline(always)]
    unsafe fn look(&mut self, range: &mut bindings::hmm_range, pages: Range<usize>) -> Result {
        range.start = (self.span.start + (pages.start << PAGE_SHIFT)) as c_ulong;
        range.end = (self.span.start + (pages.end << PAGE_SHIFT)) as c_ulong;
        let pfns = self.pfns.get_mut(pages).ok_or(EINVAL)?;
        range.hmm_pfns = pfns.as_mut_ptr().cast();
        // SAFETY: `range` is complete, its array has an entry for each page, and the mmap lock is held.
        let error = unsafe { bindings::hmm_range_fault(range) };
        if error != 0 {
            return to_result(error);
        }
        match pfns.first() {
            Some(first) if first.map_order() == HUGE_ORDER => {
                correct_frames(pfns, range.start as usize >> PAGE_SHIFT);
            }
            _ => {}
        }
        Ok(())
    }

    /// The next of these pages that are not as `request` demands, all for the same reason.
    #[inline(always)]
    fn missing(&self, pages: Range<usize>, request: HmmRequest) -> Option<Range<usize>> {
        let flags = request.flags();
        let pfns = self.pfns.get(pages.clone())?;
        // Mostly all of them are as demanded, which takes no branch for each to see.
        if pfns.iter().fold(flags, |common, pfn| common & pfn.0) == flags {
            return None;
        }
        let run = first_run(pfns, flags)?;
        Some(pages.start + run.start..pages.start + run.end)
    }

    /// Walks `span` and faults in what `request` demands.
    ///
    /// `timeout` is in jiffies. When it is over this ends as soon as a look finds nothing at the first missing
    /// page that was not missing before: what brings page after page goes on, and what gives a page and takes
    /// it away does not. Within one fault a page may be waited for, as long as who has to give it likes
    /// (userfaultfd, FUSE), or until the thread is killed.
    ///
    /// Takes the mmap lock. Fails with `EBUSY` when the time was over, `EFAULT` for a page that cannot be had,
    /// `EPERM` for one that may not be written, `EINTR` when the thread is being killed, `ENOMEM`.
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
        let mut patience = Patience::new(timeout);
        loop {
            // SAFETY: `notifier` is inserted.
            range.notifier_seq = unsafe { notifier.read_begin() };
            // SAFETY: The notifier's mm is valid.
            let mut lock = unsafe { MmapLock::take((*notifier.as_raw()).mm) }?;
            // SAFETY: The lock is held; the rest is by this function's requirements.
            match unsafe { self.fault_locked(&mut range, request, &mut lock, &mut patience) } {
                Ok(true) => break,
                // A fault has let the lock go: whether it brought anything is to be seen.
                Ok(false) => {}
                Err(e) if e == EBUSY && !patience.is_over() => {}
                Err(e) => return Err(e),
            }
        }
        self.finish(range.notifier_seq, request);
        Ok(())
    }

    /// Looks, and faults in what is missing, until nothing is. Returns false when a fault has let the lock go.
    /// Fails as [`fault`](Self::fault) does, and with `EBUSY` also when an invalidation came.
    ///
    /// # Safety
    ///
    /// As for [`look`](Self::look).
    unsafe fn fault_locked(
        &mut self,
        range: &mut bindings::hmm_range,
        request: HmmRequest,
        lock: &mut MmapLock,
        patience: &mut Patience,
    ) -> Result<bool> {
        let mut from = 0;
        while from < self.pfns.len() {
            let pages = self.next(from);
            // SAFETY: By this function's requirements. What was seen of the pages before holds, as long as no
            // invalidation came.
            if !unsafe { self.fault_pages(range, pages.clone(), request, lock, patience) }? {
                return Ok(false);
            }
            from = self.behind(pages);
        }
        Ok(true)
    }

    /// The same for the pages with these numbers, as [`next`](Self::next) gives them.
    ///
    /// # Safety
    ///
    /// As for [`look`](Self::look).
    unsafe fn fault_pages(
        &mut self,
        range: &mut bindings::hmm_range,
        mut pages: Range<usize>,
        request: HmmRequest,
        lock: &mut MmapLock,
        patience: &mut Patience,
    ) -> Result<bool> {
        loop {
            // SAFETY: By this function's requirements.
            unsafe { self.look(range, pages.clone()) }?;
            let Some(mut run) = self.missing(pages.clone(), request) else {
                return Ok(true);
            };
            if !patience.allows(run.start) {
                return Err(EBUSY);
            }
            pages.start = run.start;
            loop {
                self.fault_in(&run, request, lock)?;
                if !lock.held {
                    return Ok(false);
                }
                match self.missing(run.end..pages.end, request) {
                    Some(next) if !patience.is_over() => run = next,
                    Some(_) => break,
                    None => {
                        // The rest was there.
                        pages.end = run.end;
                        break;
                    }
                }
            }
        }
    }

    /// Faults in pages that are missing, of one VMA.
    fn fault_in(&self, run: &Range<usize>, request: HmmRequest, lock: &mut MmapLock) -> Result {
        let at = |index: usize| self.span.start + (index << PAGE_SHIFT);
        let unusable = self
            .pfns
            .get(run.start)
            .is_some_and(|pfn| pfn.is_unusable());
        // SAFETY: The mmap lock is held; it is noted if it is not any more.
        to_result(unsafe {
            bindings::fault_in(
                lock.mm,
                at(run.start),
                at(run.end),
                request == HmmRequest::Write,
                unusable,
                &raw mut lock.held,
            )
        })
    }

    /// Looks at `span` once, with the mmap lock held by the caller and faulting nothing in.
    ///
    /// Fails with `EBUSY` when an invalidation came in between, `EFAULT`, `ENOMEM`.
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
            let pages = self.next(from);
            // SAFETY: The mmap lock is held.
            unsafe { self.look(&mut range, pages.clone()) }?;
            from = self.behind(pages);
        }
        self.finish(range.notifier_seq, HmmRequest::Snapshot);
        Ok(())
    }

    /// The blocks of the result, in ascending order: each as large as can be mapped in one piece.
    pub fn blocks(&self) -> Blocks<'_> {
        Blocks {
            pfns: self.pfns(),
            next: 0,
        }
    }
}

impl Default for Walk {
    fn default() -> Self {
        Self::new()
    }
}

/// The mmap lock, for reading, which a fault may let go.
///
/// # Invariants
///
/// If `held`, it is held.
struct MmapLock {
    mm: *mut mm_struct,
    held: bool,
}

impl MmapLock {
    /// Takes the lock. Fails with `EINTR` when the thread is being killed, and with `EFAULT` when the OOM reaper
    /// takes the memory.
    ///
    /// # Safety
    ///
    /// `mm` must be valid as long as the result.
    unsafe fn take(mm: *mut mm_struct) -> Result<Self> {
        // SAFETY: By this function's requirements.
        to_result(unsafe { bindings::mmap_read_lock_killable(mm) })?;
        // INVARIANT: It was taken just now.
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

/// For how long pages are faulted in.
struct Patience {
    /// When that began, in jiffies.
    begun: usize,
    /// In jiffies.
    timeout: usize,
    /// The number of the first page that was missing, at the furthest; none before the first look.
    reached: Option<usize>,
}

impl Patience {
    fn new(timeout: usize) -> Self {
        Self {
            begun: jiffies::now(),
            timeout,
            reached: None,
        }
    }

    fn is_over(&self) -> bool {
        jiffies::since(self.begun) > self.timeout
    }

    /// Whether the page with this number, the first that is missing, may be faulted in.
    fn allows(&mut self, first: usize) -> bool {
        let further = self.reached.is_none_or(|reached| first > reached);
        if further {
            self.reached = Some(first);
        }
        further || !self.is_over()
    }
}

/// A run of pages that the CPU maps by one entry, all with the same flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PfnBlock {
    /// The entry of its first page.
    pub pfn: Pfn,
    /// Index of its first page in the walk.
    pub index: usize,
    /// Log2 of its number of pages.
    pub order: u32,
}

/// Iterates over the blocks of a walk.
#[derive(Clone)]
pub struct Blocks<'a> {
    pfns: &'a [Pfn],
    next: usize,
}

impl<'a> Blocks<'a> {
    /// The blocks of entries that did not come from a walk, for tests.
    pub fn of(pfns: &'a [Pfn]) -> Self {
        Self { pfns, next: 0 }
    }
}

impl Iterator for Blocks<'_> {
    type Item = PfnBlock;

    #[inline]
    fn next(&mut self) -> Option<PfnBlock> {
        let pfn = *self.pfns.get(self.next)?;
        let (pages, order) = match pfn.map_order() {
            // Most pages are by themselves.
            0 => (1, 0),
            _ => {
                let pages = block_pages(pfn, self.next, self.pfns.len());
                (pages, pages.trailing_zeros())
            }
        };
        debug_assert!(pfn.flags() != 0 || pages == 1);
        let block = PfnBlock {
            pfn,
            index: self.next,
            order,
        };
        self.next += pages;
        Some(block)
    }

    #[inline]
    fn count(self) -> usize {
        let rest = self.pfns.get(self.next..).unwrap_or_default();
        // If all pages are by themselves it takes no branch for each to see.
        if rest.first().is_none_or(|pfn| pfn.map_order() == 0)
            && Pfn(rest.iter().fold(0, |common, pfn| common | pfn.0)).map_order() == 0
        {
            return rest.len();
        }
        self.fold(0, |count, _| count + 1)
    }
}
