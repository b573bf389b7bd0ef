// SPDX-License-Identifier: GPL-2.0

//! Charges device memory to the process whose pages are in it.
//!
//! The dmem controller charges the cgroup of the calling thread. Faults of a device are served by kernel workers, which
//! are in the root cgroup. So a worker requests the charge from a thread of the process, which makes it on its way to
//! user mode. Any thread of the process will do, as all are in the same cgroup. A process [registers](register) when it
//! creates a mirror of its address space.
//!
//! A request interrupts no sleep of the process except in the driver's own system calls that are prepared for it
//! ([`begin_wait`]): a thread that waits for the GPU there makes the charge. A thread that computes or polls memory is
//! made to enter the kernel, and makes the charge when it returns. If all threads of the process sleep elsewhere, or
//! the process is stopped or frozen, the worker does not wait: nothing is charged, and the pages stay in system memory
//! for now. The same holds after the process has exited or called `execve()`.
//!
//! The worker waits until the notified thread gets the CPU. That thread may block on a lock or page that the worker's
//! caller holds. So the worker polls its state, and stops waiting when the thread sleeps.
//!
//! # Locking
//!
//! Three mutexes, in this order: the list of processes, the threads of a process, its requests. They are leaves, except
//! for allocations under the last two. No lock is held while waiting for a thread.
//!
//! User space controls the number of registered processes and of waiting threads, and each lookup searches them: so
//! they are in trees.

use core::{marker::PhantomData, mem};
use kernel::{
    mm::Mm,
    module::this_module,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        aref::ARef,
        atomic::{Atomic, Relaxed},
        global_lock,
        new_mutex,
        Arc,
        Completion,
        Mutex, //
    },
    task::{Pid, Task},
    time::msecs_to_jiffies, //
};
use kernel_ext::{
    cgroup::dmem::{
        Charge,
        Refused,
        Region, //
        IS_CONTROLLED,
    },
    module::ModuleRef,
    sched,
    sync::completion::wait_killable_timeout,
    task_work::{
        Notify,
        TaskWork, //
        TaskWorkItem,
    },
    time::jiffies,
    workqueue::OwnedQueue, //
};

/// The longest wait for threads that are runnable, in milliseconds: other tasks may occupy the CPU.
const RUNNABLE_TIMEOUT_MS: u32 = 1000;

/// The interval at which a thread's state is polled, in milliseconds; at least one jiffy.
const POLL_MS: u32 = 1;

/// How long to search for a thread that can make the charge, in milliseconds, unless the previous search failed: a
/// thread that is about to call [`begin_wait`] may sleep for a moment.
const FIND_THREAD_MS: u32 = 100;

/// The number of threads that are notified, one after the other.
const THREADS: u32 = 4;

/// The maximum number of notified threads of a process that have not run the work yet.
const MAX_NOTIFIED: usize = 8;

/// A request to a process for a charge.
#[pin_data]
struct Request {
    region: Arc<Region>,
    pages: u32,
    #[pin]
    answer: Mutex<Option<Result<Charge, Refused>>>,
    #[pin]
    answered: Completion,
}

impl Request {
    fn answer(&self, answer: Result<Charge, Refused>) {
        // If the waiter has given up, the charge is dropped with the request.
        *self.answer.lock() = Some(answer);
        self.answered.complete_all();
    }
}

/// A thread, and how it was notified.
type Notified = (ARef<Task>, Notify);

/// The threads of a process that matter for requests.
struct Threads {
    /// Threads that sleep interruptibly in a system call of a driver, by the addresses of their tasks.
    waiting: RBTree<usize, ARef<Task>>,
    /// Threads that were notified and have not run the work yet: at most [`MAX_NOTIFIED`].
    notified: KVec<Notified>,
}

