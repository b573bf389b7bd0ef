// SPDX-License-Identifier: GPL-2.0

//! The SVM of a VM, and its lock.
//!
//! The holder of the SVM lock may wait for a page that userspace holds back. So a thread that must
//! make progress does not wait for the lock: neither one that closes a VM, nor a worker that
//! unbinding waits for. `Vm::close()` only tries to take it. In turn, each holder checks at the
//! unlock whether the VM was closed meanwhile, and then queues its teardown. [`SvmGuard`] does
//! that, and only teardown takes the lock without it.

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
    /// Creates the SVM, which mirrors `mm` for `device`. Fails as [`Svm::new`] does.
    pub(super) fn new<'a>(
        mm: &'a Mm,
        device: &'a Arc<DmaDevice>,
        context: Context,
    ) -> impl PinInit<Self, Error> + 'a {
        try_pin_init!(Self {
            svm <- Svm::new(mm, svm::CONFIG, core::slice::from_ref(device), context),
        })
    }

    /// Returns the data for the callbacks.
    pub(super) fn context(&self) -> &Context {
        self.svm.vm()
    }

    /// Returns the process's address space, if the process has not exited.
    pub(super) fn mm(&self) -> Option<&Mm> {
        self.svm.mm()
    }

    /// See [`Svm::find_vma_start`].
    pub(super) fn find_vma_start(&self, span: core::ops::Range<usize>) -> Option<usize> {
        self.svm.find_vma_start(span)
    }

    /// See [`Svm::shut`].
    pub(super) fn shut(&self) {
        self.svm.shut();
    }

    /// Tries to take the lock of a closed VM, for its teardown. If another thread holds it, that
    /// thread queues the teardown at its unlock.
    pub(super) fn try_lock_closed(&self) -> Option<Guard<'_, Mirror>> {
        self.svm.try_lock()
    }
}

impl Vm {
    /// Takes the SVM lock. Fails with `EINTR` if the caller is killed while it waits, as a worker
    /// is when the VM is closed.
    pub(super) fn lock_svm_killable(self: &Arc<Self>) -> Result<SvmGuard<'_>> {
        Ok(SvmGuard::new(self, self.svm.svm.lock_killable()?))
    }

    /// Takes the SVM lock if it is free.
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

/// Queues the teardown of the VM when dropped, if the VM is closed.
struct TearDownClosed<'a>(&'a Arc<Vm>);

impl Drop for TearDownClosed<'_> {
    fn drop(&mut self) {
        // A thread that closed the VM before the unlock may have failed to take the lock. One that
        // closes it from now on can take the lock, unless another holder checks here.
        if self.0.is_closed() {
            self.0.queue_collection();
        }
    }
}
