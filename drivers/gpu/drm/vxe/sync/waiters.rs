// SPDX-License-Identifier: GPL-2.0

//! Who waits for user fences.
//!
//! A fence is a word in memory that many may share, so that anybody may wait for what any job stores. But
//! mostly it is the process itself whose job it is. So those who wait are grouped by process: who signals
//! wakes the group of the process that it works for, and other groups in turns, as long as these are
//! [few](FEW) threads. A work item wakes the others: all at once for however many signals there were, and the
//! less often the more they are. However many threads a process has wait, what others have the GPU do costs
//! these next to nothing, and so does what they wait for: a large group is left to the work item, and no small one
//! with it.
//!
//! Lock order: that of the groups, then that of one of them; both are spinlocks. Under the first the work
//! is enqueued.

use crate::driver::Queues;
use kernel::{
    impl_has_delayed_work,
    mm::Mm,
    new_delayed_work,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        new_condvar,
        new_spinlock,
        Arc,
        CondVar,
        CondVarTimeoutResult,
        SpinLock, //
    },
    time::{
        msecs_to_jiffies,
        Jiffies, //
    },
    workqueue::{
        DelayedWork,
        WorkItem, //
    }, //
};
use kernel_ext::{
    sched::{
        cond_resched,
        with_nice, //
    },
    time::jiffies,
    workqueue::cancel_delayed, //
};

/// No more threads of other processes are woken by who signals, nor are more processes looked at.
const FEW: usize = 64;

/// For how many threads, of those that are more, a millisecond passes before they are woken again.
const PER_MS: usize = 4;

/// How many times as long passes as it took to wake them, which is when they have run: as the work is nicer
/// than they are. It leaves the CPUs to others for nearly all of the time.
const REST: usize = 16;

/// No more than this passes, in milliseconds.
const MAX_MS: u32 = 4000;

/// How nice the work is to other threads. Those that it wakes are none the later for that, unless the CPUs
/// are busy.
const NICE: i16 = 19;

/// How many threads are woken before it is looked whether other tasks are to run.
const BATCH: usize = 32;

/// Why [`Waiter::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// Something was signalled; so many jiffies were left.
    Signalled(Jiffies),
    /// The time is up.
    TimedOut,
    /// The caller has a signal pending.
    Interrupted,
}

/// Threads of one process.
///
/// What is waited for is in user memory, which cannot be looked at under a lock. So a waiter takes
/// the [`generation`](Waiter::generation), looks, and sleeps only if nothing was signalled since: a
/// signal between the two is not missed.
#[pin_data]
struct Group {
    #[pin]
    state: SpinLock<State>,
    #[pin]
    signalled: CondVar,
}

struct State {
    /// Counts the signals.
    generation: u64,
    /// How many threads sleep, or are being woken.
    asleep: usize,
}

impl Group {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                state <- new_spinlock!(
                    State {
                        generation: 0,
                        asleep: 0,
                    },
                    "vxe_waiters"
                ),
                signalled <- new_condvar!("vxe_waiters::signalled"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Whoever looked before this must look again: returns how many of them are to be [woken](Self::wake).
    fn signal(&self) -> usize {
        let mut state = self.state.lock();
        state.generation = state.generation.wrapping_add(1);
        state.asleep
    }

    /// Wakes `count` threads: those that have slept for longest.
    fn wake(&self, count: usize) {
        (0..count).for_each(|_| self.signalled.notify_one());
    }
}

/// A process, and how many threads of it wait.
struct Member {
    group: Arc<Group>,
    threads: usize,
}

impl Member {
    /// The group of a process of which one thread waits, and what is to be put into the tree. Fails with
    /// `ENOMEM`.
    fn new(key: usize) -> Result<(Arc<Group>, RBTreeNode<usize, Self>)> {
        let group = Group::new()?;
        let member = Self {
            group: group.clone(),
            threads: 1,
        };
        Ok((group, RBTreeNode::new(key, member, GFP_KERNEL_ACCOUNT)?))
    }
}

struct Groups {
    /// By the addresses of the address spaces, which are there as long as the threads are.
    tree: RBTree<usize, Member>,
    /// How many threads there are in all.
    threads: usize,
    /// The work is enqueued.
    enqueued: bool,
    /// When it began to run the last time, in jiffies.
    ran: usize,
    /// How long it took the last time.
    took: usize,
    /// From which group on others are woken next.
    turn: usize,
    /// Nothing is enqueued any more.
    closed: bool,
}

/// Who waits for any fence of a device.
#[pin_data]
pub(crate) struct FenceWaiters {
    #[pin]
    groups: SpinLock<Groups>,
    /// Those for whose processes there was no memory. Whoever signals wakes them.
    rest: Arc<Group>,
    #[pin]
    work: DelayedWork<Self>,
    queues: Arc<Queues>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for FenceWaiters { self.work }
}

impl WorkItem for FenceWaiters {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        {
            let mut groups = this.groups.lock();
            groups.enqueued = false;
            groups.ran = jiffies::now();
        }
        with_nice(NICE, || this.wake_all());
        let mut groups = this.groups.lock();
        groups.took = jiffies::since(groups.ran);
    }
}

