// SPDX-License-Identifier: GPL-2.0

//! The driver's side: what a driver in Rust implements, and the SVM that it gets.
//!
//! This is a thin, typed face of the core. A driver's SVM is locked by a token
//! ([`Svm::lock`]), its ranges are found, mapped and removed through the token, and device addresses
//! are seen only inside [`LockedRange::commit`](crate::guard::LockedRange::commit). There is one place where a
//! driver lets go of what it mapped, [`Driver::invalidate`]; the core calls it before any page is
//! unmapped, for whatever reason, so that it cannot be forgotten.

use crate::{
    dma_device::{Attachments, DmaDevice},
    flags::{PagesFlag, RangeFlag},
    garbage::Garbage,
    guard::{DriverLock, Guard},
    notifier::Notifier,
    pages::{PageSet, Pages},
    range::SvmRange,
    svm::{Config, Event, GpuSvm, Ops, CLEAR, PROTECTION_PAGE, PROTECTION_VMA, UNMAP}, //
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

/// How many ranges are unmapped in one hold of the notifier lock, where that is up to the core.
pub const BATCH: usize = 64;

/// A driver that mirrors processes' address spaces. To be implemented with `#[vtable]`, which tells the core whose
/// code the callbacks are: each SVM keeps that module from being unloaded.
///
/// An [`Svm`] owns its [`Vm`](Self::Vm). Where the callbacks need what owns the SVM in turn, such as
/// a work item of the whole VM, the `Vm` may hold a counted reference to it, but then somebody has
/// to break the cycle: give the reference up when the VM is closed, as vxe's `Collector` does, and
/// the SVM goes with its owner.
#[vtable]
pub trait Driver: Sized + Send + Sync + 'static {
    /// Name of the driver's SVMs.
    const NAME: &'static CStr;

    /// What the driver keeps with an SVM, and needs in the callbacks below.
    type Vm: Send + Sync;

    /// What the driver keeps with a range.
    type Range: Send + Sync;

    /// Makes the driver's part of a range that may be inserted next. May sleep and allocate. The driver's SVM
    /// lock is held.
    fn new_range(vm: &Self::Vm) -> Result<Self::Range>;

    /// Lets go of ranges: when this returns, no GPU may use an address that it was shown for any of
    /// [`Invalidation::ranges`]. So mappings are zapped, and all TLBs flushed, over all of
    /// [`Invalidation::span`].
    ///
    /// Called with the notifier lock held for writing. It may sleep for what is sure to end, and
    /// must not take the SVM lock, allocate memory with reclaim, or wait for GPU work that may
    /// itself wait for a fault to be served.
    fn invalidate(vm: &Self::Vm, invalidation: &Invalidation<'_, Self>);

    /// As [`invalidate`](Self::invalidate), for who may not wait: the OOM reaper, which takes memory from a
    /// process that is being killed. What it is refused stays allocated until the process has ended, and
    /// after a second the OOM killer turns to the next one.
    ///
    /// A driver that lets go without sleeping, and without waiting for anybody who may, does so here; a
    /// spinlock may be waited for, a mutex tried. It fails where it would have to wait for more: then it
    /// is called again some time later, for these ranges or as `invalidate`. What it has let go of already
    /// need not be undone.
    ///
    /// If it is left out nobody is let go of without waiting.
    fn try_invalidate(
        _vm: &Self::Vm,
        _invalidation: &Invalidation<'_, Self>,
    ) -> Result<(), WouldBlock> {
        Err(WouldBlock)
    }

    /// There are ranges that the CPU unmapped: have [`Guard::collect_garbage`] called soon. Called
    /// with the notifier lock held: only queues the work.
    fn garbage(vm: &Self::Vm);
}

/// Somebody would have to be waited for, by who may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WouldBlock;

/// A range of a driver: the core's part, the pages for each device, and the driver's data.
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
        // The base is the first field.
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
        // SAFETY: By this function's requirements.
        unsafe { link.byte_sub(core::mem::offset_of!(Self, link)).cast() }
    }

    pub(crate) fn pages(&self) -> &[Pages] {
        self.pages.as_slice()
    }

    /// The addresses of the range, in bytes.
    pub fn span(&self) -> Span<usize> {
        self.base.span()
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.base.size()
    }

    /// The driver's part.
    pub fn data(&self) -> &D::Range {
        &self.data
    }

    /// Whether a flag of the range is set, at some recent time.
    pub fn has(&self, flag: RangeFlag) -> bool {
        self.base.has(flag)
    }

    /// Whether some of what the devices have mapped is device memory, at some recent time.
    pub fn has_device_memory(&self) -> bool {
        self.pages()
            .iter()
            .any(|pages| pages.has(PagesFlag::HasDevmemPages))
    }

    /// Whether all devices have all pages mapped, at some recent time.
    pub fn is_mapped(&self) -> bool {
        self.pages().iter().all(Pages::is_valid)
    }
}

/// Ranges that a driver has to let go of. The notifier lock is held for writing.
pub struct Invalidation<'a, D: Driver> {
    svm: &'a Svm<D>,
    first: NonNull<SvmRange>,
    changed: Span<usize>,
    event: Event,
    deferrable: bool,
    _ranges: PhantomData<&'a Range<D>>,
}

