// SPDX-License-Identifier: GPL-2.0

//! What workers of the kernel do for a VM: on the work queue of its client, one of each kind at a time.
//!
//! They wait for the SVM lock, and for pages, as long as userspace likes; but not for longer than the VM is open
//! and its process there: who closes it [kills](Workers::kill) them in that, and the list of VMs looks
//! [now and then](WATCH_MS) for processes that are gone. So a process whose pages somebody holds back leaves
//! nothing behind when it ends, be its file open or not, and a device can be unbound at any time.
//!
//! As with any thread, that is so for waits that can be killed, which those of a userfaultfd are. A FUSE server that
//! has read a request, and answers it never, is waited for until it ends.

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
    sched::Killable, //
};

/// The work that services faults.
pub(super) const SERVICE: u64 = 0;
/// The work that collects garbage.
pub(super) const COLLECTION: u64 = 1;
/// The work that looks again at what could not move.
pub(super) const REVISIT: u64 = 2;

/// How often it is looked for processes that are gone while work goes on for them, in milliseconds.
pub(crate) const WATCH_MS: u32 = 1000;

/// The workers that are at it, for as long as the VM is open.
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
    /// None.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            service <- Killable::new(),
            collection <- Killable::new(),
            revisit <- Killable::new(),
        })
    }

    /// Ends what they wait for. The VM must be closed: who begins to wait after that looks whether it is.
    pub(super) fn kill(&self) {
        self.service.kill();
        self.collection.kill();
        self.revisit.kill();
    }
}

impl Vm {
    /// Ends what workers wait for, if the VM is closed; and the service of a fault, which fails then, if the process
    /// is gone that it is for. What else is done for such a process waits for no page, and would be left undone:
    /// its garbage most of all. Returns whether any worker is at work.
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

    /// Does `work`, as one that can be killed, and is watched; but not for a VM that is closed.
    fn work<R>(self: &Arc<Self>, worker: &Killable, work: impl FnOnce() -> R) -> Option<R> {
        worker.run(|| {
            // Who closes it from now on finds whom to kill.
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

impl WorkItem<SERVICE> for Vm {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        fault::work(&this, |fault| {
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
            // There is no garbage but all of it.
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
    /// Has the faults that wait serviced soon.
    pub(crate) fn queue_service(self: &Arc<Self>) {
        // If the work is queued already, it has not looked for faults yet.
        let _ = self.client.faults.enqueue::<_, SERVICE>(self.clone());
    }

    /// Has garbage collected soon; of a closed VM that is all. Does not sleep.
    pub(crate) fn queue_collection(self: &Arc<Self>) {
        // If the work is queued already, it has not collected yet.
        let _ = self.client.faults.enqueue::<_, COLLECTION>(self.clone());
    }

    /// Has what could not move looked at again, in so many jiffies or sooner. Does not sleep.
    pub(crate) fn queue_revisit(self: &Arc<Self>, delay: usize) {
        // If the work is queued already, it says itself when it is to run next.
        let faults = &self.client.faults;
        let _ = faults.enqueue_delayed::<_, REVISIT>(self.clone(), delay);
    }
}
