// SPDX-License-Identifier: GPL-2.0

//! Notifiers: one MMU interval notifier for a wide, aligned span of addresses, with the ranges in
//! it.
//!
//! A notifier is made with the first range of its span and goes with the last. It is looked up
//! and changed under the driver's SVM lock; its ranges are looked up under that lock or the
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

/// The one set of operations of all notifiers.
static MMU_OPS: mmu_notifier::Ops = mmu_notifier::Ops {
    invalidate: Some(invalidate),
    ..pin_init::zeroed()
};

/// The span, `size` bytes, of the notifier in which `addr` lies.
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

    /// The notifier that `node` is part of.
    pub(crate) fn from_node(node: *mut Node) -> Option<NonNull<Self>> {
        let offset = core::mem::offset_of!(Self, node);
        NonNull::new(node).map(|node| {
            // SAFETY: All nodes of a `GpuSvm`'s tree are the `node` fields of notifiers.
            unsafe { node.byte_sub(offset).cast() }
        })
    }

    /// The addresses that are watched, in bytes.
    pub fn span(&self) -> Range<usize> {
        self.node.start()..self.node.end()
    }

    /// The MMU interval notifier.
    pub fn mmu(&self) -> &MmuIntervalNotifier {
        &self.mmu
    }

    pub(crate) fn node(&self) -> *mut Node {
        (&raw const self.node).cast_mut()
    }

    pub(crate) fn ranges(&self) -> &Tree {
        &self.ranges
    }

    /// The lowest range that overlaps `span`. C: `drm_gpusvm_range_find()`.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock or the notifier lock while it uses the result.
    pub unsafe fn find(&self, span: Range<usize>) -> Option<NonNull<SvmRange>> {
        // SAFETY: The tree changes only under both locks.
        SvmRange::from_node(unsafe { self.ranges.first(span) })
    }

    /// Whether no range is left.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock or the notifier lock.
    pub unsafe fn is_empty(&self) -> bool {
        // SAFETY: The tree changes only under both locks.
        unsafe { self.ranges.is_empty() }
    }
}

/// A notifier that watches already, but is not in the tree of its [`GpuSvm`] yet.
///
/// Dropped, it is removed and freed; no range can have been put in.
pub(crate) struct NewNotifier(NonNull<Notifier>);

impl NewNotifier {
    /// Makes a notifier for the span around `addr` and begins to watch. May sleep, and take the
    /// mmap lock. Fails with `ENOMEM`, or `EINVAL` for a span that cannot be told.
    pub(crate) fn new(gpusvm: &GpuSvm, mm: &MmWithUser, addr: usize) -> Result<Self> {
        let span = span_at(addr, gpusvm.notifier_size()).ok_or(EINVAL)?;
        let init = Notifier::init(gpusvm.into(), span.clone());
        let notifier = match gpusvm.ops().notifier_alloc {
            Some(alloc) => {
                // SAFETY: The driver's operation allocates memory for a notifier.
                let slot = NonNull::new(unsafe { alloc() })
                    .ok_or(ENOMEM)?
                    .cast::<Notifier>();
                // SAFETY: `slot` is memory for a notifier, zeroed or not, that stays where it is.
                unsafe { pin_init::raw_init(slot.as_ptr(), init) };
                slot
            }
            None => {
                let boxed = KBox::pin_init(init, GFP_KERNEL_ACCOUNT)?;
                // SAFETY: It is not moved until it is freed.
                let ptr = KBox::into_raw(unsafe { Pin::into_inner_unchecked(boxed) });
                // SAFETY: A box is never null.
                unsafe { NonNull::new_unchecked(ptr) }
            }
        };
        // SAFETY: The notifier is initialized, pinned and not inserted; `remove_and_free()` removes
        // it before it is freed.
        if let Err(e) = unsafe { notifier.as_ref().mmu.insert(mm, span, &MMU_OPS) } {
            // SAFETY: Nobody else knows the notifier.
            unsafe { free(gpusvm, notifier) };
            return Err(e);
        }
        Ok(Self(notifier))
    }

    pub(crate) fn get(&self) -> NonNull<Notifier> {
        self.0
    }

    /// Hands the notifier over to its tree.
    pub(crate) fn into_inner(self) -> NonNull<Notifier> {
        let ptr = self.0;
        core::mem::forget(self);
        ptr
    }
}

impl Drop for NewNotifier {
    fn drop(&mut self) {
        // SAFETY: The notifier is inserted, in no tree, and known to nobody else; its callback
        // takes only the notifier lock, which whoever holds a new notifier does not hold.
        unsafe { remove_and_free(self.0) }
    }
}

/// Ends the watch of a notifier, if it did not end yet.
///
/// # Safety
///
/// The caller must hold the driver's SVM lock, and not the notifier lock.
pub(crate) unsafe fn remove(notifier: NonNull<Notifier>) {
    // SAFETY: The driver's lock keeps the notifier.
    let this = unsafe { notifier.as_ref() };
    if this.removed.load(Relaxed) & REMOVED == 0 {
        // SAFETY: Inserted and not removed yet; the callback's lock is not held.
        unsafe { this.mmu.remove() };
        this.removed.store(REMOVED, Relaxed);
    }
}

/// Ends the watch of a notifier and frees it.
///
/// # Safety
///
/// As for [`remove`]; the notifier must have no ranges and be in no tree.
pub(crate) unsafe fn remove_and_free(notifier: NonNull<Notifier>) {
    // SAFETY: By this function's requirements.
    let gpusvm = unsafe {
        remove(notifier);
        notifier.as_ref().gpusvm
    };
    // SAFETY: The SVM outlives its notifiers; no callback runs any more.
    unsafe { free(gpusvm.as_ref(), notifier) };
}

/// # Safety
///
/// `notifier` must be known to nobody else.
unsafe fn free(gpusvm: &GpuSvm, notifier: NonNull<Notifier>) {
    match gpusvm.ops().notifier_free {
        // SAFETY: The driver allocated it, and nobody else knows it.
        Some(free) => unsafe { free(notifier.as_ptr().cast()) },
        // SAFETY: It came from `KBox::into_raw()`.
        None => drop(unsafe { KBox::from_raw(notifier.as_ptr()) }),
    }
}

/// The CPU changes its mappings. C: `drm_gpusvm_notifier_invalidate()`.
///
/// A caller that may not wait (the OOM reaper) is sent away only if it would have to: where the lock is
/// taken, or there are ranges of which the driver cannot let go [at once]. It comes again then.
///
/// [at once]: crate::Driver::try_invalidate
///
/// # Safety
///
/// `mni` must be the `mmu` field of a notifier, `mmu_range` valid.
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
    // SAFETY: The MMU's core passes a valid range.
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
    // SAFETY: Called from the invalidate callback, under the lock that readers retry under. Where nothing
    // is invalidated in the end, they only look once more.
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
