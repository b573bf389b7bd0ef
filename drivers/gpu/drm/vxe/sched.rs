// SPDX-License-Identifier: GPL-2.0

//! Whose turn it is: time slices, round-robin among clients, then among the queues of a client.
//!
//! A client has a [`Lane`], in which its queues stand that can run; the lanes with such queues stand in
//! the *rotation*. Both, a lane and what stands in it, have time left of their last slice ([`SLICE`]).
//! Who runs spends it, and gets a new slice by going behind all others, in no other way. So between
//! two turns of a client each other one runs for one slice, about, however many queues it has, and
//! however it comes and goes.
//!
//! Who can run again (its fault was answered, a job came), and has time left as its client has, is
//! *prompt*: it goes before all others. So a page that was just mapped is accessed before it is gone
//! again, and short jobs do not wait for long ones.
//!
//! A client that is alone has all engines; one with a single queue has one of them.
//!
//! This file knows no GPU and no clock: it hands out grants of time, and is told what was used.
//!
//! Lock order: the run list, then a lane. Both are spinlocks; no entity is dropped
//! inside them.

use crate::fifo::{
    Fifo,
    Node, //
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

/// How long a client, and a queue of it, may run before it is the turn of others, in nanoseconds.
pub(crate) const SLICE: u64 = 4_000_000;

/// The most engines of a device.
pub(crate) const MAX_ENGINES: usize = 64;

/// What an entity has to do with turns: for the run list alone.
pub(crate) struct Share<T> {
    /// The time that is left of its slice, in nanoseconds.
    left: u64,
    /// Where it belongs, while it is prompt.
    lane: Option<Arc<Lane<T>>>,
}

impl<T> Share<T> {
    /// The one of an entity that has not run yet.
    pub(crate) const fn new() -> Self {
        Self {
            left: 0,
            lane: None,
        }
    }
}

/// What runs in turns.
pub(crate) trait Entity: Sized {
    /// Its share.
    fn share(&mut self) -> &mut Share<Self>;
}

/// What a client has that can run.
struct Ready<T> {
    entities: Fifo<T>,
    /// The time that is left of the client's slice.
    left: u64,
}

/// The place of a client.
#[pin_data]
pub(crate) struct Lane<T> {
    #[pin]
    links: ListLinks,
    #[pin]
    tracker: AtomicTracker,
    #[pin]
    ready: SpinLock<Ready<T>>,
}

impl_list_arc_safe! {
    impl{T} ListArcSafe<0> for Lane<T> { tracked_by tracker: AtomicTracker; }
}
impl_list_item! {
    impl{T} ListItem<0> for Lane<T> { using ListLinks { self.links }; }
}

impl<T> Lane<T> {
    /// A lane in which nothing stands. Fails with `ENOMEM`.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                links <- ListLinks::new(),
                tracker <- AtomicTracker::new(),
                ready <- new_spinlock!(
                    Ready {
                        entities: Fifo::new(),
                        left: 0,
                    },
                    "vxe_sched_lane"
                ),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }
}

struct Rotation<T> {
    /// Those that go before all lanes.
    prompt: Fifo<T>,
    /// The lanes in which something stands.
    lanes: List<Lane<T>>,
    /// The engines that have nothing to do, a bit each.
    idle: u64,
}

impl<T: Entity> Rotation<T> {
    /// Has `node` stand in `lane`, and the lane in the rotation.
    fn insert(&mut self, lane: &Arc<Lane<T>>, mut node: KBox<Node<T>>) {
        let mut ready = lane.ready.lock();
        let left = &mut node.value.share().left;
        if *left > 0 {
            ready.entities.push_front(node);
        } else {
            *left = SLICE;
            ready.entities.push_back(node);
        }
        // Where the lane stands already, it stays.
        if let Ok(lane) = ListArc::try_from_arc(lane.clone()) {
            if ready.left > 0 {
                self.lanes.push_front(lane);
            } else {
                ready.left = SLICE;
                self.lanes.push_back(lane);
            }
        }
    }

    /// The next one that is prompt, if its client still has time left.
    fn next_prompt(&mut self) -> Option<Turn<T>> {
        while let Some(mut node) = self.prompt.pop_front() {
            // Those that are prompt have one.
            let lane = node.value.share().lane.take()?;
            let mut ready = lane.ready.lock();
            let grant = ready.left.min(node.value.share().left);
            if grant > 0 {
                ready.left -= grant;
                drop(ready);
                return Some(Turn { node, grant, lane });
            }
            drop(ready);
            self.insert(&lane, node);
        }
        None
    }

