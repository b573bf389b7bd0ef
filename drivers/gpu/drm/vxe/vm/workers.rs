// SPDX-License-Identifier: GPL-2.0

//! The work items of a VM. They run on its client's work queue, at most one of each kind at a time.
//!
//! Workers wait for the SVM lock and for pages that userspace holds back, but not after the VM is
//! closed or its process has exited. `Vm::close()` [kills](Workers::kill) them, and the list of VMs
//! checks every [`WATCH_MS`] for exited processes. So a process whose pages another one holds back
//! leaves nothing behind when it exits, even if its file stays open, and a device can be unbound at
//! any time.
//!
//! This holds for killable waits, as in userfaultfd. A wait for a FUSE server that has read the
//! request and never answers cannot be killed; it ends when the server exits.

use super::Vm;
use crate::{
    fault,
    svm, //
};
use kernel::{
    prelude::*,
    sync::Arc,
    workqueue::{
        impl_has_delayed_work,
        impl_has_work,
        WorkItem, //
    }, //
};
use kernel_ext::{
    mm::live_mm,
    sched::Killable,
    workqueue::{
        enqueue_delayed,
        HasQueue,
        OwnedQueue, //
    }, //
};

/// The work that services faults.
pub(super) const SERVICE: u64 = 0;
/// The work that collects garbage.
pub(super) const COLLECTION: u64 = 1;
/// The work that unmaps ranges for a new decision about their migration.
pub(super) const REVISIT: u64 = 2;

/// The interval of checks for exited processes, while workers run for them, in milliseconds.
pub(crate) const WATCH_MS: u32 = 1000;

/// The running workers of a VM, to be killed when it is closed.
#[pin_data]
pub(super) struct Workers {
    #[pin]
    service: Killable,
    #[pin]
    collection: Killable,
    #[pin]
    revisit: Killable,
}

impl Workers {
    /// Creates the state, with no worker running.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            service <- Killable::new(),
            collection <- Killable::new(),
            revisit <- Killable::new(),
        })
    }

    /// Ends the waits of running workers. The VM must be closed: a worker that starts later checks
    /// for that.
    pub(super) fn kill(&self) {
        self.service.kill();
        self.collection.kill();
        self.revisit.kill();
    }
}

impl Vm {
    /// Kills the workers if the VM is closed. If the process has exited, kills the service of
    /// faults, which then fail. The other workers wait for no page of an exited process, and
    /// killing them would leave its garbage uncollected. Returns whether any worker is running.
    pub(crate) fn watch_workers(&self) -> bool {
        let workers = &self.workers;
        let all = [&workers.service, &workers.collection, &workers.revisit];
        let at_work = all.iter().any(|work| work.is_running());
        if at_work && self.is_closed() {
            workers.kill();
        } else if workers.service.is_running() && self.svm.mm().is_some_and(live_mm::is_gone) {
            workers.service.kill();
        }
        at_work
    }

    /// Runs `work` as a killable worker with the periodic check scheduled, unless the VM is closed.
    fn work<R>(self: &Arc<Self>, worker: &Killable, work: impl FnOnce() -> R) -> Option<R> {
        worker.run(|| {
            // A thread that closes the VM after this check finds the worker and kills it.
            if self.is_closed() {
                return None;
            }
            self.dev.vms.watch();
            Some(work())
        })
    }
}

impl_has_work! {
    impl HasWork<Self, 0> for Vm { self.service }
    impl HasWork<Self, 1> for Vm { self.collection }
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self, 2> for Vm { self.revisit }
}

impl HasQueue for Vm {
    fn queue(&self) -> &OwnedQueue {
        &self.client.faults
    }
}

impl WorkItem<SERVICE> for Vm {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        fault::service_faults(&this, |fault| {
            let served = this.work(&this.workers.service, || this.service(fault));
            served.unwrap_or(Err(ENOENT))
        });
    }
}

impl WorkItem<COLLECTION> for Vm {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.work(&this.workers.collection, || {
            this.collect_garbage_as_worker()
        });
        if this.is_closed() {
            // Garbage of a closed VM is everything in it.
            this.tear_down();
        }
    }
}

impl WorkItem<REVISIT> for Vm {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.work(&this.workers.revisit, || {
            svm::revisit(this.svm.context(), || this.lock_svm_killable())
        });
    }
}

impl Vm {
    /// Queues the service of pending faults.
    pub(crate) fn queue_service(self: &Arc<Self>) {
        // If the work is pending already, it has not taken a fault yet.
        let _ = self.client.faults.enqueue::<_, SERVICE>(self.clone());
    }

    /// Queues the collection of garbage, or the teardown of a closed VM. Does not sleep.
    pub(crate) fn queue_collection(self: &Arc<Self>) {
        // If the work is pending already, it has not collected yet.
        let _ = self.client.faults.enqueue::<_, COLLECTION>(self.clone());
    }

    /// Queues the revisit of ranges in `delay` jiffies. Does not sleep.
    pub(crate) fn queue_revisit(self: &Arc<Self>, delay: usize) {
        // If the work is pending already, it runs then and queues itself for what is due later.
        let _ = enqueue_delayed::<_, REVISIT>(self, delay);
    }
}
