// SPDX-License-Identifier: GPL-2.0

//! Exec queues: the jobs of a VM, run in order.
//!
//! The [`Execution`] of a queue is its current job and the state of the GPU context. It has one
//! owner at a time:
//!
//! ```text
//!              submit                    next
//!   in the queue ──► in the run list ◄──────► on an engine      no jobs ──► in the queue
//!                       ▲                      │
//!                answer ├── in the VM's faults ┤ fault
//!                  poll └── in the waiters ────┘ condition that does not hold
//! ```
//!
//! A queue has no thread of its own: while it waits for its turn or for a fault, it only uses
//! memory. While it waits for a condition, an engine checks that from time to time.
//!
//! All VMs are long-running, and so are their jobs: as in xe, no job is stopped for taking long.
//!
//! A queue is open, and then banned or closed for good:
//!
//! - *banned*: a job failed. The jobs after it are dropped, new jobs are refused, and waiters for a
//!   fence of the queue are woken with an error. The VM and its other queues are unaffected.
//! - *closed*: its id was removed. Its jobs are dropped, and the running one stops before its next
//!   access to memory. `close()` waits for that, but neither for a turn of the queue nor for its
//!   fault: userspace may service that fault, even the very thread that closes the queue. A job
//!   that waits for a fault ends later, asynchronously.
//!
//! Locking: `jobs` is a leaf. A job runs without it.

use crate::{
    client::{
        Resource, //
        UsageGuard,
    },
    driver::Device,
    fault::{
        Fault,
        Faulting, //
    },
    fifo::FifoNode,
    gpu::{
        EngineContext,
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
        SchedState,
        Turn, //
    },
    stats::Stat,
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
            Relaxed,
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

/// The most jobs of a queue, including the running one.
pub(crate) const MAX_QUEUE_JOBS: usize = 16384;

/// The purpose of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueKind {
    /// Runs batches on the copy engine.
    Copy {
        /// How long it runs before other queues of the client do, in microseconds; not zero.
        timeslice: u32,
    },
    /// Orders the binds of a VM; takes no batches.
    Bind,
}

/// A batch to run.
#[pin_data]
pub(crate) struct Job {
    /// The GPU address of the first command.
    batch: u64,
    /// The fence that the GPU writes when the batch is done.
    fence: Option<UserFence>,
    /// Counts the job for its client.
    _usage: UsageGuard,
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
    /// The number of jobs in `waiting`.
    count: usize,
    /// Whether another job was started and is not done.
    begun: bool,
    /// Whether an engine is running it now.
    on_engine: bool,
    /// The execution, while there are no jobs.
    idle: Option<KBox<FifoNode<Execution>>>,
    closed: bool,
}

/// An exec queue.
#[pin_data]
pub(crate) struct ExecQueue {
    dev: ARef<Device>,
    vm: Arc<Vm>,
    kind: QueueKind,
    /// Counts the queue for its client.
    _usage: UsageGuard,
    _counted: Counted,
    /// Set for good when a job fails.
    banned: Atomic<bool>,
    /// Tells the engine to stop.
    stop: AtomicFlag,
    /// How long the jobs of all queues of the file have run, in ticks of the reference clock.
    file_ticks: Arc<Atomic<u64>>,
    #[pin]
    jobs: Mutex<Jobs>,
    /// Notified when `jobs.on_engine` is cleared.
    #[pin]
    paused: CondVar,
}

