// SPDX-License-Identifier: GPL-2.0

//! The engines of a device: as many as there are CPUs, on which the queues take turns.
//!
//! An engine is a work item, and a thread of the kernel while there is something to run. It never
//! waits for anything but a CPU: a queue whose access faults leaves it, and is put back by the answer.
//! It has less weight than an ordinary thread, since it works for whoever has jobs, and in nobody's
//! cgroup: the kernel has no call by which a thread of its own enters the cgroup of another (cgroup v1
//! has, `cgroup_attach_task_all()`; in v2 only userspace moves threads). A thread that is made for a
//! process (`vhost_task`) is in its cgroup, but then each process has one that it sees, and which keeps
//! it from entering namespaces.

use crate::{
    exec_queue::Execution,
    fifo::Node,
    sched::{
        Lane,
        RunList,
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

/// How nice the engines are to other threads: beside one of these on a CPU, they have a quarter of it.
const NICE: i16 = 5;

/// How many steps an engine takes between two looks at the clock: each moves a page at most.
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

/// Nanoseconds since `start`.
fn now_since(start: i64) -> u64 {
    u64::try_from(Clock::Monotonic.now_ns().saturating_sub(start)).unwrap_or(0)
}

/// The engines of a device.
pub(crate) struct Engines {
    list: Arc<RunList<Execution>>,
    engines: KVec<Arc<Engine>>,
    queue: OwnedQueue,
}

impl Engines {
    /// Engines that have nothing to do. Fails with `ENOMEM`.
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
        Ok(Self {
            list,
            engines,
            queue: OwnedQueue::new_unbound(c"vxe-engines")?,
        })
    }

    /// Has what is in `node` run, as the client's turn comes whose lane this is.
    pub(crate) fn wake(&self, lane: &Arc<Lane<Execution>>, node: KBox<Node<Execution>>) {
        let idle = self.list.wake(lane, node);
        if let Some(engine) = idle.and_then(|index| self.engines.get(index)) {
            // It may be about to return from its last run, and still takes this.
            let _ = self.queue.enqueue(engine.clone());
        }
    }

    /// Waits until all that can run has run. Sleeps.
    pub(crate) fn flush(&self) {
        self.queue.flush();
    }
}
