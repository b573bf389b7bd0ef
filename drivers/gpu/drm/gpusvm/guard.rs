// SPDX-License-Identifier: GPL-2.0

//! The driver's SVM lock as a token, and what can be done with it.
//!
//! Work on many ranges holds the notifier lock, for which the process's page faults and `munmap()` wait, for up
//! to [`BATCH`] of them at a time. After as many it lets others run, and asks its caller whether to go on: where
//! it does not, what is done is done, and the rest is as it was.

use crate::{
    ctx::Ctx,
    driver::{Driver, Range, Svm, BATCH},
    flags::RangeFlag,
    get_pages::Source,
    pagemap::{
        provider::{DeviceMemory, Provider},
        to_device::{Moved, Sources},
        Pagemap,
    },
    pages::Pages,
    range::SvmRange,
    retry::Attempt,
    scan::ScanResult,
    svm::{Event, GpuSvm, PROTECTION_PAGE},
    view::View, //
};
use core::{convert::Infallible, ffi::c_void, ops::Range as Span, ptr, ptr::NonNull};
use kernel::{
    bindings,
    mm::Mm,
    prelude::*,
    sync::{lock, static_lock_class, Mutex}, //
};
use kernel_ext::{
    lock_name,
    mm::hmm::Walk,
    sched,
    sync::mutex, //
};

/// The driver's SVM lock. Its class is defined here, once for all drivers.
#[pin_data]
pub(crate) struct DriverLock {
    #[pin]
    mutex: Mutex<()>,
}

impl DriverLock {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            mutex <- Mutex::new((), lock_name!(c"gpusvm.driver_lock"), static_lock_class!()),
        })
    }

    /// What lockdep knows the lock by.
    #[cfg(CONFIG_LOCKDEP)]
    pub(crate) fn dep_map(&self) -> *mut kernel::bindings::lockdep_map {
        // SAFETY: The mutex is initialized; no reference is made.
        unsafe { &raw mut (*mutex::as_raw(&self.mutex)).dep_map }
    }

    pub(crate) fn lock(&self) -> lock::Guard<'_, (), lock::mutex::MutexBackend> {
        self.mutex.lock()
    }

    /// Fails with `EINTR` if the caller is killed before it has the lock.
    pub(crate) fn lock_killable(&self) -> Result<lock::Guard<'_, (), lock::mutex::MutexBackend>> {
        mutex::lock_killable(&self.mutex)
    }

    pub(crate) fn try_lock(&self) -> Option<lock::Guard<'_, (), lock::mutex::MutexBackend>> {
        self.mutex.try_lock()
    }
}

/// The pace of work on many ranges, one after the other.
struct Pace<F> {
    begun: usize,
    go_on: F,
}

impl<E, F: FnMut() -> Result<(), E>> Pace<F> {
    fn new(go_on: F) -> Self {
        Self { begun: 0, go_on }
    }

    /// Before each range: lets others have their turn if it is that, and fails if it is not to go on.
    fn step(&mut self) -> Result<(), E> {
        if self.begun != 0 && self.begun % BATCH == 0 {
            sched::cond_resched();
            (self.go_on)()?;
        }
        self.begun += 1;
        Ok(())
    }
}

/// Goes on to the end.
fn always() -> Result<(), Infallible> {
    Ok(())
}

/// What is returned when pages are no longer valid: the CPU changed its mappings. Map them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale;

/// The driver's SVM lock, held.
#[must_use = "the lock is released when the guard is dropped"]
pub struct Guard<'a, D: Driver> {
    svm: &'a Svm<D>,
    _lock: lock::Guard<'a, (), lock::mutex::MutexBackend>,
}

impl<'a, D: Driver> Guard<'a, D> {
    pub(crate) fn new(
        svm: &'a Svm<D>,
        lock: lock::Guard<'a, (), lock::mutex::MutexBackend>,
    ) -> Self {
        Self { svm, _lock: lock }
    }

