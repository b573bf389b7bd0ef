// SPDX-License-Identifier: GPL-2.0

//! Exec queues: jobs of one VM, in order.
//!
//! What runs of a queue is its [`Execution`], a job and where the GPU is in it. It is in one place at a
//! time, and whoever has it there owns it:
//!
//! ```text
//!              submit                    next
//!   in the queue ──► in the run list ◄──────► on an engine      no jobs ──► in the queue
//!                       ▲                      │
//!                answer └── in the VM's faults ┘ fault
//! ```
//!
//! No thread belongs to a queue: one that waits, for its turn or for a fault, is memory and no more.
//!
//! A queue is open, then banned or closed, for good:
//!
//! - *banned*: a job failed. The jobs behind it are dropped, no new one is taken, and those who wait
//!   for a fence on behalf of the queue are told. The VM and its other queues are not concerned.
//! - *closed*: its id is gone. Its jobs are dropped, and the running one stops before its next access
//!   to memory. Closing waits for that, but neither for its turn nor for a fault: that may be answered
//!   by userspace, and even by the very thread that closes the queue. What waits for one then ends
//!   behind its back.
//!
//! Locking: `jobs` is a leaf. A job runs without it.

use crate::{
    client::{
        Claim,
        Resource, //
    },
    driver::Device,
    fault::{
        Fault,
        Faulting, //
    },
    fifo::Node,
    gpu::{
        Context,
        EngineError,
        Outcome, //
    },
    objects::{
        self,
        Counted, //
    },
    sched::{
        Entity,
        RunList,
        Share,
        Turn, //
    },
    sync::UserFence,
    vm::Vm, //
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    list::{
        impl_list_arc_safe,
        impl_list_item,
        List,
        ListArc,
        ListLinks, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            AtomicFlag,
            Release, //
        },
        new_condvar,
        new_mutex,
        Arc,
        CondVar,
        Mutex, //
    }, //
};
use vxe_sim::drm_dbg;

/// The most jobs that a queue holds, the running one included.
pub(crate) const MAX_JOBS: usize = 16384;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Batches for the copy engine.
    Copy,
    /// It orders the binds of a VM, and takes no batches.
    Bind,
}

/// A batch to run.
#[pin_data]
pub(crate) struct Job {
    /// The GPU address of the first command.
    batch: u64,
    /// What the GPU stores when the batch is done.
    fence: Option<UserFence>,
    /// It is one of its client's jobs.
    _claim: Claim,
    #[pin]
    links: ListLinks,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Job { untracked; }
}
impl_list_item! {
    impl ListItem<0> for Job { using ListLinks { self.links }; }
}

/// The jobs of a queue.
struct Jobs {
    waiting: List<Job>,
    /// How many are in `waiting`.
    count: usize,
    /// Whether there is one besides that was begun and is not done.
    begun: bool,
    /// Whether an engine is at work on it now.
    on_engine: bool,
    /// What runs jobs, while there are none.
    idle: Option<KBox<Node<Execution>>>,
    closed: bool,
}

/// An exec queue.
#[pin_data]
pub(crate) struct ExecQueue {
    dev: ARef<Device>,
    vm: Arc<Vm>,
    kind: Kind,
    /// It is one of its client's queues.
    _claim: Claim,
    _counted: Counted,
    /// Set for good when a job fails.
    banned: Atomic<bool>,
    /// Tells the engine to stop.
    stop: AtomicFlag,
    #[pin]
    jobs: Mutex<Jobs>,
    /// Notified when `jobs.on_engine` is not set any more.
    #[pin]
    paused: CondVar,
}

