// SPDX-License-Identifier: GPL-2.0

//! Ranges: spans of a process's addresses that devices map.
//!
//! A range knows an mm and addresses, no device. From its insertion to its removal it is in the
//! tree of its notifier; in between, its span does not change. Who holds a reference to a removed
//! range may look at it, and no more.
//!
//! C: `struct drm_gpusvm_range`.

use crate::{
    flags::{RangeFlag, RangeFlags},
    notifier::Notifier,
    svm::GpuSvm, //
};
use core::{
    marker::PhantomData,
    ops::Range,
    ptr::NonNull, //
};
use kernel::{
    error::from_err_ptr,
    prelude::*,
    sync::Refcount, //
};
use kernel_ext::interval_tree::Node;

/// A range; it has the layout of `struct drm_gpusvm_range`.
#[repr(C)]
#[pin_data]
pub struct SvmRange {
    pub(crate) gpusvm: NonNull<GpuSvm>,
    pub(crate) notifier: NonNull<Notifier>,
    pub(crate) refcount: Refcount,
    #[pin]
    pub(crate) node: Node,
    pub(crate) flags: RangeFlags,
}

impl SvmRange {
    pub(crate) fn init(
        gpusvm: NonNull<GpuSvm>,
        notifier: NonNull<Notifier>,
        span: Range<usize>,
    ) -> impl PinInit<Self> {
        let flags = RangeFlags::new();
        pin_init!(Self {
            gpusvm,
            notifier,
            refcount: Refcount::new(1),
            node <- Node::new(span),
            flags,
        })
    }

    /// The range that `node` is part of.
    pub(crate) fn from_node(node: *mut Node) -> Option<NonNull<Self>> {
        let offset = core::mem::offset_of!(Self, node);
        NonNull::new(node).map(|node| {
            // SAFETY: All nodes of a notifier's tree are the `node` fields of ranges.
            unsafe { node.byte_sub(offset).cast() }
        })
    }

    pub(crate) fn node(&self) -> *mut Node {
        (&raw const self.node).cast_mut()
    }

    /// The addresses of the range, in bytes.
    pub fn span(&self) -> Range<usize> {
        self.node.start()..self.node.end()
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.node.end().wrapping_sub(self.node.start())
    }

    /// Whether `flag` is set, at some recent time.
    pub fn has(&self, flag: RangeFlag) -> bool {
        self.flags.has(flag)
    }

    /// The notifier of the range.
    ///
    /// # Safety
    ///
    /// The range must be in its tree, and the caller keep it there, by the driver's SVM lock or
    /// the notifier lock.
    pub unsafe fn notifier(&self) -> &Notifier {
        // SAFETY: A notifier lives while it has ranges.
        unsafe { self.notifier.as_ref() }
    }

    /// The range after this one in the same notifier, if any.
    ///
    /// # Safety
    ///
    /// As for [`notifier`](Self::notifier).
    pub unsafe fn next(&self) -> Option<NonNull<SvmRange>> {
        // SAFETY: The node is linked in the tree of the notifier, which is stable.
        SvmRange::from_node(unsafe { self.notifier().ranges().next(self.node()) })
    }

    /// Takes a reference. C: `drm_gpusvm_range_get()`.
    pub fn get(&self) {
        self.refcount.inc();
    }

    /// Gives a reference back, and frees the range with the last.
    /// C: `drm_gpusvm_range_put()`.
    ///
    /// # Safety
    ///
    /// The caller must have a reference, which it gives up. The [`GpuSvm`] must still exist.
    pub unsafe fn put(this: NonNull<Self>) {
        // SAFETY: The caller's reference keeps the range.
        if !unsafe { this.as_ref() }.refcount.dec_and_test() {
            return;
        }
        // SAFETY: The SVM exists, by this function's requirements.
        let ops = unsafe { this.as_ref().gpusvm.as_ref().ops() };
        match ops.range_free {
            // SAFETY: The driver allocated the range, and nobody knows it any more.
            Some(free) => unsafe { free(this.as_ptr().cast()) },
            // SAFETY: It came from `KBox::into_raw()`, see `RangeMemory`.
            None => drop(unsafe { KBox::from_raw(this.as_ptr()) }),
        }
    }

    /// Marks the range as unmapped by the CPU, partly if `by` does not include all of it.
    ///
    /// C: `drm_gpusvm_range_set_unmapped()`. The notifier lock must be held for writing; the pages
    /// of the range are to be marked with it, see
    /// [`Pages::set_unmapped`](crate::pages::Pages::set_unmapped).
    pub fn set_unmapped(&self, by: &Range<usize>) {
        // SAFETY: A range never outlives its SVM.
        unsafe { self.gpusvm.as_ref() }
            .notifier_lock()
            .assert_held_write();
        let span = self.span();
        if span.start < by.start || span.end > by.end {
            self.flags
                .update(&[RangeFlag::Unmapped, RangeFlag::PartialUnmap], &[]);
        } else {
            self.flags.update(&[RangeFlag::Unmapped], &[]);
        }
    }
}

/// Memory of a driver's range, allocated before any lock is taken.
pub(crate) struct RangeMemory<'a> {
    slot: NonNull<SvmRange>,
    /// The SVM outlives it.
    gpusvm: PhantomData<&'a GpuSvm>,
}

impl<'a> RangeMemory<'a> {
    /// Fails with `ENOMEM`, or with the error pointer that the driver's operation returns, which
    /// may also return null for `ENOMEM`, as with the C code. May sleep.
    pub(crate) fn new(gpusvm: &'a GpuSvm) -> Result<Self> {
        let slot = match gpusvm.ops().range_alloc {
            Some(alloc) => {
                // SAFETY: The driver's operation allocates a range.
                let range = from_err_ptr(unsafe { alloc(gpusvm.as_raw()) })?;
                NonNull::new(range).ok_or(ENOMEM)?.cast()
            }
            None => {
                let boxed = KBox::<SvmRange>::new_uninit(GFP_KERNEL_ACCOUNT)?;
                // SAFETY: A box is never null.
                unsafe { NonNull::new_unchecked(KBox::into_raw(boxed).cast()) }
            }
        };
        let this = Self {
            slot,
            gpusvm: PhantomData,
        };
        // A range that is never inserted is freed by the same operation as all others, and so has
        // to be a range.
        let init = SvmRange::init(gpusvm.into(), NonNull::dangling(), 0..0);
        // SAFETY: `slot` is memory for a range that nobody knows and that does not move.
        unsafe { pin_init::raw_init(this.slot.as_ptr(), init) };
        Ok(this)
    }

    /// The range, with one reference.
    pub(crate) fn into_range(
        self,
        notifier: NonNull<Notifier>,
        span: Range<usize>,
        migrate_devmem: bool,
    ) -> NonNull<SvmRange> {
        let slot = self.slot;
        // SAFETY: The range is initialized, in no tree, and known to nobody else.
        unsafe {
            (*slot.as_ptr()).notifier = notifier;
            (*slot.as_ptr()).node.set_span(span);
        }
        if migrate_devmem {
            // SAFETY: As above.
            let flags = unsafe { &(*slot.as_ptr()).flags };
            flags.update(&[RangeFlag::MigrateDevmem], &[]);
        }
        core::mem::forget(self);
        slot
    }
}

impl Drop for RangeMemory<'_> {
    fn drop(&mut self) {
        // SAFETY: The range has one reference, which is ours.
        unsafe { SvmRange::put(self.slot) }
    }
}
