// SPDX-License-Identifier: GPL-2.0

//! Clients: the processes that use a device, and the limits on their queues and jobs.
//!
//! A client is a process, identified by its `struct mm_struct`: that of the process which created a
//! VM, whatever files, VMs and queues it creates, and whichever processes hold descriptors of
//! these. So opening more files gives a process no larger share of the device. More processes get
//! more time, as they do of the CPUs; other means limit their number. The queues of processes that
//! have exited (whose file another process holds) share one run queue. So neither a process that
//! forks and exits nor one that calls `execve()` in a loop leaves clients behind.
//!
//! At most [`MAX_FAULT_WORKERS`] workers service faults of a client at a time, each of another VM:
//! a worker may wait for userspace without bound. Each client has its own work queue, so that its
//! VMs wait for each other only. Queues and jobs are counted: [`MAX_QUEUES`], [`MAX_JOBS`]. The
//! user fence of a bind is written by the thread that binds.
//!
//! Lock order: the lock of the list of clients is a leaf.

use crate::{
    exec_queue::Execution,
    polls::Polls,
    queues::QueuesRef,
    sched::RunQueue, //
};
use core::ops::Deref;
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    mm::Mm,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_mutex,
        Arc,
        Mutex, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};
use kernel_ext::{
    sched::has_users,
    workqueue::OwnedQueue, //
};

/// The most queues of a client, including closed queues that still wait for a fault.
pub(crate) const MAX_QUEUES: usize = 4096;

/// The most jobs of a client.
pub(crate) const MAX_JOBS: usize = 1 << 15;

/// The most faults of a client that are serviced at once.
pub(crate) const MAX_FAULT_WORKERS: i32 = 8;

/// Counts the queues and jobs of a client.
pub(crate) struct Usage {
    queues: Atomic<usize>,
    jobs: Atomic<usize>,
}

/// A kind of object that is limited for each client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// Exec queues.
    Queue,
    /// Jobs that are not done.
    Job,
}

impl Usage {
    fn new() -> Self {
        Self {
            queues: Atomic::new(0),
            jobs: Atomic::new(0),
        }
    }

    fn of(&self, resource: Resource) -> (&Atomic<usize>, usize, Error) {
        match resource {
            // As in xe, when its firmware has no context ids left.
            Resource::Queue => (&self.queues, MAX_QUEUES, ENOSPC),
            // As in xe, when a ring is full.
            Resource::Job => (&self.jobs, MAX_JOBS, EAGAIN),
        }
    }
}

/// One queue or job of a client, counted until this is dropped.
pub(crate) struct UsageGuard {
    usage: Arc<Usage>,
    resource: Resource,
}

impl UsageGuard {
    /// Counts one more object. Fails with `ENOSPC` for too many queues, and with `EAGAIN` for too
    /// many jobs.
    fn new(usage: &Arc<Usage>, resource: Resource) -> Result<Self> {
        let guard = Self {
            usage: usage.clone(),
            resource,
        };
        let (count, most, error) = usage.of(resource);
        // A failing call is counted for a moment too, so a concurrent call may fail below the
        // limit.
        if count.fetch_add(1, Relaxed) >= most {
            return Err(error);
        }
        Ok(guard)
    }
}

impl Drop for UsageGuard {
    fn drop(&mut self) {
        self.usage.of(self.resource).0.fetch_sub(1, Relaxed);
    }
}

/// A client of a device.
#[pin_data]
pub(crate) struct Client {
    mm: ARef<Mm>,
    run_queue: Arc<RunQueue<Execution>>,
    usage: Arc<Usage>,
    /// Services page faults and collects garbage, with one work item for each VM and purpose. A
    /// work item may wait for pages that userspace holds back.
    pub(crate) faults: OwnedQueue,
    /// The queues that wait for conditions.
    pub(crate) polls: Arc<Polls>,
    #[pin]
    end: Work<Client>,
}

impl_has_work! {
    impl HasWork<Self> for Client { self.end }
}

impl WorkItem for Client {
    type Pointer = Arc<Self>;

    /// Drops the client, and with it its work queue, from the device's own work queue: the work
    /// item that dropped the last [`ClientRef`] may still hold a reference to the client.
    fn run(this: Arc<Self>) {
        // The queues are gone, but not what was to wake them.
        this.polls.cancel();
        this.faults.flush();
    }
}

