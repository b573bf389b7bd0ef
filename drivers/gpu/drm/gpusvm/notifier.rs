// SPDX-License-Identifier: GPL-2.0

//! Notifiers: one MMU interval notifier for a large, aligned span of addresses, with the ranges in
//! the span.
//!
//! A notifier is created with the first range of its span and freed with the last. It is looked up
//! and changed under the driver's SVM lock. Its ranges are looked up under that lock or the
//! notifier lock, and changed under both, the latter held for writing.
//!
//! C: `struct drm_gpusvm_notifier`.

use crate::{
    chunk,
    range::SvmRange,
    svm::GpuSvm, //
};
use core::{ops::Range, ptr::NonNull};
use kernel::{
    bindings,
    ffi::c_ulong,
    mm::MmWithUser,
    prelude::*,
    sync::atomic::{Atomic, Relaxed}, //
};
use kernel_ext::{
    bindings as ext,
    interval_tree::{
        Node,
        Tree, //
    },
    mm::mmu_notifier::{
        self,
        MmuIntervalNotifier, //
    }, //
};

/// A notifier of a [`GpuSvm`]; it has the layout of `struct drm_gpusvm_notifier`.
#[repr(C)]
#[pin_data]
pub struct Notifier {
    pub(crate) gpusvm: NonNull<GpuSvm>,
    #[pin]
    pub(crate) mmu: MmuIntervalNotifier,
    #[pin]
    pub(crate) node: Node,
    #[pin]
    pub(crate) ranges: Tree,
    /// Bit 0: the MMU interval notifier was removed.
    pub(crate) removed: Atomic<u32>,
}

const REMOVED: u32 = 1;

/// The MMU notifier operations of all notifiers.
static MMU_OPS: mmu_notifier::Ops = mmu_notifier::Ops {
    invalidate: Some(invalidate),
    ..pin_init::zeroed()
};

/// Returns the span, of `size` bytes, of the notifier for `addr`.
pub fn span_at(addr: usize, size: usize) -> Option<Range<usize>> {
    chunk::chunk_at(addr, size)
}

impl Notifier {
    fn init(gpusvm: NonNull<GpuSvm>, span: Range<usize>) -> impl PinInit<Self> {
        pin_init!(Self {
            gpusvm,
            mmu: MmuIntervalNotifier::new(),
            node <- Node::new(span),
            ranges <- Tree::new(),
            removed: Atomic::new(0),
        })
    }

    /// Returns the notifier that `node` is part of.
    pub(crate) fn from_node(node: *mut Node) -> Option<NonNull<Self>> {
        let offset = core::mem::offset_of!(Self, node);
        NonNull::new(node).map(|node| {
            // SAFETY: All nodes of a `GpuSvm`'s tree are the `node` fields of notifiers.
            unsafe { node.byte_sub(offset).cast() }
        })
    }

    /// Returns the addresses that the notifier watches, in bytes.
    pub fn span(&self) -> Range<usize> {
        self.node.start()..self.node.end()
    }

    /// Returns the MMU interval notifier.
    pub fn mmu(&self) -> &MmuIntervalNotifier {
        &self.mmu
    }

    pub(crate) fn node(&self) -> *mut Node {
        (&raw const self.node).cast_mut()
    }

    pub(crate) fn ranges(&self) -> &Tree {
        &self.ranges
    }

    /// Returns the lowest range that overlaps `span`. C: `drm_gpusvm_range_find()`.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock or the notifier lock while it uses the result.
    pub unsafe fn find(&self, span: Range<usize>) -> Option<NonNull<SvmRange>> {
        // SAFETY: The tree changes only under both locks, of which the caller holds one.
        SvmRange::from_node(unsafe { self.ranges.first(span) })
    }

    /// Returns whether the notifier has no range.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock or the notifier lock.
    pub unsafe fn is_empty(&self) -> bool {
        // SAFETY: The tree changes only under both locks, of which the caller holds one.
        unsafe { self.ranges.is_empty() }
    }
}

/// A notifier that is registered with the mm, but not yet in the tree of its [`GpuSvm`].
///
/// Dropping it unregisters and frees the notifier, which cannot have ranges yet.
pub(crate) struct NewNotifier(NonNull<Notifier>);

impl NewNotifier {
    /// Creates a notifier for the span around `addr` and registers it with `mm`. May sleep, and
    /// takes `mmap_lock`. Fails with `ENOMEM`, and with `EINVAL` if the span would end beyond the
    /// last address.
    pub(crate) fn new(gpusvm: &GpuSvm, mm: &MmWithUser, addr: usize) -> Result<Self> {
        let span = span_at(addr, gpusvm.notifier_size()).ok_or(EINVAL)?;
        let init = Notifier::init(gpusvm.into(), span.clone());
        let notifier = match gpusvm.ops().notifier_alloc {
            Some(alloc) => {
                // SAFETY: The driver's operation allocates memory for a notifier, or returns null.
                let slot = NonNull::new(unsafe { alloc() })
                    .ok_or(ENOMEM)?
                    .cast::<Notifier>();
                // SAFETY: `slot` is memory for a notifier, zeroed or not, that stays where it is.
                unsafe { pin_init::raw_init(slot.as_ptr(), init) };
                slot
            }
            None => {
                let boxed = KBox::pin_init(init, GFP_KERNEL_ACCOUNT)?;
                // SAFETY: The notifier is not moved until it is freed.
                let ptr = KBox::into_raw(unsafe { Pin::into_inner_unchecked(boxed) });
                // SAFETY: A box is never null.
                unsafe { NonNull::new_unchecked(ptr) }
            }
        };
        // SAFETY: The notifier is initialized, pinned and not inserted; `remove_and_free()` removes
        // it before it is freed.
        if let Err(e) = unsafe { notifier.as_ref().mmu.insert(mm, span, &MMU_OPS) } {
            // SAFETY: No other thread knows the notifier, which is not inserted.
            unsafe { free(gpusvm, notifier) };
            return Err(e);
        }
        Ok(Self(notifier))
    }