    fn core(&self) -> &'a GpuSvm {
        self.svm.gpusvm()
    }

    /// Removes all ranges that the CPU unmapped, and says how many they were. To be called first by
    /// whoever takes the lock to look for ranges.
    pub fn collect_garbage(&mut self) -> usize {
        let Ok(removed) = self.collect_garbage_while(always, |_| Ok(()));
        removed
    }

    /// As [`collect_garbage`](Self::collect_garbage), with each range shown to `each` before it goes, and as long
    /// as neither `each` fails nor `go_on`, which is asked after each [`BATCH`]. If one does, with that error; the
    /// range and all others are for who collects next.
    pub fn collect_garbage_while<E>(
        &mut self,
        go_on: impl FnMut() -> Result<(), E>,
        mut each: impl FnMut(&Range<D>) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut pace = Pace::new(go_on);
        while let Some(link) = self.svm.garbage().first() {
            pace.step()?;
            // SAFETY: All links in the list are those of ranges of this SVM, which leave the list
            // when they are removed, under the lock that is held.
            let range = unsafe { Range::from_link(link) };
            // SAFETY: The driver's SVM lock keeps the range in its tree.
            each(unsafe { range.as_ref() })?;
            self.remove_range(range);
        }
        Ok(pace.begun)
    }

    /// The range at `addr`, made if there is none; see [`GpuSvm::find_or_insert`] for the errors.
    ///
    /// `window` is the part of the GPU's address space around `addr` that mirrors the CPU's.
    pub fn find_or_insert(
        &mut self,
        addr: usize,
        window: Span<usize>,
        ctx: &Ctx,
        attempt: &Attempt<'_>,
    ) -> Result<LockedRange<'_, 'a, D>> {
        let mut walk = Walk::new();
        let is_mapped = |range| {
            // SAFETY: All ranges of an `Svm<D>` are `Range<D>`; the driver's SVM lock keeps it.
            let range: &Range<D> = unsafe { Range::from_base(range).as_ref() };
            let _lock = self.core().read_lock();
            let mut pages = range.pages().iter();
            // SAFETY: The notifier lock is held.
            pages.all(|pages| unsafe { pages.is_valid_for(ctx.access) })
        };
        // SAFETY: The driver's SVM lock is held, and as long as the result is used.
        let range = unsafe {
            self.core()
                .find_or_insert(addr, window, ctx, attempt, &mut walk, is_mapped)
        }?;
        Ok(self.found(range, walk))
    }

    /// The range at `addr`, if there is one.
    pub fn find(&mut self, addr: usize) -> Option<LockedRange<'_, 'a, D>> {
        // SAFETY: The driver's SVM lock is held, and as long as the result is used.
        let range = unsafe { self.core().range_find(addr..addr.checked_add(1)?) }?;
        Some(self.found(range, Walk::new()))
    }

    fn found(&mut self, range: NonNull<SvmRange>, walk: Walk) -> LockedRange<'_, 'a, D> {
        LockedRange {
            // SAFETY: All ranges of an `Svm<D>` are `Range<D>`.
            range: unsafe { Range::from_base(range) },
            guard: self,
            walk,
        }
    }

    /// Whether any range overlaps `span`.
    pub fn has_mapping(&self, span: Span<usize>) -> bool {
        // SAFETY: The driver's SVM lock is held.
        unsafe { self.core().has_mapping(span) }
    }

    /// The ranges that overlap `span`, in ascending order.
    pub fn ranges(&self, span: Span<usize>) -> impl Iterator<Item = &Range<D>> {
        let core = self.core();
        // SAFETY: The driver's SVM lock is held, and as long as the result is used.
        let mut next = unsafe { core.range_find(span.clone()) };
        core::iter::from_fn(move || {
            // SAFETY: As above. All ranges of an `Svm<D>` are `Range<D>`.
            let range: &Range<D> = unsafe { Range::from_base(next?).as_ref() };
            // SAFETY: As above.
            next = unsafe { core.range_next(range.base(), span.end) };
            Some(range)
        })
    }

    /// Removes all ranges that overlap `span`, and says how many they were.
    pub fn remove_all(&mut self, span: Span<usize>) -> usize {
        let Ok(removed) = self.remove_all_while(span, always);
        removed
    }

    /// As [`remove_all`](Self::remove_all), as long as `go_on` does not fail, which is asked after each
    /// [`BATCH`]. If it does, with that error; the ranges that are left stay as they are.
    pub fn remove_all_while<E>(
        &mut self,
        span: Span<usize>,
        go_on: impl FnMut() -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut pace = Pace::new(go_on);
        // SAFETY: The driver's SVM lock is held, and as long as the result is used.
        while let Some(range) = unsafe { self.core().range_find(span.clone()) } {
            pace.step()?;
            // SAFETY: All ranges of an `Svm<D>` are `Range<D>`.
            self.remove_range(unsafe { Range::from_base(range) });
        }
        Ok(pace.begun)
    }

    /// Removes the lowest range that overlaps `span`; false if there is none.
    pub fn remove_first(&mut self, span: Span<usize>) -> bool {
        // SAFETY: The driver's SVM lock is held, and as long as the result is used.
        let Some(range) = (unsafe { self.core().range_find(span) }) else {
            return false;
        };
        // SAFETY: All ranges of an `Svm<D>` are `Range<D>`.
        self.remove_range(unsafe { Range::from_base(range) });
        true
    }

    /// Has the driver let go of all ranges that overlap `span`, and unmaps their pages; the ranges
    /// stay, for a later fault to map them anew.
    pub fn invalidate(&mut self, span: Span<usize>) {
        let Ok(()) = self.invalidate_while(span, always);
    }

    /// As [`invalidate`](Self::invalidate), as long as `go_on` does not fail, which is asked after each
    /// [`BATCH`], without the notifier lock. If it does, with that error; the other ranges stay mapped.
    pub fn invalidate_while<E>(
        &mut self,
        mut span: Span<usize>,
        mut go_on: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let core = self.core();
        loop {
            {
                let _lock = core.notifier_lock().write();
                // SAFETY: The notifier lock is held for writing.
                span.start = unsafe { self.svm.zap_batch(span.clone(), PROTECTION_PAGE) };
            }
            if span.is_empty() {
                return Ok(());
            }
            sched::cond_resched();
            go_on()?;
        }
    }

    fn remove_range(&mut self, range: NonNull<Range<D>>) {
        // SAFETY: The driver's SVM lock keeps the range in its tree.
        let this = unsafe { range.as_ref() };
        let (svm, span) = (self.svm, this.span());
        // SAFETY: The lock is held, the range is in its tree, and these are all of its pages. In the
        // closure the notifier lock is held for writing; after it the range is in no tree, so that
        // nobody adds it to the garbage again.
        unsafe {
            svm.gpusvm().remove(range.cast(), this.pages(), |mapped| {
                if mapped {
                    svm.zap(span, PROTECTION_PAGE);
                }
                svm.garbage().remove(this.link());
            });
        }
    }
}

