// SPDX-License-Identifier: GPL-2.0

//! The MM level: an address space of a process, the notifiers that watch it, and their ranges.
//!
//! Nothing here knows a device. What a driver does is behind an operations table, C's
//! `struct drm_gpusvm_ops`, whether the driver is written in C or in Rust.
//!
//! # Locking
//!
//! Outermost first: the driver's SVM lock, `mmap_lock` for reading, the notifier lock.
//!
//! - The *driver's SVM lock* serializes everything that finds, inserts, removes or maps ranges.
//!   Functions that need it are `unsafe` here; [`Svm`](crate::driver::Svm) makes them safe by a
//!   token.
//! - The *notifier lock* is taken for writing to invalidate, and to change a tree; for reading to
//!   map, to commit and to look up. No memory is allocated under it.
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
    mm::live_mm,
    sync::rwsem::{
        ReadGuard,
        RwSemaphore, //
    }, //
};

pub use kernel_ext::bindings::drm_gpusvm_ops as Ops;

/// An address space whose mappings devices share; it has the layout of `struct drm_gpusvm`.
///
/// # Invariants
///
/// `ops` is null or points to operations that outlive the object. `chunk_sizes` points to
/// `num_chunks` sizes that outlive it, if `num_chunks` is not 0.
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
    /// What `invalidate` can do for who may not wait, and whether anything may be mapped; padding in C.
    /// Changed only under the notifier lock, held for writing.
    state: Atomic<u32>,
    #[pin]
    pub(crate) notifier_lock: RwSemaphore,
    #[pin]
    pub(crate) notifiers: Tree,
    #[cfg(CONFIG_LOCKDEP)]
    pub(crate) lock_dep_map: Cell<*mut bindings::lockdep_map>,
}

// SAFETY: An SVM may be used and torn down from any thread.
unsafe impl Send for GpuSvm {}
// SAFETY: Its fields are immutable, or protected as the module's documentation says.
unsafe impl Sync for GpuSvm {}

/// What a full SVM is made of; see [`GpuSvm::new`].
#[derive(Clone, Copy)]
pub struct Config {
    /// First address, in bytes.
    pub start: usize,
    /// Size of the address space, in bytes; `start + size` must not overflow.
    pub size: usize,
    /// Span of one notifier: a power of two, in bytes, not smaller than the largest chunk.
    pub notifier_size: usize,
    /// The sizes of ranges: powers of two, in bytes, in descending order, the last of them
    /// `PAGE_SIZE`.
    pub chunk_sizes: &'static [usize],
}

impl Config {
    /// Whether the parts fit together.
    pub fn check(&self) -> Result {
        let largest = *self.chunk_sizes.first().ok_or(EINVAL)?;
        if !chunk::sizes_are_valid(self.chunk_sizes, PAGE_SIZE)
            || !self.notifier_size.is_power_of_two()
            || self.notifier_size < largest
            || self.size == 0
            || self.start.checked_add(self.size).is_none()
        {
            kernel_ext::debug!("refused a configuration whose sizes do not fit together");
            return Err(EINVAL);
        }
        Ok(())
    }
}

/// The driver's `invalidate` can be called for who may not wait.
const NONBLOCK: u32 = 1;
/// It was, and would have to wait.
const REFUSED: u32 = 2;
/// Nothing is mapped any more.
const SHUT: u32 = 4;

impl GpuSvm {
    /// A full SVM of `mm`, `drm_gpusvm_init()`. Fails with `EINVAL` as [`Config::check`] says, or
    /// for operations without `invalidate`.
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

    /// An SVM for [`Pages`] that a driver maps with notifiers of its own, and no ranges.
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

    /// The C object.
    pub fn as_raw(&self) -> *mut ext::drm_gpusvm {
        (&raw const *self).cast_mut().cast()
    }

    /// A reference to an SVM that was made by [`new`](Self::new) or [`pages_only`](Self::pages_only).
    ///
    /// # Safety
    ///
    /// `ptr` must be such an object, and stay one during `'a`.
    pub unsafe fn from_raw<'a>(ptr: *mut ext::drm_gpusvm) -> &'a Self {
        // SAFETY: By this function's requirements.
        unsafe { &*ptr.cast() }
    }

    /// The process's address space; none of a pages-only SVM.
    pub fn mm(&self) -> Option<&Mm> {
        self.mm.as_deref()
    }

    /// The driver's operations; an empty table of a pages-only SVM.
    pub(crate) fn ops(&self) -> &Ops {
        static NONE: Ops = pin_init::zeroed();
        // SAFETY: By the type invariants.
        unsafe { self.ops.as_ref() }.unwrap_or(&NONE)
    }

