// SPDX-License-Identifier: GPL-2.0

//! Exec queues: jobs of one VM, in order.
//!
//! A queue has a work item of its own, which runs while there are jobs and blocks in their faults.
//! Queues of any number of processes make progress beside each other, up to the 2048 that may have
//! jobs at once; the faults that they wait for are serviced elsewhere.
//!
//! A queue is open, then banned or closed, for good:
//!
//! - *banned*: a job failed. The jobs behind it are dropped, no new one is taken, and those who wait
//!   for a fence on behalf of the queue are told. The VM and its other queues are not concerned.
//! - *closed*: its id is gone. Its jobs are dropped, and the running one stops before its next access
//!   to memory. Closing waits for that, but not for a fault: that may be answered by userspace, and
//!   even by the very thread that closes the queue. What waits for one then ends behind its back.
//!
//! Locking: `jobs` is a leaf but for the work queue's own locks. A job runs without it.

use crate::{
    driver::Device,
    gpu::{
        self,
        Access,
        EngineError,
        FaultHandler, //
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
    },
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};
use kernel_ext::drm_dbg;

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
    #[pin]
    links: ListLinks,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Job { untracked; }
}
impl_list_item! {
    impl ListItem<0> for Job { using ListLinks { self.links }; }
}

impl Job {
    /// A job for [`ExecQueue::submit`].
    pub(crate) fn new(batch: u64, fence: Option<UserFence>) -> Result<ListArc<Self>> {
        ListArc::pin_init(
            try_pin_init!(Self {
                batch,
                fence,
                links <- ListLinks::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }
}

/// What the work item of a queue does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Activity {
    /// Nothing: there are no jobs.
    Idle,
    /// It waits for its turn to run.
    Queued,
    /// It runs jobs.
    Running,
    /// It waits for a fault of the job that it runs.
    Faulting,
}

/// The jobs of a queue.
struct Jobs {
    waiting: List<Job>,
    /// How many are in `waiting`.
    count: usize,
    activity: Activity,
    closed: bool,
}

/// An exec queue.
#[pin_data]
pub(crate) struct ExecQueue {
    dev: ARef<Device>,
    vm: Arc<Vm>,
    kind: Kind,
    /// Set for good when a job fails.
    banned: Atomic<bool>,
    /// Tells the engine to stop.
    stop: AtomicFlag,
    #[pin]
    jobs: Mutex<Jobs>,
    /// Notified when `jobs.activity` is not `Running` any more.
    #[pin]
    paused: CondVar,
    #[pin]
    work: Work<ExecQueue>,
}

impl_has_work! {
    impl HasWork<Self> for ExecQueue { self.work }
}

impl ExecQueue {
    /// A queue in `vm`.
    pub(crate) fn new(dev: &Device, vm: Arc<Vm>, kind: Kind) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                dev: dev.into(),
                vm,
                kind,
                banned: Atomic::new(false),
                stop: AtomicFlag::new(false),
                jobs <- new_mutex!(
                    Jobs {
                        waiting: List::new(),
                        count: 0,
                        activity: Activity::Idle,
                        closed: false,
                    },
                    "ExecQueue::jobs"
                ),
                paused <- new_condvar!("ExecQueue::paused"),
                work <- new_work!("ExecQueue::work"),
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

    /// Queues a job behind the others.
    ///
    /// Fails with `ECANCELED` if the queue is dead, and with `EAGAIN` if it holds [`MAX_JOBS`].
    pub(crate) fn submit(self: &Arc<Self>, job: ListArc<Job>) -> Result {
        let mut jobs = self.jobs.lock();
        if jobs.closed || self.is_dead() {
            return Err(ECANCELED);
        }
        let running = matches!(jobs.activity, Activity::Running | Activity::Faulting);
        if jobs.count + usize::from(running) >= MAX_JOBS {
            return Err(EAGAIN);
        }
        jobs.waiting.push_back(job);
        jobs.count += 1;
        if jobs.activity == Activity::Idle {
            jobs.activity = Activity::Queued;
            // The work item may be about to return from its last run, and still takes this.
            let _ = self.dev.queues.jobs.enqueue(self.clone());
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
        while jobs.activity == Activity::Running {
            self.paused.wait(&mut jobs);
        }
        drop(jobs);
        drop(dropped);
        // Who waits for a fence of this queue waits in vain.
        self.dev.fences.signal();
    }

    /// Takes no more jobs, because one failed.
    fn ban(&self, job: &Job, error: EngineError) {
        drm_dbg!(
            &*self.dev,
            "exec queue banned: batch {:#x}: {}",
            job.batch,
            error
        );
        let mut jobs = self.jobs.lock();
        self.banned.store(true, Release);
        let dropped = jobs.take();
        drop(jobs);
        drop(dropped);
    }

    /// Runs one job: its batch, then its fence.
    fn execute(&self, job: &Job) -> Result<(), EngineError> {
        let (aspace, faults) = (self.vm.aspace(), &Faults(self));
        gpu::run(aspace, faults, job.batch, &self.stop)?;
        if let Some(fence) = job.fence {
            gpu::store_qword(aspace, faults, fence.addr, fence.value, &self.stop)?;
        }
        Ok(())
    }

    /// The job to run next; none ends the work item's run.
    fn next(&self) -> Option<ListArc<Job>> {
        let mut jobs = self.jobs.lock();
        let next = jobs.waiting.pop_front();
        jobs.activity = match next {
            Some(_) => {
                jobs.count -= 1;
                Activity::Running
            }
            None => Activity::Idle,
        };
        drop(jobs);
        if next.is_none() {
            self.paused.notify_all();
        }
        next
    }
}

/// The faults of a queue's jobs: its VM's, but that they do not hold up who closes the queue.
struct Faults<'a>(&'a ExecQueue);

impl FaultHandler for Faults<'_> {
    /// Fails with `ECANCELED` if the queue was closed meanwhile, and as the VM does.
    fn fault(&self, addr: u64, access: Access) -> Result {
        let queue = self.0;
        queue.jobs.lock().activity = Activity::Faulting;
        queue.paused.notify_all();
        let result = queue.vm.fault(addr, access);
        queue.jobs.lock().activity = Activity::Running;
        // Who closed the queue before that did not wait, and relies on this: it set `stop` first.
        if queue.stop.load(Acquire) {
            return Err(ECANCELED);
        }
        result
    }
}

impl Jobs {
    /// Takes all waiting jobs out, for dropping them without the lock.
    fn take(&mut self) -> List<Job> {
        self.count = 0;
        core::mem::take(&mut self.waiting)
    }
}

impl WorkItem for ExecQueue {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        while let Some(job) = this.next() {
            let done = this.execute(&job);
            if let Err(error) = done {
                this.ban(&job, error);
            }
            if done.is_err() || job.fence.is_some() {
                this.dev.fences.signal();
            }
        }
    }
}
