// SPDX-License-Identifier: GPL-2.0

//! Queues whose job waits for a condition on memory.
//!
//! Such a queue leaves its engine to others, and takes no time. A delayed work makes it runnable in
//! the next jiffy, to check the condition again. In a jiffy at most [`BATCH`] queues do so, in
//! turns, so that a program with thousands of such queues takes no more time of others; if there
//! are more, they check less often.
//!
//! Locking: `waiting` is a leaf; no node is dropped or woken under it.

use crate::{
    exec_queue::{
        ExecQueue,
        Execution, //
    },
    fifo::{
        Fifo,
        FifoNode, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        new_spinlock,
        Arc,
        SpinLock, //
    },
    workqueue::{
        impl_has_delayed_work,
        new_delayed_work,
        DelayedWork,
        WorkItem, //
    }, //
};
use kernel_ext::workqueue::{
    cancel_delayed,
    enqueue_delayed,
    HasQueue,
    OwnedQueue, //
};

/// The most queues that check their conditions in a jiffy.
const BATCH: usize = 64;

/// The queues of a device that wait for conditions.
#[pin_data]
pub(crate) struct Polls {
    #[pin]
    waiting: SpinLock<Fifo<Execution>>,
    queue: Arc<OwnedQueue>,
    #[pin]
    work: DelayedWork<Polls>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Polls { self.work }
}

impl HasQueue for Polls {
    fn queue(&self) -> &OwnedQueue {
        &self.queue
    }
}

impl WorkItem for Polls {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if this.wake(BATCH) {
            // If a queue was added meanwhile, the work is enqueued already.
            let _ = enqueue_delayed(&this, 1);
        }
    }
}

impl Polls {
    /// Creates an empty list, whose work runs on `queue`. Fails with `ENOMEM`.
    pub(crate) fn new(queue: Arc<OwnedQueue>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                waiting <- new_spinlock!(Fifo::new(), "vxe_polls"),
                queue,
                work <- new_delayed_work!("Polls::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Makes the queue of `node` runnable soon.
    pub(crate) fn add(self: &Arc<Self>, node: KBox<FifoNode<Execution>>) {
        self.waiting.lock().push_back(node);
        // If the work is enqueued already, it finds the node when it runs.
        let _ = enqueue_delayed(self, 1);
    }

    /// Makes all queues runnable now.
    pub(crate) fn wake_all(&self) {
        self.wake(usize::MAX);
    }

    /// Makes up to `count` queues runnable, and returns whether there are more.
    fn wake(&self, count: usize) -> bool {
        for _ in 0..count {
            let Some(node) = self.waiting.lock().pop_front() else {
                return false;
            };
            ExecQueue::poll(node);
        }
        true
    }

    /// Cancels the work. No queue may wait any more.
    pub(crate) fn cancel(self: &Arc<Self>) {
        cancel_delayed(self);
        self.queue.flush();
    }
}
