// SPDX-License-Identifier: GPL-2.0

//! The scheduler: timeslices, round-robin among clients, and among the queues of each client.
//!
//! A client has a [`RunQueue`] with its entities that can run. The run queues that are not empty
//! are in the round-robin list. A run queue and each entity have time left of their last timeslice.
//! Running uses that up; only a move to the end of the list gives a new timeslice. So between two
//! turns of a client each other client runs for about one timeslice, however many queues a client
//! has, and however often they become runnable.
//!
//! All run queues have the same timeslice ([`RunList::set_timeslice`]), and each entity has its own.
//! That of an entity decides when other entities of the same client run, and no more: an entity with
//! a longer one than its client goes on in the client's next turn. A run queue for entities of several
//! processes limits theirs to its own.
//!
//! An entity that becomes runnable (its fault was serviced, a job arrived) while it and its client
//! have time left is *boosted*: it runs before all others. So a page is accessed soon after it was
//! mapped, and short jobs do not wait for long ones.
//!
//! A client without competitors can use all engines; one with a single queue uses one engine.
//!
//! This file knows no GPU and no clock: it grants time, and its callers report how much was used.
//!
//! Lock order: the run list, then a run queue. Both are spinlocks; no entity is dropped under them.

use crate::fifo::{
    Fifo,
    FifoNode, //
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    list::{
        impl_list_arc_safe,
        impl_list_item,
        AtomicTracker,
        List,
        ListArc,
        ListLinks,
        TryNewListArc, //
    },
    prelude::*,
    sync::{
        new_spinlock,
        Arc,
        SpinLock, //
    }, //
};

#[cfg(CONFIG_KUNIT = "y")]
mod tests;

/// The default timeslice of a client, and of a queue of it, in nanoseconds.
pub(crate) const TIMESLICE_NS: u64 = 4_000_000;

/// The most engines of a device.
pub(crate) const MAX_ENGINES: usize = 64;

/// The scheduler's state of an entity. Used by the run list only.
pub(crate) struct SchedState<T> {
    /// The entity's timeslice, in nanoseconds.
    timeslice: u64,
    /// The time left of the entity's timeslice, in nanoseconds.
    left: u64,
    /// The client's run queue, while the entity is boosted.
    run_queue: Option<Arc<RunQueue<T>>>,
}

impl<T> SchedState<T> {
    /// Creates the state of an entity that has not run yet, with a timeslice in nanoseconds; not
    /// zero.
    pub(crate) const fn new(timeslice: u64) -> Self {
        Self {
            timeslice,
            left: 0,
            run_queue: None,
        }
    }
}

/// An entity that the scheduler runs.
pub(crate) trait Entity: Sized {
    /// Returns the scheduler's state.
    fn sched_state(&mut self) -> &mut SchedState<Self>;
}

/// The runnable entities of a client.
struct Ready<T> {
    entities: Fifo<T>,
    /// The time left of the client's timeslice, in nanoseconds.
    left: u64,
}

/// The run queue of a client.
#[pin_data]
pub(crate) struct RunQueue<T> {
    /// Whether its entities belong to several processes.
    is_shared: bool,
    #[pin]
    links: ListLinks,
    #[pin]
    tracker: AtomicTracker,
    #[pin]
    ready: SpinLock<Ready<T>>,
}

impl_list_arc_safe! {
    impl{T} ListArcSafe<0> for RunQueue<T> { tracked_by tracker: AtomicTracker; }
}
impl_list_item! {
    impl{T} ListItem<0> for RunQueue<T> { using ListLinks { self.links }; }
}