impl<'a, D: Driver> Invalidation<'a, D> {
    /// The ranges of which pages are mapped and addresses change.
    pub fn ranges(&self) -> impl Iterator<Item = &'a Range<D>> {
        self.all()
            .filter(|range| range.pages().iter().any(Pages::is_any_mapped))
    }

    /// The smallest span that includes all of [`ranges`](Self::ranges); empty if there are none.
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

    /// What the CPU changes. A range is let go of as a whole, even if only part of it is in here.
    pub fn changed(&self) -> Span<usize> {
        self.changed.clone()
    }

    /// Whether the CPU unmaps the addresses, and not just changes what is mapped there.
    pub fn is_unmap(&self) -> bool {
        self.event == UNMAP
    }

    /// Whether the CPU changes what is mapped at addresses that stay in use, and the change may be held up
    /// for some milliseconds, for the sake of an access that is about to be made. Never in
    /// [`Driver::try_invalidate`].
    pub fn can_wait(&self) -> bool {
        self.deferrable && [CLEAR, PROTECTION_VMA, PROTECTION_PAGE].contains(&self.event)
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

/// The SVM of a driver: a process's address space, mirrored.
///
/// A driver puts it, pinned, into its VM. When it is dropped all ranges are removed as by
/// [`Guard::remove_all`], so that [`Driver::invalidate`] is called. As long as it is there, even if it is leaked, it
/// keeps the driver's module, and the devices that it maps for with the modules of theirs.
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
    // Last, as all of the others may run code of the driver's when they go.
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

    /// Mirrors `mm` for `devices` as `config` says, with the driver's `vm`: each range is mapped for all of the
    /// devices, from one look at the CPU's page tables, or for none. When one of them is unbound the SVM is
    /// [shut](Self::shut).
    ///
    /// Fails with `EINVAL` as [`Config::check`] says and for no device; with `ENODEV` if a device is unbound, or its
    /// driver's module or that of `D` is on its way out; and with `ENOMEM`. Sleeps; not to be called under what
    /// [`Driver::invalidate`] takes, nor `mmap_lock`.
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
                // SAFETY: The lock is a field next to the core, and nobody knows the SVM yet.
                unsafe {
                    core.set_driver_lock(lock.dep_map())
                };
                core.set_nonblock();
                // SAFETY: All of the SVM is made, and stays where it is until it is dropped, which detaches it.
                unsafe { devices.attach(NonNull::from(&*core), Self::shut_core) }?;
            },
        })
    }

    /// What the driver keeps with the SVM.
    pub fn vm(&self) -> &D::Vm {
        &self.vm
    }

    /// The process's address space.
    pub fn mm(&self) -> Option<&Mm> {
        self.core.mm()
    }

    /// The MM level.
    ///
    /// # Safety
    ///
    /// While a lock is held that was taken through the result, nothing else may be done with the SVM: what takes the
    /// lock again waits for ever.
    pub unsafe fn core(&self) -> &GpuSvm {
        &self.core
    }

    /// The MM level, for the core.
    pub(crate) fn gpusvm(&self) -> &GpuSvm {
        &self.core
    }

    pub(crate) fn garbage(&self) -> &Garbage {
        &self.garbage
    }

    /// Takes the driver's SVM lock: the right to find, insert, map and remove ranges. Outermost of
    /// the locks; may sleep.
    pub fn lock(&self) -> Guard<'_, D> {
        Guard::new(self, self.lock.lock())
    }

    /// As [`lock`](Self::lock), for a process that must be able to die while it waits: who has the
    /// lock may wait for pages that this very process is to bring. Fails with `EINTR` if it does.
    pub fn lock_killable(&self) -> Result<Guard<'_, D>> {
        Ok(Guard::new(self, self.lock.lock_killable()?))
    }

    /// As [`lock`](Self::lock), but does not wait: none if somebody else has the lock.
    pub fn try_lock(&self) -> Option<Guard<'_, D>> {
        Some(Guard::new(self, self.lock.try_lock()?))
    }

    /// Shuts the SVM: unmaps all pages of all ranges, and from now on maps none. The ranges stay until somebody
    /// removes them.
    ///
    /// This is done when one of its devices is unbound; a driver whose device goes may do it before. It needs no SVM
    /// lock, and so waits for nobody who may wait for a page of the process. Whoever has that lock finds out when he maps ([`LockedRange::get`] fails with `EFAULT`) or
    /// [commits][`LockedRange::commit`]. The notifier lock is let go of after a number of ranges, so that a change of
    /// the CPU's waits a bounded time. Sleeps.
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

    /// Start of the part of the first CPU VMA that lies in `span`, never below `span.start`; none if
    /// there is no VMA or the process is gone. Takes the mmap lock.
    pub fn find_vma_start(&self, span: Span<usize>) -> Option<usize> {
        self.core.find_vma_start(span)
    }

    /// [`shut`](Self::shut), for a device that is unbound.
    ///
    /// # Safety
    ///
    /// `core` must be the core of an `Svm<D>` that is all made.
    unsafe fn shut_core(core: NonNull<GpuSvm>) {
        // SAFETY: By this function's requirements.
        unsafe { Self::from_core(core.as_ptr().cast()) }.shut();
    }

    /// # Safety
    ///
    /// `core` must be the core of an `Svm<D>` that lives during `'a`.
    unsafe fn from_core<'a>(core: *mut ext::drm_gpusvm) -> &'a Self {
        // The core is the first field.
        const { assert!(core::mem::offset_of!(Self, core) == 0) };
        // SAFETY: By this function's requirements.
        unsafe { &*core.cast() }
    }

    /// `range_alloc` of the operations.
    ///
    /// # Safety
    ///
    /// `core` must be the core of an `Svm<D>`.
    unsafe extern "C" fn range_alloc(core: *mut ext::drm_gpusvm) -> *mut ext::drm_gpusvm_range {
        // SAFETY: The core calls the operations of an SVM with that SVM.
        let this = unsafe { Self::from_core(core) };
        match this.new_range() {
            // SAFETY: The range is not moved until it is freed.
            Ok(range) => KBox::into_raw(unsafe { Pin::into_inner_unchecked(range) }).cast(),
            Err(e) => e.to_ptr(),
        }
    }

    fn new_range(&self) -> Result<Pin<KBox<Range<D>>>> {
        let data = D::new_range(&self.vm)?;
        // SAFETY: Ranges go before the SVM, which keeps the devices, and is shut when one is unbound.
        let pages = unsafe { PageSet::new(&self.devices) }?;
        // The core writes the base anew when it inserts the range.
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
    /// `range` must be a range that `range_alloc()` made, and nobody else know it.
    unsafe extern "C" fn range_free(range: *mut ext::drm_gpusvm_range) {
        // SAFETY: All ranges of an `Svm<D>` are made by `range_alloc()`, and freed once.
        drop(unsafe { KBox::from_raw(range.cast::<Range<D>>()) });
    }

    /// `invalidate` of the operations.
    ///
    /// # Safety
    ///
    /// `core` must be the core of an `Svm<D>`, `notifier` one of its notifiers, `mmu_range` valid, and
    /// the notifier lock be held for writing.
    unsafe extern "C" fn invalidate(
        core: *mut ext::drm_gpusvm,
        notifier: *mut ext::drm_gpusvm_notifier,
        mmu_range: *const bindings::mmu_notifier_range,
    ) {
        // SAFETY: The core calls the operations of an SVM with that SVM, one of its notifiers and a
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
        // Each notifier is told of its own part. No range reaches beyond its notifier, so that one
        // that is changed in part is so still.
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

    /// [`Driver::invalidate`], which does not fail.
    fn invalidate_all(vm: &D::Vm, invalidation: &Invalidation<'_, D>) -> Result<(), WouldBlock> {
        D::invalidate(vm, invalidation);
        Ok(())
    }

    /// Has the driver let go of the ranges that overlap `changed`, and unmaps their pages, as the core wants.
    ///
    /// # Safety
    ///
    /// The notifier lock must be held for writing.
    pub(crate) unsafe fn zap(&self, changed: Span<usize>, event: Event) {
        // SAFETY: By this function's requirements. It does not fail.
        let _ = unsafe { self.zap_with(changed, event, false, Self::invalidate_all) };
    }

    /// As [`zap`](Self::zap) of the first [`BATCH`] ranges in `changed`. Returns the address after these,
    /// which is the end of `changed` if that was all.
    ///
    /// # Safety
    ///
    /// The notifier lock must be held for writing.
    pub(crate) unsafe fn zap_batch(&self, changed: Span<usize>, event: Event) -> usize {
        // SAFETY: The notifier lock is held.
        let end = unsafe { self.end_of_batch(&changed) };
        // SAFETY: By this function's requirements.
        unsafe { self.zap(changed.start..end, event) };
        end
    }

    /// Where the first range in `span` begins that is not one of the first [`BATCH`]; else its end.
    ///
    /// # Safety
    ///
    /// The notifier lock must be held.
    unsafe fn end_of_batch(&self, span: &Span<usize>) -> usize {
        // A range has a page, at least.
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

    /// As [`zap`](Self::zap), by `zap`; fails as that does, with nothing unmapped. A change that is
    /// `deferrable` is one of the CPU's, which may sleep.
    ///
    /// Nothing else in here sleeps: to unmap a page from a device, or to give up a pagemap, may be done in
    /// any context.
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
            deferrable,
            _ranges: PhantomData,
        };
        if invalidation.ranges().next().is_some() {
            zap(&self.vm, &invalidation)?;
        }
        let mut garbage = false;
        for range in invalidation.all() {
            for pages in range.pages() {
                // SAFETY: The notifier lock is held for writing, and the driver let go.
                unsafe { pages.unmap() };
                if event == UNMAP {
                    pages.set_unmapped();
                }
            }
            if event == UNMAP {
                range.base.set_unmapped(&changed);
                // SAFETY: The range leaves the list before it is freed, when it is removed.
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
        // Nothing is mapped, and nobody can map: a device need not know the SVM any more.
        self.devices.detach();
    }
}