impl ExecQueue {
    /// A queue in `vm`. Fails with `ENOSPC` if the client has too many, and with `ENOMEM`.
    pub(crate) fn new(dev: &Device, vm: Arc<Vm>, kind: Kind) -> Result<Arc<Self>> {
        let claim = vm.client().claim(Resource::Queue)?;
        let idle = match kind {
            Kind::Copy => Some(Node::new(Execution::new()?, GFP_KERNEL_ACCOUNT)?),
            Kind::Bind => None,
        };
        Arc::pin_init(
            pin_init!(Self {
                dev: dev.into(),
                vm,
                kind,
                _claim: claim,
                _counted: dev.objects.count(objects::Kind::Queue),
                banned: Atomic::new(false),
                stop: AtomicFlag::new(false),
                jobs <- new_mutex!(
                    Jobs {
                        waiting: List::new(),
                        count: 0,
                        begun: false,
                        on_engine: false,
                        idle,
                        closed: false,
                    },
                    "ExecQueue::jobs"
                ),
                paused <- new_condvar!("ExecQueue::paused"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// The VM whose addresses the queue's batches use.
    pub(crate) fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Whether the queue orders binds, and takes no batches.
    pub(crate) fn is_bind(&self) -> bool {
        self.kind == Kind::Bind
    }

    /// Whether the queue will never finish another job: it is banned or closed.
    pub(crate) fn is_dead(&self) -> bool {
        self.banned.load(Acquire) || self.stop.load(Acquire)
    }

    /// Queues the batch at the GPU address `batch` behind the others.
    ///
    /// Fails with `ECANCELED` if the queue is dead, with `EAGAIN` if it holds [`MAX_JOBS`], or its
    /// client as many as it may, and with `ENOMEM`.
    pub(crate) fn submit(self: &Arc<Self>, batch: u64, fence: Option<UserFence>) -> Result {
        let claim = self.vm.client().claim(Resource::Job)?;
        let job = ListArc::pin_init(
            try_pin_init!(Job {
                batch,
                fence,
                _claim: claim,
                links <- ListLinks::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        let mut jobs = self.jobs.lock();
        if jobs.closed || self.is_dead() {
            return Err(ECANCELED);
        }
        if jobs.count + usize::from(jobs.begun) >= MAX_JOBS {
            return Err(EAGAIN);
        }
        jobs.waiting.push_back(job);
        jobs.count += 1;
        let idle = jobs.idle.take();
        drop(jobs);
        if let Some(mut node) = idle {
            node.value.queue = Some(self.clone());
            self.wake(node);
        }
        Ok(())
    }

    /// Closes the queue: drops its jobs and stops the one that runs.
    ///
    /// When this returns, the queue does not access memory any more. The wait for that is not longer
    /// than a piece of a command takes. May be called again.
    pub(crate) fn close(&self) {
        self.stop.store(true, Release);
        let mut jobs = self.jobs.lock();
        jobs.closed = true;
        let dropped = jobs.take();
        while jobs.on_engine {
            self.paused.wait(&mut jobs);
        }
        drop(jobs);
        drop(dropped);
        // Who waits for a fence of this queue waits in vain.
        self.signal();
    }

    /// Takes no more jobs, because the one that was begun failed, whose batch is at `batch`.
    fn ban(&self, batch: u64, error: EngineError) {
        drm_dbg!(
            &*self.dev,
            "exec queue banned: batch {:#x}: {}",
            batch,
            error
        );
        let mut jobs = self.jobs.lock();
        self.banned.store(true, Release);
        jobs.begun = false;
        let dropped = jobs.take();
        drop(jobs);
        drop(dropped);
        self.signal();
    }

    /// Has those look again who wait for what jobs store, or for the queue to be dead.
    fn signal(&self) {
        self.dev.fences.signal(self.vm.mm());
    }

    /// Has what is in `node` run, when it is its turn.
    fn wake(&self, node: KBox<Node<Execution>>) {
        let lane = self.vm.client().lane();
        self.dev.queues.engines.wake(lane, node);
    }

    /// An engine comes to run jobs. Returns whether it may.
    fn enter(&self) -> bool {
        let mut jobs = self.jobs.lock();
        jobs.on_engine = !jobs.closed && !self.is_dead();
        jobs.on_engine
    }

    /// The engine that came goes.
    fn leave(&self) {
        self.jobs.lock().on_engine = false;
        self.paused.notify_all();
    }

    /// The job to run next, if there is one; the one before it is done.
    fn next(&self) -> Option<ListArc<Job>> {
        let mut jobs = self.jobs.lock();
        let next = jobs.waiting.pop_front();
        jobs.begun = next.is_some();
        if jobs.begun {
            jobs.count -= 1;
        }
        next
    }

    /// Keeps `node` until there is a job. If there is one now, or none will ever be, gives it back.
    fn park(&self, mut node: KBox<Node<Execution>>) -> Option<KBox<Node<Execution>>> {
        let mut jobs = self.jobs.lock();
        if jobs.closed || self.is_dead() || jobs.count > 0 {
            return Some(node);
        }
        let queue = node.value.queue.take();
        jobs.idle = Some(node);
        drop(jobs);
        // Maybe the last reference.
        drop(queue);
        None
    }
}

impl Jobs {
    /// Takes all waiting jobs out, for dropping them without the lock.
    fn take(&mut self) -> List<Job> {
        self.count = 0;
        core::mem::take(&mut self.waiting)
    }
}

/// What runs the jobs of a queue, one after the other.
pub(crate) struct Execution {
    /// Whose jobs; none while it is idle.
    queue: Option<Arc<ExecQueue>>,
    /// The job that was begun.
    job: Option<ListArc<Job>>,
    /// Whether its batch is done, and its fence is stored.
    is_fence: bool,
    context: Context,
    /// The fault that it waits for.
    fault: Fault,
    share: Share<Self>,
}

/// How a turn ends.
enum End {
    /// The time is over.
    Slice,
    /// The job waits for its fault.
    Fault,
    /// There are no jobs.
    Idle,
    /// There will be none any more.
    Dead,
}

impl Execution {
    /// One that is idle.
    fn new() -> Result<Self> {
        Ok(Self {
            queue: None,
            job: None,
            is_fence: false,
            context: Context::new()?,
            fault: Fault {
                addr: 0,
                access: crate::gpu::Access::Read,
            },
            share: Share::new(),
        })
    }

    /// Has a queue use its turn, on the calling thread, and puts it where it belongs then.
    ///
    /// `used` tells how long that took so far, in nanoseconds; `is_over` is asked after each step
    /// whether the turn is over.
    pub(crate) fn take_turn(
        list: &RunList<Self>,
        mut turn: Turn<Self>,
        used: impl Fn() -> u64,
        is_over: impl FnMut() -> bool,
    ) {
        let Some(queue) = turn.node.value.queue.clone() else {
            return;
        };
        let mut end = End::Dead;
        if queue.enter() {
            end = turn.node.value.run(&queue, is_over);
            queue.leave();
        }
        // From here on it may be found by others.
        let node = list.spend(turn, used());
        let node = match end {
            End::Slice => Some(node),
            End::Fault => {
                queue.vm.fault(node);
                None
            }
            End::Idle => queue.park(node),
            End::Dead => None,
        };
        if let Some(node) = node {
            // The process may have gone meanwhile, so its place is looked up again.
            list.put_back(queue.vm.client().lane(), node);
        }
    }

    /// Runs jobs of `queue`, which is its queue.
    fn run(&mut self, queue: &ExecQueue, mut is_over: impl FnMut() -> bool) -> End {
        loop {
            if self.job.is_none() {
                let Some(job) = queue.next() else {
                    return End::Idle;
                };
                self.context.start(job.batch);
                self.is_fence = false;
                self.job = Some(job);
            }
            let aspace = queue.vm.aspace();
            match self.context.run(aspace, &queue.stop, &mut is_over) {
                Outcome::Done => self.done(queue),
                Outcome::Over => return End::Slice,
                Outcome::Fault { addr, access } => {
                    self.fault = Fault { addr, access };
                    return End::Fault;
                }
                Outcome::Failed(error) => {
                    self.fail(queue, error);
                    return End::Dead;
                }
            }
            if is_over() {
                return End::Slice;
            }
        }
    }

    /// The batch is done, or the fence.
    fn done(&mut self, queue: &ExecQueue) {
        let fence = self.job.as_ref().and_then(|job| job.fence);
        match fence {
            Some(fence) if !self.is_fence => {
                self.is_fence = true;
                self.context.start_store(fence.addr, fence.value);
            }
            // Also without a fence: somebody may wait for a word that the batch has stored.
            _ => {
                self.job = None;
                queue.signal();
            }
        }
    }

    /// The job failed, and all that were to follow do not run.
    fn fail(&mut self, queue: &ExecQueue, error: EngineError) {
        let batch = self.job.take().map_or(0, |job| job.batch);
        queue.ban(batch, error);
    }
}

impl Entity for Execution {
    fn share(&mut self) -> &mut Share<Self> {
        &mut self.share
    }
}

impl Faulting for Execution {
    fn fault(&self) -> Fault {
        self.fault
    }

    fn answer(mut node: KBox<Node<Self>>, result: Result) {
        let Some(queue) = node.value.queue.clone() else {
            return;
        };
        match result {
            Ok(()) => queue.wake(node),
            Err(error) => {
                let Fault { addr, access } = node.value.fault;
                let error = EngineError::Fault {
                    addr,
                    access,
                    error,
                };
                node.value.fail(&queue, error);
            }
        }
    }
}
