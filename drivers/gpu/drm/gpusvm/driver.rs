// SPDX-License-Identifier: GPL-2.0

//! The driver's side: the trait that a Rust driver implements, and its SVM.
//!
//! This is a thin, typed layer over the MM level and the device level. A driver takes the SVM lock
//! by [`Svm::lock`], and finds, maps and removes ranges through the guard that it returns. It sees
//! device addresses only inside [`LockedRange::commit`](crate::guard::LockedRange::commit). It zaps
//! its GPU page tables in one place, [`Driver::invalidate`], which the core calls before it unmaps
//! any page, for whatever reason.

use crate::{
    dma_device::{Attachments, DmaDevice},
    flags::{PagesFlag, RangeFlag},
    garbage::Garbage,
    guard::{DriverLock, Guard},
    notifier::Notifier,
    pages::{PageSet, Pages},
    range::SvmRange,
    svm::{is_deferrable, Config, Event, GpuSvm, Ops, PROTECTION_PAGE, UNMAP}, //
};
use core::{marker::PhantomData, ops::Range as Span, ptr::NonNull};
use kernel::{
    bindings,
    interop::list::CListHead,
    mm::Mm,
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc, //
};
use kernel_ext::{
    bindings as ext,
    module::ModuleRef,
    sched, //
};

/// How many ranges the core unmaps in one hold of the notifier lock, where it chooses the number.
pub const BATCH: usize = 64;

/// A driver that mirrors processes' address spaces.
///
/// The implementation is marked `#[vtable]`, which names the module that the callbacks belong to:
/// each SVM keeps that module from being unloaded.
///
/// An [`Svm`] owns its [`Vm`](Self::Vm). If the callbacks need the object that owns the SVM, such
/// as a work item of the whole VM, the `Vm` may hold a counted reference to that object. The driver
/// then breaks the reference cycle: it drops the reference when the VM is closed, as vxe's
/// `Collector` does, and the SVM is dropped with its owner.
#[vtable]
pub trait Driver: Sized + Send + Sync + 'static {
    /// Name of the driver's SVMs.
    const NAME: &'static CStr;

    /// The driver's data of an SVM, which the callbacks below are called with.
    type Vm: Send + Sync;

    /// The driver's data of a range.
    type Range: Send + Sync;

    /// Creates the driver's data of a range. The range may not be inserted in the end. The driver's
    /// SVM lock is held; may sleep and allocate.
    fn new_range(vm: &Self::Vm) -> Result<Self::Range>;

    /// Ends the GPU's use of ranges: when this function returns, no GPU may use an address that
    /// [`LockedRange::commit`] gave for any of [`Invalidation::ranges`]. The driver zaps the
    /// mappings and flushes all TLBs over all of [`Invalidation::span`].
    ///
    /// Called with the notifier lock held for writing. It may sleep for events that are sure to
    /// happen. It must not take the SVM lock, allocate memory with reclaim, or wait for GPU work
    /// that may itself wait for a GPU fault to be served.
    ///
    /// [`LockedRange::commit`]: crate::guard::LockedRange::commit
    fn invalidate(vm: &Self::Vm, invalidation: &Invalidation<'_, Self>);

    /// Like [`invalidate`](Self::invalidate), for a caller that must not sleep: the OOM reaper,
    /// which frees memory of a process that is being killed. Memory of ranges for which this fails
    /// stays allocated until the process has exited, and after a second the OOM killer selects
    /// another process.
    ///
    /// A driver that can zap without sleeping, and without waiting for a thread that may sleep,
    /// does so here: it may wait for a spinlock and try to lock a mutex. It fails where it would
    /// have to wait for more; the core then calls it again later for the same ranges, or calls
    /// `invalidate`. Zaps that it has done before it fails need not be undone.
    ///
    /// The default fails for all ranges.
    fn try_invalidate(
        _vm: &Self::Vm,
        _invalidation: &Invalidation<'_, Self>,
    ) -> Result<(), WouldBlock> {
        Err(WouldBlock)
    }

    /// Schedules a call of [`Guard::collect_garbage`]: the CPU has unmapped ranges, which must be
    /// removed. Called with the notifier lock held, so it only queues the work.
    fn garbage(vm: &Self::Vm);
}

/// The error of [`Driver::try_invalidate`]: the driver would have to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WouldBlock;

/// A range of a driver: the core's part, one pages object for each device, and the driver's data.
#[repr(C)]
#[pin_data]
pub struct Range<D: Driver> {
    #[pin]
    base: SvmRange,
    #[pin]
    link: CListHead,
    pages: PageSet,
    data: D::Range,
}