fn key(mm: &Mm) -> usize {
    mm.as_raw().addr()
}

impl FenceWaiters {
    /// Nobody waits. Fails with `ENOMEM`.
    pub(crate) fn new(queues: &Arc<Queues>) -> Result<Arc<Self>> {
        let groups = Groups {
            tree: RBTree::new(),
            threads: 0,
            enqueued: false,
            ran: jiffies::now(),
            took: 0,
            turn: 0,
            closed: false,
        };
        let rest = Group::new()?;
        Arc::pin_init(
            pin_init!(Self {
                groups <- new_spinlock!(groups, "FenceWaiters::groups"),
                rest,
                work <- new_delayed_work!("FenceWaiters::work"),
                queues: queues.clone(),
            }),
            GFP_KERNEL,
        )
    }

    /// The calling thread is one that waits, until the result is dropped. Where there is no memory for a group of
    /// its process, it is one of those for whom there was none.
    pub(crate) fn join(self: &Arc<Self>) -> Waiter {
        let waiter = |group, key| Waiter {
            all: self.clone(),
            group,
            key,
        };
        let key = kernel::current!().mm().map(|mm| key(mm));
        let known = key.and_then(|key| self.groups.lock().join(key));
        if let Some(group) = known {
            return waiter(group, key);
        }
        let new = key.and_then(|key| Some((key, Member::new(key).ok()?)));
        let Some((key, (new, node))) = new else {
            self.groups.lock().threads += 1;
            return waiter(self.rest.clone(), None);
        };
        let mut groups = self.groups.lock();
        let (group, unused) = match groups.join(key) {
            // Another thread was faster.
            Some(group) => (group, Some(node)),
            None => {
                groups.threads += 1;
                (new, groups.tree.insert(node))
            }
        };
        drop(groups);
        drop(unused);
        waiter(group, Some(key))
    }

    /// Has everybody look again: the process that `mm` is of now, others soon. To be called after what they
    /// look at was changed, in process context.
    pub(crate) fn signal(self: &Arc<Self>, mm: Option<&Mm>) {
        let mut groups = self.groups.lock();
        if groups.closed || groups.threads == 0 {
            // Nobody sleeps.
            return;
        }
        let own = mm.map_or(0, key);
        let is_rest = !groups.wake_few(own);
        let own = groups.tree.get(&own).map(|member| member.group.clone());
        if is_rest && !groups.enqueued {
            groups.enqueued = true;
            let delay = groups.pace().saturating_sub(jiffies::since(groups.ran));
            // It is not enqueued, so that this cannot fail.
            let _ = self.queues.work.enqueue_delayed(self.clone(), delay);
        }
        drop(groups);
        if let Some(group) = own {
            group.wake(group.signal());
        }
        self.rest.wake(self.rest.signal());
    }

    /// Wakes everybody, for good: the device is gone, which all see who look again. Takes back what is
    /// enqueued; what runs goes on.
    pub(crate) fn close(self: &Arc<Self>) {
        self.groups.lock().closed = true;
        cancel_delayed::<_, 0>(self);
        self.wake_all();
    }