impl ExecQueue {
    /// Creates a queue in `vm` whose jobs count their time in `file_ticks`. Fails with `ENOSPC` if
    /// the client has too many queues, and with `ENOMEM`.
    pub(crate) fn new(
        dev: &Device,
        vm: Arc<Vm>,
        kind: QueueKind,
        file_ticks: Arc<Atomic<u64>>,
    ) -> Result<Arc<Self>> {
        let usage = vm.client().try_count(Resource::Queue)?;
        let idle = match kind {
            QueueKind::Copy { timeslice } => {
                let execution = Execution::new(timeslice)?;
                Some(FifoNode::new(execution, GFP_KERNEL_ACCOUNT)?)
            }
            QueueKind::Bind => None,
        };
        Arc::pin_init(
            pin_init!(Self {
                dev: dev.into(),
                vm,
                kind,
                _usage: usage,
                _counted: dev.objects.count(objects::ObjectKind::Queue),
                banned: Atomic::new(false),
                stop: AtomicFlag::new(false),
                file_ticks,
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

    /// Returns the VM in whose address space batches run.
    pub(crate) fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Returns whether the queue orders binds and takes no batches.
    pub(crate) fn is_bind(&self) -> bool {
        self.kind == QueueKind::Bind
    }

    /// Returns whether the queue is banned or closed and so finishes no further job.
    pub(crate) fn is_dead(&self) -> bool {
        self.banned.load(Acquire) || self.stop.load(Acquire)
    }

    /// Appends a job with the batch at GPU address `batch`.
    ///
    /// Fails with `ECANCELED` if the queue is dead, `EAGAIN` if it has [`MAX_QUEUE_JOBS`] or its
    /// client too many jobs, and `ENOMEM`.
    pub(crate) fn submit(self: &Arc<Self>, batch: u64, fence: Option<UserFence>) -> Result {
        let usage = self.vm.client().try_count(Resource::Job)?;
        let job = ListArc::pin_init(
            try_pin_init!(Job {
                batch,
                fence,
                _usage: usage,
                links <- ListLinks::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        let mut jobs = self.jobs.lock();
        if jobs.closed || self.is_dead() {
            return Err(ECANCELED);
        }
        if jobs.count + usize::from(jobs.begun) >= MAX_QUEUE_JOBS {
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

    /// Closes the queue: drops its jobs and stops the running one. May be called again.
    ///
    /// When this returns, the queue does not access memory any more. The wait for that takes no
    /// longer than one step of a command.
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
        // Waiters for a fence of this queue would wait in vain.
        self.signal();
    }

    /// Bans the queue, because the started job with the batch at `batch` failed.
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

    /// Wakes threads that wait for memory written by jobs, or for the queue's death.
    fn signal(&self) {
        self.dev.fences.signal(self.vm.mm());
    }

    /// Wakes threads of the client that wait for memory written by jobs; a job can do that often.
    fn interrupt(&self) {
        self.dev.fences.signal_own(self.vm.mm());
    }

    /// Makes the execution in `node` runnable.
    fn wake(&self, node: KBox<FifoNode<Execution>>) {
        let run_queue = self.vm.client().run_queue();
        self.dev.queues.engines.wake(run_queue, node);
    }

    /// Makes the execution in `node`, which waits for a condition, check that again.
    pub(crate) fn poll(node: KBox<FifoNode<Execution>>) {
        if let Some(queue) = node.value.queue.clone() {
            queue.wake(node);
        }
    }

    /// Marks the queue as running on an engine. Returns false if it must not run.
    fn enter(&self) -> bool {
        let mut jobs = self.jobs.lock();
        jobs.on_engine = !jobs.closed && !self.is_dead();
        jobs.on_engine
    }

    /// Marks the queue as not running on an engine.
    fn leave(&self) {
        self.jobs.lock().on_engine = false;
        self.paused.notify_all();
    }

    /// Completes the current job and starts the next one, if there is one.
    fn next(&self) -> Option<ListArc<Job>> {
        let mut jobs = self.jobs.lock();
        let next = jobs.waiting.pop_front();
        jobs.begun = next.is_some();
        if jobs.begun {
            jobs.count -= 1;
        }
        next
    }

    /// Stores `node` until there is a job. Returns it if there is a job, or the queue is dead.
    fn park(&self, mut node: KBox<FifoNode<Execution>>) -> Option<KBox<FifoNode<Execution>>> {
        let mut jobs = self.jobs.lock();
        if jobs.closed || self.is_dead() || jobs.count > 0 {
            return Some(node);
        }
        let queue = node.value.queue.take();
        jobs.idle = Some(node);
        drop(jobs);
        // May drop the last reference, so without the lock.
        drop(queue);
        None
    }
}

impl Jobs {
    /// Takes all waiting jobs, for the caller to drop without the lock.
    fn take(&mut self) -> List<Job> {
        self.count = 0;
        core::mem::take(&mut self.waiting)
    }
}

/// The state of running the jobs of a queue, one after the other.
pub(crate) struct Execution {
    /// The queue; `None` while the execution is idle.
    queue: Option<Arc<ExecQueue>>,
    /// The job that was started.
    job: Option<ListArc<Job>>,
    /// Whether the batch is done and the fence is being written.
    is_fence: bool,
    context: EngineContext,
    /// How much of the context's time the file has counted, in ticks.
    counted: u64,
    /// The fault that the job waits for.
    fault: Fault,
    sched: SchedState<Self>,
}

/// How a turn ended.
enum TurnEnd {
    /// The granted time is over.
    Timeslice,
    /// The job waits for a fault.
    Fault,
    /// The job waits for a condition.
    Waiting,
    /// There are no more jobs.
    Idle,
    /// The queue is dead.
    Dead,
}

impl Execution {
    /// Creates an idle execution with a time slice in microseconds.
    fn new(timeslice: u32) -> Result<Self> {
        Ok(Self {
            queue: None,
            job: None,
            is_fence: false,
            context: EngineContext::new()?,
            counted: 0,
            fault: Fault {
                addr: 0,
                access: crate::gpu::Access::Read,
            },
            sched: SchedState::new(u64::from(timeslice) * 1000),
        })
    }

    /// Runs a queue for its turn on the calling engine's thread, then passes the execution on to
    /// its next owner.
    ///
    /// `used` returns how long the turn took so far, in nanoseconds; `is_over` is called after each
    /// step and returns whether the turn is over.
    pub(crate) fn take_turn(
        list: &RunList<Self>,
        mut turn: Turn<Self>,
        used: impl Fn() -> u64,
        is_over: impl FnMut() -> bool,
    ) {
        let Some(queue) = turn.node.value.queue.clone() else {
            return;
        };
        let (mut end, grant) = (TurnEnd::Dead, turn.grant);
        if queue.enter() {
            end = turn.node.value.run(&queue, is_over, || used() >= grant);
            queue.leave();
        }
        // From here on other threads can take the execution.
        let node = list.account(turn, used());
        let node = match end {
            TurnEnd::Timeslice => Some(node),
            TurnEnd::Fault => {
                queue.vm.fault(node);
                None
            }
            TurnEnd::Waiting => {
                queue.vm.client().polls.add(node);
                None
            }
            TurnEnd::Idle => queue.park(node),
            TurnEnd::Dead => None,
        };
        if let Some(node) = node {
            // The process may have exited meanwhile, so look up the run queue again.
            list.put_back(queue.vm.client().run_queue(), node);
        }
    }

    /// Runs the jobs of `queue`, the execution's own queue.
    ///
    /// `is_over` is called after each step, and looks at the clock from time to time only; `is_late`
    /// does each time, after what may take longer than a step.
    fn run(
        &mut self,
        queue: &ExecQueue,
        mut is_over: impl FnMut() -> bool,
        is_late: impl Fn() -> bool,
    ) -> TurnEnd {
        loop {
            if self.job.is_none() {
                let Some(job) = queue.next() else {
                    return TurnEnd::Idle;
                };
                queue.dev.stats.inc(Stat::ExecJobCount);
                self.context.start(job.batch);
                self.is_fence = false;
                self.job = Some(job);
            }
            let aspace = queue.vm.aspace();
            let outcome = self.context.run(aspace, &queue.stop, &mut is_over);
            self.count_ticks(queue);
            match outcome {
                Outcome::Done => self.done(queue),
                Outcome::Interrupt => queue.interrupt(),
                Outcome::Yielded => return TurnEnd::Timeslice,
                Outcome::Waiting => return TurnEnd::Waiting,
                Outcome::Fault { addr, access } => {
                    self.fault = Fault { addr, access };
                    return TurnEnd::Fault;
                }
                Outcome::Failed(error) => {
                    self.fail(queue, error);
                    return TurnEnd::Dead;
                }
            }
            if is_late() {
                return TurnEnd::Timeslice;
            }
        }
    }

    /// Counts the time since the last call for the file.
    fn count_ticks(&mut self, queue: &ExecQueue) {
        let ticks = self.context.run_ticks();
        queue
            .file_ticks
            .add(ticks.saturating_sub(self.counted), Relaxed);
        self.counted = ticks;
    }

    /// Handles the completion of the batch or of the fence.
    fn done(&mut self, queue: &ExecQueue) {
        let fence = self.job.as_ref().and_then(|job| job.fence);
        match fence {
            Some(fence) if !self.is_fence => {
                self.is_fence = true;
                self.context.start_store(fence.addr, fence.value);
            }
            // Without a fence, too: a thread may wait for a word that the batch wrote.
            _ => {
                self.job = None;
                queue.signal();
            }
        }
    }

    /// Bans the queue after its job failed.
    fn fail(&mut self, queue: &ExecQueue, error: EngineError) {
        let batch = self.job.take().map_or(0, |job| job.batch);
        queue.ban(batch, error);
    }
}

impl Entity for Execution {
    fn sched_state(&mut self) -> &mut SchedState<Self> {
        &mut self.sched
    }
}

impl Faulting for Execution {
    fn fault(&self) -> Fault {
        self.fault
    }

    fn answer(mut node: KBox<FifoNode<Self>>, result: Result) {
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
