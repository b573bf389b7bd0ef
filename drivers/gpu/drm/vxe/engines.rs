// SPDX-License-Identifier: GPL-2.0

//! The engines of a device: one for each CPU. The queues run on them in turns.
//!
//! An engine is a work item on an unbound work queue, and occupies a kernel thread while there is a
//! queue to run. It waits for nothing but a CPU: a queue whose access faults leaves the engine, and
//! the fault worker makes it runnable again; one that waits for a condition leaves it, too, see
//! [`polls`](crate::polls). Engines have less weight than ordinary threads, since
//! they work for all clients, outside of their cgroups. A kernel thread cannot enter the cgroup of
//! another task: the kernel has no call for that in cgroup v2 (in v1 there is
//! `cgroup_attach_task_all()`), where only userspace moves threads. A `vhost_task` is in the cgroup
//! of its process, but it would be visible there, and would keep the process from entering
//! namespaces.

use crate::{
    client::Clients,
    exec_queue::Execution,
    fifo::FifoNode,
    sched::{
        RunList,
        RunQueue,
        MAX_ENGINES, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc,
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};
use kernel_ext::{
    sched::with_nice,
    workqueue::OwnedQueue, //
};
use vxe_sim::sysinfo::{online_cpus, Clock};

/// The nice value of engines: an engine gets a quarter of a CPU that it shares with an ordinary
/// thread.
const NICE: i16 = 5;

/// How many steps, of at most a page each, an engine runs between two reads of the clock.
const STEPS: u32 = 32;

#[pin_data]
struct Engine {
    list: Arc<RunList<Execution>>,
    index: usize,
    #[pin]
    work: Work<Engine>,
}

impl_has_work! {
    impl HasWork<Self> for Engine { self.work }
}

impl WorkItem for Engine {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        with_nice(NICE, || {
            while let Some(turn) = this.list.next(this.index) {
                let start = Clock::Monotonic.now_ns();
                let used = || now_since(start);
                let grant = turn.grant;
                let mut steps = 0u32;
                Execution::take_turn(&this.list, turn, used, || {
                    steps = steps.wrapping_add(1);
                    steps % STEPS == 0 && used() >= grant
                });
            }
        })
    }
}

/// Returns the nanoseconds since `start`.
fn now_since(start: i64) -> u64 {
    u64::try_from(Clock::Monotonic.now_ns().saturating_sub(start)).unwrap_or(0)
}

/// The engines of a device.
pub(crate) struct Engines {
    list: Arc<RunList<Execution>>,
    engines: KVec<Arc<Engine>>,
    queue: OwnedQueue,
    /// Runs the work of [`Polls`](crate::polls::Polls).
    polls: Arc<OwnedQueue>,
}

impl Engines {
    /// Creates idle engines. Fails with `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        let count = online_cpus().clamp(1, MAX_ENGINES);
        let list = Arc::pin_init(RunList::new(count), GFP_KERNEL)?;
        let mut engines = KVec::with_capacity(count, GFP_KERNEL)?;
        for index in 0..count {
            let of = list.clone();
            let engine = Arc::pin_init(
                pin_init!(Engine {
                    list: of,
                    index,
                    work <- new_work!("Engine::work"),
                }),
                GFP_KERNEL,
            )?;
            engines.push(engine, GFP_KERNEL)?;
        }
        let polls = OwnedQueue::new_unbound(c"vxe-polls")?;
        Ok(Self {
            list,
            engines,
            queue: OwnedQueue::new_unbound(c"vxe-engines")?,
            polls: Arc::new(polls, GFP_KERNEL)?,
        })
    }

    /// Returns how many engines there are.
    pub(crate) fn count(&self) -> usize {
        self.engines.len()
    }

    /// Returns what the engines run.
    pub(crate) fn list(&self) -> &Arc<RunList<Execution>> {
        &self.list
    }

    /// Makes `node` of the client with run queue `run_queue` runnable, and wakes an idle engine.
    pub(crate) fn wake(
        &self,
        run_queue: &Arc<RunQueue<Execution>>,
        node: KBox<FifoNode<Execution>>,
    ) {
        let idle = self.list.wake(run_queue, node);
        if let Some(engine) = idle.and_then(|index| self.engines.get(index)) {
            // If the work item is still running, it is queued again.
            let _ = self.queue.enqueue(engine.clone());
        }
    }

    /// Returns the work queue for queues that wait for conditions.
    pub(crate) fn polls(&self) -> &Arc<OwnedQueue> {
        &self.polls
    }

    /// Waits until the engines have run all queues, which fail at their next access. Sleeps.
    pub(crate) fn flush(&self, clients: &Clients) {
        // A queue may begin to wait for a condition in the first round, with an access that it made
        // before it was to fail.
        for _ in 0..2 {
            clients.for_each(|client| client.polls.wake_all());
            // The work may have taken queues before, and not yet made them runnable.
            self.polls.flush();
            self.queue.flush();
        }
    }
}
