// SPDX-License-Identifier: GPL-2.0

//! The MM level: a process's address space, the MMU interval notifiers that watch it, and their
//! ranges.
//!
//! No type of this module knows a device. A driver is called through an operations table, C's
//! `struct drm_gpusvm_ops`, whether it is written in C or in Rust.
//!
//! # Locking
//!
//! Outermost first: the driver's SVM lock, `mmap_lock` for reading, the notifier lock.
//!
//! - The *driver's SVM lock* serializes all callers that find, insert, remove or map ranges.
//!   Functions that need it are `unsafe` here; [`Svm`](crate::driver::Svm) makes them safe by a
//!   lock guard.
//! - The *notifier lock* is taken for writing to invalidate ranges and to change a tree, and for
//!   reading to map pages, to commit GPU page tables and to look ranges up. No memory is allocated
//!   under it.
//!
//! C: `struct drm_gpusvm`.

use crate::{
    chunk,
    notifier::{self, Notifier},
    pages::Pages,
    range::SvmRange, //
};
#[cfg(CONFIG_LOCKDEP)]
use core::cell::Cell;
use core::{ops::Range, ptr::NonNull};
use kernel::{
    bindings,
    ffi::{c_int, c_ulong},
    mm::Mm,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Relaxed},
        static_lock_class, //
    },
};
use kernel_ext::{
    bindings as ext,
    interval_tree::Tree,
    lock_name,
    mm::{live_mm, mmap_lock::MmapReadGuard},
    sync::rwsem::{
        ReadGuard,
        RwSemaphore, //
    }, //
};

pub use kernel_ext::bindings::drm_gpusvm_ops as Ops;

/// An address space that is mirrored by devices; it has the layout of `struct drm_gpusvm`.
///
/// # Invariants
///
/// `ops` is null or points to operations that outlive the object. If `num_chunks` is not 0,
/// `chunk_sizes` points to `num_chunks` sizes that outlive the object.
#[repr(C)]
#[pin_data]
pub struct GpuSvm {
    pub(crate) name: *const kernel::ffi::c_char,
    pub(crate) mm: Option<ARef<Mm>>,
    pub(crate) mm_start: usize,
    pub(crate) mm_range: usize,
    pub(crate) notifier_size: usize,
    pub(crate) ops: *const Ops,
    pub(crate) chunk_sizes: *const usize,
    pub(crate) num_chunks: c_int,
    /// [`NONBLOCK`], [`REFUSED`] and [`SHUT`]; padding in C. Written only under the notifier lock,
    /// held for writing, or before the SVM is shared with another thread.
    state: Atomic<u32>,
    #[pin]
    pub(crate) notifier_lock: RwSemaphore,
    #[pin]
    pub(crate) notifiers: Tree,
    #[cfg(CONFIG_LOCKDEP)]
    pub(crate) lock_dep_map: Cell<*mut bindings::lockdep_map>,
}

// SAFETY: No field is bound to the thread that made the SVM: an `mm` reference may be dropped by
// any thread.
unsafe impl Send for GpuSvm {}
// SAFETY: The fields are immutable, or protected as the module's documentation says.
unsafe impl Sync for GpuSvm {}

/// The parameters of a [`GpuSvm`] with ranges; see [`GpuSvm::new`].
#[derive(Clone, Copy)]
pub struct Config {
    /// First address, in bytes.
    pub start: usize,
    /// Size of the address space, in bytes; `start + size` must not overflow.
    pub size: usize,
    /// Size of the span of one notifier, in bytes: a power of two, not smaller than the largest
    /// chunk.
    pub notifier_size: usize,
    /// The sizes of ranges, in bytes: powers of two in descending order, the last of them
    /// `PAGE_SIZE`.
    pub chunk_sizes: &'static [usize],
}

impl Config {
    /// Fails with `EINVAL` unless the sizes are as the fields' documentation demands.
    pub fn check(&self) -> Result {
        let largest = *self.chunk_sizes.first().ok_or(EINVAL)?;
        if !chunk::sizes_are_valid(self.chunk_sizes, PAGE_SIZE)
            || !self.notifier_size.is_power_of_two()
            || self.notifier_size < largest
            || self.size == 0
            || self.start.checked_add(self.size).is_none()
        {
            kernel_ext::debug!("refused a configuration with invalid sizes");
            return Err(EINVAL);
        }
        Ok(())
    }
}

/// Flag of `GpuSvm::state`: the driver's `invalidate` supports ranges that are not blockable.
const NONBLOCK: u32 = 1;
/// Flag of `GpuSvm::state`: the `invalidate` call under way would have to sleep.
const REFUSED: u32 = 2;
/// Flag of `GpuSvm::state`: no page of any range may be mapped any more.
const SHUT: u32 = 4;