impl<D: Driver> Range<D> {
    /// # Safety
    ///
    /// `base` must be a range of an [`Svm<D>`].
    pub(crate) unsafe fn from_base(base: NonNull<SvmRange>) -> NonNull<Self> {
        // The cast needs the base to be the first field.
        const { assert!(core::mem::offset_of!(Self, base) == 0) };
        base.cast()
    }

    pub(crate) fn base(&self) -> &SvmRange {
        &self.base
    }

    pub(crate) fn link(&self) -> &CListHead {
        &self.link
    }

    /// # Safety
    ///
    /// `link` must be the link of a `Range<D>`.
    pub(crate) unsafe fn from_link(link: NonNull<CListHead>) -> NonNull<Self> {
        // SAFETY: The caller guarantees that `link` is part of a `Range<D>`.
        unsafe { link.byte_sub(core::mem::offset_of!(Self, link)).cast() }
    }

    pub(crate) fn pages(&self) -> &[Pages] {
        self.pages.as_slice()
    }

    /// Returns the addresses of the range, in bytes.
    pub fn span(&self) -> Span<usize> {
        self.base.span()
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> usize {
        self.base.size()
    }

    /// Returns the driver's data.
    pub fn data(&self) -> &D::Range {
        &self.data
    }

    /// Returns whether a flag of the range was set at some recent time.
    pub fn has(&self, flag: RangeFlag) -> bool {
        self.base.has(flag)
    }

    /// Returns whether any device had device memory mapped for the range at some recent time.
    pub fn has_device_memory(&self) -> bool {
        self.pages()
            .iter()
            .any(|pages| pages.has(PagesFlag::HasDevmemPages))
    }

    /// Returns whether all devices had all pages mapped at some recent time.
    pub fn is_mapped(&self) -> bool {
        self.pages().iter().all(Pages::is_valid)
    }
}

/// The ranges of one [`Driver::invalidate`] call. The notifier lock is held for writing.
pub struct Invalidation<'a, D: Driver> {
    svm: &'a Svm<D>,
    first: NonNull<SvmRange>,
    changed: Span<usize>,
    event: Event,
    deferrable: bool,
    _ranges: PhantomData<&'a Range<D>>,
}

impl<'a, D: Driver> Invalidation<'a, D> {
    /// Returns the ranges that have mapped pages and overlap the change.
    pub fn ranges(&self) -> impl Iterator<Item = &'a Range<D>> {
        self.all()
            .filter(|range| range.pages().iter().any(Pages::is_any_mapped))
    }

    /// Returns the smallest span that includes all of [`ranges`](Self::ranges); empty if there are
    /// none.
    pub fn span(&self) -> Span<usize> {
        let mut ranges = self.ranges();
        let Some(first) = ranges.next() else {
            return 0..0;
        };
        let end = ranges
            .last()
            .map_or(first.span().end, |last| last.span().end);
        first.span().start..end
    }

    /// Returns the addresses that the CPU changes. A range is invalidated as a whole, even if only
    /// part of it is in this span.
    pub fn changed(&self) -> Span<usize> {
        self.changed.clone()
    }

    /// Returns whether the CPU unmaps the addresses, rather than changes their pages or
    /// permissions.
    pub fn is_unmap(&self) -> bool {
        self.event == UNMAP
    }

    /// Returns whether the CPU changes pages or permissions of addresses that stay mapped, so that
    /// the driver may delay the change for some milliseconds, for a GPU access that is about to be
    /// made. Never true in [`Driver::try_invalidate`].
    pub fn can_wait(&self) -> bool {
        self.deferrable
    }

    fn all(&self) -> impl Iterator<Item = &'a Range<D>> {
        let (svm, end) = (self.svm, self.changed.end);
        let mut next = Some(self.first);
        core::iter::from_fn(move || {
            // SAFETY: The notifier lock is held during `'a`, so that the tree does not change. All
            // ranges of an `Svm<D>` are `Range<D>`.
            let range: &'a Range<D> = unsafe { Range::from_base(next?).as_ref() };
            // SAFETY: As above.
            next = unsafe { svm.core.range_next(range.base(), end) };
            Some(range)
        })
    }
}

/// The SVM of a driver: the mirror of a process's address space.
///
/// A driver embeds it, pinned, in its VM. Dropping it removes all ranges as [`Guard::remove_all`]
/// does, so that [`Driver::invalidate`] is called. While it exists, even if it is leaked, it keeps
/// the driver's module, the devices that it maps for, and the modules of these devices' drivers.
#[repr(C)]
#[pin_data(PinnedDrop)]
pub struct Svm<D: Driver> {
    #[pin]
    core: GpuSvm,
    #[pin]
    lock: DriverLock,
    #[pin]
    garbage: Garbage,
    vm: D::Vm,
    devices: Attachments,
    // Dropped last: dropping the fields above may run the driver's code.
    _module: ModuleRef,
}