/// A range, as long as the driver's SVM lock is held.
pub struct LockedRange<'g, 'a, D: Driver> {
    guard: &'g mut Guard<'a, D>,
    range: NonNull<Range<D>>,
    walk: Walk,
}

impl<D: Driver> LockedRange<'_, '_, D> {
    fn range(&self) -> &Range<D> {
        // SAFETY: The driver's SVM lock keeps the range; `remove()` takes this object away.
        unsafe { self.range.as_ref() }
    }

    fn pages(&self) -> &[Pages] {
        self.range().pages()
    }

    /// The addresses of the range, in bytes.
    pub fn span(&self) -> Span<usize> {
        self.range().span()
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.range().size()
    }

    /// The process's address space.
    pub fn mm(&self) -> Option<&Mm> {
        self.guard.core().mm()
    }

    /// The driver's part of the range.
    pub fn data(&self) -> &D::Range {
        self.range().data()
    }

    /// Whether a flag of the range is set, at some recent time.
    pub fn has(&self, flag: RangeFlag) -> bool {
        self.range().has(flag)
    }

    /// Moves what is in the range to the memory of `pagemap`, as far as it can; see
    /// [`DeviceMemory::populate_from`]. Fails as that does.
    pub fn populate<P: Provider>(
        &mut self,
        pagemap: &DeviceMemory<P>,
        sources: Sources,
        timeslice_ms: u32,
    ) -> Result<Moved> {
        let mm = self.guard.core().mm().ok_or(EINVAL)?;
        // What was seen of the pages is about to be wrong.
        self.walk.forget();
        pagemap.populate_from(sources, mm, self.span(), timeslice_ms)
    }

    /// The same, for the memory of whatever driver, which does not tell how much moved; see
    /// [`Pagemap::populate`].
    pub fn populate_any(&mut self, memory: &Pagemap, timeslice_ms: u32) -> Result {
        let mm = self.guard.core().mm().ok_or(EINVAL)?;
        self.walk.forget();
        memory.populate(mm, self.span(), timeslice_ms)
    }