impl GpuSvm {
    /// Creates an SVM with ranges for `mm`. C: `drm_gpusvm_init()`.
    ///
    /// Fails with `EINVAL` as [`Config::check`] does, and if `ops` has no `invalidate`.
    pub fn new(
        name: &'static CStr,
        mm: &Mm,
        config: Config,
        ops: &'static Ops,
    ) -> impl PinInit<Self, Error> {
        let mm: ARef<Mm> = mm.into();
        pin_init::pin_init_scope(move || {
            config.check()?;
            if ops.invalidate.is_none() {
                return Err(EINVAL);
            }
            Ok(Self::init(name, Some(mm), config, ops))
        })
    }

    /// Creates an SVM without ranges, for [`Pages`] that a driver maps under notifiers of its own.
    pub fn pages_only(name: &'static CStr) -> impl PinInit<Self, Error> {
        let config = Config {
            start: 0,
            size: 0,
            notifier_size: 0,
            chunk_sizes: &[],
        };
        Self::init(name, None, config, core::ptr::null())
    }

    fn init(
        name: &'static CStr,
        mm: Option<ARef<Mm>>,
        config: Config,
        ops: *const Ops,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            name: name.as_char_ptr(),
            mm,
            mm_start: config.start,
            mm_range: config.size,
            notifier_size: config.notifier_size,
            ops,
            chunk_sizes: config.chunk_sizes.as_ptr(),
            num_chunks: config.chunk_sizes.len() as c_int,
            state: Atomic::new(0),
            notifier_lock <- RwSemaphore::new(
                lock_name!(c"gpusvm.notifier_lock"),
                static_lock_class!()
            ),
            notifiers <- Tree::new(),
            #[cfg(CONFIG_LOCKDEP)]
            lock_dep_map: Cell::new(core::ptr::null_mut()),
            _: {
                notifier_lock.prime_reclaim();
            },
        })
    }

    /// Returns a raw pointer to the C object.
    pub fn as_raw(&self) -> *mut ext::drm_gpusvm {
        (&raw const *self).cast_mut().cast()
    }

    /// Returns a reference to an SVM that [`new`](Self::new) or [`pages_only`](Self::pages_only)
    /// created.
    ///
    /// # Safety
    ///
    /// `ptr` must point to such an SVM, which must stay valid during `'a`.
    pub unsafe fn from_raw<'a>(ptr: *mut ext::drm_gpusvm) -> &'a Self {
        // SAFETY: The caller guarantees that `ptr` is a valid SVM during `'a`.
        unsafe { &*ptr.cast() }
    }

    /// Returns the process's address space; none for a pages-only SVM.
    pub fn mm(&self) -> Option<&Mm> {
        self.mm.as_deref()
    }

    /// Returns the driver's operations; an empty table for a pages-only SVM.
    pub(crate) fn ops(&self) -> &Ops {
        static NONE: Ops = pin_init::zeroed();
        // SAFETY: By the type invariants `ops` is null or valid.
        unsafe { self.ops.as_ref() }.unwrap_or(&NONE)
    }

    pub(crate) fn notifier_size(&self) -> usize {
        self.notifier_size
    }

    pub(crate) fn chunk_sizes(&self) -> &[usize] {
        if self.num_chunks <= 0 {
            return &[];
        }
        // SAFETY: By the type invariants `chunk_sizes` points to `num_chunks` sizes.
        unsafe { core::slice::from_raw_parts(self.chunk_sizes, self.num_chunks as usize) }
    }

    /// Returns the addresses of the SVM, in bytes.
    pub fn span(&self) -> Range<usize> {
        self.mm_start..self.mm_start.saturating_add(self.mm_range)
    }

    /// Returns the notifier lock. Drivers take it for reading only; the core alone takes it for
    /// writing.
    pub(crate) fn notifier_lock(&self) -> &RwSemaphore {
        &self.notifier_lock
    }

    /// Takes the notifier lock for reading. C: `drm_gpusvm_notifier_lock()`.
    pub fn read_lock(&self) -> ReadGuard<'_> {
        self.notifier_lock.read()
    }

    /// Registers the driver's SVM lock: a kernel with lockdep then warns when a function that needs
    /// the lock is called without it. C: `drm_gpusvm_driver_set_lock()`.
    ///
    /// # Safety
    ///
    /// `map` must belong to a lock that outlives the SVM. The SVM must not be shared with another
    /// thread yet.
    #[cfg(CONFIG_LOCKDEP)]
    pub unsafe fn set_driver_lock(&self, map: *mut bindings::lockdep_map) {
        self.lock_dep_map.set(map);
    }

    /// Warns, on a kernel with lockdep, unless the caller holds the driver's SVM lock. Does nothing
    /// if the driver has not called [`set_driver_lock`](Self::set_driver_lock).
    pub(crate) fn assert_driver_lock(&self) {
        #[cfg(CONFIG_LOCKDEP)]
        // SAFETY: The pointer is null, or the map of a lock that outlives the SVM.
        unsafe {
            ext::lockdep_assert_map_held(self.lock_dep_map.get())
        }
    }

    /// Calls the driver's `invalidate` for `range`. The caller holds the notifier lock for writing.
    pub(crate) fn call_invalidate(
        &self,
        notifier: &Notifier,
        range: *const bindings::mmu_notifier_range,
    ) {
        self.notifier_lock.assert_held_write();
        if let Some(invalidate) = self.ops().invalidate {
            let notifier = (&raw const *notifier).cast_mut().cast();
            // SAFETY: The notifier lock is held for writing, as the operation requires; `notifier`
            // belongs to this SVM.
            unsafe { invalidate(self.as_raw(), notifier, range) }
        }
    }

    /// Declares that the driver's `invalidate` supports ranges that are not blockable: it calls
    /// [`refuse`](Self::refuse) where it would have to sleep. A C driver's `invalidate` cannot do
    /// that. Called before the SVM is shared with another thread.
    pub(crate) fn set_nonblock(&self) {
        self.change_state(0, NONBLOCK);
    }

    /// Called by `invalidate` that would have to sleep for a range that is not blockable: pages of
    /// that range may still be in use.
    pub(crate) fn refuse(&self) {
        self.change_state(0, REFUSED);
    }

    /// Makes every later attempt to map a page fail with `EFAULT`. The caller unmaps the pages that
    /// are mapped already.
    pub(crate) fn shut(&self) {
        self.notifier_lock.assert_held_write();
        self.change_state(0, SHUT);
    }

    /// Returns whether the SVM is [`shut`](Self::shut). The caller holds the notifier lock.
    pub(crate) fn is_shut(&self) -> bool {
        self.state.load(Relaxed) & SHUT != 0
    }

    fn change_state(&self, clear: u32, set: u32) {
        let state = self.state.load(Relaxed);
        self.state.store(state & !clear | set, Relaxed);
    }

    /// Like [`call_invalidate`](Self::call_invalidate), for a `range` that is not blockable.
    /// Returns whether the driver has ended its use of all pages; if not, pages of some ranges may
    /// still be mapped.
    pub(crate) fn try_call_invalidate(
        &self,
        notifier: &Notifier,
        range: *const bindings::mmu_notifier_range,
    ) -> bool {
        if self.state.load(Relaxed) & NONBLOCK == 0 {
            return false;
        }
        self.call_invalidate(notifier, range);
        // The notifier lock is held for writing, so that only the call above can have set the flag.
        let done = self.state.load(Relaxed) & REFUSED == 0;
        self.change_state(REFUSED, 0);
        done
    }

    /// Calls the driver's `invalidate` for `range` as for a change of the CPU's mappings of kind
    /// `event`.
    ///
    /// The core uses it to raise the permission of mapped pages ([`PROTECTION_PAGE`]) and to have a
    /// range replaced by a smaller one ([`UNMAP`]). The driver handles both like a change by the
    /// CPU.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock, and not the notifier lock; the range must be in
    /// its tree.
    pub(crate) unsafe fn invalidate_range(&self, range: &SvmRange, event: Event) {
        let span = range.span();
        let mmu_range = bindings::mmu_notifier_range {
            mm: self.mm().map_or(core::ptr::null_mut(), Mm::as_raw),
            start: span.start as c_ulong,
            end: span.end as c_ulong,
            flags: bindings::MMU_NOTIFIER_RANGE_BLOCKABLE,
            event,
            // The owner tells this call from a change by the CPU.
            owner: self.as_raw().cast(),
        };
        let _lock = self.notifier_lock.write();
        // SAFETY: The caller holds the driver's SVM lock, which keeps the range in its tree.
        self.call_invalidate(unsafe { range.notifier() }, &raw const mmu_range);
    }

    /// Returns the lowest notifier that overlaps `span`. C: `drm_gpusvm_notifier_find()`.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock or the notifier lock while it uses the result.
    pub unsafe fn notifier_find(&self, span: Range<usize>) -> Option<NonNull<Notifier>> {
        // SAFETY: The tree changes only under both locks, of which the caller holds one.
        Notifier::from_node(unsafe { self.notifiers.first(span) })
    }

    /// Returns the lowest range that overlaps `span`, in any notifier.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock or the notifier lock while it uses the result.
    pub unsafe fn range_find(&self, span: Range<usize>) -> Option<NonNull<SvmRange>> {
        // SAFETY: The caller holds one of the two locks, here and below; notifiers of the tree are
        // valid.
        let mut notifier = unsafe { self.notifier_find(span.clone()) };
        while let Some(ptr) = notifier {
            // SAFETY: As above.
            let this = unsafe { ptr.as_ref() };
            if this.span().start >= span.end {
                break;
            }
            // SAFETY: As above.
            if let Some(range) = unsafe { this.find(span.clone()) } {
                return Some(range);
            }
            // SAFETY: As above; the notifier is linked.
            notifier = Notifier::from_node(unsafe { self.notifiers.next(this.node()) });
        }
        None
    }

    /// Returns the range after `range` that begins below `end`, in the same notifier or a later
    /// one.
    ///
    /// # Safety
    ///
    /// As for [`range_find`](Self::range_find); `range` must be in its tree.
    pub unsafe fn range_next(&self, range: &SvmRange, end: usize) -> Option<NonNull<SvmRange>> {
        // SAFETY: The caller holds one of the two locks, and `range` is in its tree.
        let next = match unsafe { range.next() } {
            Some(next) => Some(next),
            // SAFETY: As above.
            None => unsafe { self.range_find(range.notifier().span().end..end) },
        };
        // SAFETY: Ranges of the tree are valid while one of the two locks is held.
        next.filter(|next| unsafe { next.as_ref() }.span().start < end)
    }

    /// Returns whether any range overlaps `span`. C: `drm_gpusvm_has_mapping()`.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock or the notifier lock.
    pub unsafe fn has_mapping(&self, span: Range<usize>) -> bool {
        // SAFETY: The caller holds one of the two locks.
        unsafe { self.range_find(span) }.is_some()
    }

    /// Returns the start of the part of the first CPU VMA that lies in `span`, which is never below
    /// `span.start`; none if `span` has no VMA, the process is gone, or the calling thread is being
    /// killed. Takes `mmap_lock` for reading.
    ///
    /// C: `drm_gpusvm_find_vma_start()`, which returns the start of the VMA even if that is below
    /// the span.
    pub fn find_vma_start(&self, span: Range<usize>) -> Option<usize> {
        let mm = live_mm::get(self.mm()?, 0).ok()?;
        let mmap = MmapReadGuard::lock_killable(&mm).ok()?;
        let vma = crate::scan::first_vma(&mmap, &mm, span.clone())?;
        Some(vma.start().max(span.start))
    }

    /// Removes a range from its tree, and gives up the tree's reference. C:
    /// `drm_gpusvm_range_remove()`.
    ///
    /// `zap` runs first, then all of `pages` are unmapped, then the range leaves the tree, all
    /// under one hold of the notifier lock for writing: no thread finds the range outside of its
    /// tree and still mapped. `zap` is told whether any page is mapped; if so, it must end the
    /// device's use of the pages' addresses. The notifier is freed with its last range.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock, and not the notifier lock. `range` must be in
    /// its tree, and `pages` must be all pages objects that are mapped for it.
    pub unsafe fn remove(&self, range: NonNull<SvmRange>, pages: &[Pages], zap: impl FnOnce(bool)) {
        self.assert_driver_lock();
        // SAFETY: The caller holds the driver's SVM lock, which keeps the range and its notifier.
        let (this, notifier) = unsafe { (range.as_ref(), range.as_ref().notifier()) };
        let last = {
            let _lock = self.notifier_lock.write();
            zap(pages.iter().any(Pages::is_any_mapped));
            for pages in pages {
                // SAFETY: The notifier lock is held for writing; `zap` has ended the device's use
                // of the pages.
                unsafe { pages.retire() };
            }
            // SAFETY: Both locks are held, and the range is linked in this tree.
            unsafe {
                notifier.ranges().remove(this.node());
                let last = notifier.is_empty();
                if last {
                    self.notifiers.remove(notifier.node());
                }
                last
            }
        };
        let notifier = NonNull::from(notifier);
        // SAFETY: The range has left the tree, whose reference is given up; the SVM exists.
        unsafe { SvmRange::put(range) };
        if last {
            // SAFETY: The driver's SVM lock is held and the notifier lock is not; the notifier has
            // no ranges and is in no tree.
            unsafe { notifier::remove_and_free(notifier) };
        }
    }
}

/// The kind of a change of the CPU's mappings, `enum mmu_notifier_event`.
pub type Event = bindings::mmu_notifier_event;
/// The CPU unmapped the span.
pub const UNMAP: Event = bindings::mmu_notifier_event_MMU_NOTIFY_UNMAP;
/// The kernel replaces or reclaims pages of the span.
pub const CLEAR: Event = bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR;
/// The permission of the VMA changes.
pub const PROTECTION_VMA: Event = bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_VMA;
/// The permission of single pages changes.
pub const PROTECTION_PAGE: Event = bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_PAGE;

/// Returns whether a change replaces pages or changes permissions of addresses that stay mapped, so
/// that a driver may delay it if the CPU makes it and may sleep.
pub fn is_deferrable(event: Event) -> bool {
    [CLEAR, PROTECTION_VMA, PROTECTION_PAGE].contains(&event)
}
