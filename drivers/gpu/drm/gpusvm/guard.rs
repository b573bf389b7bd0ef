// SPDX-License-Identifier: GPL-2.0

//! The driver's SVM lock as a guard, and the operations that need the lock.
//!
//! The process's page faults and `munmap()` wait for the notifier lock. So operations on many
//! ranges hold it for at most [`BATCH`] ranges at a time. After each batch they reschedule, and
//! call the caller's `go_on`; if that fails they return its error, and leave the remaining ranges
//! as they are.

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

/// The driver's SVM lock. Its lock class is defined here, so that all drivers share it.
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

    /// Returns lockdep's map of the lock.
    #[cfg(CONFIG_LOCKDEP)]
    pub(crate) fn dep_map(&self) -> *mut kernel::bindings::lockdep_map {
        // SAFETY: The mutex is initialized; no reference is made.
        unsafe { &raw mut (*mutex::as_raw(&self.mutex)).dep_map }
    }

    pub(crate) fn lock(&self) -> lock::Guard<'_, (), lock::mutex::MutexBackend> {
        self.mutex.lock()
    }

    /// Fails with `EINTR` if the caller is killed while it waits for the lock.
    pub(crate) fn lock_killable(&self) -> Result<lock::Guard<'_, (), lock::mutex::MutexBackend>> {
        mutex::lock_killable(&self.mutex)
    }

    pub(crate) fn try_lock(&self) -> Option<lock::Guard<'_, (), lock::mutex::MutexBackend>> {
        self.mutex.try_lock()
    }
}

/// Counts the ranges that an operation has worked on, and pauses it after each [`BATCH`].
struct Batches<F> {
    count: usize,
    go_on: F,
}

impl<E, F: FnMut() -> Result<(), E>> Batches<F> {
    fn new(go_on: F) -> Self {
        Self { count: 0, go_on }
    }

    /// Called before each range. After each [`BATCH`] reschedules, and fails if `go_on` does.
    fn step(&mut self) -> Result<(), E> {
        if self.count != 0 && self.count % BATCH == 0 {
            sched::cond_resched();
            (self.go_on)()?;
        }
        self.count += 1;
        Ok(())
    }
}

/// A `go_on` that never fails.
fn always() -> Result<(), Infallible> {
    Ok(())
}

/// The error for pages that are no longer valid, as the CPU changed its mappings. The caller maps
/// them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale;

/// Proof that the driver's SVM lock is held.
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

    /// Removes all ranges that the CPU unmapped, and returns their number. A driver calls it first
    /// when it has taken the lock to find ranges.
    pub fn collect_garbage(&mut self) -> usize {
        let Ok(removed) = self.collect_garbage_while(always, |_| Ok(()));
        removed
    }

    /// Like [`collect_garbage`](Self::collect_garbage), with `each` called for each range before
    /// its removal, and `go_on` after each [`BATCH`]. If one of them fails its error is returned;
    /// the range and those after it stay on the list, for the next call.
    pub fn collect_garbage_while<E>(
        &mut self,
        go_on: impl FnMut() -> Result<(), E>,
        mut each: impl FnMut(&Range<D>) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut batches = Batches::new(go_on);
        while let Some(link) = self.svm.garbage().first() {
            batches.step()?;
            // SAFETY: All links in the list are those of ranges of this SVM, which leave the list
            // when they are removed, under the SVM lock that is held.
            let range = unsafe { Range::from_link(link) };
            // SAFETY: The driver's SVM lock keeps the range in its tree.
            each(unsafe { range.as_ref() })?;
            self.remove_range(range);
        }
        Ok(batches.count)
    }

    /// Returns the range at `addr`, and creates it if there is none; see [`GpuSvm::find_or_insert`]
    /// for the errors.
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
            // SAFETY: All ranges of an `Svm<D>` are `Range<D>`; the driver's SVM lock keeps the
            // range.
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

    /// Returns the range at `addr`, if there is one.
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

    /// Returns whether any range overlaps `span`.
    pub fn has_mapping(&self, span: Span<usize>) -> bool {
        // SAFETY: The driver's SVM lock is held.
        unsafe { self.core().has_mapping(span) }
    }

    /// Returns the ranges that overlap `span`, in ascending order.
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

    /// Removes all ranges that overlap `span`, and returns their number.
    pub fn remove_all(&mut self, span: Span<usize>) -> usize {
        let Ok(removed) = self.remove_all_while(span, always);
        removed
    }

    /// Like [`remove_all`](Self::remove_all), with `go_on` called after each [`BATCH`]. If it fails
    /// its error is returned; the ranges that are left stay as they are.
    pub fn remove_all_while<E>(
        &mut self,
        span: Span<usize>,
        go_on: impl FnMut() -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut batches = Batches::new(go_on);
        // SAFETY: The driver's SVM lock is held, and as long as the result is used.
        while let Some(range) = unsafe { self.core().range_find(span.clone()) } {
            batches.step()?;
            // SAFETY: All ranges of an `Svm<D>` are `Range<D>`.
            self.remove_range(unsafe { Range::from_base(range) });
        }
        Ok(batches.count)
    }

    /// Removes the lowest range that overlaps `span`; returns false if there is none.
    pub fn remove_first(&mut self, span: Span<usize>) -> bool {
        // SAFETY: The driver's SVM lock is held, and as long as the result is used.
        let Some(range) = (unsafe { self.core().range_find(span) }) else {
            return false;
        };
        // SAFETY: All ranges of an `Svm<D>` are `Range<D>`.
        self.remove_range(unsafe { Range::from_base(range) });
        true
    }

    /// Zaps all ranges that overlap `span` by [`Driver::invalidate`], and unmaps their pages. The
    /// ranges stay, and a later fault maps them again.
    pub fn invalidate(&mut self, span: Span<usize>) {
        let Ok(()) = self.invalidate_while(span, always);
    }

    /// Like [`invalidate`](Self::invalidate), with `go_on` called after each [`BATCH`], without the
    /// notifier lock. If it fails its error is returned; the other ranges stay mapped.
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
        // SAFETY: The SVM lock is held, the range is in its tree, and these are all of its pages.
        // The closure runs with the notifier lock held for writing. After it the range leaves the
        // tree under the same hold of the lock, so that no invalidation adds it to the garbage list
        // again.
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

