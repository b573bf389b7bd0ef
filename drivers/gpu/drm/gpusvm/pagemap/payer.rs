// SPDX-License-Identifier: GPL-2.0

//! Who pays for device memory: the process whose pages are there.
//!
//! The controller charges the cgroup of the thread that asks. Who serves a fault is a worker of the
//! kernel's, in the root cgroup; so it has a thread of the process ask, on its way to user mode. Any of
//! them will do, as all are in the cgroup of the process. A process that has a mirror [enrolls](enroll), and
//! is known by that.
//!
//! No sleep of the process is disturbed, but for that in a driver's own system call, which knows how to
//! go on ([`attend`]): who waits for the GPU answers there. Who computes, or waits by looking at memory
//! again and again, is made to answer. A process all of whose threads sleep elsewhere, or are stopped or
//! frozen, is not waited for: it does not pay, and its pages stay in RAM for now. So do those of one that
//! is gone, or has become another program.
//!
//! Who asks may have to wait until the thread gets the CPU, and it may come to wait for what the asker
//! holds. So it is watched: as soon as it sleeps it is waited for no longer.
//!
//! # Locking
//!
//! The list of payers, then a payer's threads, then its questions, each a mutex; they are leaves but for
//! memory that is allocated under the last two. No lock is held while somebody is waited for.
//!
//! Payers and threads that attend are as many as userspace likes, and looked up all the time: they are in
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
        Errand,
        Notify,
        Posting, //
    },
    time::jiffies,
    workqueue::OwnedQueue, //
};

/// How long a thread is waited for that does not sleep, in milliseconds: the CPU may be busy with others.
const PATIENCE_MS: u32 = 1000;

/// How often it is looked at meanwhile, in milliseconds; in jiffies, at the least one.
const LOOK_MS: u32 = 1;

/// How long a thread is looked for that could answer, in milliseconds, unless that was in vain the last
/// time: one that is about to attend may sleep for a moment.
const GRACE_MS: u32 = 100;

/// How many threads are asked, one after the other.
const THREADS: u32 = 4;

/// How many threads of a process may have been asked and not have come yet.
const ON_THEIR_WAY: usize = 8;

/// Something that a process is asked to charge.
#[pin_data]
struct Question {
    region: Arc<Region>,
    pages: u32,
    #[pin]
    answer: Mutex<Option<Result<Charge, Refused>>>,
    #[pin]
    answered: Completion,
}

impl Question {
    fn answer(&self, answer: Result<Charge, Refused>) {
        // If nobody waits any more, the charge goes with the question.
        *self.answer.lock() = Some(answer);
        self.answered.complete_all();
    }
}

/// A thread, and how it was told.
type Told = (ARef<Task>, Notify);

/// The threads of a payer that are known.
struct Threads {
    /// Those that sleep in a system call of a driver's, and may be woken, by their addresses.
    attending: RBTree<usize, ARef<Task>>,
    /// Those that were told to come and answer, and have not come yet: [`ON_THEIR_WAY`] at the most.
    told: KVec<Told>,
}

/// A process that pays.
#[pin_data]
struct Payer {
    /// Kept, so that no other has its address meanwhile.
    mm: ARef<Mm>,
    process: ARef<Task>,
    #[pin]
    threads: Mutex<Threads>,
    #[pin]
    questions: Mutex<KVVec<Arc<Question>>>,
    /// No thread could answer the last time, and none has since.
    is_silent: Atomic<bool>,
}

/// A thread that is to answer.
struct Visit(Arc<Payer>);

impl Errand for Visit {
    fn run(&self) {
        let task = Task::current_raw();
        {
            let mut threads = self.0.threads.lock();
            let at = threads
                .told
                .iter()
                .position(|(told, _)| told.as_ptr() == task);
            let told = at.and_then(|at| threads.told.remove(at).ok());
            drop(threads);
            drop(told);
        }
        self.0.answer_all();
    }

    fn finish(posting: Pin<KBox<Posting<Self>>>) {
        match &*RETURNING.lock() {
            Some(queue) => queue.enqueue(posting),
            // The queue is there as long as the module is, which the posting keeps.
            None => mem::forget(posting),
        }
    }
}

impl Payer {
    /// The calling process. Fails with `ENOMEM`.
    fn new(mm: &Mm) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                mm: mm.into(),
                process: kernel::current!().group_leader().into(),
                threads <- new_mutex!(
                    Threads {
                        attending: RBTree::new(),
                        told: KVec::new(),
                    },
                    "payer::Threads"
                ),
                questions <- new_mutex!(KVVec::new(), "payer::Questions"),
                is_silent: Atomic::new(false),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Answers all questions, if the calling thread still is one of the process: and not exiting, say.
    fn answer_all(&self) {
        if !sched::is_thread_of(&self.mm) {
            return;
        }
        self.is_silent.store(false, Relaxed);
        let questions = mem::take(&mut *self.questions.lock());
        for question in questions {
            question.answer(question.region.try_charge_pages(question.pages));
        }
    }

