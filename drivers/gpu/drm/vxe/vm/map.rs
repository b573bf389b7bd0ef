// SPDX-License-Identifier: GPL-2.0

//! The VMAs of a VM: which do not overlap, and change all together or not at all.
//!
//! A change of several steps is made through [`Changes`], which undoes all of them unless they are
//! committed. What is undone was there before, so that undoing needs no memory.
//!
//! VMAs, and what undoing takes, are charged to the memory cgroup of who makes the change. A change ends
//! with `EINTR` when its maker is killed, however many VMAs it is about.

use super::{
    account,
    vma::{
        Backing,
        Span,
        Vma, //
    }, //
};
use crate::bo::Bo;
use core::mem;
use kernel::{
    prelude::*,
    rbtree::{RBTree, RBTreeNode}, //
};
use kernel_ext::sched;

/// Which buffer a VMA maps, and its first address.
type BoKey = (usize, u64);

/// What VMAs of a buffer are found by. Each of them keeps it alive, so that no other is at its place.
fn identity(bo: &Bo) -> usize {
    core::ptr::from_ref(bo).addr()
}

/// The VMAs of a VM, by their first address.
///
/// # Invariants
///
/// The key of each VMA is the start of its span, no span is empty, and no two overlap. `mappings` has a key
/// for each VMA that maps a buffer, and no other.
pub(crate) struct VmaMap {
    tree: RBTree<u64, Vma>,
    mappings: RBTree<BoKey, ()>,
}

/// A VMA that is in no map, with all the memory that it takes there.
struct Nodes {
    vma: RBTreeNode<u64, Vma>,
    mapping: Option<RBTreeNode<BoKey, ()>>,
}

impl Nodes {
    /// Fails with `ENOMEM`.
    fn new(vma: Vma) -> Result<Self> {
        let mapping = match &vma.backing {
            Backing::Bo { bo, .. } => {
                let key = (identity(bo), vma.span.start);
                Some(RBTreeNode::new(key, (), account())?)
            }
            Backing::Mirror => None,
        };
        let vma = RBTreeNode::new(vma.span.start, vma, account())?;
        Ok(Self { vma, mapping })
    }
}

impl VmaMap {
    /// No VMAs.
    pub(crate) fn new() -> Self {
        Self {
            tree: RBTree::new(),
            mappings: RBTree::new(),
        }
    }

    /// Puts a VMA in, which must not be empty nor overlap another.
    fn insert(&mut self, nodes: Nodes) {
        // INVARIANT: By this function's requirements; the keys are those of the VMA.
        self.tree.insert(nodes.vma);
        if let Some(mapping) = nodes.mapping {
            self.mappings.insert(mapping);
        }
    }

    /// Takes the VMA out that starts at `start`, if there is one.
    fn remove(&mut self, start: u64) -> Option<Nodes> {
        let key = match &self.tree.get(&start)?.backing {
            Backing::Bo { bo, .. } => Some((identity(bo), start)),
            Backing::Mirror => None,
        };
        // INVARIANT: The VMA goes together with its key.
        Some(Nodes {
            vma: self.tree.remove_node(&start)?,
            mapping: key.and_then(|key| self.mappings.remove_node(&key)),
        })
    }

    /// The addresses of the first VMA that maps `bo`.
    pub(crate) fn first_of(&self, bo: &Bo) -> Option<Span> {
        let cursor = self.mappings.cursor_lower_bound(&(identity(bo), 0))?;
        let (&(of, start), ()) = cursor.current();
        let vma = self.tree.get(&start)?;
        (of == identity(bo)).then(|| vma.span.clone())
    }

    /// The VMA at `addr`.
    pub(crate) fn find(&self, addr: u64) -> Option<&Vma> {
        self.first_from(addr).filter(|vma| vma.span.start <= addr)
    }

    /// The first VMA that ends after `addr`.
    pub(crate) fn first_from(&self, addr: u64) -> Option<&Vma> {
        let next = self.tree.cursor_lower_bound(&addr);
        let before = match &next {
            Some(cursor) => cursor.peek_prev().map(|(key, vma)| (*key, vma.span.end)),
            None => self
                .tree
                .cursor_back()
                .map(|cursor| (*cursor.current().0, cursor.current().1.span.end)),
        };
        let key = match before {
            Some((key, end)) if end > addr => key,
            _ => *next?.current().0,
        };
        self.tree.get(&key)
    }

    /// The VMAs that overlap `span`, in ascending order.
    pub(crate) fn overlapping(&self, span: Span) -> impl Iterator<Item = &Vma> {
        let mut at = span.start;
        core::iter::from_fn(move || {
            let vma = self
                .first_from(at)
                .filter(|vma| vma.span.start < span.end && at < span.end)?;
            at = vma.span.end;
            Some(vma)
        })
    }