impl<T> RunQueue<T> {
    /// Creates an empty run queue. Fails with `ENOMEM`.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Self::create(false)
    }

    /// Creates an empty run queue for entities of several processes. None of them has a longer
    /// timeslice than the run queue. Fails with `ENOMEM`.
    pub(crate) fn new_shared() -> Result<Arc<Self>> {
        Self::create(true)
    }

    fn create(is_shared: bool) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                is_shared,
                links <- ListLinks::new(),
                tracker <- AtomicTracker::new(),
                ready <- new_spinlock!(
                    Ready {
                        entities: Fifo::new(),
                        left: 0,
                    },
                    "vxe_sched_run_queue"
                ),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }
}

struct RoundRobin<T> {
    /// The timeslice of run queues, in nanoseconds; not zero.
    timeslice: u64,
    /// Boosted entities, which run before all run queues.
    boosted: Fifo<T>,
    /// The run queues that are not empty.
    run_queues: List<RunQueue<T>>,
    /// A bitmap of the engines that have nothing to run.
    idle: u64,
}

impl<T: Entity> RoundRobin<T> {
    /// Adds `node` to a run queue, and the run queue to the list.
    fn insert(&mut self, run_queue: &Arc<RunQueue<T>>, mut node: KBox<FifoNode<T>>) {
        let mut ready = run_queue.ready.lock();
        let longest = match run_queue.is_shared {
            true => self.timeslice,
            false => u64::MAX,
        };
        let state = node.value.sched_state();
        state.left = state.left.min(longest);
        if state.left > 0 {
            ready.entities.push_front(node);
        } else {
            state.left = state.timeslice.min(longest);
            ready.entities.push_back(node);
        }
        // A run queue that is in the list already keeps its position.
        if let Ok(run_queue) = ListArc::try_from_arc(run_queue.clone()) {
            if ready.left > 0 {
                self.run_queues.push_front(run_queue);
            } else {
                ready.left = self.timeslice;
                self.run_queues.push_back(run_queue);
            }
        }
    }

    /// Takes the next boosted entity whose client still has time left.
    fn next_boosted(&mut self) -> Option<Turn<T>> {
        while let Some(mut node) = self.boosted.pop_front() {
            // Each boosted entity has one.
            let run_queue = node.value.sched_state().run_queue.take()?;
            let mut ready = run_queue.ready.lock();
            ready.left = ready.left.min(self.timeslice);
            let grant = ready.left.min(node.value.sched_state().left);
            if grant > 0 {
                ready.left -= grant;
                drop(ready);
                return Some(Turn {
                    node,
                    grant,
                    run_queue,
                });
            }
            drop(ready);
            self.insert(&run_queue, node);
        }
        None
    }

    /// Takes the next entity of the next client.
    fn next_in_turn(&mut self) -> Option<Turn<T>> {
        while let Some(run_queue) = self.run_queues.pop_front() {
            let mut ready = run_queue.ready.lock();
            // The timeslice may be shorter than when the run queue got its own.
            ready.left = ready.left.min(self.timeslice);
            if ready.left == 0 {
                ready.left = self.timeslice;
                drop(ready);
                self.run_queues.push_back(run_queue);
                continue;
            }
            let Some(mut node) = ready.entities.pop_front() else {
                // Does not happen: only run queues with entities are in the list.
                continue;
            };
            let grant = ready.left.min(node.value.sched_state().left);
            ready.left -= grant;
            let (more, spent) = (!ready.entities.is_empty(), ready.left == 0);
            if more && spent {
                ready.left = self.timeslice;
            }
            drop(ready);
            let turn = Turn {
                node,
                grant,
                run_queue: run_queue.clone_arc(),
            };
            match (more, spent) {
                (false, _) => drop(run_queue),
                (true, true) => self.run_queues.push_back(run_queue),
                (true, false) => self.run_queues.push_front(run_queue),
            }
            return Some(turn);
        }
        None
    }
}

/// The turn of an entity.
pub(crate) struct Turn<T> {
    /// The entity.
    pub(crate) node: KBox<FifoNode<T>>,
    /// The time granted, in nanoseconds.
    pub(crate) grant: u64,
    run_queue: Arc<RunQueue<T>>,
}