    /// Has the process charge. Fails as [`charge`] does.
    fn ask(self: &Arc<Self>, region: &Arc<Region>, pages: u32) -> Result<Charge, Refused> {
        let question = Arc::pin_init(
            pin_init!(Question {
                region: region.clone(),
                pages,
                answer <- new_mutex!(None, "payer::Question"),
                answered <- Completion::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        self.questions
            .lock()
            .push(question.clone(), GFP_KERNEL_ACCOUNT)
            .map_err(Error::from)?;
        let waited = self.wait_for(&question);
        let unasked = {
            let mut questions = self.questions.lock();
            let at = questions
                .iter()
                .position(|other| Arc::ptr_eq(other, &question));
            at.and_then(|at| questions.remove(at).ok())
        };
        drop(unasked);
        // It may have come just now.
        if let Some(answer) = question.answer.lock().take() {
            return answer;
        }
        waited?;
        Err(ETIMEDOUT.into())
    }

    /// Waits for an answer. Fails with `ETIMEDOUT` if no thread gives one, `EINTR` if the caller is killed,
    /// `ENODEV` and `ENOMEM`.
    fn wait_for(self: &Arc<Self>, question: &Question) -> Result {
        let begun = jiffies::now();
        loop {
            match self.ask_threads(question, begun) {
                Err(e) if e == ETIMEDOUT => {}
                done => return done,
            }
            let grace = !self.is_silent.load(Relaxed);
            if !grace || jiffies::since(begun) > msecs_to_jiffies(GRACE_MS) {
                self.is_silent.store(true, Relaxed);
                return Err(ETIMEDOUT);
            }
            match wait_killable_timeout(&question.answered, LOOK_MS) {
                Err(e) if e == ETIMEDOUT => {}
                done => return done,
            }
        }
    }

    /// Has one thread after the other answer that can now. Fails as [`wait_for`](Self::wait_for) does.
    fn ask_threads(self: &Arc<Self>, question: &Question, begun: usize) -> Result {
        for nth in 0..THREADS {
            let Some(thread) = self.tell(nth)? else { break };
            loop {
                match wait_killable_timeout(&question.answered, LOOK_MS) {
                    Err(e) if e == ETIMEDOUT => {}
                    done => return done,
                }
                if jiffies::since(begun) > msecs_to_jiffies(PATIENCE_MS) {
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
    fn tell(self: &Arc<Self>, nth: u32) -> Result<Option<ARef<Task>>> {
        let mut threads = self.threads.lock();
        let (thread, notify) = match threads.attending.values().next() {
            Some(thread) if nth == 0 => (thread.clone(), Notify::Signal),
            _ => match sched::find_runnable(&self.process, &self.mm, nth) {
                Some(thread) => (thread, Notify::Resume),
                None => return Ok(None),
            },
        };
        let is_told = |told: &Told| told.0.as_ptr() == thread.as_ptr() && told.1 == notify;
        if threads.told.iter().any(is_told) {
            return Ok(Some(thread));
        }
        if threads.told.len() >= ON_THEIR_WAY {
            return Ok(None);
        }
        let this = this_module::<crate::GpuSvmModule>();
        // SAFETY: The module is this one.
        let module = unsafe { ModuleRef::try_get(this.as_ptr()) }?;
        let posting = Posting::new(Visit(self.clone()), module)?;
        threads
            .told
            .push((thread.clone(), notify), GFP_KERNEL_ACCOUNT)?;
        // With the lock held: one that attends cannot go elsewhere before it knows.
        if posting.send(&thread, notify).is_err() {
            let told = threads.told.pop();
            drop(threads);
            drop(told);
            return Ok(None);
        }
        Ok(Some(thread))
    }
}

/// A payer, and how many of its mirrors there are.
struct Member {
    payer: Arc<Payer>,
    count: usize,
}

/// Those who are enrolled, by the addresses of their address spaces.
type Members = RBTree<usize, Member>;

/// An address space in [`Members`].
fn key(mm: &Mm) -> usize {
    mm.as_raw().addr()
}

global_lock! {
    // SAFETY: `init()` is called before anybody can enroll. From then on there is a tree.
    unsafe(uninit) static PAYERS: Mutex<Option<Members>> = None;
}

global_lock! {
    // SAFETY: As above. The work of the queue waits for threads to come back from a visit.
    unsafe(uninit) static RETURNING: Mutex<Option<OwnedQueue>> = None;
}

/// Makes the lists ready. Fails with `ENOMEM`.
///
/// # Safety
///
/// To be called once, when the module is loaded.
pub(crate) unsafe fn init() -> Result {
    // SAFETY: By this function's requirements.
    unsafe {
        PAYERS.init();
        RETURNING.init();
    }
    *PAYERS.lock() = Some(RBTree::new());
    *RETURNING.lock() = Some(OwnedQueue::new_unbound(c"gpusvm-payers")?);
    Ok(())
}

/// Waits for threads that are coming back. To be called once, when the module is unloaded: which it cannot
/// be as long as there are others that were told to come.
pub(crate) fn exit() {
    let queue = RETURNING.lock().take();
    drop(queue);
    // Nobody is enrolled any more.
    let members = PAYERS.lock().take();
    drop(members);
}

/// The payer that `mm` is of.
fn find(mm: &Mm) -> Option<Arc<Payer>> {
    let members = PAYERS.lock();
    let member = members.as_ref()?.get(&key(mm))?;
    Some(member.payer.clone())
}

/// A mirror of a process that pays for its device memory, as long as this lives.
pub struct Enrolled(ARef<Mm>);

/// Has the calling process pay for device memory that its pages live in. Sleeps. Fails with `EINVAL` for a
/// kernel thread, and `ENOMEM`.
pub fn enroll() -> Result<Enrolled> {
    let current = kernel::current!();
    let mm: &Mm = current.mm().ok_or(EINVAL)?;
    if !IS_CONTROLLED {
        return Ok(Enrolled(mm.into()));
    }
    if sched::is_kernel_thread() {
        return Err(EINVAL);
    }
    let payer = Payer::new(mm)?;
    let node = RBTreeNode::new(key(mm), Member { payer, count: 1 }, GFP_KERNEL_ACCOUNT)?;
    let mut guard = PAYERS.lock();
    let members = guard.as_mut().ok_or(EINVAL)?;
    let unused = match members.get_mut(&key(mm)) {
        Some(member) => {
            member.count += 1;
            Some(node)
        }
        None => members.insert(node),
    };
    drop(guard);
    drop(unused);
    Ok(Enrolled(mm.into()))
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        let mut guard = PAYERS.lock();
        let last = guard.as_mut().and_then(|members| {
            let member = members.get_mut(&key(&self.0))?;
            member.count -= 1;
            if member.count != 0 {
                return None;
            }
            members.remove_node(&key(&self.0))
        });
        drop(guard);
        drop(last);
    }
}

/// A thread that may be woken to answer, as long as this lives: of one thread there is one.
pub struct Attending(Arc<Payer>, PhantomData<*mut ()>);

/// Says that the calling thread is about to sleep, interruptibly, in a system call that is restarted after
/// an interruption (`ERESTARTSYS`), or goes on by itself. What its process is asked now is answered at once,
/// and after that it is interrupted for it.
///
/// None if the process does not pay, or without memory.
pub fn attend() -> Option<Attending> {
    let current = kernel::current!();
    let payer = find(current.mm()?)?;
    let task: &Task = current;
    let node = RBTreeNode::new(task.as_ptr().addr(), task.into(), GFP_KERNEL_ACCOUNT).ok()?;
    // It was not there.
    let _ = payer.threads.lock().attending.insert(node);
    payer.answer_all();
    Some(Attending(payer, PhantomData))
}

impl Drop for Attending {
    fn drop(&mut self) {
        let task = Task::current_raw().addr();
        let gone = self.0.threads.lock().attending.remove_node(&task);
        drop(gone);
    }
}

/// Charges `pages` pages of `region` to the cgroup of the process that `mm` is of: a charge of which
/// parts can be [taken](Charge::take).
///
/// Sleeps, for a bounded time, and needs no lock of the process. A thread of the process that waits for a
/// lock of the caller's, or for a page that the caller has, cannot answer: so this is best called with none.
///
/// Fails with `ESRCH` if the process did not [enroll]; `ETIMEDOUT` if none of its threads answers, as they
/// sleep, or the process is stopped, frozen, or gone; `EINTR` if the caller is killed; and as
/// [`Region::try_charge_pages`] does.
pub fn charge(mm: &Mm, region: &Arc<Region>, pages: u32) -> Result<Charge, Refused> {
    if !IS_CONTROLLED || sched::is_thread_of(mm) {
        return region.try_charge_pages(pages);
    }
    find(mm).ok_or(ESRCH)?.ask(region, pages)
}

/// The process that `mm` is of, for messages; none if it did not [enroll].
pub fn pid(mm: &Mm) -> Option<Pid> {
    find(mm).map(|payer| payer.process.pid())
}