    pub(crate) fn get(&self) -> NonNull<Notifier> {
        self.0
    }

    /// Releases the notifier, which the caller then inserts in the tree.
    pub(crate) fn into_inner(self) -> NonNull<Notifier> {
        let ptr = self.0;
        core::mem::forget(self);
        ptr
    }
}

impl Drop for NewNotifier {
    fn drop(&mut self) {
        // SAFETY: The notifier is inserted, in no tree, and known to no other thread. Its callback
        // takes only the notifier lock, which the owner of a new notifier does not hold.
        unsafe { remove_and_free(self.0) }
    }
}

/// Unregisters a notifier from the mm, unless it was unregistered before.
///
/// # Safety
///
/// The caller must hold the driver's SVM lock, and not the notifier lock.
pub(crate) unsafe fn remove(notifier: NonNull<Notifier>) {
    // SAFETY: The caller holds the driver's SVM lock, which keeps the notifier.
    let this = unsafe { notifier.as_ref() };
    if this.removed.load(Relaxed) & REMOVED == 0 {
        // SAFETY: The notifier is inserted and not removed yet. The caller does not hold the
        // notifier lock, which the callback takes.
        unsafe { this.mmu.remove() };
        this.removed.store(REMOVED, Relaxed);
    }
}

/// Unregisters a notifier from the mm and frees it.
///
/// # Safety
///
/// As for [`remove`]; the notifier must have no ranges and be in no tree.
pub(crate) unsafe fn remove_and_free(notifier: NonNull<Notifier>) {
    // SAFETY: The caller holds the driver's SVM lock, and not the notifier lock.
    let gpusvm = unsafe {
        remove(notifier);
        notifier.as_ref().gpusvm
    };
    // SAFETY: The SVM outlives its notifiers. The notifier is unregistered, so that its callback
    // does not run any more, and in no tree.
    unsafe { free(gpusvm.as_ref(), notifier) };
}

/// Frees a notifier.
///
/// # Safety
///
/// The caller must have the only pointer to `notifier`, which must not be registered with the mm.
unsafe fn free(gpusvm: &GpuSvm, notifier: NonNull<Notifier>) {
    match gpusvm.ops().notifier_free {
        // SAFETY: The driver allocated the notifier, and no other pointer to it is left.
        Some(free) => unsafe { free(notifier.as_ptr().cast()) },
        // SAFETY: The notifier came from `KBox::into_raw()`, and no other pointer to it is left.
        None => drop(unsafe { KBox::from_raw(notifier.as_ptr()) }),
    }
}

/// Invalidates the ranges that overlap a change of the CPU's mappings; the callback of MMU interval
/// notifiers. C: `drm_gpusvm_notifier_invalidate()`.
///
/// For a caller that must not sleep (the OOM reaper) this returns false where it would have to: if
/// another thread holds the notifier lock, or if there are ranges for which
/// [`Driver::try_invalidate`] fails. The caller tries again later.
///
/// [`Driver::try_invalidate`]: crate::Driver::try_invalidate
///
/// # Safety
///
/// `mni` must be the `mmu` field of a notifier, and `mmu_range` must be valid.
unsafe extern "C" fn invalidate(
    mni: *mut bindings::mmu_interval_notifier,
    mmu_range: *const bindings::mmu_notifier_range,
    seq: c_ulong,
) -> bool {
    let offset = core::mem::offset_of!(Notifier, mmu);
    // SAFETY: All MMU notifiers with these operations are the `mmu` fields of notifiers, which are
    // removed before they are freed.
    let this = unsafe { &*mni.byte_sub(offset).cast::<Notifier>() };
    // SAFETY: The SVM outlives its notifiers.
    let gpusvm = unsafe { this.gpusvm.as_ref() };
    // SAFETY: The MMU notifier core passes a valid range.
    let (span, blockable) = unsafe {
        (
            (*mmu_range).start..(*mmu_range).end,
            ext::mmu_notifier_range_blockable(mmu_range),
        )
    };

    let lock = if blockable {
        Some(gpusvm.notifier_lock().write())
    } else {
        gpusvm.notifier_lock().try_write()
    };
    let Some(_lock) = lock else {
        return false;
    };
    // SAFETY: The notifier lock is held.
    let hit = unsafe { this.find(span) }.is_some();
    // SAFETY: This is the invalidate callback, which holds the lock under which readers call
    // `mmu_interval_read_retry()`. If no range is invalidated in the end, readers only repeat their
    // walk.
    unsafe { ext::mmu_interval_set_seq(mni, seq) };
    match (hit, blockable) {
        (false, _) => true,
        (true, true) => {
            gpusvm.call_invalidate(this, mmu_range);
            true
        }
        (true, false) => gpusvm.try_call_invalidate(this, mmu_range),
    }
}