/// A registered process.
#[pin_data]
struct Process {
    /// Keeps the address from being reused.
    mm: ARef<Mm>,
    process: ARef<Task>,
    #[pin]
    threads: Mutex<Threads>,
    #[pin]
    requests: Mutex<KVVec<Arc<Request>>>,
    /// No thread made the charge of the last request, nor has any since.
    is_unresponsive: Atomic<bool>,
}

/// The task work with which a thread answers the requests of its process.
struct ChargeWork(Arc<Process>);

// SAFETY: `finish()` enqueues the work on `QUEUE`, which `exit()` drains, or leaks it.
unsafe impl TaskWorkItem for ChargeWork {
    fn run(&self) {
        let task = Task::current_raw();
        {
            let mut threads = self.0.threads.lock();
            let at = threads
                .notified
                .iter()
                .position(|(notified, _)| notified.as_ptr() == task);
            let notified = at.and_then(|at| threads.notified.remove(at).ok());
            drop(threads);
            drop(notified);
        }
        self.0.answer_all();
    }

    fn finish(work: Pin<KBox<TaskWork<Self>>>) {
        match &*QUEUE.lock() {
            Some(queue) => queue.enqueue(work),
            // The queue exists as long as the module, which `work` keeps.
            None => mem::forget(work),
        }
    }
}

impl Process {
    /// Creates an object for the calling process. Fails with `ENOMEM`.
    fn new(mm: &Mm) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                mm: mm.into(),
                process: kernel::current!().group_leader().into(),
                threads <- new_mutex!(
                    Threads {
                        waiting: RBTree::new(),
                        notified: KVec::new(),
                    },
                    "process::Threads"
                ),
                requests <- new_mutex!(KVVec::new(), "process::Requests"),
                is_unresponsive: Atomic::new(false),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Answers all requests, if the calling thread still belongs to the process. An exiting thread does not.
    fn answer_all(&self) {
        if !sched::is_thread_of(&self.mm) {
            return;
        }
        self.is_unresponsive.store(false, Relaxed);
        let requests = mem::take(&mut *self.requests.lock());
        for request in requests {
            request.answer(request.region.try_charge_pages(request.pages));
        }
    }