    pub(crate) fn notifier_size(&self) -> usize {
        self.notifier_size
    }

    pub(crate) fn chunk_sizes(&self) -> &[usize] {
        if self.num_chunks <= 0 {
            return &[];
        }
        // SAFETY: By the type invariants.
        unsafe { core::slice::from_raw_parts(self.chunk_sizes, self.num_chunks as usize) }
    }

    /// The addresses of the SVM, in bytes.
    pub fn span(&self) -> Range<usize> {
        self.mm_start..self.mm_start.saturating_add(self.mm_range)
    }

    /// The notifier lock. Take it for reading; writing is the core's.
    pub(crate) fn notifier_lock(&self) -> &RwSemaphore {
        &self.notifier_lock
    }

    /// Takes the notifier lock for reading. C: `drm_gpusvm_notifier_lock()`.
    pub fn read_lock(&self) -> ReadGuard<'_> {
        self.notifier_lock.read()
    }

    /// Tells which lock is the driver's SVM lock: from now on a debug kernel warns where it is not
    /// held. C: `drm_gpusvm_driver_set_lock()`.
    ///
    /// # Safety
    ///
    /// `map` must be of a lock that outlives the SVM. Nobody else may know the SVM yet.
    #[cfg(CONFIG_LOCKDEP)]
    pub unsafe fn set_driver_lock(&self, map: *mut bindings::lockdep_map) {
        self.lock_dep_map.set(map);
    }

    /// Warns, on a debug kernel, unless the driver's SVM lock is held, for a driver that told it by
    /// [`set_driver_lock`](Self::set_driver_lock).
    pub(crate) fn assert_driver_lock(&self) {
        #[cfg(CONFIG_LOCKDEP)]
        // SAFETY: Null, or the map of a lock that outlives the SVM.
        unsafe {
            ext::lockdep_assert_map_held(self.lock_dep_map.get())
        }
    }

    /// Calls the driver's `invalidate` for `range`. The notifier lock is held for writing.
    pub(crate) fn call_invalidate(
        &self,
        notifier: &Notifier,
        range: *const bindings::mmu_notifier_range,
    ) {
        self.notifier_lock.assert_held_write();
        if let Some(invalidate) = self.ops().invalidate {
            let notifier = (&raw const *notifier).cast_mut().cast();
            // SAFETY: The driver's operation is called as it is by C: with the notifier lock held.
            unsafe { invalidate(self.as_raw(), notifier, range) }
        }
    }

    /// Says that the driver's `invalidate` heeds whether a range is blockable, and calls
    /// [`refuse`](Self::refuse) where it would have to wait; C's has no way to say that. Before anybody else
    /// knows the SVM.
    pub(crate) fn set_nonblock(&self) {
        self.change_state(0, NONBLOCK);
    }

    /// Says, in `invalidate`, that it would have to wait, so that the pages may be in use still.
    pub(crate) fn refuse(&self) {
        self.change_state(0, REFUSED);
    }

    /// From now on no page is mapped: whoever tries fails with `EFAULT`. What is mapped is the
    /// caller's to unmap.
    pub(crate) fn shut(&self) {
        self.notifier_lock.assert_held_write();
        self.change_state(0, SHUT);
    }

    /// Whether it is [`shut`](Self::shut), for who holds the notifier lock.
    pub(crate) fn is_shut(&self) -> bool {
        self.state.load(Relaxed) & SHUT != 0
    }

    fn change_state(&self, clear: u32, set: u32) {
        let state = self.state.load(Relaxed);
        self.state.store(state & !clear | set, Relaxed);
    }

    /// As [`call_invalidate`](Self::call_invalidate), for a range that is not blockable. Returns whether the
    /// driver let go; if not, the pages of some ranges may be mapped still.
    pub(crate) fn try_call_invalidate(
        &self,
        notifier: &Notifier,
        range: *const bindings::mmu_notifier_range,
    ) -> bool {
        if self.state.load(Relaxed) & NONBLOCK == 0 {
            return false;
        }
        self.call_invalidate(notifier, range);
        // The notifier lock is held for writing: it was this call that refused.
        let done = self.state.load(Relaxed) & REFUSED == 0;
        self.change_state(REFUSED, 0);
        done
    }

    /// Invalidates `range` as if the CPU had changed its mappings, by an event of the kind `event`.
    ///
    /// This is how anything but a change by the CPU makes a driver let go of a range: a permission
    /// to be raised ([`PROTECTION_PAGE`]), a range to be cut ([`UNMAP`]). A driver has one way to
    /// let go, and cannot tell the difference.
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
            // Tells it from a change by the CPU.
            owner: self.as_raw().cast(),
        };
        let _lock = self.notifier_lock.write();
        // SAFETY: The driver's lock keeps the range in its tree.
        self.call_invalidate(unsafe { range.notifier() }, &raw const mmu_range);
    }

    /// The lowest notifier that overlaps `span`. C: `drm_gpusvm_notifier_find()`.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock or the notifier lock while it uses the result.
    pub unsafe fn notifier_find(&self, span: Range<usize>) -> Option<NonNull<Notifier>> {
        // SAFETY: The tree changes only under both locks.
        Notifier::from_node(unsafe { self.notifiers.first(span) })
    }

    /// The lowest range that overlaps `span`, in whatever notifier.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock or the notifier lock while it uses the result.
    pub unsafe fn range_find(&self, span: Range<usize>) -> Option<NonNull<SvmRange>> {
        // SAFETY: As this function requires, here and below; notifiers of the tree are valid.
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

    /// The range after `range` that begins below `end`, in this notifier or a later one.
    ///
    /// # Safety
    ///
    /// As for [`range_find`](Self::range_find); `range` must be in its tree.
    pub unsafe fn range_next(&self, range: &SvmRange, end: usize) -> Option<NonNull<SvmRange>> {
        // SAFETY: As this function requires.
        let next = match unsafe { range.next() } {
            Some(next) => Some(next),
            // SAFETY: As this function requires.
            None => unsafe { self.range_find(range.notifier().span().end..end) },
        };
        // SAFETY: Ranges of the tree are valid.
        next.filter(|next| unsafe { next.as_ref() }.span().start < end)
    }

    /// Whether any range overlaps `span`. C: `drm_gpusvm_has_mapping()`.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock or the notifier lock.
    pub unsafe fn has_mapping(&self, span: Range<usize>) -> bool {
        // SAFETY: As this function requires.
        unsafe { self.range_find(span) }.is_some()
    }

    /// Start of the part of the first CPU VMA that lies in `span`, so never below `span.start`;
    /// none if there is no VMA or the process is gone. Takes the mmap lock.
    ///
    /// C: `drm_gpusvm_find_vma_start()`, which gives the start of the VMA even if that is below the
    /// span.
    pub fn find_vma_start(&self, span: Range<usize>) -> Option<usize> {
        let mm = live_mm::get(self.mm()?, 0).ok()?;
        let mmap = mm.mmap_read_lock();
        let vma = crate::scan::first_vma(&mmap, &mm, span.clone())?;
        Some(vma.start().max(span.start))
    }

    /// Takes a range out of its tree, after `zap` and the unmapping of all of `pages`, under one
    /// hold of the notifier lock; gives up the tree's reference. C: `drm_gpusvm_range_remove()`.
    ///
    /// Nobody can see the range out of the tree and still mapped. `zap` runs with the notifier
    /// lock held for writing, and is told whether any page is mapped: then it must end every use of
    /// the pages' addresses. The notifier goes with its last range.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock, and not the notifier lock. `range` must be in
    /// its tree, and `pages` all the pages objects that are mapped for it.
    pub unsafe fn remove(&self, range: NonNull<SvmRange>, pages: &[Pages], zap: impl FnOnce(bool)) {
        self.assert_driver_lock();
        // SAFETY: The driver's lock keeps the range and its notifier.
        let (this, notifier) = unsafe { (range.as_ref(), range.as_ref().notifier()) };
        let last = {
            let _lock = self.notifier_lock.write();
            zap(pages.iter().any(Pages::is_any_mapped));
            for pages in pages {
                // SAFETY: The notifier lock is held for writing.
                unsafe { pages.retire() };
            }
            // SAFETY: Both locks are held, and the range is linked here.
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
        // SAFETY: The tree's reference is given up; the SVM exists.
        unsafe { SvmRange::put(range) };
        if last {
            // SAFETY: The driver's lock is held and the notifier lock is not; the notifier has no
            // ranges and is in no tree.
            unsafe { notifier::remove_and_free(notifier) };
        }
    }
}

/// Kinds of change, `enum mmu_notifier_event`.
pub type Event = bindings::mmu_notifier_event;
/// The CPU unmapped the span.
pub const UNMAP: Event = bindings::mmu_notifier_event_MMU_NOTIFY_UNMAP;
/// Pages are taken from the span.
pub const CLEAR: Event = bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR;
/// The permission of the VMA changes.
pub const PROTECTION_VMA: Event = bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_VMA;
/// The permission of single pages changes.
pub const PROTECTION_PAGE: Event = bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_PAGE;