    /// Has everybody look again. Sleeps.
    fn wake_all(&self) {
        self.rest.wake(self.rest.signal());
        let mut next = Some(0);
        while let Some((key, group)) = next.and_then(|key| self.first_from(key)) {
            let mut left = group.signal();
            while left != 0 {
                let count = left.min(BATCH);
                group.wake(count);
                left -= count;
                cond_resched();
            }
            next = key.checked_add(1);
        }
    }

    /// The first group with a key of `key` or more, and its key.
    fn first_from(&self, key: usize) -> Option<(usize, Arc<Group>)> {
        let groups = self.groups.lock();
        let cursor = groups.tree.cursor_lower_bound(&key)?;
        let (key, member) = cursor.current();
        Some((*key, member.group.clone()))
    }
}

impl Groups {
    /// Has groups look again but that with the key `own`, in turns, as long as they are of [`FEW`] threads. Returns
    /// whether these were all.
    fn wake_few(&mut self, own: usize) -> bool {
        let (mut threads, mut all) = (FEW, true);
        let (mut next, mut wrapped) = (self.turn, false);
        for _ in 0..FEW {
            let at = self.tree.cursor_lower_bound(&next);
            let Some((&key, member)) = at.as_ref().map(|at| at.current()) else {
                if wrapped {
                    return all;
                }
                (next, wrapped) = (0, true);
                continue;
            };
            if wrapped && key >= self.turn {
                return all;
            }
            if key != own {
                match threads.checked_sub(member.threads) {
                    Some(left) => {
                        threads = left;
                        member.group.wake(member.group.signal());
                    }
                    None => all = false,
                }
            }
            next = key.wrapping_add(1);
        }
        self.turn = next;
        false
    }

    /// From when the work begins to run until it may do so again, in jiffies.
    fn pace(&self) -> usize {
        let least = u32::try_from(self.threads / PER_MS).unwrap_or(u32::MAX);
        let rest = self.took.saturating_mul(REST);
        msecs_to_jiffies(least)
            .max(rest)
            .min(msecs_to_jiffies(MAX_MS))
    }

    /// One more thread of a process that has one already.
    fn join(&mut self, key: usize) -> Option<Arc<Group>> {
        let member = self.tree.get_mut(&key)?;
        member.threads += 1;
        let group = member.group.clone();
        self.threads += 1;
        Some(group)
    }

    /// One less of a process; returns what is left of that if it was the last.
    fn leave(&mut self, key: usize) -> Option<RBTreeNode<usize, Member>> {
        let member = self.tree.get_mut(&key)?;
        member.threads -= 1;
        let is_last = member.threads == 0;
        is_last.then(|| self.tree.remove_node(&key)).flatten()
    }
}

/// A thread that waits.
pub(crate) struct Waiter {
    all: Arc<FenceWaiters>,
    group: Arc<Group>,
    /// None for one of the rest.
    key: Option<usize>,
}

impl Waiter {
    /// What to pass to [`wait`](Self::wait): take it before looking.
    pub(crate) fn generation(&self) -> u64 {
        self.group.state.lock().generation
    }

    /// Sleeps, interruptibly, until something was signalled after `seen` was taken, or for
    /// `timeout` jiffies.
    pub(crate) fn wait(&self, seen: u64, mut timeout: Jiffies) -> Waited {
        let Group { state, signalled } = &*self.group;
        let mut state = state.lock();
        while state.generation == seen {
            state.asleep += 1;
            let woken = signalled.wait_interruptible_timeout(&mut state, timeout);
            state.asleep -= 1;
            match woken {
                CondVarTimeoutResult::Woken { jiffies } => timeout = jiffies,
                CondVarTimeoutResult::Timeout => return Waited::TimedOut,
                CondVarTimeoutResult::Signal { .. } => return Waited::Interrupted,
            }
        }
        Waited::Signalled(timeout)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut groups = self.all.groups.lock();
        groups.threads -= 1;
        let last = self.key.and_then(|key| groups.leave(key));
        drop(groups);
        drop(last);
    }
}
