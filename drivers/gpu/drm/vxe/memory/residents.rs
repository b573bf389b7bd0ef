// SPDX-License-Identifier: GPL-2.0

//! The blocks of a device's memory that hold pages of processes, or are allocated for them.
//!
//! A block counts from the allocation of its memory until that is freed. In between it is *listed*
//! by a number that grows with each block: first without a handle, with one while it holds pages,
//! and no longer once it holds none. A thread that evicts a block gives it a new number first, so
//! that other threads evict the next one.
//!
//! # Locking
//!
//! The list's mutex is a leaf: its holder neither sleeps nor drops a reference whose release may
//! sleep.

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

/// For how long a block is not evicted after its arrival, in milliseconds. Otherwise an access that
/// spans two blocks could evict the one for the other.
const MIN_RESIDENCY_MS: u32 = 10;

/// A block's entry in the list.
pub(super) struct ResidentEntry {
    /// The number of the block. Written under the lock of the list.
    number: Atomic<u64>,
    /// When the pages arrived, in jiffies.
    since: Atomic<usize>,
}

impl ResidentEntry {
    /// Returns whether [`MIN_RESIDENCY_MS`] have passed since the block's arrival.
    fn is_evictable(&self) -> bool {
        jiffies::since(self.since.load(Relaxed)) > msecs_to_jiffies(MIN_RESIDENCY_MS)
    }
}

/// The blocks of a device.
#[pin_data]
pub(super) struct Residents {
    #[pin]
    list: Mutex<List>,
    /// The last number that was given to a block or a buffer.
    last: Atomic<u64>,
}

/// A block that may be evicted.
pub(super) struct Found {
    pub(super) number: u64,
}

struct List {
    blocks: RBTree<u64, Option<Arc<provider::Block<Local>>>>,
    /// The number of blocks, listed or not.
    count: usize,
    closed: bool,
}

impl Residents {
    /// Creates an empty list.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- new_mutex!(
                List {
                    blocks: RBTree::new(),
                    count: 0,
                    closed: false,
                },
                "vxe_residents"
            ),
            last: Atomic::new(0),
        })
    }

    /// Lists a new block. The caller passes the entry to [`remove`](Self::remove) in the end.
    ///
    /// Allocates with `flags`. Fails with `ENODEV` after [`close`](Self::close), and `ENOMEM`.
    pub(super) fn add(&self, flags: Flags) -> Result<ResidentEntry> {
        let spare = RBTreeNode::new(0, None, flags)?.into_reservation();
        let mut list = self.list.lock();
        if list.closed {
            drop(list);
            return Err(ENODEV);
        }
        let number = self.tick();
        list.count += 1;
        // The number is unused, so nothing is replaced.
        let _ = list.blocks.insert(spare.into_node(number, None));
        Ok(ResidentEntry {
            number: Atomic::new(number),
            since: Atomic::new(jiffies::now()),
        })
    }

    /// Stores the handle of a block that now holds pages.
    pub(super) fn attach(&self, entry: &ResidentEntry, handle: Arc<provider::Block<Local>>) {
        entry.since.store(jiffies::now(), Relaxed);
        let mut list = self.list.lock();
        let refused = match list.blocks.get_mut(&entry.number.load(Relaxed)) {
            Some(place) => place.replace(handle),
            None => Some(handle),
        };
        drop(list);
        drop(refused);
    }

    /// Removes a block that holds no pages any more from the list.
    pub(super) fn detach(&self, entry: &ResidentEntry) {
        let node = {
            let mut list = self.list.lock();
            list.blocks.remove_node(&entry.number.load(Relaxed))
        };
        // Drops the list's reference to the block without the lock.
        drop(node);
    }

    /// Removes a block whose memory is freed.
    pub(super) fn remove(&self, entry: &ResidentEntry) {
        self.detach(entry);
        let mut list = self.list.lock();
        list.count = list.count.saturating_sub(1);
    }

    /// Returns the next number.
    pub(super) fn tick(&self) -> u64 {
        // Does not overflow in the lifetime of a machine.
        self.last.fetch_add(1, Relaxed) + 1
    }

    /// Returns the last number.
    pub(super) fn newest(&self) -> u64 {
        self.last.load(Relaxed)
    }

    /// Returns the oldest block with a number up to `newest` that `chooser` allows to take. Without
    /// `any`, skips blocks that arrived just now or whose timeslice is not over, and sets `later` if
    /// there is one.
    pub(super) fn find(
        &self,
        newest: u64,
        any: bool,
        chooser: &mut Chooser<'_>,
        later: &mut bool,
    ) -> Option<Found> {
        let list = self.list.lock();
        let mut blocks = list
            .blocks
            .iter()
            .take_while(|(number, _)| **number <= newest);
        let number = blocks.find_map(|(number, handle)| {
            let Some(handle) = handle.as_ref() else {
                *later = true;
                return None;
            };
            let block = handle.memory();
            if !chooser.may_take(block.charge()) {
                return None;
            }
            if any || (block.entry().is_evictable() && handle.timeslice_left() == 0) {
                return Some(*number);
            }
            *later = true;
            None
        })?;
        Some(Found { number })
    }

    /// Returns a block that was found, and gives it a new number; none if it has left the list.
    pub(super) fn take(&self, found: Found) -> Option<Arc<provider::Block<Local>>> {
        let mut list = self.list.lock();
        let handle = list.blocks.get_mut(&found.number)?.take()?;
        let spare = list.blocks.remove_node(&found.number)?.into_reservation();
        let number = self.tick();
        handle.memory().entry().number.store(number, Relaxed);
        // The number is unused, so nothing is replaced.
        let _ = list
            .blocks
            .insert(spare.into_node(number, Some(handle.clone())));
        Some(handle)
    }

    /// Refuses new blocks from now on.
    pub(super) fn close(&self) {
        self.list.lock().closed = true;
    }

    /// Returns the number of blocks, listed or not.
    pub(super) fn count(&self) -> usize {
        self.list.lock().count
    }
}
