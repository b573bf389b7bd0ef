// SPDX-License-Identifier: GPL-2.0

//! The engines, clients and work queue of a device, and how they end.
//!
//! They belong to the board, not to the binding, and outlive the platform device, too, if a program
//! still has a file of the DRM device open, or one of its buffers. Work that runs on the queues may
//! drop the last reference to the DRM device. So the last reference to the [`Queues`] is dropped on
//! a queue of the module, see [`DeferredArc`], and the module waits for that before it goes.

use crate::{
    client::Clients,
    engines::Engines, //
};
use kernel::{
    prelude::*,
    sync::{
        new_condvar,
        new_mutex,
        Arc,
        CondVar,
        Mutex, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};
use kernel_ext::workqueue::{
    DeferredArc,
    DeferredDrop,
    OwnedQueue, //
};

/// The most devices of the module, with those that were removed while a program had them open. The
/// fabric has as many windows.
const MAX_BOARDS: usize = 32;

/// The engines, clients and work queue of a device.
#[pin_data]
pub(crate) struct Queues {
    /// Run the jobs of exec queues.
    pub(crate) engines: Engines,
    /// The processes that use the device. Each has its own work queue for page faults and garbage
    /// collection.
    #[pin]
    pub(crate) clients: Clients,
    /// Runs short work: dropping clients, looking for exited processes, and waking waiters of
    /// fences.
    pub(crate) work: OwnedQueue,
    #[pin]
    end: Work<Queues>,
    // Dropped last: the module waits for it.
    board: Board,
}

/// A counted reference to the queues of a device.
pub(crate) type QueuesRef = DeferredArc<Queues>;

impl_has_work! {
    impl HasWork<Self> for Queues { self.end }
}

impl WorkItem for Queues {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        // What is left is work that unbinding did not wait for, and that has no reference.
        this.flush();
        this.work.drain();
    }
}

impl DeferredDrop for Queues {
    fn drop_queue(&self) -> &Arc<OwnedQueue> {
        &self.board.0.queue
    }
}

impl Queues {
    /// Creates those of one more device of the module. Fails with `ENOSPC` if there are 32, and
    /// `ENOMEM`.
    pub(crate) fn new(boards: &Boards) -> Result<QueuesRef> {
        let board = boards.add()?;
        let clients = Clients::new()?;
        let queues = Arc::pin_init(
            try_pin_init!(Self {
                engines: Engines::new()?,
                clients <- clients,
                work: OwnedQueue::new_unbound(c"vxe-work")?,
                end <- new_work!("Queues::end"),
                board,
            }),
            GFP_KERNEL,
        )?;
        Ok(queues.into())
    }

    /// Waits for all queued work. Called when nothing is mapped any more and jobs fail. Sleeps.
    pub(crate) fn flush(&self) {
        self.engines.flush(&self.clients);
        self.clients.for_each(|client| client.faults.flush());
        self.work.flush();
    }
}

/// Counts the [`Queues`] of the module, bound or not, and those that only open files have.
///
/// Dropping it waits until all are gone. No file may be open then, and no device bound: what still
/// has references is work that ends.
pub(crate) struct Boards(Arc<Shared>);

#[pin_data]
struct Shared {
    /// Drops queues.
    queue: Arc<OwnedQueue>,
    #[pin]
    count: Mutex<usize>,
    #[pin]
    fewer: CondVar,
}

impl Boards {
    /// Fails with `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        let queue = Arc::new(OwnedQueue::new_unbound(c"vxe-end")?, GFP_KERNEL)?;
        let shared = Arc::pin_init(
            pin_init!(Shared {
                queue,
                count <- new_mutex!(0, "Boards::count"),
                fewer <- new_condvar!("Boards::fewer"),
            }),
            GFP_KERNEL,
        )?;
        Ok(Self(shared))
    }

    fn add(&self) -> Result<Board> {
        let mut count = self.0.count.lock();
        if *count >= MAX_BOARDS {
            return Err(ENOSPC);
        }
        *count += 1;
        drop(count);
        Ok(Board(self.0.clone()))
    }
}

impl Drop for Boards {
    fn drop(&mut self) {
        let mut count = self.0.count.lock();
        while *count > 0 {
            self.0.fewer.wait(&mut count);
        }
        drop(count);
        // The work item that dropped the last one may still run, and has a reference to the queue.
        self.0.queue.flush();
    }
}

/// One that is counted until this is dropped.
struct Board(Arc<Shared>);

impl Drop for Board {
    fn drop(&mut self) {
        *self.0.count.lock() -= 1;
        self.0.fewer.notify_all();
    }
}