    /// All VMAs, in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Vma> {
        self.tree.values()
    }

    /// Begins a change.
    pub(crate) fn change(&mut self) -> Changes<'_> {
        Changes {
            map: self,
            undo: KVVec::new(),
        }
    }

    /// Takes the first VMA out, for good; none if there is none.
    pub(crate) fn take_first(&mut self) -> Option<RetiredVma> {
        let start = *self.tree.cursor_front()?.current().0;
        self.remove(start).map(|nodes| RetiredVma { _nodes: nodes })
    }
}

/// How to undo one step.
enum Undo {
    /// A VMA was inserted at this address, or would have been.
    Inserted(u64),
    /// This was removed; nothing yet if the step was not finished.
    Removed(Option<Nodes>),
}

/// A change of a map; undone when dropped.
#[must_use = "a change that is not committed is undone at once"]
pub(crate) struct Changes<'a> {
    map: &'a mut VmaMap,
    undo: KVVec<Undo>,
}

/// What a committed change removed. It holds buffers: to be dropped after the GPU has let go of
/// them, and without locks, as the last reference to a buffer frees it.
#[must_use = "buffers must not be dropped before the GPU's mappings of them"]
pub(crate) struct Retired {
    _vmas: KVVec<Undo>,
}

/// A VMA that was taken out. It may hold the last reference to a buffer, and is to be dropped as what is
/// [`Retired`].
#[must_use = "buffers must not be dropped before the GPU's mappings of them"]
pub(crate) struct RetiredVma {
    _nodes: Nodes,
}

impl Changes<'_> {
    /// The map as the change has made it so far.
    pub(crate) fn map(&self) -> &VmaMap {
        self.map
    }

    /// Makes the change last.
    pub(crate) fn commit(mut self) -> Retired {
        Retired {
            _vmas: mem::take(&mut self.undo),
        }
    }

    /// Inserts a VMA where there is none. Fails with `EEXIST` where there is, and with `ENOMEM`.
    pub(crate) fn insert(&mut self, vma: Vma) -> Result {
        if vma.span.is_empty() || self.map.overlapping(vma.span.clone()).next().is_some() {
            return Err(EEXIST);
        }
        let key = vma.span.start;
        let nodes = Nodes::new(vma)?;
        self.undo.push(Undo::Inserted(key), account())?;
        self.map.insert(nodes);
        Ok(())
    }

    /// Removes the VMA that starts at `start`, if any.
    fn remove(&mut self, start: u64) -> Result {
        self.undo.push(Undo::Removed(None), account())?;
        let nodes = self.map.remove(start);
        if let Some(Undo::Removed(slot)) = self.undo.last_mut() {
            *slot = nodes;
        }
        Ok(())
    }

    /// Removes everything in `span`, and splits the VMAs that reach beyond it.
    ///
    /// `each` sees every piece before it goes, and may refuse. Fails with its error, with `EINTR` for a
    /// caller who is killed, and with `ENOMEM`.
    pub(crate) fn cut(&mut self, span: &Span, mut each: impl FnMut(&Vma) -> Result) -> Result {
        let mut at = span.start;
        while at < span.end {
            sched::check_killed()?;
            let Some(vma) = self
                .map
                .first_from(at)
                .filter(|vma| vma.span.start < span.end)
                .cloned()
            else {
                break;
            };
            if let Some(piece) = vma.part(span) {
                each(&piece)?;
            }
            at = vma.span.end;
            self.remove(vma.span.start)?;
            if let Some(before) = vma.before(span.start) {
                self.insert(before)?;
            }
            if let Some(after) = vma.after(span.end) {
                self.insert(after)?;
            }
        }
        Ok(())
    }

    /// Splits the VMA at `addr`, if there is one and it does not begin there, so that one begins.
    pub(crate) fn split(&mut self, addr: u64) -> Result {
        let Some(vma) = self.map.find(addr).cloned() else {
            return Ok(());
        };
        let (Some(before), Some(after)) = (vma.before(addr), vma.after(addr)) else {
            return Ok(());
        };
        self.remove(vma.span.start)?;
        self.insert(before)?;
        self.insert(after)
    }

    /// Replaces a VMA by one of the same span.
    pub(crate) fn replace(&mut self, vma: Vma) -> Result {
        self.remove(vma.span.start)?;
        self.insert(vma)
    }

    /// The span of `vma`, a mirror yet to be inserted, with those neighbours that it makes one
    /// mirror with.
    pub(crate) fn merged(&self, vma: &Vma) -> Span {
        let mut span = vma.span.clone();
        let before = span.start.checked_sub(1).and_then(|at| self.map.find(at));
        if let Some(before) = before.filter(|before| before.is_like(vma)) {
            span.start = before.span.start;
        }
        if let Some(after) = self.map.find(span.end).filter(|after| after.is_like(vma)) {
            span.end = after.span.end;
        }
        span
    }
}

impl Drop for Changes<'_> {
    fn drop(&mut self) {
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Inserted(start) => drop(self.map.remove(start)),
                // All that was done since is undone, so that it fits as it did before.
                Undo::Removed(Some(nodes)) => self.map.insert(nodes),
                Undo::Removed(None) => {}
            }
            sched::cond_resched();
        }
    }
}