    /// Maps all pages of the range for all of its devices, or none, as [`Source::get`] says; its
    /// errors are returned, but for a range that the CPU unmaps meanwhile, and for `EBUSY` while there is
    /// time for a further attempt: these are `EAGAIN`.
    ///
    /// Pages that are mapped, but not for this access (a write to what was mapped for reads), are
    /// let go of first.
    pub fn get(&mut self, ctx: &Ctx, attempt: &Attempt<'_>) -> Result {
        let svm = self.guard.svm.gpusvm();
        let mm = svm.mm().ok_or(EINVAL)?;
        let upgrade = {
            let _lock = svm.read_lock();
            let pages = self.pages();
            pages.iter().any(Pages::is_any_mapped)
                // SAFETY: The notifier lock is held.
                && !pages.iter().all(|pages| unsafe { pages.is_valid_for(ctx.access) })
        };
        if upgrade {
            // SAFETY: The driver's SVM lock is held, the notifier lock is not, and the range is in
            // its tree.
            unsafe { svm.invalidate_range(self.range().base(), PROTECTION_PAGE as Event) };
        }
        let mut walk = core::mem::take(&mut self.walk);
        let range = self.range();
        let source = Source {
            svm,
            mm,
            // SAFETY: The driver's SVM lock keeps the range in its tree.
            notifier: unsafe { range.base().notifier() }.mmu(),
            span: range.span(),
        };
        // SAFETY: The driver's SVM lock is held and the notifier lock is not; the notifier's callback
        // unmaps all pages of the ranges that it hits; what was valid for another access was just
        // invalidated.
        let result = unsafe { source.get(self.pages(), ctx, attempt, &mut walk) };
        self.walk = walk;
        match result {
            // The CPU unmapped the range, or part of it, meanwhile. What is there now is for a new
            // range to find out.
            Err(EFAULT) if self.range().has(RangeFlag::Unmapped) => Err(EAGAIN),
            // The walk was lost too often, but there is time for another: for a smaller range, maybe.
            Err(EBUSY) if !attempt.is_last() => Err(EAGAIN),
            result => result,
        }
    }

    /// Calls `f` with the device addresses of the range, and the range, if its pages still are valid: with the
    /// notifier lock held for reading, so that they stay so until it returns.
    ///
    /// `f` writes GPU page tables. It must not allocate memory with reclaim, fault user pages in, or
    /// wait for the GPU; nor may it take the lock of an SVM, or shut or drop one. (That it does not use this range in
    /// another way is for the compiler to see to: it is borrowed.)
    pub fn commit<R>(&mut self, f: impl FnOnce(View<'_>, &Range<D>) -> R) -> Result<R, Stale> {
        let _lock = self.guard.core().read_lock();
        let pages = self.pages();
        if !pages.iter().all(Pages::is_valid) {
            return Err(Stale);
        }
        // SAFETY: The notifier lock is held until the end of this function, and all pages are
        // valid.
        Ok(f(unsafe { View::new(self.span(), pages) }, self.range()))
    }

    /// Removes the range: the driver lets go of it, its pages are unmapped, and it leaves the tree,
    /// all in one hold of the notifier lock.
    pub fn remove(self) {
        self.guard.remove_range(self.range);
    }

    /// Brings pages in device memory back to system memory; see [`GpuSvm::evict`].
    pub fn evict(&self, attempt: &Attempt<'_>) -> Result {
        // SAFETY: The driver's SVM lock is held, and the notifier lock is not.
        unsafe { self.guard.core().evict(self.range().base(), attempt) }
    }

    /// Where the pages are, without device memory of any provider; see [`GpuSvm::scan`].
    pub fn scan(&mut self, attempt: &Attempt<'_>) -> ScanResult {
        self.scan_with(ptr::null_mut(), ptr::null(), attempt)
    }

    /// Where the pages are: whether [all of them](ScanResult::Equal) are in the memory of `pagemap`,
    /// in particular; see [`GpuSvm::scan`].
    pub fn scan_for(&mut self, pagemap: &Pagemap, attempt: &Attempt<'_>) -> ScanResult {
        self.scan_with(pagemap.owner_ptr(), pagemap.dev_pagemap(), attempt)
    }

    fn scan_with(
        &mut self,
        owner: *mut c_void,
        wanted: *const bindings::dev_pagemap,
        attempt: &Attempt<'_>,
    ) -> ScanResult {
        let mut walk = core::mem::take(&mut self.walk);
        // SAFETY: The driver's SVM lock is held, and the notifier lock is not.
        let result = unsafe {
            self.guard
                .core()
                .scan(self.range().base(), owner, wanted, attempt, &mut walk)
        };
        self.walk = walk;
        result
    }
}
