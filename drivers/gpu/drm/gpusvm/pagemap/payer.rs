// SPDX-License-Identifier: GPL-2.0

//! Who pays for device memory: the process whose pages are there.
//!
//! The controller charges the cgroup of the thread that asks. Who serves a fault is a worker of the
//! kernel's, in the root cgroup; so it has a thread of the process ask. A process that has a mirror
//! [enrolls](enroll), in one of its own system calls, and then has such a thread, one for all of its mirrors,
//! which is in its cgroup wherever it moves.
//!
//! An answer is waited for, though not for ever: a process that is stopped or frozen does not give any, and
//! is asked no more until it goes on. One that is gone, or has become another program,
//! is as one that never enrolled: its pages stay in RAM.
//!
//! # Locking
//!
//! The list of payers and each payer's queue have a mutex. The first is outside of the second, and both
//! are leaves but for memory that is allocated under them.

use core::mem;
use kernel::{
    impl_has_work,
    mm::Mm,
    module::this_module,
    new_work,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Acquire, Atomic, Relaxed, Release},
        global_lock,
        new_mutex,
        Arc,
        Mutex, //
    },
    task::Pid,
    workqueue::{Work, WorkItem}, //
};
use kernel_ext::{
    completion::Completion,
    dmem::{Charge, Refused, Region, IS_CONTROLLED},
    module_ref::ModuleRef,
    sched,
    vhost_task::{self, ProcessThread, Worker},
    workqueue::OwnedQueue, //
};

/// Whether processes are asked: if there is anything to charge, and whom to ask. A kernel that has no threads
/// for that charges whoever serves the fault.
const ARE_ASKED: bool = IS_CONTROLLED && vhost_task::IS_AVAILABLE;

/// How long an answer is waited for, in milliseconds.
const PATIENCE_MS: u32 = 1000;

/// Something that a process is asked to charge.
#[pin_data]
struct Question {
    region: Arc<Region>,
    bytes: u64,
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

/// What a process's thread shares with those who ask.
#[pin_data]
struct Desk {
    /// Whether there are questions; written under the lock.
    is_asked: Atomic<bool>,
    #[pin]
    queue: Mutex<Queue>,
}

struct Queue {
    questions: KVec<Arc<Question>>,
    /// The thread did not come for a question in time, and has not come since.
    stuck: bool,
    /// The process is gone, or another program.
    closed: bool,
}

impl Worker for Desk {
    fn has_work(&self) -> bool {
        self.is_asked.load(Acquire)
    }

    fn work(&self) {
        let questions = {
            let mut queue = self.queue.lock();
            self.is_asked.store(false, Relaxed);
            queue.stuck = false;
            mem::take(&mut queue.questions)
        };
        for question in questions {
            question.answer(question.region.try_charge(question.bytes));
        }
    }

    fn killed(&self) {
        let questions = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            mem::take(&mut queue.questions)
        };
        for question in questions {
            question.answer(Err(ESRCH.into()));
        }
    }
}

/// The thread of a payer, with what its end needs: that may take as long as the process is stopped.
#[pin_data]
struct Clerk {
    thread: ProcessThread<Desk>,
    /// The thread runs code of this module. Given up last.
    _module: ModuleRef,
    #[pin]
    end: Work<Clerk>,
}

impl_has_work! {
    impl HasWork<Self> for Clerk { self.end }
}

impl WorkItem for Clerk {
    type Pointer = Pin<KBox<Self>>;

    fn run(this: Pin<KBox<Self>>) {
        drop(this);
    }
}

/// A process that pays.
struct Payer {
    /// Kept, so that no other has its address meanwhile.
    mm: ARef<Mm>,
    pid: Pid,
    /// There until it is dropped.
    clerk: Option<Pin<KBox<Clerk>>>,
}

impl Payer {
    /// Makes the calling process one. Fails as [`enroll`] does.
    fn new(mm: &Mm) -> Result<Arc<Self>> {
        let this = this_module::<crate::GpuSvmModule>();
        // SAFETY: The module is this one.
        let module = unsafe { ModuleRef::try_get(this.as_ptr()) }?;
        let desk = Arc::pin_init(
            pin_init!(Desk {
                is_asked: Atomic::new(false),
                queue <- new_mutex!(
                    Queue {
                        questions: KVec::new(),
                        stuck: false,
                        closed: false,
                    },
                    "payer::Desk"
                ),
            }),
            GFP_KERNEL,
        )?;
        let thread = ProcessThread::new(c"gpusvm-charge", desk)?;
        let clerk = KBox::pin_init(
            pin_init!(Clerk {
                thread,
                _module: module,
                end <- new_work!("payer::Clerk"),
            }),
            GFP_KERNEL,
        )?;
        let payer = Self {
            mm: mm.into(),
            pid: kernel::current!().group_leader().pid(),
            clerk: Some(clerk),
        };
        Ok(Arc::new(payer, GFP_KERNEL)?)
    }

    fn is(&self, mm: &Mm) -> bool {
        self.mm.as_raw() == mm.as_raw()
    }

    /// Whether it never pays again.
    fn is_closed(&self) -> bool {
        let desk = self.clerk.as_ref().map(|clerk| clerk.thread.worker());
        desk.is_none_or(|desk| desk.queue.lock().closed)
    }

