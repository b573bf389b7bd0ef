// SPDX-License-Identifier: GPL-2.0

//! The threads that wait for user fences.
//!
//! A fence is a word in memory that processes can share, so a thread may wait for any job. Mostly,
//! the job is one of its own process. So waiters are grouped by process. A thread that signals
//! wakes the group of the process it signals for, and other groups round-robin, up to
//! [`MAX_DIRECT`] threads. A work item wakes all remaining groups, once for any number of signals,
//! at a rate that falls with the number of waiters. So the waiters of one process cost next to
//! nothing to other processes that signal, and a large group does not delay the wakeup of small
//! ones.
//!
//! Lock order: the lock of the groups, then that of a group; both are spinlocks. The work is
//! enqueued under the first one.

use crate::queues::QueuesRef;
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
    workqueue::{
        cancel_delayed,
        enqueue_delayed,
        HasQueue,
        OwnedQueue, //
    }, //
};

/// The most threads of other processes that a signal wakes, and the most groups that it visits.
const MAX_DIRECT: usize = 64;

/// Two runs of the work item are apart by at least a millisecond for this many waiters.
const WAITERS_PER_MS: usize = 4;

/// Two runs of the work item are apart by at least this multiple of the last run time. That
/// includes the run time of the woken threads, as the work item runs at a lower priority. So the
/// CPUs are left to others nearly all the time.
const PAUSE_RATIO: usize = 16;

/// The longest pause of the work item, in milliseconds.
const MAX_PAUSE_MS: u32 = 4000;

/// The nice value of the work item. It delays the wakeups only on busy CPUs.
const NICE: i16 = 19;

/// How many threads are woken between two checks for a reschedule.
const BATCH: usize = 32;

/// Why [`Waiter::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// A fence was signalled.
    Signalled,
    /// The time-out expired.
    TimedOut,
    /// The caller has a signal pending.
    Interrupted,
}

/// The waiting threads of one process.
///
/// The fence is in user memory, which cannot be read under a lock. So a waiter takes the
/// [`generation`](Waiter::generation), reads the fence, and sleeps only if the generation is still
/// the same: a signal in between is not missed.
#[pin_data]
struct Group {
    #[pin]
    state: SpinLock<GroupState>,
    #[pin]
    signalled: CondVar,
}

struct GroupState {
    /// Counts the signals.
    generation: u64,
    /// The number of threads that sleep or are being woken.
    asleep: usize,
}

impl Group {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                state <- new_spinlock!(
                    GroupState {
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

    /// Starts a new generation. Returns how many threads to [wake](Self::wake).
    fn signal(&self) -> usize {
        let mut state = self.state.lock();
        state.generation = state.generation.wrapping_add(1);
        state.asleep
    }

    /// Wakes `count` threads, those that have slept longest first.
    fn wake(&self, count: usize) {
        (0..count).for_each(|_| self.signalled.notify_one());
    }
}

/// A group in the tree, with the number of its threads.
struct GroupEntry {
    group: Arc<Group>,
    threads: usize,
}

impl GroupEntry {
    /// Creates the group of a process with one waiting thread, and the node for the tree. Fails
    /// with `ENOMEM`.
    fn new(key: usize) -> Result<(Arc<Group>, RBTreeNode<usize, Self>)> {
        let group = Group::new()?;
        let entry = Self {
            group: group.clone(),
            threads: 1,
        };
        Ok((group, RBTreeNode::new(key, entry, GFP_KERNEL_ACCOUNT)?))
    }
}

struct Groups {
    /// By the address of the `struct mm_struct`, which exists as long as the threads do.
    tree: RBTree<usize, GroupEntry>,
    /// The number of all waiting threads.
    threads: usize,
    /// Whether the work item is enqueued.
    enqueued: bool,
    /// When the work item last started, in jiffies.
    started: usize,
    /// How long the work item ran the last time, in jiffies.
    took: usize,
    /// The key from which the next signal wakes other groups.
    next_key: usize,
    /// Set by `close()`: the work item is not enqueued any more.
    closed: bool,
}

/// The threads that wait for any fence of a device.
#[pin_data]
pub(crate) struct FenceWaiters {
    #[pin]
    groups: SpinLock<Groups>,
    /// The threads for whose groups there was no memory. Each signal wakes them.
    ungrouped: Arc<Group>,
    #[pin]
    work: DelayedWork<Self>,
    queues: QueuesRef,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for FenceWaiters { self.work }
}

impl HasQueue for FenceWaiters {
    fn queue(&self) -> &OwnedQueue {
        &self.queues.work
    }
}

impl WorkItem for FenceWaiters {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        {
            let mut groups = this.groups.lock();
            groups.enqueued = false;
            groups.started = jiffies::now();
        }
        with_nice(NICE, || this.wake_all());
        let mut groups = this.groups.lock();
        groups.took = jiffies::since(groups.started);
    }
}

fn key(mm: &Mm) -> usize {
    mm.as_raw().addr()
}

impl FenceWaiters {
    /// Creates an empty list. Fails with `ENOMEM`.
    pub(crate) fn new(queues: &QueuesRef) -> Result<Arc<Self>> {
        let groups = Groups {
            tree: RBTree::new(),
            threads: 0,
            enqueued: false,
            started: jiffies::now(),
            took: 0,
            next_key: 0,
            closed: false,
        };
        let ungrouped = Group::new()?;
        Arc::pin_init(
            pin_init!(Self {
                groups <- new_spinlock!(groups, "FenceWaiters::groups"),
                ungrouped,
                work <- new_delayed_work!("FenceWaiters::work"),
                queues: queues.clone(),
            }),
            GFP_KERNEL,
        )
    }