impl Client {
    fn new(mm: &Mm, polls: &Arc<OwnedQueue>) -> Result<Arc<Self>> {
        let polls = Polls::new(polls.clone())?;
        let run_queue = RunQueue::new()?;
        let usage = Arc::new(Usage::new(), GFP_KERNEL_ACCOUNT)?;
        let faults = OwnedQueue::new_limited(c"vxe-faults", MAX_FAULT_WORKERS)?;
        Arc::pin_init(
            pin_init!(Self {
                mm: mm.into(),
                run_queue,
                usage,
                faults,
                polls,
                end <- new_work!("Client::end"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }
}

struct ListedClient {
    client: Arc<Client>,
    /// The number of [`ClientRef`]s.
    refs: usize,
}

/// The clients of a device, by the addresses of their `struct mm_struct`.
#[pin_data]
pub(crate) struct Clients {
    #[pin]
    list: Mutex<RBTree<usize, ListedClient>>,
    /// The run queue for queues whose process has exited.
    orphans: Arc<RunQueue<Execution>>,
}

impl Clients {
    /// Creates an empty list. Fails with `ENOMEM`.
    pub(crate) fn new() -> Result<impl PinInit<Self>> {
        let orphans = RunQueue::new_shared()?;
        Ok(pin_init!(Self {
            list <- new_mutex!(RBTree::new(), "vxe_clients"),
            orphans,
        }))
    }

    /// Calls `f` for each client, without the list's lock. Sleeps.
    pub(crate) fn for_each(&self, f: impl Fn(&Client)) {
        let mut from = 0;
        loop {
            let (key, client) = {
                let list = self.list.lock();
                let Some(cursor) = list.cursor_lower_bound(&from) else {
                    return;
                };
                let (key, listed) = cursor.current();
                (*key, listed.client.clone())
            };
            f(&client);
            let Some(next) = key.checked_add(1) else {
                return;
            };
            from = next;
        }
    }
}

/// A reference that keeps a client listed.
///
/// May be dropped by work on the client's own work queue: dropping it does not wait for that queue.
pub(crate) struct ClientRef {
    client: Arc<Client>,
    queues: QueuesRef,
}

impl ClientRef {
    /// Gets the client of the process with address space `mm`, creating it if needed. Fails with
    /// `ENOMEM`.
    pub(crate) fn new(queues: &QueuesRef, mm: &Mm) -> Result<Self> {
        let key = mm.as_raw().addr();
        let join = |client| Self {
            client,
            queues: queues.clone(),
        };
        let list = &queues.clients.list;
        if let Some(listed) = list.lock().get_mut(&key) {
            listed.refs += 1;
            return Ok(join(listed.client.clone()));
        }
        let client = Client::new(mm, queues.engines.polls())?;
        let place = RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?;
        let mut list = list.lock();
        if let Some(listed) = list.get_mut(&key) {
            // Another thread of the process created the client meanwhile. Use that one; `client` is
            // dropped after the unlock.
            listed.refs += 1;
            let member = join(listed.client.clone());
            drop(list);
            return Ok(member);
        }
        let listed = ListedClient {
            client: client.clone(),
            refs: 1,
        };
        list.insert(place.into_node(key, listed));
        drop(list);
        Ok(join(client))
    }

    /// Returns the run queue for queues of the client.
    pub(crate) fn run_queue(&self) -> &Arc<RunQueue<Execution>> {
        if has_users(&self.client.mm) {
            &self.client.run_queue
        } else {
            &self.queues.clients.orphans
        }
    }

    /// Counts one more object of the client. Fails with `ENOSPC` for too many queues, and with
    /// `EAGAIN` for too many jobs.
    pub(crate) fn try_count(&self, resource: Resource) -> Result<UsageGuard> {
        UsageGuard::new(&self.client.usage, resource)
    }
}

impl Deref for ClientRef {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for ClientRef {
    fn drop(&mut self) {
        let key = self.client.mm.as_raw().addr();
        let mut list = self.queues.clients.list.lock();
        let Some(listed) = list.get_mut(&key) else {
            return;
        };
        listed.refs -= 1;
        if listed.refs > 0 {
            return;
        }
        let listed = list.remove_node(&key);
        drop(list);
        // The work drops the last reference: this may run on the client's own work queue, which
        // cannot be destroyed from its own work.
        let _ = self.queues.work.enqueue(self.client.clone());
        drop(listed);
    }
}
