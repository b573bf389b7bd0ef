// SPDX-License-Identifier: GPL-2.0

//! The blocks of a device's memory that pages of processes are in, or are about to be.
//!
//! A block is known from when its memory is allocated until that is given back. In between it is
//! *listed*, by a number that grows with each block: first without a handle; with one when pages are
//! in it; and no more when none is. Whoever evicts gives a block a new number first, so that others
//! turn to the next.
//!
//! # Locking
//!
//! A mutex, under which nothing sleeps nor is dropped that could.

use super::local::Local;
use gpusvm::pagemap::provider;
use kernel::{
    alloc::Flags,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_mutex,
        Arc,
        Mutex, //
    },
    time::msecs_to_jiffies, //
};
use kernel_ext::{
    cgroup::dmem::Chooser,
    time::jiffies, //
};

/// How long a block is left alone by those who want room, after it came, in milliseconds: what is
/// brought for one access must not push out what was brought for the other half of it.
const SETTLE_MS: u32 = 10;

/// A block's entry in the list.
pub(super) struct Entry {
    /// Its number; changed under the lock of the list.
    number: Atomic<u64>,
    /// When pages came, in jiffies.
    since: Atomic<usize>,
}

impl Entry {
    /// Whether the time is over in which a block is left alone.
    fn is_settled(&self) -> bool {
        jiffies::since(self.since.load(Relaxed)) > msecs_to_jiffies(SETTLE_MS)
    }
}

/// The blocks of a device.
#[pin_data]
pub(super) struct Residents {
    #[pin]
    list: Mutex<List>,
}

struct List {
    blocks: RBTree<u64, Option<Arc<provider::Block<Local>>>>,
    /// The number of the block that came last.
    last: u64,
    /// How many blocks there are, listed or not.
    count: usize,
    closed: bool,
}

impl List {
    fn next_number(&mut self) -> u64 {
        // Does not overflow in a lifetime.
        self.last += 1;
        self.last
    }
}

impl Residents {
    /// No blocks.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- new_mutex!(
                List {
                    blocks: RBTree::new(),
                    last: 0,
                    count: 0,
                    closed: false,
                },
                "vxe_residents"
            ),
        })
    }

    /// Lists a new block. Whoever has the entry hands it to [`remove`](Self::remove) in the end.
    ///
    /// Allocates as `flags` say. Fails with `ENODEV` when no block may come any more, and `ENOMEM`.
    pub(super) fn add(&self, flags: Flags) -> Result<Entry> {
        let spare = RBTreeNode::new(0, None, flags)?.into_reservation();
        let mut list = self.list.lock();
        if list.closed {
            drop(list);
            return Err(ENODEV);
        }
        let number = list.next_number();
        list.count += 1;
        // Nothing has this number yet.
        let _ = list.blocks.insert(spare.into_node(number, None));
        Ok(Entry {
            number: Atomic::new(number),
            since: Atomic::new(jiffies::now()),
        })
    }

    /// Pages are in a block.
    pub(super) fn attach(&self, entry: &Entry, handle: Arc<provider::Block<Local>>) {
        entry.since.store(jiffies::now(), Relaxed);
        let mut list = self.list.lock();
        let refused = match list.blocks.get_mut(&entry.number.load(Relaxed)) {
            Some(place) => place.replace(handle),
            None => Some(handle),
        };
        drop(list);
        drop(refused);
    }

    /// No page is in a block any more: it is not listed.
    pub(super) fn detach(&self, entry: &Entry) {
        let node = {
            let mut list = self.list.lock();
            list.blocks.remove_node(&entry.number.load(Relaxed))
        };
        // With it goes a reference to the block.
        drop(node);
    }

    /// The memory of a block is given back.
    pub(super) fn remove(&self, entry: &Entry) {
        self.detach(entry);
        let mut list = self.list.lock();
        list.count = list.count.saturating_sub(1);
    }

    /// The number of the newest block.
    pub(super) fn newest(&self) -> u64 {
        self.list.lock().last
    }

    /// The oldest block that is to go, of those with numbers up to `newest` that `chooser` does not spare;
    /// it gets a new number. Blocks that came just now, or have time promised, are to go with `any` only.
    pub(super) fn next_victim(
        &self,
        newest: u64,
        any: bool,
        chooser: &mut Chooser<'_>,
    ) -> Option<Arc<provider::Block<Local>>> {
        let mut list = self.list.lock();
        let number = list
            .blocks
            .iter()
            .take_while(|(number, _)| **number <= newest)
            .find_map(|(number, handle)| {
                let handle = handle.as_ref()?;
                let block = handle.memory();
                let may_go = any || (block.entry().is_settled() && handle.timeslice_left() == 0);
                (may_go && chooser.may_take(block.charge())).then_some(*number)
            })?;
        let handle = list.blocks.get_mut(&number)?.take()?;
        let spare = list.blocks.remove_node(&number)?.into_reservation();
        let number = list.next_number();
        handle.memory().entry().number.store(number, Relaxed);
        // Nothing has this number yet.
        let _ = list
            .blocks
            .insert(spare.into_node(number, Some(handle.clone())));
        Some(handle)
    }

    /// From now on no block comes.
    pub(super) fn close(&self) {
        self.list.lock().closed = true;
    }

    /// How many blocks there are, listed or not.
    pub(super) fn count(&self) -> usize {
        self.list.lock().count
    }
}