    /// Adds the calling thread as a waiter until the result is dropped. Without memory for a group,
    /// the thread is added to `ungrouped`.
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
        let new = key.and_then(|key| Some((key, GroupEntry::new(key).ok()?)));
        let Some((key, (new, node))) = new else {
            self.groups.lock().threads += 1;
            return waiter(self.ungrouped.clone(), None);
        };
        let mut groups = self.groups.lock();
        let (group, unused) = match groups.join(key) {
            // Another thread of the process inserted the group meanwhile.
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

    /// Makes the waiters check their fences: those of process `mm` now, others soon. Called in
    /// process context, after a write to a fence or to other state that waiters check.
    pub(crate) fn signal(self: &Arc<Self>, mm: Option<&Mm>) {
        self.signal_groups(mm, true);
    }

    /// Like [`signal`](Self::signal), but leaves all other processes to the work item, whose pace is
    /// limited: for what a program can do any number of times at no cost.
    pub(crate) fn signal_own(self: &Arc<Self>, mm: Option<&Mm>) {
        self.signal_groups(mm, false);
    }

    fn signal_groups(self: &Arc<Self>, mm: Option<&Mm>, directly: bool) {
        let mut groups = self.groups.lock();
        if groups.closed || groups.threads == 0 {
            // No thread waits.
            return;
        }
        let own = mm.map_or(0, key);
        let has_more = if directly {
            !groups.wake_direct(own)
        } else {
            let own = groups.tree.get(&own).map_or(0, |entry| entry.threads);
            groups.threads > own
        };
        let own = groups.tree.get(&own).map(|entry| entry.group.clone());
        if has_more && !groups.enqueued {
            groups.enqueued = true;
            let delay = groups
                .interval()
                .saturating_sub(jiffies::since(groups.started));
            // Cannot fail: the work is not enqueued.
            let _ = enqueue_delayed::<_, 0>(self, delay);
        }
        drop(groups);
        if let Some(group) = own {
            group.wake(group.signal());
        }
        if directly {
            self.ungrouped.wake(self.ungrouped.signal());
        }
    }

    /// Wakes all waiters and stops the work item: the device is gone, which each waiter notices.
    /// Cancels the work item if it is enqueued; does not wait for it if it runs.
    pub(crate) fn close(self: &Arc<Self>) {
        self.groups.lock().closed = true;
        cancel_delayed::<_, 0>(self);
        self.wake_all();
    }

    /// Makes all waiters check their fences. Sleeps.
    fn wake_all(&self) {
        self.ungrouped.wake(self.ungrouped.signal());
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

    /// Returns the first group with a key of at least `key`, and its key.
    fn first_from(&self, key: usize) -> Option<(usize, Arc<Group>)> {
        let groups = self.groups.lock();
        let cursor = groups.tree.cursor_lower_bound(&key)?;
        let (key, entry) = cursor.current();
        Some((*key, entry.group.clone()))
    }
}

impl Groups {
    /// Wakes groups other than `own`, round-robin, up to [`MAX_DIRECT`] threads. Returns whether
    /// these were all.
    fn wake_direct(&mut self, own: usize) -> bool {
        let (mut threads, mut all) = (MAX_DIRECT, true);
        let (mut next, mut wrapped) = (self.next_key, false);
        for _ in 0..MAX_DIRECT {
            let at = self.tree.cursor_lower_bound(&next);
            let Some((&key, entry)) = at.as_ref().map(|at| at.current()) else {
                if wrapped {
                    return all;
                }
                (next, wrapped) = (0, true);
                continue;
            };
            if wrapped && key >= self.next_key {
                return all;
            }
            if key != own {
                match threads.checked_sub(entry.threads) {
                    Some(left) => {
                        threads = left;
                        entry.group.wake(entry.group.signal());
                    }
                    None => all = false,
                }
            }
            next = key.wrapping_add(1);
        }
        self.next_key = next;
        false
    }

    /// Returns the least time between two starts of the work item, in jiffies.
    fn interval(&self) -> usize {
        let least = u32::try_from(self.threads / WAITERS_PER_MS).unwrap_or(u32::MAX);
        let pause = self.took.saturating_mul(PAUSE_RATIO);
        msecs_to_jiffies(least)
            .max(pause)
            .min(msecs_to_jiffies(MAX_PAUSE_MS))
    }

    /// Adds a thread to the group of its process, if the tree has that.
    fn join(&mut self, key: usize) -> Option<Arc<Group>> {
        let entry = self.tree.get_mut(&key)?;
        entry.threads += 1;
        let group = entry.group.clone();
        self.threads += 1;
        Some(group)
    }

    /// Removes a thread from its group. Returns the node of the group if that was the last thread.
    fn leave(&mut self, key: usize) -> Option<RBTreeNode<usize, GroupEntry>> {
        let entry = self.tree.get_mut(&key)?;
        entry.threads -= 1;
        let is_last = entry.threads == 0;
        is_last.then(|| self.tree.remove_node(&key)).flatten()
    }
}

/// A waiting thread.
pub(crate) struct Waiter {
    all: Arc<FenceWaiters>,
    group: Arc<Group>,
    /// `None` for a thread in `ungrouped`.
    key: Option<usize>,
}

impl Waiter {
    /// Returns the generation for [`wait`](Self::wait). The caller takes it before it reads the
    /// fence.
    pub(crate) fn generation(&self) -> u64 {
        self.group.state.lock().generation
    }

    /// Sleeps interruptibly until a signal after generation `seen`, or for `timeout` jiffies.
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
        Waited::Signalled
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
