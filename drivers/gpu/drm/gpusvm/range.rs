// SPDX-License-Identifier: GPL-2.0

//! Ranges: spans of a process's addresses that devices map.
//!
//! A range knows an mm and addresses, but no device. It is in the tree of its notifier from its
//! insertion to its removal, and its span does not change meanwhile. A reference to a removed range
//! allows nothing but reading its fields.
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

    /// Returns the range that `node` is part of.
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

    /// Returns the addresses of the range, in bytes.
    pub fn span(&self) -> Range<usize> {
        self.node.start()..self.node.end()
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> usize {
        self.node.end().wrapping_sub(self.node.start())
    }

    /// Returns whether `flag` was set at some recent time.
    pub fn has(&self, flag: RangeFlag) -> bool {
        self.flags.has(flag)
    }

    /// Returns the notifier of the range.
    ///
    /// # Safety
    ///
    /// The range must be in its tree, and the caller must keep it there, by holding the driver's
    /// SVM lock or the notifier lock.
    pub unsafe fn notifier(&self) -> &Notifier {
        // SAFETY: The range is in its tree, and a notifier is not freed while it has ranges.
        unsafe { self.notifier.as_ref() }
    }

    /// Returns the range after this one in the same notifier, if any.
    ///
    /// # Safety
    ///
    /// As for [`notifier`](Self::notifier).
    pub unsafe fn next(&self) -> Option<NonNull<SvmRange>> {
        // SAFETY: The node is linked in the tree of the notifier, and the caller's lock keeps the
        // tree from changing.
        SvmRange::from_node(unsafe { self.notifier().ranges().next(self.node()) })
    }

    /// Takes a reference. C: `drm_gpusvm_range_get()`.
    pub fn get(&self) {
        self.refcount.inc();
    }

    /// Drops a reference, and frees the range with the last. C: `drm_gpusvm_range_put()`.
    ///
    /// # Safety
    ///
    /// The caller must own a reference, which it gives up. The [`GpuSvm`] must still exist.
    pub unsafe fn put(this: NonNull<Self>) {
        // SAFETY: The caller's reference keeps the range.
        if !unsafe { this.as_ref() }.refcount.dec_and_test() {
            return;
        }
        // SAFETY: The caller guarantees that the SVM exists.
        let ops = unsafe { this.as_ref().gpusvm.as_ref().ops() };
        match ops.range_free {
            // SAFETY: The driver allocated the range, whose last reference is gone.
            Some(free) => unsafe { free(this.as_ptr().cast()) },
            // SAFETY: The range came from `KBox::into_raw()`, see `RangeMemory`; its last reference
            // is gone.
            None => drop(unsafe { KBox::from_raw(this.as_ptr()) }),
        }
    }

    /// Marks the range as unmapped by the CPU, and as partly unmapped if `by` does not include all
    /// of it. C: `drm_gpusvm_range_set_unmapped()`.
    ///
    /// The caller holds the notifier lock for writing, and marks the pages of the range by
    /// [`Pages::set_unmapped`](crate::pages::Pages::set_unmapped) under the same hold.
    pub fn set_unmapped(&self, by: &Range<usize>) {
        // SAFETY: The SVM outlives its ranges.
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

/// The memory of a new range, allocated before `mmap_lock` and the notifier lock are taken.
pub(crate) struct RangeMemory<'a> {
    slot: NonNull<SvmRange>,
    /// The SVM outlives it.
    gpusvm: PhantomData<&'a GpuSvm>,
}

impl<'a> RangeMemory<'a> {
    /// Allocates memory by the driver's operation. Fails with the error pointer that the operation
    /// returns, or with `ENOMEM` if that returns null, as in C. May sleep.
    pub(crate) fn new(gpusvm: &'a GpuSvm) -> Result<Self> {
        let slot = match gpusvm.ops().range_alloc {
            Some(alloc) => {
                // SAFETY: The driver's operation allocates memory for a range, or returns null or
                // an error pointer.
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
        // If the range is never inserted, it is freed by the same operation as all others, and so
        // must be initialized.
        let init = SvmRange::init(gpusvm.into(), NonNull::dangling(), 0..0);
        // SAFETY: `slot` is memory for a range that no other thread knows and that does not move.
        unsafe { pin_init::raw_init(this.slot.as_ptr(), init) };
        Ok(this)
    }

    /// Returns the range, with one reference.
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
        // SAFETY: The range has one reference, which this object owns.
        unsafe { SvmRange::put(self.slot) }
    }
}
