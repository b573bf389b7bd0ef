// SPDX-License-Identifier: GPL-2.0

//! Userptrs: memory of a process that a driver maps without ranges, at any address of the GPU.
//!
//! A [`Userptr`] owns an MMU interval notifier of its own for a fixed span of a process's addresses,
//! and the [`Pages`] of the span. Its pages are not pinned: a change of the CPU's mappings calls
//! [`UserptrDriver::revoke`] and unmaps all of them, and the driver gets them again
//! ([`LockedUserptr::get`]) when the GPU needs them. A userptr never ends by itself: memory that the
//! process unmaps cannot be got any more, until the process maps other memory there.
//!
//! The userptrs of a VM share a [`Userptrs`] object: the notifier lock, the devices, and the
//! driver's data. Each has a mutex of its own, so that faults on several userptrs are served at the
//! same time.
//!
//! # Two passes
//!
//! If a change concerns several userptrs, perhaps of several devices, all devices can flush their
//! TLBs at the same time: [`UserptrDriver::revoke`] zaps the page table, starts the flush, and
//! returns [a token](UserptrDriver::Pending); when that has been called for all userptrs,
//! [`UserptrDriver::finish`] gets the token, and waits for the flush. In between the notifier lock
//! is released, and the pages are *stale*: still mapped, but not valid, so that nobody gets their
//! addresses.
//!
//! # Locking
//!
//! Outermost first: the mutex of a userptr, `mmap_lock` for reading, the notifier lock. A driver
//! that also has an [`Svm`](crate::Svm) takes the SVM lock before the mutex of a userptr. Dropping
//! the last reference to a userptr waits for invalidations of it; so it must not be dropped with
//! the notifier lock held, in a callback of [`UserptrDriver`], or with a lock that
//! [`UserptrDriver::revoke`] takes.
//!
//! C has no such object. xe builds it in `xe_userptr.c`, on a `drm_gpusvm` without mm.

mod locked;

use crate::{
    dma_device::{Attachments, DmaDevice},
    driver::WouldBlock,
    pages::{PageSet, Pages},
    svm::{
        self,
        GpuSvm, //
    }, //
};
use core::{
    cell::UnsafeCell,
    ops::Range as Span,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    ffi::c_ulong,
    interop::list::CListHead,
    mm::Mm,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        aref::ARef,
        static_lock_class,
        Arc,
        Mutex, //
    },
};
use kernel_ext::{
    bindings as ext,
    list,
    lock_name,
    mm::{
        live_mm,
        mmu_notifier::{
            self,
            Finish,
            MmuIntervalNotifier, //
        }, //
    },
    module::ModuleRef,
    sched,
    sync::mutex, //
};

pub use locked::LockedUserptr;

/// A driver with userptrs.
///
/// The implementation is marked `#[vtable]`, which names the module that the callbacks belong to:
/// each [`Userptrs`] object keeps that module from being unloaded.
#[vtable]
pub trait UserptrDriver: Sized + Send + Sync + 'static {
    /// Name of the driver's [`Userptrs`] objects.
    const NAME: &'static CStr;

    /// The driver's data of a [`Userptrs`] object.
    type Vm: Send + Sync;

    /// The driver's data of a userptr.
    type Userptr: Send + Sync;

    /// What [`revoke`](Self::revoke) has begun and [`finish`](Self::finish) ends, such as a flush
    /// of a TLB. [`Infallible`](core::convert::Infallible) for a driver that works in one pass.
    type Pending: Send;

    /// Begins to end the GPU's use of a userptr's pages, or ends it. The driver zaps the mappings
    /// and starts to flush the TLBs.
    ///
    /// When this function returns `None`, or else when [`finish`](Self::finish) returns, no GPU may
    /// use an address that [`LockedUserptr::commit`] gave for this userptr.
    ///
    /// Called with the notifier lock held for writing, and for each userptr whose pages are valid.
    /// It may sleep for events that are sure to happen. With `can_wait`, as with
    /// [`Invalidation::can_wait`](crate::Invalidation::can_wait), the driver may delay the change
    /// for some milliseconds, for a GPU access that is about to be made. It must not allocate memory with reclaim,
    /// take the mutex of a userptr or a lock that is held where a userptr is got or dropped, or
    /// wait for GPU work that may itself wait for a GPU fault to be served.
    fn revoke(vm: &Self::Vm, userptr: &Userptr<Self>, can_wait: bool) -> Option<Self::Pending>;

    /// Ends what [`revoke`](Self::revoke) began. Called as that is, soon after it, perhaps by
    /// another thread.
    fn finish(vm: &Self::Vm, userptr: &Userptr<Self>, pending: Self::Pending);

    /// Like [`revoke`](Self::revoke), in one pass, for a caller that must not sleep: the OOM
    /// reaper. A driver that would have to sleep fails; zaps that it has done need not be undone.
    ///
    /// The default fails for all userptrs.
    fn try_revoke(_vm: &Self::Vm, _userptr: &Userptr<Self>) -> Result<(), WouldBlock> {
        Err(WouldBlock)
    }
}

