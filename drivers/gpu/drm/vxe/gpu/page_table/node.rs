// SPDX-License-Identifier: GPL-2.0

//! Nodes of a page table, and how they are kept until they are needed.
//!
//! A node is in one of three places: in a tree (behind a [`Slot`]), staged for a mapping that is
//! about to be made ([`Staged`]), or in the [`NodePool`] of its page table. Nodes outside a tree
//! are empty, and linked through their own first slot, so that moving one never allocates.
//!
//! Lock order: the lock of a [`NodePool`] is taken last, with nothing inside.

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

/// What a node says of one of the equal parts of its span.
pub(super) enum Slot {
    /// Nothing is mapped there.
    Empty,
    /// The whole part is mapped, contiguously, to where this says.
    Leaf(Pte),
    /// Look further in `node`, of which `live` slots are not empty.
    Table { node: KBox<Node>, live: u16 },
}

impl Slot {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Slot::Empty)
    }

    /// Empties the slot.
    pub(super) fn take(&mut self) -> Self {
        mem::replace(self, Slot::Empty)
    }
}

/// A table of one level.
pub(super) struct Node {
    pub(super) slots: [Slot; SLOTS],
}

// The allocator has a size for this, and none for a byte more.
static_assert!(size_of::<Node>() == 8192);

impl Node {
    /// An empty node, charged to the memory cgroup of the caller. Fails with `ENOMEM`. May sleep.
    fn new() -> Result<KBox<Self>> {
        // Initialized in place: a kernel stack has no room for it.
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

    /// Makes an empty node say what one leaf said of the same span.
    pub(super) fn fill_from(&mut self, leaf: Pte) {
        for (slot, pte) in self.slots.iter_mut().zip(leaf.pages()) {
            *slot = Slot::Leaf(pte);
        }
    }
}

/// Empty nodes that belong to nobody else.
///
/// # Invariants
///
/// All slots of the nodes are empty, but for the first slot of each node, which holds the next.
pub(super) struct NodeList {
    head: Option<KBox<Node>>,
    pub(super) len: usize,
}

impl NodeList {
    pub(super) const fn new() -> Self {
        Self { head: None, len: 0 }
    }

    /// Adds a node, whose slots are empty.
    pub(super) fn push(&mut self, mut node: KBox<Node>) {
        // INVARIANT: The caller's node is empty, and gets the link to the next.
        if let Some(next) = self.head.take() {
            node.slots[0] = Slot::Table {
                node: next,
                live: 0,
            };
        }
        self.head = Some(node);
        // Cannot overflow: there is no memory for so many nodes.
        self.len += 1;
    }

    /// Takes a node out; its slots are empty.
    pub(super) fn pop(&mut self) -> Option<KBox<Node>> {
        let mut node = self.head.take()?;
        if let Slot::Table { node: next, .. } = node.slots[0].take() {
            self.head = Some(next);
        }
        self.len = self.len.saturating_sub(1);
        Some(node)
    }

    /// Moves nodes from `from` until there are `len` here or none there.
    fn fill(&mut self, len: usize, from: &mut NodeList) {
        while self.len < len {
            let Some(node) = from.pop() else { break };
            self.push(node);
        }
    }
}

impl Drop for NodeList {
    fn drop(&mut self) {
        // One by one: a chain that drops itself would recurse as deep as it is long.
        while self.pop().is_some() {}
    }
}

/// Nodes that one page table keeps for its next mappings.
///
/// A fault needs at most one node a level, most often none, and must have them before it knows:
/// with a pool this costs no allocation.
#[pin_data]
pub(super) struct NodePool {
    #[pin]
    pub(super) nodes: SpinLock<NodeList>,
}

impl NodePool {
    /// Nodes that are kept at most: enough for a handful of faults at once.
    const LIMIT: usize = 16;

    pub(super) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                nodes <- new_spinlock!(NodeList::new(), "vxe_gpu_node_pool"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Gets `count` nodes for changes of `span`. Fails with `EINTR` for a caller who is killed, and
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

    /// Takes nodes back, as many as it keeps, and frees the others. Does not sleep.
    pub(super) fn put(&self, mut nodes: NodeList) {
        self.nodes.lock().fill(Self::LIMIT, &mut nodes);
    }
}

/// Whatever nodes a mapping of one span may need, allocated before any lock is taken.
///
/// What is left over goes back when it is dropped, which does not sleep.
pub(crate) struct Staged {
    /// The addresses that may be mapped with it.
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

/// The pages of a leaf, one by one.
impl Pte {
    fn pages(self) -> impl Iterator<Item = Pte> {
        let (target, flags): (_, PteFlags) = (self.target(), self.flags());
        (0..SLOTS as u64).map(move |page| Pte::new(target.offset(page << PAGE_SHIFT), flags))
    }
}