    /// Requests a charge from the process, and waits for it. Fails as [`charge`] does.
    fn request_charge(
        self: &Arc<Self>,
        region: &Arc<Region>,
        pages: u32,
    ) -> Result<Charge, Refused> {
        let request = Arc::pin_init(
            pin_init!(Request {
                region: region.clone(),
                pages,
                answer <- new_mutex!(None, "process::Request"),
                answered <- Completion::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        self.requests
            .lock()
            .push(request.clone(), GFP_KERNEL_ACCOUNT)
            .map_err(Error::from)?;
        let waited = self.wait_for(&request);
        let unanswered = {
            let mut requests = self.requests.lock();
            let at = requests
                .iter()
                .position(|other| Arc::ptr_eq(other, &request));
            at.and_then(|at| requests.remove(at).ok())
        };
        drop(unanswered);
        // The answer may have arrived after the wait ended.
        if let Some(answer) = request.answer.lock().take() {
            return answer;
        }
        waited?;
        Err(ETIMEDOUT.into())
    }

    /// Waits for an answer. Fails with `ETIMEDOUT` if no thread answers, `EINTR` if the caller is killed, `ENODEV` and
    /// `ENOMEM`.
    fn wait_for(self: &Arc<Self>, request: &Request) -> Result {
        let begun = jiffies::now();
        loop {
            match self.notify_threads(request, begun) {
                Err(e) if e == ETIMEDOUT => {}
                done => return done,
            }
            let may_search = !self.is_unresponsive.load(Relaxed);
            if !may_search || jiffies::since(begun) > msecs_to_jiffies(FIND_THREAD_MS) {
                self.is_unresponsive.store(true, Relaxed);
                return Err(ETIMEDOUT);
            }
            match wait_killable_timeout(&request.answered, POLL_MS) {
                Err(e) if e == ETIMEDOUT => {}
                done => return done,
            }
        }
    }

    /// Notifies threads that can answer now, one after the other. Fails as [`wait_for`](Self::wait_for) does.
    fn notify_threads(self: &Arc<Self>, request: &Request, begun: usize) -> Result {
        for nth in 0..THREADS {
            let Some(thread) = self.notify(nth)? else {
                break;
            };
            loop {
                match wait_killable_timeout(&request.answered, POLL_MS) {
                    Err(e) if e == ETIMEDOUT => {}
                    done => return done,
                }
                if jiffies::since(begun) > msecs_to_jiffies(RUNNABLE_TIMEOUT_MS) {
                    return Err(ETIMEDOUT);
                }
                if !sched::is_runnable(&thread) {
                    break;
                }
            }
        }
        Err(ETIMEDOUT)
    }

    /// Notifies a thread: a waiting one if there is one and `nth` is 0, else the runnable thread number `nth`. Returns
    /// it, or none if there is none. Fails with `ENODEV` and `ENOMEM`.
    fn notify(self: &Arc<Self>, nth: u32) -> Result<Option<ARef<Task>>> {
        let mut threads = self.threads.lock();
        let (thread, notify) = match threads.waiting.values().next() {
            Some(thread) if nth == 0 => (thread.clone(), Notify::Signal),
            _ => match sched::find_runnable(&self.process, &self.mm, nth) {
                Some(thread) => (thread, Notify::Resume),
                None => return Ok(None),
            },
        };
        let is_notified =
            |notified: &Notified| notified.0.as_ptr() == thread.as_ptr() && notified.1 == notify;
        if threads.notified.iter().any(is_notified) {
            return Ok(Some(thread));
        }
        if threads.notified.len() >= MAX_NOTIFIED {
            return Ok(None);
        }
        let this = this_module::<crate::GpuSvmModule>();
        // SAFETY: The module is this one.
        let module = unsafe { ModuleRef::try_get(this.as_ptr()) }?;
        let work = TaskWork::new(ChargeWork(self.clone()), module)?;
        threads
            .notified
            .push((thread.clone(), notify), GFP_KERNEL_ACCOUNT)?;
        // The lock is still held, so a waiting thread cannot leave the system call before it is notified.
        if work.send(&thread, notify).is_err() {
            let notified = threads.notified.pop();
            drop(threads);
            drop(notified);
            return Ok(None);
        }
        Ok(Some(thread))
    }
}

/// A registered process, and the number of its registrations.
struct Registered {
    process: Arc<Process>,
    count: usize,
}

/// The registered processes, by the addresses of their `mm_struct`.
type Processes = RBTree<usize, Registered>;

/// Returns the key of an address space in [`Processes`].
fn key(mm: &Mm) -> usize {
    mm.as_raw().addr()
}

global_lock! {
    // SAFETY: `init()` runs before any process can register. It stores a tree.
    unsafe(uninit) static PROCESSES: Mutex<Option<Processes>> = None;
}

global_lock! {
    // SAFETY: As above. The queue's work drops the works of threads that have run them.
    unsafe(uninit) static QUEUE: Mutex<Option<OwnedQueue>> = None;
}

/// Initializes the tree and the queue. Fails with `ENOMEM`.
///
/// # Safety
///
/// Must be called once, when the module is loaded.
pub(crate) unsafe fn init() -> Result {
    // SAFETY: By this function's requirements.
    unsafe {
        PROCESSES.init();
        QUEUE.init();
    }
    *PROCESSES.lock() = Some(RBTree::new());
    *QUEUE.lock() = Some(OwnedQueue::new_unbound(c"gpusvm-processes")?);
    Ok(())
}

/// Waits for works that are being dropped. Called once, when the module is unloaded. Works that have not run yet hold
/// references to the module, which prevent that.
pub(crate) fn exit() {
    let queue = QUEUE.lock().take();
    drop(queue);
    // No process is registered any more.
    let processes = PROCESSES.lock().take();
    drop(processes);
}

/// Returns the registered process of an address space.
fn find(mm: &Mm) -> Option<Arc<Process>> {
    let processes = PROCESSES.lock();
    let registered = processes.as_ref()?.get(&key(mm))?;
    Some(registered.process.clone())
}

/// Registers the process of a mirror while this exists.
pub struct Registration(ARef<Mm>);

/// Registers the calling process, so that device memory can be charged to it. Sleeps. Fails with `EINVAL` for a kernel
/// thread, and `ENOMEM`.
pub fn register() -> Result<Registration> {
    let current = kernel::current!();
    let mm: &Mm = current.mm().ok_or(EINVAL)?;
    if !IS_CONTROLLED {
        return Ok(Registration(mm.into()));
    }
    if sched::is_kernel_thread() {
        return Err(EINVAL);
    }
    let process = Process::new(mm)?;
    let node = RBTreeNode::new(
        key(mm),
        Registered { process, count: 1 },
        GFP_KERNEL_ACCOUNT,
    )?;
    let mut guard = PROCESSES.lock();
    let processes = guard.as_mut().ok_or(EINVAL)?;
    let unused = match processes.get_mut(&key(mm)) {
        Some(registered) => {
            registered.count += 1;
            Some(node)
        }
        None => processes.insert(node),
    };
    drop(guard);
    drop(unused);
    Ok(Registration(mm.into()))
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut guard = PROCESSES.lock();
        let last = guard.as_mut().and_then(|processes| {
            let registered = processes.get_mut(&key(&self.0))?;
            registered.count -= 1;
            if registered.count != 0 {
                return None;
            }
            processes.remove_node(&key(&self.0))
        });
        drop(guard);
        drop(last);
    }
}

/// Marks a thread as waiting while this exists. A thread has at most one.
pub struct Waiting(Arc<Process>, PhantomData<*mut ()>);

/// Marks the calling thread as waiting: it is about to sleep interruptibly in a system call that is restarted after an
/// interruption (`ERESTARTSYS`), or that continues by itself. Pending requests of its process are answered at once.
/// Later requests interrupt the sleep.
///
/// Returns none if the process is not registered, or without memory.
pub fn begin_wait() -> Option<Waiting> {
    let current = kernel::current!();
    let process = find(current.mm()?)?;
    let task: &Task = current;
    let node = RBTreeNode::new(task.as_ptr().addr(), task.into(), GFP_KERNEL_ACCOUNT).ok()?;
    // The thread was not in the tree.
    let _ = process.threads.lock().waiting.insert(node);
    process.answer_all();
    Some(Waiting(process, PhantomData))
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let task = Task::current_raw().addr();
        let removed = self.0.threads.lock().waiting.remove_node(&task);
        drop(removed);
    }
}

/// Charges `pages` pages of `region` to the cgroup of the process of `mm`. Parts of the charge can be
/// [taken](Charge::take).
///
/// Sleeps, for a bounded time, and needs no lock of the process. A thread of the process that waits for a lock or a
/// page which the caller holds cannot answer: so this is best called without any.
///
/// Fails with `ESRCH` if the process did not [register]; with `ETIMEDOUT` if none of its threads answers, as they
/// sleep, or the process is stopped, frozen, or has exited; with `EINTR` if the caller is killed; and as
/// [`Region::try_charge_pages`] does.
pub fn charge(mm: &Mm, region: &Arc<Region>, pages: u32) -> Result<Charge, Refused> {
    if !IS_CONTROLLED || sched::is_thread_of(mm) {
        return region.try_charge_pages(pages);
    }
    find(mm).ok_or(ESRCH)?.request_charge(region, pages)
}

/// Returns the process ID of the process of `mm`, for messages, or none if it did not [register].
pub fn pid(mm: &Mm) -> Option<Pid> {
    find(mm).map(|process| process.process.pid())
}