    /// Has the process charge. Fails as [`charge`] does.
    fn ask(&self, region: &Arc<Region>, bytes: u64) -> Result<Charge, Refused> {
        let thread = &self.clerk.as_ref().ok_or(ESRCH)?.thread;
        let desk = thread.worker();
        let question = Arc::pin_init(
            pin_init!(Question {
                region: region.clone(),
                bytes,
                answer <- new_mutex!(None, "payer::Question"),
                answered <- Completion::new(),
            }),
            GFP_KERNEL,
        )?;
        {
            let mut queue = desk.queue.lock();
            if queue.closed {
                return Err(ESRCH.into());
            }
            if queue.stuck {
                return Err(ETIMEDOUT.into());
            }
            queue
                .questions
                .push(question.clone(), GFP_KERNEL)
                .map_err(Error::from)?;
            desk.is_asked.store(true, Release);
        }
        thread.wake();
        let waited = question.answered.wait_killable(PATIENCE_MS);
        // It may have come just now.
        if let Some(answer) = question.answer.lock().take() {
            return answer;
        }
        let mut queue = desk.queue.lock();
        let is_it = |other: &Arc<Question>| Arc::ptr_eq(other, &question);
        if let Some(index) = queue.questions.iter().position(is_it) {
            let unasked = queue.questions.remove(index);
            queue.stuck |= waited == Err(ETIMEDOUT);
            drop(queue);
            drop(unasked);
        }
        waited?;
        Err(ETIMEDOUT.into())
    }
}

impl Drop for Payer {
    fn drop(&mut self) {
        if let (Some(clerk), Some(queue)) = (self.clerk.take(), &*CLERKS.lock()) {
            queue.enqueue(clerk);
        }
    }
}

/// A payer, and how many of its mirrors there are.
struct Member {
    payer: Arc<Payer>,
    count: usize,
}

global_lock! {
    // SAFETY: `init()` is called before anybody can enroll.
    unsafe(uninit) static PAYERS: Mutex<KVec<Member>> = KVec::new();
}

global_lock! {
    // SAFETY: As above.
    unsafe(uninit) static CLERKS: Mutex<Option<OwnedQueue>> = None;
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
        CLERKS.init();
    }
    *CLERKS.lock() = Some(OwnedQueue::new_unbound(c"gpusvm-payers")?);
    Ok(())
}

/// Waits for threads that are ending. To be called once, when the module is unloaded.
pub(crate) fn exit() {
    let queue = CLERKS.lock().take();
    drop(queue);
    // Nobody is enrolled any more; a static is not dropped, and so would keep the memory of the list.
    let members = mem::take(&mut *PAYERS.lock());
    drop(members);
}

/// A mirror of a process that pays for its device memory, as long as this lives.
pub struct Enrolled(ARef<Mm>);

/// Has the calling process pay for device memory that its pages live in.
///
/// It then has a thread more, `gpusvm-charge`, until the last of its mirrors is gone. Sleeps. Fails with
/// `EINVAL` for a kernel thread; `EAGAIN` when the process may have no more threads; `ERESTARTNOINTR`
/// when a signal is to be handled before; `ENODEV` when the module is on its way out; `ENOMEM`. On a kernel
/// without `CONFIG_VHOST_TASK` or `CONFIG_CGROUP_DMEM` there is no such thread.
pub fn enroll() -> Result<Enrolled> {
    let current = kernel::current!();
    let mm: &Mm = current.mm().ok_or(EINVAL)?;
    if !ARE_ASKED {
        return Ok(Enrolled(mm.into()));
    }
    let known = {
        let mut members = PAYERS.lock();
        members
            .iter_mut()
            .find(|member| member.payer.is(mm) && !member.payer.is_closed())
            .map(|member| member.count += 1)
    };
    if known.is_some() {
        return Ok(Enrolled(mm.into()));
    }
    let mut payer = Payer::new(mm)?;
    let mut members = PAYERS.lock();
    match members.iter_mut().find(|member| member.payer.is(mm)) {
        Some(member) => {
            // In place of one that is gone; or another thread was quicker.
            if member.payer.is_closed() {
                mem::swap(&mut member.payer, &mut payer);
            }
            member.count += 1;
        }
        None => {
            let member = Member {
                payer: payer.clone(),
                count: 1,
            };
            members.push(member, GFP_KERNEL)?;
        }
    }
    drop(members);
    Ok(Enrolled(mm.into()))
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        let mut members = PAYERS.lock();
        let last = members
            .iter_mut()
            .position(|member| {
                let is_it = member.payer.is(&self.0);
                member.count -= usize::from(is_it);
                is_it && member.count == 0
            })
            .and_then(|index| members.remove(index).ok());
        drop(members);
        drop(last);
    }
}

/// Charges `bytes` of `region` to the cgroup of the process that `mm` is of.
///
/// Sleeps, for a bounded time, and needs no lock of the process: may be called with its mmap lock held.
/// Fails with `ESRCH` if the process is gone or did not [enroll]; `ETIMEDOUT` if it does not answer, as
/// it is stopped; `EINTR` if the caller is killed; and as [`Region::try_charge`] does.
pub fn charge(mm: &Mm, region: &Arc<Region>, bytes: u64) -> Result<Charge, Refused> {
    if !ARE_ASKED || sched::is_thread_of(mm) {
        return region.try_charge(bytes);
    }
    let payer = {
        let members = PAYERS.lock();
        let member = members.iter().find(|member| member.payer.is(mm));
        member.map(|member| member.payer.clone())
    };
    payer.ok_or(ESRCH)?.ask(region, bytes)
}

/// The process that `mm` is of, for messages; none if it did not [enroll].
pub fn pid(mm: &Mm) -> Option<Pid> {
    let members = PAYERS.lock();
    let member = members.iter().find(|member| member.payer.is(mm));
    member.map(|member| member.payer.pid)
}
