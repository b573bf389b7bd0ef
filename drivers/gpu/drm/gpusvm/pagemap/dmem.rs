// SPDX-License-Identifier: GPL-2.0

//! Who pays for device memory: the process whose pages are there.
//!
//! The controller charges the cgroup of the thread that asks. Who serves a fault is a worker of the
//! kernel's, in the root cgroup; so it has a thread of the process ask, on its way to user mode. Any of
//! them will do, as all are in the cgroup of the process. A process that has a mirror [registers](register), and
//! is known by that.
//!
//! No sleep of the process is disturbed, but for that in a driver's own system call, which knows how to
//! go on ([`begin_wait`]): who waits for the GPU answers there. Who computes, or waits by looking at memory
//! again and again, is made to answer. A process all of whose threads sleep elsewhere, or are stopped or
//! frozen, is not waited for: it does not pay, and its pages stay in RAM for now. So do those of one that
//! is gone, or has become another program.
//!
//! Who asks may have to wait until the thread gets the CPU, and it may come to wait for what the asker
//! holds. So it is watched: as soon as it sleeps it is waited for no longer.
//!
//! # Locking
//!
//! The list of processes, then a process's threads, then its requests, each a mutex; they are leaves but for
//! memory that is allocated under the last two. No lock is held while somebody is waited for.
//!
//! Payers and threads that begin_wait are as many as userspace likes, and looked up all the time: they are in
//! trees.

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

/// How long a thread is waited for that does not sleep, in milliseconds: the CPU may be busy with others.
const RUNNABLE_TIMEOUT_MS: u32 = 1000;

/// How often it is looked at meanwhile, in milliseconds; in jiffies, at the least one.
const POLL_MS: u32 = 1;

/// How long a thread is looked for that could answer, in milliseconds, unless that was in vain the last
/// time: one that is about to begin_wait may sleep for a moment.
const FIND_THREAD_MS: u32 = 100;

/// How many threads are asked, one after the other.
const THREADS: u32 = 4;

/// How many threads of a process may have been asked and not have come yet.
const MAX_NOTIFIED: usize = 8;

/// Something that a process is asked to charge.
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
        // If nobody waits any more, the charge goes with the request.
        *self.answer.lock() = Some(answer);
        self.answered.complete_all();
    }
}

/// A thread, and how it was notified.
type Notified = (ARef<Task>, Notify);

/// The threads of a process that are known.
struct Threads {
    /// Those that sleep in a system call of a driver's, and may be woken, by their addresses.
    waiting: RBTree<usize, ARef<Task>>,
    /// Those that were notified to come and answer, and have not come yet: [`MAX_NOTIFIED`] at the most.
    notified: KVec<Notified>,
}

/// A process that pays.
#[pin_data]
struct Process {
    /// Kept, so that no other has its address meanwhile.
    mm: ARef<Mm>,
    process: ARef<Task>,
    #[pin]
    threads: Mutex<Threads>,
    #[pin]
    requests: Mutex<KVVec<Arc<Request>>>,
    /// No thread could answer the last time, and none has since.
    is_unresponsive: Atomic<bool>,
}

/// A thread that is to answer.
struct ChargeWork(Arc<Process>);

impl TaskWorkItem for ChargeWork {
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
            // The queue is there as long as the module is, which the work keeps.
            None => mem::forget(work),
        }
    }
}

impl Process {
    /// The calling process. Fails with `ENOMEM`.
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
                requests <- new_mutex!(KVVec::new(), "process::Questions"),
                is_unresponsive: Atomic::new(false),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Answers all requests, if the calling thread still is one of the process: and not exiting, say.
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

    /// Has the process charge. Fails as [`charge`] does.
    fn ask(self: &Arc<Self>, region: &Arc<Region>, pages: u32) -> Result<Charge, Refused> {
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
        let unasked = {
            let mut requests = self.requests.lock();
            let at = requests
                .iter()
                .position(|other| Arc::ptr_eq(other, &request));
            at.and_then(|at| requests.remove(at).ok())
        };
        drop(unasked);
        // It may have come just now.
        if let Some(answer) = request.answer.lock().take() {
            return answer;
        }
        waited?;
        Err(ETIMEDOUT.into())
    }

    /// Waits for an answer. Fails with `ETIMEDOUT` if no thread gives one, `EINTR` if the caller is killed,
    /// `ENODEV` and `ENOMEM`.
    fn wait_for(self: &Arc<Self>, request: &Request) -> Result {
        let begun = jiffies::now();
        loop {
            match self.notify_threads(request, begun) {
                Err(e) if e == ETIMEDOUT => {}
                done => return done,
            }
            let grace = !self.is_unresponsive.load(Relaxed);
            if !grace || jiffies::since(begun) > msecs_to_jiffies(FIND_THREAD_MS) {
                self.is_unresponsive.store(true, Relaxed);
                return Err(ETIMEDOUT);
            }
            match wait_killable_timeout(&request.answered, POLL_MS) {
                Err(e) if e == ETIMEDOUT => {}
                done => return done,
            }
        }
    }