    /// The next one of the next client.
    fn next_in_turn(&mut self) -> Option<Turn<T>> {
        while let Some(lane) = self.lanes.pop_front() {
            let mut ready = lane.ready.lock();
            if ready.left == 0 {
                ready.left = SLICE;
                drop(ready);
                self.lanes.push_back(lane);
                continue;
            }
            let Some(mut node) = ready.entities.pop_front() else {
                // Does not happen: lanes are in the rotation while something stands in them.
                continue;
            };
            let grant = ready.left.min(node.value.share().left);
            ready.left -= grant;
            let (more, spent) = (!ready.entities.is_empty(), ready.left == 0);
            if more && spent {
                ready.left = SLICE;
            }
            drop(ready);
            let turn = Turn {
                node,
                grant,
                lane: lane.clone_arc(),
            };
            match (more, spent) {
                (false, _) => drop(lane),
                (true, true) => self.lanes.push_back(lane),
                (true, false) => self.lanes.push_front(lane),
            }
            return Some(turn);
        }
        None
    }
}

/// The turn of an entity.
pub(crate) struct Turn<T> {
    /// Who.
    pub(crate) node: KBox<Node<T>>,
    /// For how long, in nanoseconds.
    pub(crate) grant: u64,
    lane: Arc<Lane<T>>,
}

/// The clients of some engines, and their turns.
#[pin_data]
pub(crate) struct RunList<T> {
    #[pin]
    rotation: SpinLock<Rotation<T>>,
}

impl<T: Entity> RunList<T> {
    /// A list for so many engines, at most [`MAX_ENGINES`], which have nothing to do.
    pub(crate) fn new(engines: usize) -> impl PinInit<Self> {
        let unused = MAX_ENGINES.saturating_sub(engines);
        pin_init!(Self {
            rotation <- new_spinlock!(
                Rotation {
                    prompt: Fifo::new(),
                    lanes: List::new(),
                    // CAST: At most 64.
                    idle: u64::MAX.checked_shr(unused as u32).unwrap_or(0),
                },
                "vxe_sched_rotation"
            ),
        })
    }

    /// Has `node`, which belongs to the client of `lane`, run again. Returns an engine that had nothing to
    /// do, if there is one: the caller sees to it that it calls [`next`](Self::next).
    #[must_use]
    pub(crate) fn wake(&self, lane: &Arc<Lane<T>>, mut node: KBox<Node<T>>) -> Option<usize> {
        let mut rotation = self.rotation.lock();
        let share = node.value.share();
        if share.left > 0 && lane.ready.lock().left > 0 {
            share.lane = Some(lane.clone());
            rotation.prompt.push_back(node);
        } else {
            rotation.insert(lane, node);
        }
        let engine = rotation.idle.trailing_zeros();
        rotation.idle &= rotation.idle.wrapping_sub(1);
        // CAST: Small.
        (engine < u64::BITS).then_some(engine as usize)
    }

    /// Has `node` run on, when it is its turn again: by an engine that calls [`next`](Self::next) now.
    pub(crate) fn put_back(&self, lane: &Arc<Lane<T>>, node: KBox<Node<T>>) {
        self.rotation.lock().insert(lane, node);
    }

    /// Whose turn it is. If nobody's, the engine with the number `engine` has nothing to do until
    /// [`wake`](Self::wake) says its number.
    ///
    /// The caller has the entity run for as long as was granted, about, then calls
    /// [`spend`](Self::spend), and then lets others find it.
    pub(crate) fn next(&self, engine: usize) -> Option<Turn<T>> {
        let mut rotation = self.rotation.lock();
        let turn = rotation.next_prompt();
        let turn = turn.or_else(|| rotation.next_in_turn());
        if turn.is_none() {
            // CAST: Small.
            rotation.idle |= 1u64.checked_shl(engine as u32).unwrap_or(0);
        }
        turn
    }

    /// Takes note that a turn is over, after `used` nanoseconds. Returns the entity, which nobody else
    /// knew of meanwhile.
    pub(crate) fn spend(&self, turn: Turn<T>, used: u64) -> KBox<Node<T>> {
        let Turn {
            mut node,
            grant,
            lane,
        } = turn;
        let left = &mut node.value.share().left;
        *left = left.saturating_sub(used.max(1));
        let mut ready = lane.ready.lock();
        // It may have got a new slice meanwhile.
        ready.left = (ready.left + grant.saturating_sub(used.max(1))).min(SLICE);
        drop(ready);
        node
    }
}