impl<D: Driver> Svm<D> {
    const OPS: &'static Ops = &Ops {
        notifier_alloc: None,
        notifier_free: None,
        range_alloc: Some(Self::range_alloc),
        range_free: Some(Self::range_free),
        invalidate: Some(Self::invalidate),
    };

    /// Creates an SVM that mirrors `mm` for `devices` as `config` says, with the driver's `vm`.
    /// Each range is mapped for all of the devices, from one walk of the CPU's page tables, or for
    /// none. When one of the devices is unbound, the SVM is [shut](Self::shut).
    ///
    /// Fails with `EINVAL` as [`Config::check`] does and if `devices` is empty; with `ENODEV` if a
    /// device is unbound, or if the module of its driver or of `D` is being unloaded; and with
    /// `ENOMEM`. Sleeps; the caller must not hold `mmap_lock` or a lock that [`Driver::invalidate`]
    /// takes.
    pub fn new<'a>(
        mm: &'a Mm,
        config: Config,
        devices: &'a [Arc<DmaDevice>],
        vm: D::Vm,
    ) -> impl PinInit<Self, Error> + 'a {
        try_pin_init!(Self {
            core <- GpuSvm::new(D::NAME, mm, config, Self::OPS),
            lock <- DriverLock::new(),
            garbage <- Garbage::new(),
            vm,
            devices: Attachments::new(devices)?,
            _module: ModuleRef::of::<D::OwnerModule>()?,
            _: {
                #[cfg(CONFIG_LOCKDEP)]
                // SAFETY: The lock is a field next to the core, and the SVM is not shared with
                // another thread yet.
                unsafe {
                    core.set_driver_lock(lock.dep_map())
                };
                core.set_nonblock();
                // SAFETY: All fields are initialized, and the SVM stays where it is until it is
                // dropped, which detaches it.
                unsafe { devices.attach(NonNull::from(&*core), Self::shut_core) }?;
            },
        })
    }

    /// Returns the driver's data of the SVM.
    pub fn vm(&self) -> &D::Vm {
        &self.vm
    }

    /// Returns the process's address space.
    pub fn mm(&self) -> Option<&Mm> {
        self.core.mm()
    }

    /// Returns the MM level.
    ///
    /// # Safety
    ///
    /// A caller that holds a lock that it took through the result must not use the SVM in any other
    /// way: a function that takes the same lock would deadlock.
    pub unsafe fn core(&self) -> &GpuSvm {
        &self.core
    }

    /// Returns the MM level, for the core.
    pub(crate) fn gpusvm(&self) -> &GpuSvm {
        &self.core
    }

    pub(crate) fn garbage(&self) -> &Garbage {
        &self.garbage
    }

    /// Takes the driver's SVM lock, which allows to find, insert, map and remove ranges. It is the
    /// outermost of the locks. May sleep.
    pub fn lock(&self) -> Guard<'_, D> {
        Guard::new(self, self.lock.lock())
    }

    /// Like [`lock`](Self::lock), for a task that must stay killable while it waits: the holder of
    /// the lock may wait for pages that this task's process has to provide (by userfaultfd, for
    /// example). Fails with `EINTR` if the task is killed.
    pub fn lock_killable(&self) -> Result<Guard<'_, D>> {
        Ok(Guard::new(self, self.lock.lock_killable()?))
    }

    /// Like [`lock`](Self::lock), without waiting: returns none if another thread holds the lock.
    pub fn try_lock(&self) -> Option<Guard<'_, D>> {
        Some(Guard::new(self, self.lock.try_lock()?))
    }

    /// Shuts the SVM: unmaps all pages of all ranges, and makes every later attempt to map one
    /// fail. The ranges stay until they are removed.
    ///
    /// The core calls this when one of the SVM's devices is unbound; a driver may call it earlier.
    /// It does not take the SVM lock, and so does not wait for a thread that waits for a page of
    /// the process. The thread that holds the SVM lock notices when it maps ([`LockedRange::get`]
    /// fails with `EFAULT`) or [commits][`LockedRange::commit`]. The notifier lock is released
    /// after each [`BATCH`] of ranges, so that a change of the CPU's mappings waits a bounded time.
    /// Sleeps.
    ///
    /// [`LockedRange::get`]: crate::guard::LockedRange::get
    /// [`LockedRange::commit`]: crate::guard::LockedRange::commit
    pub fn shut(&self) {
        {
            let _lock = self.core.notifier_lock().write();
            self.core.shut();
        }
        let mut rest = self.core.span();
        while !rest.is_empty() {
            let lock = self.core.notifier_lock().write();
            // SAFETY: The notifier lock is held for writing.
            rest.start = unsafe { self.zap_batch(rest.clone(), PROTECTION_PAGE) };
            drop(lock);
            sched::cond_resched();
        }
    }

    /// Returns the start of the part of the first CPU VMA that lies in `span`, which is never below
    /// `span.start`; none if `span` has no VMA, the process is gone, or the calling thread is being
    /// killed. Takes `mmap_lock` for reading.
    pub fn find_vma_start(&self, span: Span<usize>) -> Option<usize> {
        self.core.find_vma_start(span)
    }

    /// Calls [`shut`](Self::shut); the callback for a device that is unbound.
    ///
    /// # Safety
    ///
    /// `core` must be the core of an `Svm<D>` that is fully initialized.
    unsafe fn shut_core(core: NonNull<GpuSvm>) {
        // SAFETY: The caller guarantees that `core` is the core of a valid `Svm<D>`.
        unsafe { Self::from_core(core.as_ptr().cast()) }.shut();
    }

    /// # Safety
    ///
    /// `core` must be the core of an `Svm<D>` that lives during `'a`.
    unsafe fn from_core<'a>(core: *mut ext::drm_gpusvm) -> &'a Self {
        // The cast needs the core to be the first field.
        const { assert!(core::mem::offset_of!(Self, core) == 0) };
        // SAFETY: The caller guarantees that `core` is the core of an `Svm<D>` that lives during
        // `'a`.
        unsafe { &*core.cast() }
    }

    /// `range_alloc` of the operations.
    ///
    /// # Safety
    ///
    /// `core` must be the core of an `Svm<D>`.
    unsafe extern "C" fn range_alloc(core: *mut ext::drm_gpusvm) -> *mut ext::drm_gpusvm_range {
        // SAFETY: The core calls an SVM's operations with that SVM.
        let this = unsafe { Self::from_core(core) };
        match this.new_range() {
            // SAFETY: The range is not moved until it is freed.
            Ok(range) => KBox::into_raw(unsafe { Pin::into_inner_unchecked(range) }).cast(),
            Err(e) => e.to_ptr(),
        }
    }

    fn new_range(&self) -> Result<Pin<KBox<Range<D>>>> {
        let data = D::new_range(&self.vm)?;
        // SAFETY: Ranges are freed before the SVM, which keeps the devices and is shut before one
        // of them is unbound.
        let pages = unsafe { PageSet::new(&self.devices) }?;
        // The core initializes the base again when it inserts the range.
        let gpusvm = (&self.core).into();
        KBox::pin_init(
            pin_init!(Range {
                base <- SvmRange::init(gpusvm, NonNull::dangling(), 0..0),
                link <- CListHead::new(),
                pages,
                data,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// `range_free` of the operations.
    ///
    /// # Safety
    ///
    /// `range` must have been made by `range_alloc()`, and the caller must have the only pointer to
    /// it.
    unsafe extern "C" fn range_free(range: *mut ext::drm_gpusvm_range) {
        // SAFETY: All ranges of an `Svm<D>` are made by `range_alloc()`, and freed once.
        drop(unsafe { KBox::from_raw(range.cast::<Range<D>>()) });
    }

    /// `invalidate` of the operations.
    ///
    /// # Safety
    ///
    /// `core` must be the core of an `Svm<D>`, `notifier` one of its notifiers, `mmu_range` valid,
    /// and the notifier lock must be held for writing.
    unsafe extern "C" fn invalidate(
        core: *mut ext::drm_gpusvm,
        notifier: *mut ext::drm_gpusvm_notifier,
        mmu_range: *const bindings::mmu_notifier_range,
    ) {
        // SAFETY: The core calls an SVM's operations with that SVM, one of its notifiers and a
        // valid range.
        let (this, watched, changed, event, blockable, by_cpu) = unsafe {
            (
                Self::from_core(core),
                (*notifier.cast::<Notifier>()).span(),
                (*mmu_range).start..(*mmu_range).end,
                (*mmu_range).event,
                ext::mmu_notifier_range_blockable(mmu_range),
                (*mmu_range).owner.cast() != core,
            )
        };
        // Each notifier is called with the whole change, and handles its own part. No range reaches
        // beyond its notifier, so that a range that changes partly still does after the cut.
        let changed = changed.start.max(watched.start)..changed.end.min(watched.end);
        let zap = if blockable {
            Self::invalidate_all
        } else {
            D::try_invalidate
        };
        // SAFETY: The notifier lock is held for writing.
        if unsafe { this.zap_with(changed, event, by_cpu && blockable, zap) }.is_err() {
            this.core.refuse();
        }
    }

    /// Calls [`Driver::invalidate`], which does not fail.
    fn invalidate_all(vm: &D::Vm, invalidation: &Invalidation<'_, D>) -> Result<(), WouldBlock> {
        D::invalidate(vm, invalidation);
        Ok(())
    }

    /// Zaps the ranges that overlap `changed` by [`Driver::invalidate`], and unmaps their pages.
    ///
    /// # Safety
    ///
    /// The notifier lock must be held for writing.
    pub(crate) unsafe fn zap(&self, changed: Span<usize>, event: Event) {
        // SAFETY: The caller holds the notifier lock for writing. `Driver::invalidate()` does not
        // fail.
        let _ = unsafe { self.zap_with(changed, event, false, Self::invalidate_all) };
    }

    /// Like [`zap`](Self::zap), for the first [`BATCH`] ranges in `changed`. Returns the address
    /// after these, which is the end of `changed` if no range is left.
    ///
    /// # Safety
    ///
    /// The notifier lock must be held for writing.
    pub(crate) unsafe fn zap_batch(&self, changed: Span<usize>, event: Event) -> usize {
        // SAFETY: The notifier lock is held.
        let end = unsafe { self.end_of_batch(&changed) };
        // SAFETY: The caller holds the notifier lock for writing.
        unsafe { self.zap(changed.start..end, event) };
        end
    }

    /// Returns the start of the first range in `span` after the first [`BATCH`]; if there is none,
    /// the end of `span`.
    ///
    /// # Safety
    ///
    /// The notifier lock must be held.
    unsafe fn end_of_batch(&self, span: &Span<usize>) -> usize {
        // A range has at least one page.
        if span.end.saturating_sub(span.start) <= BATCH * PAGE_SIZE {
            return span.end;
        }
        // SAFETY: The notifier lock is held, here and below.
        let mut next = unsafe { self.core.range_find(span.clone()) };
        for _ in 0..BATCH {
            let Some(range) = next else { break };
            // SAFETY: As above; the range is in its tree.
            next = unsafe { self.core.range_next(range.as_ref(), span.end) };
        }
        // SAFETY: As above.
        next.map_or(span.end, |range| unsafe { range.as_ref() }.span().start)
    }

    /// Like [`zap`](Self::zap), with `zap` for [`Driver::invalidate`]; fails as `zap` does, and
    /// then unmaps nothing. `deferrable` says that the CPU makes the change, and that its thread
    /// may sleep.
    ///
    /// Apart from `zap` nothing here sleeps: a page may be unmapped from a device, and a pagemap
    /// reference dropped, in any context.
    ///
    /// # Safety
    ///
    /// The notifier lock must be held for writing.
    unsafe fn zap_with(
        &self,
        changed: Span<usize>,
        event: Event,
        deferrable: bool,
        zap: fn(&D::Vm, &Invalidation<'_, D>) -> Result<(), WouldBlock>,
    ) -> Result<(), WouldBlock> {
        // SAFETY: The notifier lock is held.
        let Some(first) = (unsafe { self.core.range_find(changed.clone()) }) else {
            return Ok(());
        };
        let invalidation = Invalidation {
            svm: self,
            first,
            changed: changed.clone(),
            event,
            deferrable: deferrable && is_deferrable(event),
            _ranges: PhantomData,
        };
        if invalidation.ranges().next().is_some() {
            zap(&self.vm, &invalidation)?;
        }
        let mut garbage = false;
        for range in invalidation.all() {
            for pages in range.pages() {
                // SAFETY: The notifier lock is held for writing, and the driver has ended its use
                // of the pages.
                unsafe { pages.unmap() };
                if event == UNMAP {
                    pages.set_unmapped();
                }
            }
            if event == UNMAP {
                range.base.set_unmapped(&changed);
                // SAFETY: The removal of the range takes it out of the list before the range is
                // freed.
                garbage |= unsafe { self.garbage.add(range.link()) };
            }
        }
        if garbage {
            D::garbage(&self.vm);
        }
        Ok(())
    }
}

#[pinned_drop]
impl<D: Driver> PinnedDrop for Svm<D> {
    fn drop(self: Pin<&mut Self>) {
        self.lock().remove_all(0..usize::MAX);
        // No range is left and none can be mapped: the devices need not shut the SVM any more.
        self.devices.detach();
    }
}