    /// Has one thread after the other answer that can now. Fails as [`wait_for`](Self::wait_for) does.
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

    /// Has a thread come and answer: one that attends, or else the one with this number of those that do
    /// not sleep. Returns it; none if there is none. Fails with `ENODEV` and `ENOMEM`.
    fn notify(self: &Arc<Self>, nth: u32) -> Result<Option<ARef<Task>>> {
        let mut threads = self.threads.lock();
        let (thread, notify) = match threads.waiting.values().next() {
            Some(thread) if nth == 0 => (thread.clone(), Notify::Signal),
            _ => match sched::find_runnable(&self.process, &self.mm, nth) {
                Some(thread) => (thread, Notify::Resume),
                None => return Ok(None),
            },
        };
        let is_told =
            |notified: &Notified| notified.0.as_ptr() == thread.as_ptr() && notified.1 == notify;
        if threads.notified.iter().any(is_told) {
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
        // With the lock held: one that attends cannot go elsewhere before it knows.
        if work.send(&thread, notify).is_err() {
            let notified = threads.notified.pop();
            drop(threads);
            drop(notified);
            return Ok(None);
        }
        Ok(Some(thread))
    }
}

/// A process, and how many of its mirrors there are.
struct Registered {
    process: Arc<Process>,
    count: usize,
}

/// Those who are registered, by the addresses of their address spaces.
type Processes = RBTree<usize, Registered>;

/// An address space in [`Processes`].
fn key(mm: &Mm) -> usize {
    mm.as_raw().addr()
}

global_lock! {
    // SAFETY: `init()` is called before anybody can register. From then on there is a tree.
    unsafe(uninit) static PROCESSES: Mutex<Option<Processes>> = None;
}

global_lock! {
    // SAFETY: As above. The work of the queue waits for threads to come back from a visit.
    unsafe(uninit) static QUEUE: Mutex<Option<OwnedQueue>> = None;
}

/// Makes the lists ready. Fails with `ENOMEM`.
///
/// # Safety
///
/// To be called once, when the module is loaded.
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

/// Waits for threads that are coming back. To be called once, when the module is unloaded: which it cannot
/// be as long as there are others that were notified to come.
pub(crate) fn exit() {
    let queue = QUEUE.lock().take();
    drop(queue);
    // Nobody is registered any more.
    let processes = PROCESSES.lock().take();
    drop(processes);
}

/// The process that `mm` is of.
fn find(mm: &Mm) -> Option<Arc<Process>> {
    let processes = PROCESSES.lock();
    let registered = processes.as_ref()?.get(&key(mm))?;
    Some(registered.process.clone())
}

/// A mirror of a process that pays for its device memory, as long as this lives.
pub struct Registration(ARef<Mm>);

/// Has the calling process pay for device memory that its pages live in. Sleeps. Fails with `EINVAL` for a
/// kernel thread, and `ENOMEM`.
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

/// A thread that may be woken to answer, as long as this lives: of one thread there is one.
pub struct Waiting(Arc<Process>, PhantomData<*mut ()>);

/// Says that the calling thread is about to sleep, interruptibly, in a system call that is restarted after
/// an interruption (`ERESTARTSYS`), or goes on by itself. What its process is asked now is answered at once,
/// and after that it is interrupted for it.
///
/// None if the process does not pay, or without memory.
pub fn begin_wait() -> Option<Waiting> {
    let current = kernel::current!();
    let process = find(current.mm()?)?;
    let task: &Task = current;
    let node = RBTreeNode::new(task.as_ptr().addr(), task.into(), GFP_KERNEL_ACCOUNT).ok()?;
    // It was not there.
    let _ = process.threads.lock().waiting.insert(node);
    process.answer_all();
    Some(Waiting(process, PhantomData))
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let task = Task::current_raw().addr();
        let gone = self.0.threads.lock().waiting.remove_node(&task);
        drop(gone);
    }
}

/// Charges `pages` pages of `region` to the cgroup of the process that `mm` is of: a charge of which
/// parts can be [taken](Charge::take).
///
/// Sleeps, for a bounded time, and needs no lock of the process. A thread of the process that waits for a
/// lock of the caller's, or for a page that the caller has, cannot answer: so this is best called with none.
///
/// Fails with `ESRCH` if the process did not [register]; `ETIMEDOUT` if none of its threads answers, as they
/// sleep, or the process is stopped, frozen, or gone; `EINTR` if the caller is killed; and as
/// [`Region::try_charge_pages`] does.
pub fn charge(mm: &Mm, region: &Arc<Region>, pages: u32) -> Result<Charge, Refused> {
    if !IS_CONTROLLED || sched::is_thread_of(mm) {
        return region.try_charge_pages(pages);
    }
    find(mm).ok_or(ESRCH)?.ask(region, pages)
}

/// The process that `mm` is of, for messages; none if it did not [register].
pub fn pid(mm: &Mm) -> Option<Pid> {
    find(mm).map(|process| process.process.pid())
}
