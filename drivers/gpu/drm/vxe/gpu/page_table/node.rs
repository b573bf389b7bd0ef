// SPDX-License-Identifier: GPL-2.0

//! Nodes of a page table, and the pool of spare ones.
//!
//! A node is in one of three places: in a tree (in a [`Slot`]), staged for a mapping ([`Staged`]),
//! or in the [`NodePool`] of its page table. Nodes outside a tree are empty, and linked through
//! their first slot, so that moving a node allocates nothing.
//!
//! Lock order: the lock of a [`NodePool`] is innermost.

use super::{Pte, PteFlags, LARGE_PAGE_SHIFT, PAGE_SHIFT};
use core::{mem, ops::Range};
use kernel::{
    prelude::*,
    sync::{new_spinlock, Arc, SpinLock}, //
};
use pin_init::init_array_from_fn;

/// Slots of a node: each level of the tree translates nine bits.
pub(super) const SLOTS: usize = 1 << SLOT_BITS;

/// Address bits that one level of the tree translates.
pub(super) const SLOT_BITS: u32 = LARGE_PAGE_SHIFT - PAGE_SHIFT;

/// An entry of a node, for one of the equal parts of its span.
pub(super) enum Slot {
    /// Nothing is mapped.
    Empty,
    /// The whole part is mapped contiguously from this page on.
    Leaf(Pte),
    /// The part is described by `node`, of which `live` slots are not empty.
    Table { node: KBox<Node>, live: u16 },
}

impl Slot {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Slot::Empty)
    }

    /// Empties the slot and returns its content.
    pub(super) fn take(&mut self) -> Self {
        mem::replace(self, Slot::Empty)
    }
}

/// A table of one level.
pub(super) struct Node {
    pub(super) slots: [Slot; SLOTS],
}

// An allocation size of the slab allocator: one byte more would take twice the memory.
static_assert!(size_of::<Node>() == 8192);

impl Node {
    /// Allocates an empty node, charged to the memory cgroup of the caller. Fails with `ENOMEM`.
    /// May sleep.
    fn new() -> Result<KBox<Self>> {
        // Initialized in place: too large for a kernel stack.
        KBox::init(
            init!(Node {
                slots <- init_array_from_fn(|_| Slot::Empty),
            }),
            GFP_KERNEL_ACCOUNT | __GFP_NOWARN,
        )
    }

    /// Empties a node whose slots are all empty or leaves.
    pub(super) fn clear_leaves(&mut self) {
        for slot in &mut self.slots {
            *slot = Slot::Empty;
        }
    }

    /// Fills an empty node with the mapping of a leaf of the same span.
    pub(super) fn fill_from(&mut self, leaf: Pte) {
        for (slot, pte) in self.slots.iter_mut().zip(leaf.pages()) {
            *slot = Slot::Leaf(pte);
        }
    }
}

/// A list of empty nodes outside a tree.
///
/// # Invariants
///
/// All slots of the nodes are empty, except the first slot of each node, which holds the next node.
pub(super) struct NodeList {
    head: Option<KBox<Node>>,
    pub(super) len: usize,
}

impl NodeList {
    pub(super) const fn new() -> Self {
        Self { head: None, len: 0 }
    }

    /// Adds a node whose slots are empty.
    pub(super) fn push(&mut self, mut node: KBox<Node>) {
        // INVARIANT: The caller's node is empty, and its first slot gets the link to the next.
        if let Some(next) = self.head.take() {
            node.slots[0] = Slot::Table {
                node: next,
                live: 0,
            };
        }
        self.head = Some(node);
        // Cannot overflow: memory is too small for that many nodes.
        self.len += 1;
    }

    /// Takes a node, with all slots empty.
    pub(super) fn pop(&mut self) -> Option<KBox<Node>> {
        let mut node = self.head.take()?;
        if let Slot::Table { node: next, .. } = node.slots[0].take() {
            self.head = Some(next);
        }
        self.len = self.len.saturating_sub(1);
        Some(node)
    }

    /// Moves nodes from `from` until this list has `len` nodes or `from` is empty.
    fn fill(&mut self, len: usize, from: &mut NodeList) {
        while self.len < len {
            let Some(node) = from.pop() else { break };
            self.push(node);
        }
    }
}

impl Drop for NodeList {
    fn drop(&mut self) {
        // One by one: a recursive drop of the chain would overflow the stack.
        while self.pop().is_some() {}
    }
}

/// Spare nodes of a page table for its next mappings.
///
/// A fault needs at most one node for each level, mostly none, but must have them before it takes
/// the lock. With the pool this mostly needs no allocation.
#[pin_data]
pub(super) struct NodePool {
    #[pin]
    pub(super) nodes: SpinLock<NodeList>,
}

impl NodePool {
    /// The most nodes in the pool: enough for a few concurrent faults.
    const LIMIT: usize = 16;

    pub(super) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                nodes <- new_spinlock!(NodeList::new(), "vxe_gpu_node_pool"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Gets `count` nodes for changes of `span`. Fails with `EINTR` if the caller is killed, and
    /// `ENOMEM`. May sleep.
    pub(super) fn stage(self: &Arc<Self>, span: Range<u64>, count: usize) -> Result<Staged> {
        let mut staged = Staged {
            span,
            nodes: NodeList::new(),
            pool: self.clone(),
        };
        staged.nodes.fill(count, &mut self.nodes.lock());
        while staged.nodes.len < count {
            staged.nodes.push(Node::new()?);
            kernel_ext::sched::check_killed()?;
        }
        Ok(staged)
    }

    /// Puts nodes back up to the limit, and frees the others. Does not sleep.
    pub(super) fn put(&self, mut nodes: NodeList) {
        self.nodes.lock().fill(Self::LIMIT, &mut nodes);
    }
}

/// The nodes that mapping a span may need, allocated before any lock is taken.
///
/// Dropping it puts the unused nodes back, without sleeping.
pub(crate) struct Staged {
    /// The addresses that may be mapped with these nodes.
    pub(super) span: Range<u64>,
    pub(super) nodes: NodeList,
    pool: Arc<NodePool>,
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.pool
            .put(mem::replace(&mut self.nodes, NodeList::new()));
    }
}

/// The entries for the small pages of a large leaf.
impl Pte {
    fn pages(self) -> impl Iterator<Item = Pte> {
        let (target, flags): (_, PteFlags) = (self.target(), self.flags());
        (0..SLOTS as u64).map(move |page| Pte::new(target.offset(page << PAGE_SHIFT), flags))
    }
}