/// A range, borrowed from the [`Guard`] of the driver's SVM lock.
pub struct LockedRange<'g, 'a, D: Driver> {
    guard: &'g mut Guard<'a, D>,
    range: NonNull<Range<D>>,
    walk: Walk,
}

impl<D: Driver> LockedRange<'_, '_, D> {
    fn range(&self) -> &Range<D> {
        // SAFETY: The driver's SVM lock keeps the range; `remove()` consumes this object.
        unsafe { self.range.as_ref() }
    }

    fn pages(&self) -> &[Pages] {
        self.range().pages()
    }

    /// Returns the addresses of the range, in bytes.
    pub fn span(&self) -> Span<usize> {
        self.range().span()
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> usize {
        self.range().size()
    }

    /// Returns the process's address space.
    pub fn mm(&self) -> Option<&Mm> {
        self.guard.core().mm()
    }

    /// Returns the driver's data of the range.
    pub fn data(&self) -> &D::Range {
        self.range().data()
    }

    /// Returns whether a flag of the range was set at some recent time.
    pub fn has(&self, flag: RangeFlag) -> bool {
        self.range().has(flag)
    }

    /// Moves as many pages of the range as it can to the memory of `pagemap`; see
    /// [`DeviceMemory::populate_from`], also for the errors.
    pub fn populate<P: Provider>(
        &mut self,
        pagemap: &DeviceMemory<P>,
        sources: Sources,
        timeslice_ms: u32,
    ) -> Result<Moved> {
        let mm = self.guard.core().mm().ok_or(EINVAL)?;
        // The migration changes the pages: the result of an earlier walk is of no use.
        self.walk.forget();
        pagemap.populate_from(sources, mm, self.span(), timeslice_ms)
    }

    /// Like [`populate`](Self::populate), for the memory of any driver; it does not return how much
    /// moved. See [`Pagemap::populate`].
    pub fn populate_any(&mut self, memory: &Pagemap, timeslice_ms: u32) -> Result {
        let mm = self.guard.core().mm().ok_or(EINVAL)?;
        self.walk.forget();
        memory.populate(mm, self.span(), timeslice_ms)
    }

    /// Maps all pages of the range for all of its devices, or none, as [`Source::get`] does.
    ///
    /// Fails as that does, with two exceptions, which are `EAGAIN`: the CPU unmapped the range
    /// meanwhile, and `EBUSY` while there is time for another attempt.
    ///
    /// Pages that are mapped for reading only are invalidated first if `ctx` asks for write access.
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
        // SAFETY: The driver's SVM lock is held and the notifier lock is not. The notifier's
        // callback unmaps all pages of the ranges that an invalidation overlaps. Pages that were
        // valid for another access were invalidated above.
        let result = unsafe { source.get(self.pages(), ctx, attempt, &mut walk) };
        self.walk = walk;
        match result {
            // The CPU unmapped the range, or part of it, meanwhile. The caller looks the address up
            // again.
            Err(EFAULT) if self.range().has(RangeFlag::Unmapped) => Err(EAGAIN),
            // The CPU kept changing its mappings during the walk, but there is time for another
            // attempt, which may be for a smaller range.
            Err(EBUSY) if !attempt.is_last() => Err(EAGAIN),
            result => result,
        }
    }

    /// Calls `f` with the device addresses of the range, and the range, if its pages are still
    /// valid. The notifier lock is held for reading until `f` returns, so that they stay valid
    /// meanwhile.
    ///
    /// `f` writes GPU page tables. It must not allocate memory with reclaim, fault in user pages,
    /// or wait for the GPU; nor may it take the lock of an SVM, or shut or drop an SVM. (The borrow
    /// of `self` keeps it from using this range in another way.)
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

    /// Removes the range: zaps it by [`Driver::invalidate`], unmaps its pages and takes it out of
    /// the tree, all in one hold of the notifier lock for writing.
    pub fn remove(self) {
        self.guard.remove_range(self.range);
    }

    /// Moves the pages that are in device memory back to system memory; see [`GpuSvm::evict`].
    pub fn evict(&self, attempt: &Attempt<'_>) -> Result {
        // SAFETY: The driver's SVM lock is held, and the notifier lock is not.
        unsafe { self.guard.core().evict(self.range().base(), attempt) }
    }

    /// Returns where the pages are, with all device memory as if absent; see [`GpuSvm::scan`].
    pub fn scan(&mut self, attempt: &Attempt<'_>) -> ScanResult {
        self.scan_with(ptr::null_mut(), ptr::null(), attempt)
    }

    /// Returns where the pages are, and in particular whether [all of them](ScanResult::Equal) are
    /// in the memory of `pagemap`; see [`GpuSvm::scan`].
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
