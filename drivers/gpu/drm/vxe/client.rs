// SPDX-License-Identifier: GPL-2.0

//! Clients: the processes that use a device, and what they may have under way there.
//!
//! A client is a process, or rather its memory, `struct mm_struct`: the one that a VM was made for,
//! whatever files, VMs and queues it makes, and whoever else has a descriptor of these. So opening more
//! files gives nobody a larger share. More processes do, as they do with the CPUs, and there are means
//! to limit these. What goes on when its process is gone (in buffers, through a file that another one
//! holds) shares one place in the scheduler with all else that is left: neither a process that forks and
//! exits, nor one that calls `execve()` again and again leaves clients behind.
//!
//! Of a client, no more than [`SERVICES`] faults are serviced at once, each of another VM: they may wait
//! for userspace, for as long as that likes, and occupy a worker of the kernel meanwhile. Each client has a
//! work queue of its own for that, so that it only waits for itself. Queues and jobs are counted:
//! [`MAX_QUEUES`], [`MAX_JOBS`]. The user fence of a bind is written by the thread that binds.
//!
//! Lock order: the lock of the list of clients is a leaf.

use crate::{
    driver::Queues,
    exec_queue::Execution,
    sched::Lane, //
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

/// The most queues of a client, those included that were closed and still wait for a fault.
pub(crate) const MAX_QUEUES: usize = 4096;

/// The most jobs of a client.
pub(crate) const MAX_JOBS: usize = 1 << 15;

/// How many faults of a client are serviced at once.
pub(crate) const SERVICES: i32 = 8;

/// Counts what a client has.
pub(crate) struct Usage {
    queues: Atomic<usize>,
    jobs: Atomic<usize>,
}

/// What is counted.
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
            // As xe, which runs out of context ids for its firmware.
            Resource::Queue => (&self.queues, MAX_QUEUES, ENOSPC),
            // As xe, whose rings are full.
            Resource::Job => (&self.jobs, MAX_JOBS, EAGAIN),
        }
    }
}

/// One of what is counted; dropped, it is not any more.
pub(crate) struct Claim {
    usage: Arc<Usage>,
    resource: Resource,
}

impl Claim {
    /// One more. Fails with `ENOSPC` for too many queues, and with `EAGAIN` for too many jobs.
    fn new(usage: &Arc<Usage>, resource: Resource) -> Result<Self> {
        let claim = Self {
            usage: usage.clone(),
            resource,
        };
        let (count, most, error) = usage.of(resource);
        // Those that fail are counted for a moment, so that more may fail than must.
        if count.fetch_add(1, Relaxed) >= most {
            return Err(error);
        }
        Ok(claim)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.usage.of(self.resource).0.fetch_sub(1, Relaxed);
    }
}

/// A client of a device.
#[pin_data]
pub(crate) struct Client {
    mm: ARef<Mm>,
    lane: Arc<Lane<Execution>>,
    usage: Arc<Usage>,
    /// Services page faults and collects garbage, a work item a VM. Such work may take as long as the
    /// pages of a process take to come.
    pub(crate) faults: OwnedQueue,
    #[pin]
    end: Work<Client>,
}

impl_has_work! {
    impl HasWork<Self> for Client { self.end }
}

impl WorkItem for Client {
    type Pointer = Arc<Self>;

    /// Drops the client, whose work queue ends here, and not in work of its own: that which gave up the
    /// last [`Membership`] may still be about to drop its reference.
    fn run(this: Arc<Self>) {
        this.faults.flush();
    }
}

impl Client {
    fn new(mm: &Mm) -> Result<Arc<Self>> {
        let lane = Lane::new()?;
        let usage = Arc::new(Usage::new(), GFP_KERNEL_ACCOUNT)?;
        let faults = OwnedQueue::new_limited(c"vxe-faults", SERVICES)?;
        Arc::pin_init(
            pin_init!(Self {
                mm: mm.into(),
                lane,
                usage,
                faults,
                end <- new_work!("Client::end"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }
}

struct Listed {
    client: Arc<Client>,
    /// How many [`Membership`]s there are.
    members: usize,
}

/// The clients of a device, by the addresses of their memory descriptors.
#[pin_data]
pub(crate) struct Clients {
    #[pin]
    list: Mutex<RBTree<usize, Listed>>,
    /// Where the queues stand whose process is gone.
    orphans: Arc<Lane<Execution>>,
}

impl Clients {
    /// No clients.
    pub(crate) fn new() -> Result<impl PinInit<Self>> {
        let orphans = Lane::new()?;
        Ok(pin_init!(Self {
            list <- new_mutex!(RBTree::new(), "vxe_clients"),
            orphans,
        }))
    }

    /// Calls `f` for each client that there is, one after the other. Sleeps.
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

/// Something of a client: while there is any, so is the client.
///
/// It may be dropped by work on the client's own queues, which are not waited for by that.
pub(crate) struct Membership {
    client: Arc<Client>,
    queues: Arc<Queues>,
}

impl Membership {
    /// Makes something of the process whose memory is `mm`. Fails with `ENOMEM`.
    pub(crate) fn new(queues: &Arc<Queues>, mm: &Mm) -> Result<Self> {
        let key = mm.as_raw().addr();
        let join = |client| Self {
            client,
            queues: queues.clone(),
        };
        let list = &queues.clients.list;
        if let Some(listed) = list.lock().get_mut(&key) {
            listed.members += 1;
            return Ok(join(listed.client.clone()));
        }
        let client = Client::new(mm)?;
        let place = RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?;
        let mut list = list.lock();
        if let Some(listed) = list.get_mut(&key) {
            // Another thread of the process was faster. Its client is taken, and ours is dropped, both
            // without the lock.
            listed.members += 1;
            let member = join(listed.client.clone());
            drop(list);
            return Ok(member);
        }
        let listed = Listed {
            client: client.clone(),
            members: 1,
        };
        list.insert(place.into_node(key, listed));
        drop(list);
        Ok(join(client))
    }

    /// Where its queues stand when they can run.
    pub(crate) fn lane(&self) -> &Arc<Lane<Execution>> {
        if has_users(&self.client.mm) {
            &self.client.lane
        } else {
            &self.queues.clients.orphans
        }
    }

    /// Counts one more of what the client has. Fails with `ENOSPC` for too many queues, and with `EAGAIN`
    /// for too many jobs.
    pub(crate) fn claim(&self, resource: Resource) -> Result<Claim> {
        Claim::new(&self.client.usage, resource)
    }
}

impl Deref for Membership {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let key = self.client.mm.as_raw().addr();
        let mut list = self.queues.clients.list.lock();
        let Some(listed) = list.get_mut(&key) else {
            return;
        };
        listed.members -= 1;
        if listed.members > 0 {
            return;
        }
        let listed = list.remove_node(&key);
        drop(list);
        // The last reference goes there: its queues may be those that this runs on.
        let _ = self.queues.work.enqueue(self.client.clone());
        drop(listed);
    }
}