/// What the userptrs of a VM share.
///
/// While it exists, even if it is leaked, it keeps the driver's module, the devices that it maps
/// for, and the modules of these devices' drivers. When one of the devices is unbound, all pages
/// are unmapped, and none can be mapped any more.
#[repr(C)]
#[pin_data(PinnedDrop)]
pub struct Userptrs<D: UserptrDriver> {
    #[pin]
    core: GpuSvm,
    /// The userptrs that may have mapped pages, and those that were shut. Protected by the notifier
    /// lock, held for writing.
    #[pin]
    live: CListHead,
    #[pin]
    shut: CListHead,
    vm: D::Vm,
    devices: Attachments,
    // Dropped last: dropping the fields above may run the driver's code.
    _module: ModuleRef,
}

// SAFETY: The notifier lock protects the lists; all other fields may be used by any thread.
unsafe impl<D: UserptrDriver> Send for Userptrs<D> {}
// SAFETY: As above.
unsafe impl<D: UserptrDriver> Sync for Userptrs<D> {}

impl<D: UserptrDriver> Userptrs<D> {
    /// Creates an object without userptrs, whose userptrs are mapped for all of `devices`.
    ///
    /// Fails with `EINVAL` if `devices` is empty; with `ENODEV` if a device is unbound, or if the
    /// module of its driver or of `D` is being unloaded; and with `ENOMEM`. Sleeps; the caller must
    /// not hold `mmap_lock` or a lock that [`UserptrDriver::revoke`] takes.
    pub fn new(devices: &[Arc<DmaDevice>], vm: D::Vm) -> Result<Arc<Self>> {
        let this = Arc::pin_init(
            try_pin_init!(Self {
                core <- GpuSvm::pages_only(D::NAME),
                live <- CListHead::new(),
                shut <- CListHead::new(),
                vm,
                devices: Attachments::new(devices)?,
                _module: ModuleRef::of::<D::OwnerModule>()?,
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        // SAFETY: The object is complete and stays where it is until it is dropped, which detaches
        // it.
        unsafe {
            this.devices
                .attach(NonNull::from(&this.core), Self::shut_core)
        }?;
        Ok(this)
    }

    /// Returns the driver's data.
    pub fn vm(&self) -> &D::Vm {
        &self.vm
    }

    /// Unmaps all pages of all userptrs, and makes every later attempt to map one fail with
    /// `EFAULT`.
    ///
    /// The core calls this when a device is unbound; a driver may call it earlier. It waits for no
    /// mutex of a userptr. The notifier lock is released after each userptr. Sleeps.
    pub fn shut(&self) {
        {
            let _lock = self.core.notifier_lock().write();
            self.core.shut();
        }
        loop {
            let lock = self.core.notifier_lock().write();
            if !self.live.is_linked() {
                break;
            }
            // SAFETY: The notifier lock is held for writing, which protects the lists. Their
            // entries are the `link` fields of userptrs, which leave the list before they are freed.
            unsafe {
                let this = Userptr::<D>::of_link(self.live.next());
                list::del(&this.link);
                list::add_before(&self.shut, &this.link);
                this.revoke_now();
            }
            drop(lock);
            sched::cond_resched();
        }
    }

    /// Calls [`shut`](Self::shut); the callback for a device that is unbound.
    ///
    /// # Safety
    ///
    /// `core` must be the core of a `Userptrs<D>`.
    unsafe fn shut_core(core: NonNull<GpuSvm>) {
        // The cast needs the core to be the first field.
        const { assert!(core::mem::offset_of!(Self, core) == 0) };
        // SAFETY: The caller guarantees that `core` is the core of a valid `Userptrs<D>`.
        unsafe { core.cast::<Self>().as_ref() }.shut();
    }
}

#[pinned_drop]
impl<D: UserptrDriver> PinnedDrop for Userptrs<D> {
    fn drop(self: Pin<&mut Self>) {
        // Each userptr has a reference to this object, so that none is left.
        self.devices.detach();
    }
}

/// Memory of a process, mapped for the devices of a [`Userptrs`] object.
///
/// The last reference removes it: ends the GPU's use by [`UserptrDriver::revoke`] and unmaps the
/// pages. That sleeps; see the [module](self) for the locks that must not be held.
#[pin_data(PinnedDrop)]
pub struct Userptr<D: UserptrDriver> {
    #[pin]
    notifier: MmuIntervalNotifier,
    #[pin]
    link: CListHead,
    #[pin]
    lock: Mutex<()>,
    /// Used by the caller of the notifier while `passes.is_lent`.
    #[pin]
    finish: UnsafeCell<Finish>,
    passes: UnsafeCell<Passes<D>>,
    pages: PageSet,
    span: Span<usize>,
    mm: ARef<Mm>,
    data: D::Userptr,
    // Dropped last: the other fields belong to it.
    space: Arc<Userptrs<D>>,
}

/// The state of an invalidation in two passes. Protected by the notifier lock, held for writing.
struct Passes<D: UserptrDriver> {
    /// The caller of the notifier has `finish`, until it calls the second pass.
    is_lent: bool,
    /// What the second pass has to finish; the pages are stale then. `None` if another invalidation
    /// has done it.
    pending: Option<D::Pending>,
}

/// Who revokes a userptr.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// A change of the CPU that the driver may delay.
    Deferrable,
    /// Another caller that may sleep.
    Blockable,
    /// A caller that must not sleep: the OOM reaper.
    Reaper,
}

// SAFETY: The notifier lock and the mutex protect the fields that change; any thread may use and
// drop the others.
unsafe impl<D: UserptrDriver> Send for Userptr<D> {}
// SAFETY: As above.
unsafe impl<D: UserptrDriver> Sync for Userptr<D> {}

impl<D: UserptrDriver> Userptr<D> {
    const OPS: &'static mmu_notifier::Ops = &mmu_notifier::Ops {
        invalidate: None,
        invalidate_start: Some(Self::start),
        invalidate_finish: Some(Self::second),
    };

    /// Creates a userptr for `span`, in bytes, of a process, with the driver's data. Nothing is
    /// mapped.
    ///
    /// Fails with `EINVAL` if `span` is empty or not aligned to pages; with `EFAULT` if the process
    /// has exited; and with `ENOMEM`. Sleeps; takes `mmap_lock`.
    pub fn new(
        space: &Arc<Userptrs<D>>,
        mm: &Mm,
        span: Span<usize>,
        data: D::Userptr,
    ) -> Result<Arc<Self>> {
        if span.is_empty() || span.start % PAGE_SIZE != 0 || span.end % PAGE_SIZE != 0 {
            kernel_ext::debug!("refused the userptr {span:#x?}");
            return Err(EINVAL);
        }
        let live = live_mm::get(mm, 0)?;
        // SAFETY: The userptr keeps `space`, which keeps the devices; it is shut before one of them
        // is unbound.
        let pages = unsafe { PageSet::new(&space.devices) }?;
        let this = Arc::pin_init(
            try_pin_init!(Self {
                notifier: MmuIntervalNotifier::new(),
                link <- CListHead::new(),
                lock <- Mutex::new((), lock_name!(c"gpusvm.userptr_lock"), static_lock_class!()),
                finish: UnsafeCell::new(pin_init::zeroed()),
                passes: UnsafeCell::new(Passes { is_lent: false, pending: None }),
                pages,
                span: span.clone(),
                mm: mm.into(),
                data,
                space: space.clone(),
                _: {
                    // SAFETY: The notifier is pinned and not inserted. All other fields are
                    // initialized; nothing after this fails, and the drop removes it.
                    unsafe { notifier.insert(&live, span.clone(), Self::OPS) }?;
                },
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        let _lock = space.core.notifier_lock().write();
        // SAFETY: The notifier lock is held for writing; the drop takes the userptr out of the
        // list.
        unsafe { list::add_before(&space.live, &this.link) };
        Ok(this)
    }

    /// Returns the addresses of the process, in bytes.
    pub fn span(&self) -> Span<usize> {
        self.span.clone()
    }

    /// Returns the driver's data.
    pub fn data(&self) -> &D::Userptr {
        &self.data
    }

    /// Returns the MMU interval notifier.
    pub fn notifier(&self) -> &MmuIntervalNotifier {
        &self.notifier
    }

    /// Returns what the userptr shares with others.
    pub fn space(&self) -> &Arc<Userptrs<D>> {
        &self.space
    }

    /// Returns whether all pages were mapped at some recent time.
    pub fn is_mapped(&self) -> bool {
        self.pages().iter().all(Pages::is_valid)
    }

    /// Takes the mutex, which allows to map the pages. Fails with `EINTR` if the caller is killed
    /// while it waits: the holder may wait for a page that the process has to provide.
    pub fn lock_killable(&self) -> Result<LockedUserptr<'_, D>> {
        Ok(LockedUserptr {
            userptr: self,
            _lock: mutex::lock_killable(&self.lock)?,
        })
    }

    fn pages(&self) -> &[Pages] {
        self.pages.as_slice()
    }

    fn vm(&self) -> &D::Vm {
        &self.space.vm
    }

    /// Ends the GPU's use of the pages and unmaps them, in one pass.
    ///
    /// # Safety
    ///
    /// The notifier lock must be held for writing.
    unsafe fn revoke_now(&self) {
        // SAFETY: The caller holds the notifier lock for writing.
        if let Ok(Some(pending)) = unsafe { self.revoke(Caller::Blockable) } {
            D::finish(self.vm(), self, pending);
            // SAFETY: As above; the driver has ended the use.
            unsafe { self.unmap() };
        }
    }

    /// Ends the GPU's use of the pages and unmaps them; or begins to end it and returns what has to
    /// be finished, with the pages stale.
    ///
    /// Fails with [`WouldBlock`] if the caller must not sleep and the driver would.
    ///
    /// # Safety
    ///
    /// The notifier lock must be held for writing.
    unsafe fn revoke(&self, caller: Caller) -> Result<Option<D::Pending>, WouldBlock> {
        let may_sleep = caller != Caller::Reaper;
        // SAFETY: The notifier lock is held for writing, which excludes all others.
        let passes = unsafe { &mut *self.passes.get() };
        let pending = match passes.pending.take() {
            // Another invalidation waits for its second pass. This one cannot: that pass may come
            // after its caller has freed the pages.
            Some(pending) if may_sleep => {
                D::finish(self.vm(), self, pending);
                None
            }
            Some(pending) => {
                passes.pending = Some(pending);
                return Err(WouldBlock);
            }
            // Nobody has seen the addresses: nothing is mapped, or a transaction is under way.
            None if !self.is_mapped() => None,
            None if may_sleep => D::revoke(self.vm(), self, caller == Caller::Deferrable),
            None => {
                D::try_revoke(self.vm(), self)?;
                None
            }
        };
        if pending.is_some() {
            self.pages().iter().for_each(Pages::set_stale);
        } else {
            // SAFETY: The caller holds the notifier lock for writing; the use has ended.
            unsafe { self.unmap() };
        }
        Ok(pending)
    }

    /// Unmaps all pages.
    ///
    /// # Safety
    ///
    /// The notifier lock must be held for writing, and no GPU may use the addresses.
    unsafe fn unmap(&self) {
        for pages in self.pages() {
            // SAFETY: By this function's requirements.
            unsafe { pages.unmap() };
        }
    }

    /// The first pass of an invalidation, `invalidate_start` of the notifier's operations.
    ///
    /// # Safety
    ///
    /// `mni` must be the notifier of a userptr; the other pointers must be valid.
    unsafe extern "C" fn start(
        mni: *mut bindings::mmu_interval_notifier,
        range: *const bindings::mmu_notifier_range,
        seq: c_ulong,
        finish: *mut *mut Finish,
    ) -> bool {
        let offset = core::mem::offset_of!(Self, notifier);
        // SAFETY: All notifiers with these operations are those of userptrs of `D`, which remove
        // them before they are freed.
        let this = unsafe { &*mni.byte_sub(offset).cast::<Self>() };
        let lock = this.space.core.notifier_lock();
        // SAFETY: The MMU notifier core passes a valid range.
        let (blockable, event) =
            unsafe { (ext::mmu_notifier_range_blockable(range), (*range).event) };
        let (held, caller) = match (blockable, svm::is_deferrable(event)) {
            (false, _) => (lock.try_write(), Caller::Reaper),
            (true, true) => (Some(lock.write()), Caller::Deferrable),
            (true, false) => (Some(lock.write()), Caller::Blockable),
        };
        if held.is_none() {
            return false;
        }
        // SAFETY: This is the callback, which holds the lock under which readers call
        // `mmu_interval_read_retry()`.
        unsafe { ext::mmu_interval_set_seq(mni, seq) };
        // SAFETY: The notifier lock is held for writing.
        let pending = match unsafe { this.revoke(caller) } {
            Ok(pending) => pending,
            Err(WouldBlock) => return false,
        };
        let Some(pending) = pending else { return true };
        // SAFETY: As above.
        let passes = unsafe { &mut *this.passes.get() };
        if passes.is_lent {
            // Another invalidation, whose work was done by this or a third one, has `finish`.
            D::finish(this.vm(), this, pending);
            // SAFETY: As above; the driver has ended the use.
            unsafe { this.unmap() };
            return true;
        }
        passes.is_lent = true;
        passes.pending = Some(pending);
        // SAFETY: The pointer is valid; `finish` is not in use, and stays until the second pass:
        // the removal of the notifier waits for that.
        unsafe { *finish = this.finish.get() };
        true
    }

    /// The second pass of an invalidation, `invalidate_finish` of the notifier's operations.
    ///
    /// # Safety
    ///
    /// `finish` must be that of a userptr, as the first pass returned it.
    unsafe extern "C" fn second(finish: *mut Finish) {
        let offset = core::mem::offset_of!(Self, finish);
        // SAFETY: The first pass returned the `finish` field of a userptr, which exists: the
        // removal of its notifier waits for this pass.
        let this = unsafe { &*finish.byte_sub(offset).cast::<Self>() };
        let _lock = this.space.core.notifier_lock().write();
        // SAFETY: The notifier lock is held for writing.
        let passes = unsafe { &mut *this.passes.get() };
        passes.is_lent = false;
        if let Some(pending) = passes.pending.take() {
            D::finish(this.vm(), this, pending);
            // SAFETY: As above; the driver has ended the use.
            unsafe { this.unmap() };
        }
    }

    /// Returns the userptr that `link` is part of.
    ///
    /// # Safety
    ///
    /// `link` must be the `link` of a userptr that is valid during `'a`.
    unsafe fn of_link<'a>(link: &CListHead) -> &'a Self {
        let link: *const CListHead = link;
        // SAFETY: The caller guarantees that `link` is part of a valid userptr.
        unsafe { &*link.byte_sub(core::mem::offset_of!(Self, link)).cast() }
    }
}

#[pinned_drop]
impl<D: UserptrDriver> PinnedDrop for Userptr<D> {
    fn drop(self: Pin<&mut Self>) {
        let this = self.as_ref().get_ref();
        // SAFETY: The notifier is inserted. The caller holds no lock that its callback takes.
        unsafe { this.notifier.remove() };
        let _lock = this.space.core.notifier_lock().write();
        // SAFETY: The notifier lock is held for writing. No reference is left, so that the pages are
        // not mapped again.
        unsafe {
            list::del(&this.link);
            this.revoke_now();
            this.pages().iter().for_each(|pages| pages.retire());
        }
    }
}