/// The run queues of all clients of a device, and the order in which they run.
#[pin_data]
pub(crate) struct RunList<T> {
    #[pin]
    round_robin: SpinLock<RoundRobin<T>>,
}

impl<T: Entity> RunList<T> {
    /// Creates a list for `engines` engines, at most [`MAX_ENGINES`], all idle.
    pub(crate) fn new(engines: usize) -> impl PinInit<Self> {
        let unused = MAX_ENGINES.saturating_sub(engines);
        pin_init!(Self {
            round_robin <- new_spinlock!(
                RoundRobin {
                    timeslice: TIMESLICE_NS,
                    boosted: Fifo::new(),
                    run_queues: List::new(),
                    // CAST: At most 64.
                    idle: u64::MAX.checked_shr(unused as u32).unwrap_or(0),
                },
                "vxe_sched_round_robin"
            ),
        })
    }

    /// Sets the timeslice of run queues, in nanoseconds; not zero. A turn that is running ends as it
    /// was granted.
    pub(crate) fn set_timeslice(&self, ns: u64) {
        self.round_robin.lock().timeslice = ns.max(1);
    }

    /// Returns how many engines are idle.
    pub(crate) fn idle(&self) -> u32 {
        self.round_robin.lock().idle.count_ones()
    }

    /// Makes `node` of the client with run queue `run_queue` runnable. Returns an idle engine, if
    /// there is one; the caller must make that engine call [`next`](Self::next).
    #[must_use]
    pub(crate) fn wake(
        &self,
        run_queue: &Arc<RunQueue<T>>,
        mut node: KBox<FifoNode<T>>,
    ) -> Option<usize> {
        let mut round_robin = self.round_robin.lock();
        let state = node.value.sched_state();
        if state.left > 0 && run_queue.ready.lock().left > 0 {
            state.run_queue = Some(run_queue.clone());
            round_robin.boosted.push_back(node);
        } else {
            round_robin.insert(run_queue, node);
        }
        let engine = round_robin.idle.trailing_zeros();
        round_robin.idle &= round_robin.idle.wrapping_sub(1);
        // CAST: At most 64.
        (engine < u64::BITS).then_some(engine as usize)
    }

    /// Makes `node` runnable again at the end of its turn. The calling engine must call
    /// [`next`](Self::next) afterwards.
    pub(crate) fn put_back(&self, run_queue: &Arc<RunQueue<T>>, node: KBox<FifoNode<T>>) {
        self.round_robin.lock().insert(run_queue, node);
    }

    /// Takes the next entity to run. If there is none, engine `engine` is idle until
    /// [`wake`](Self::wake) returns its number.
    ///
    /// The caller runs the entity for about the granted time, then calls
    /// [`account`](Self::account), and only then makes the entity visible to other threads.
    pub(crate) fn next(&self, engine: usize) -> Option<Turn<T>> {
        let mut round_robin = self.round_robin.lock();
        let turn = round_robin.next_boosted();
        let turn = turn.or_else(|| round_robin.next_in_turn());
        if turn.is_none() {
            // CAST: Less than 64.
            round_robin.idle |= 1u64.checked_shl(engine as u32).unwrap_or(0);
        }
        turn
    }

    /// Accounts `used` nanoseconds at the end of a turn. Returns the entity, which only the caller
    /// owned meanwhile.
    pub(crate) fn account(&self, turn: Turn<T>, used: u64) -> KBox<FifoNode<T>> {
        let Turn {
            mut node,
            grant,
            run_queue,
        } = turn;
        let left = &mut node.value.sched_state().left;
        *left = left.saturating_sub(used.max(1));
        let mut ready = run_queue.ready.lock();
        // The client may have got a new timeslice meanwhile; its next turn takes one at most. A turn
        // lasts for a step at least, however little was granted: the client has it.
        ready.left = ready.left.saturating_add(grant).saturating_sub(used.max(1));
        drop(ready);
        node
    }
}
