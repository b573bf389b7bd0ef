// SPDX-License-Identifier: GPL-2.0

//! Queues whose job waits for a condition on memory.
//!
//! Such a queue leaves its engine to others, and takes no time. A delayed work makes it runnable in
//! the next jiffy, to check the condition again. Each client has its own list and work, from which
//! at most [`BATCH`] queues are made runnable in a jiffy, in turns: those of a client with
//! thousands of them check less often, and delay nobody else's.
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
    alloc::flags::GFP_KERNEL_ACCOUNT,
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

/// The most queues of a client that check their conditions in a jiffy.
const BATCH: usize = 64;

/// The queues of a client that wait for conditions.
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
            GFP_KERNEL_ACCOUNT,
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

    /// Makes up to `count` queues runnable, of those that wait now: each checks its condition once,
    /// though it may wait again meanwhile. Returns whether there are more.
    fn wake(&self, count: usize) -> bool {
        let (mut taken, has_more) = {
            let mut waiting = self.waiting.lock();
            let mut taken = Fifo::new();
            for node in core::iter::from_fn(|| waiting.pop_front()).take(count) {
                taken.push_back(node);
            }
            (taken, !waiting.is_empty())
        };
        while let Some(node) = taken.pop_front() {
            ExecQueue::poll(node);
        }
        has_more
    }

    /// Cancels the work, and waits for it. No queue may wait any more. Sleeps.
    pub(crate) fn cancel(self: &Arc<Self>) {
        cancel_delayed(self);
        self.queue.flush();
    }
}
