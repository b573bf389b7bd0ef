// SPDX-License-Identifier: GPL-2.0

//! The SVM of a VM, and its lock.
//!
//! Whoever has the SVM lock may wait for a page that userspace holds back, so nobody who must come to an end
//! waits for the lock: neither who closes a VM, nor a worker that unbinding waits for. Who closes a VM only
//! tries. So whoever lets the lock go looks whether the VM was closed meanwhile, and then has it torn down: that
//! is what [`SvmGuard`] does, and except for tearing down there is no other way to the lock.

use super::Vm;
use crate::svm::{
    self,
    Context,
    Mirror, //
};
use core::ops::{
    Deref,
    DerefMut, //
};
use gpusvm::{
    DmaDevice,
    Guard,
    Svm, //
};
use kernel::{
    mm::Mm,
    prelude::*,
    sync::Arc, //
};

/// The SVM of a VM.
#[pin_data]
pub(super) struct LockedSvm {
    #[pin]
    svm: Svm<Mirror>,
}

impl LockedSvm {
    /// Mirrors `mm` for `device`. Fails as [`Svm::new`] does.
    pub(super) fn new<'a>(
        mm: &'a Mm,
        device: &'a Arc<DmaDevice>,
        context: Context,
    ) -> impl PinInit<Self, Error> + 'a {
        try_pin_init!(Self {
            svm <- Svm::new(mm, svm::CONFIG, core::slice::from_ref(device), context),
        })
    }

    /// What its callbacks need.
    pub(super) fn context(&self) -> &Context {
        self.svm.vm()
    }

    /// The process's address space.
    pub(super) fn mm(&self) -> Option<&Mm> {
        self.svm.mm()
    }

    /// As [`Svm::find_vma_start`].
    pub(super) fn find_vma_start(&self, span: core::ops::Range<usize>) -> Option<usize> {
        self.svm.find_vma_start(span)
    }

    /// As [`Svm::shut`].
    pub(super) fn shut(&self) {
        self.svm.shut();
    }

    /// Tries to take the lock of a VM that is closed, to tear it down. If that fails, who has the lock sees to
    /// it.
    pub(super) fn try_lock_closed(&self) -> Option<Guard<'_, Mirror>> {
        self.svm.try_lock()
    }
}

impl Vm {
    /// Takes the SVM lock. Fails with `EINTR` for a caller who is killed while he waits, as a worker is when the
    /// VM is closed.
    pub(super) fn lock_svm_killable(self: &Arc<Self>) -> Result<SvmGuard<'_>> {
        Ok(SvmGuard::new(self, self.svm.svm.lock_killable()?))
    }

    /// Takes the SVM lock if nobody has it.
    pub(super) fn try_lock_svm(self: &Arc<Self>) -> Option<SvmGuard<'_>> {
        Some(SvmGuard::new(self, self.svm.svm.try_lock()?))
    }
}

/// The SVM lock of a VM, held.
pub(super) struct SvmGuard<'a> {
    // Dropped in this order.
    guard: Guard<'a, Mirror>,
    _then: TearDownClosed<'a>,
}

impl<'a> SvmGuard<'a> {
    fn new(vm: &'a Arc<Vm>, guard: Guard<'a, Mirror>) -> Self {
        Self {
            guard,
            _then: TearDownClosed(vm),
        }
    }
}

impl<'a> Deref for SvmGuard<'a> {
    type Target = Guard<'a, Mirror>;

    fn deref(&self) -> &Self::Target {
        &self.guard
    }
}

impl DerefMut for SvmGuard<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.guard
    }
}

/// Has the VM torn down when it is dropped, if that is closed by then.
struct TearDownClosed<'a>(&'a Arc<Vm>);

impl Drop for TearDownClosed<'_> {
    fn drop(&mut self) {
        // Who closed it before tried for the lock, maybe in vain; who closes it from now on gets it, or finds
        // another one who looks here.
        if self.0.is_closed() {
            self.0.queue_collection();
        }
    }
}
