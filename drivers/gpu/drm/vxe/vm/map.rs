// SPDX-License-Identifier: GPL-2.0

//! The map of a VM's VMAs, which do not overlap, and transactional changes of it.
//!
//! A change of several steps is made through [`Changes`], which undoes the steps unless it is
//! committed. Undoing restores earlier nodes, so it allocates no memory.
//!
//! VMAs and undo steps are charged to the memory cgroup of the thread that makes the change. A
//! change fails with `EINTR` when that thread is killed. A killed thread does not finish undoing,
//! which takes a quarter of the time of the change: the rest stays in the map for the next thread
//! that locks it, and [`LockedVmaMap::lock`] and [`LockedVmaMap::lock_killable`] are the only ways
//! to a map. For a closed VM it is not undone.

use super::{
    account,
    spans::SortedSpans,
    vma::{
        Backing,
        Span,
        Vma, //
    }, //
};
use crate::bo::{
    Bo,
    Hold, //
};
use core::{
    mem,
    ops::Deref, //
};
use kernel::{
    prelude::*,
    rbtree::{RBTree, RBTreeNode},
    sync::{
        lock::{
            mutex::MutexBackend,
            Guard, //
        },
        new_mutex,
        Mutex, //
    }, //
};
use kernel_ext::{
    sched,
    sync::mutex, //
};

/// The buffer that a VMA maps, by address, and the VMA's first address.
type BoKey = (usize, u64);

/// Returns the key of a buffer's VMAs. Each VMA holds a reference to the buffer, so no other buffer
/// has this address.
fn identity(bo: &Bo) -> usize {
    core::ptr::from_ref(bo).addr()
}

/// The VMAs of a VM, and their lock.
#[pin_data]
pub(crate) struct LockedVmaMap {
    #[pin]
    inner: Mutex<VmaMap>,
}

/// The locked map, with no step left to undo.
pub(crate) struct MapGuard<'a>(Guard<'a, VmaMap, MutexBackend>);

impl Deref for MapGuard<'_> {
    type Target = VmaMap;

    fn deref(&self) -> &VmaMap {
        &self.0
    }
}

impl<'a> MapGuard<'a> {
    /// Begins a change.
    pub(crate) fn change(self) -> Changes<'a> {
        Changes {
            map: self.0,
            steps: Steps(KVVec::new()),
        }
    }
}

impl LockedVmaMap {
    /// Creates an empty map.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_mutex!(VmaMap::new(), "vxe_vma_map"),
        })
    }

    /// Locks the map and undoes what a killed thread left. This may take a quarter of the time of
    /// that thread's call, and drops references to buffers.
    pub(crate) fn lock(&self) -> MapGuard<'_> {
        loop {
            let mut map = self.inner.lock();
            while map.undo_one() {
                sched::cond_resched();
            }
            match map.take_undone() {
                None => return MapGuard(map),
                // Dropped without the map's lock, as it may hold the last reference to a buffer.
                // The SVM lock may be held: no thread that waits for the SVM lock holds a lock that
                // freeing a buffer takes.
                Some(undone) => {
                    drop(map);
                    drop(undone);
                }
            }
        }
    }

    /// Locks the map as [`lock`](Self::lock) does. Fails with `EINTR` for a killed caller, who
    /// leaves the remaining steps.
    pub(crate) fn lock_killable(&self) -> Result<MapGuard<'_>> {
        loop {
            let mut map = mutex::lock_killable(&self.inner)?;
            while map.undo_one() {
                sched::check_killed()?;
            }
            match map.take_undone() {
                None => return Ok(MapGuard(map)),
                Some(undone) => {
                    drop(map);
                    if self.drop_killable(undone.steps) {
                        return Err(EINTR);
                    }
                }
            }
        }
    }

    /// Drops what a change removed. Returns whether the caller was killed and left a part for
    /// [`drop_left`](Self::drop_left).
    pub(crate) fn retire(&self, retired: Retired) -> bool {
        self.drop_killable(retired.vmas)
    }

    fn drop_killable(&self, steps: Steps) -> bool {
        let Some(rest) = steps.drop_killable() else {
            return false;
        };
        let mut map = self.inner.lock();
        if map.left.reserve(1, account()).is_err() {
            // No memory to leave it in the map: drop it here, without the lock.
            drop(map);
            drop(rest);
            return false;
        }
        // Does not allocate, as just reserved.
        map.left.push(rest, account()).is_ok()
    }

    /// Drops what killed threads left.
    pub(crate) fn drop_left(&self) {
        loop {
            let left = mem::replace(&mut self.inner.lock().left, KVVec::new());
            if left.is_empty() {
                return;
            }
            drop(left);
        }
    }

    /// Takes one VMA, or an undo step, out of the map; none if the map is empty. For a closed VM,
    /// in which nothing is undone any more.
    pub(crate) fn take_any(&self) -> Option<RetiredVma> {
        let mut map = self.inner.lock();
        if let Some(step) = map.unfinished.steps.0.pop() {
            return Some(RetiredVma { _was: step });
        }
        while let Some(steps) = map.left.last_mut() {
            if let Some(step) = steps.0.pop() {
                return Some(RetiredVma { _was: step });
            }
            map.left.pop();
        }
        // Frees the memory of the empty arrays.
        map.unfinished = Unfinished::none();
        map.left = KVVec::new();
        let start = *map.tree.cursor_front()?.current().0;
        let nodes = map.remove(start)?;
        Some(RetiredVma {
            _was: Step::Removed(nodes),
        })
    }
}

/// The VMAs of a VM, by their first address.
///
/// # Invariants
///
/// The key of each VMA is the start of its span, no span is empty, and no two overlap. `mappings`
/// has exactly one key for each VMA that maps a buffer. The nodes removed by the steps in
/// `unfinished` fit in again in reverse order.
pub(crate) struct VmaMap {
    tree: RBTree<u64, Vma>,
    mappings: RBTree<BoKey, Hold>,
    unfinished: Unfinished,
    /// What changes removed and killed threads have not dropped.
    left: KVVec<Steps>,
}

/// The steps of a change. Dropping them reschedules if needed.
struct Steps(KVVec<Step>);

impl Steps {
    /// Drops the steps one by one. Returns the rest if the caller is killed.
    fn drop_killable(mut self) -> Option<Self> {
        while sched::check_killed().is_ok() {
            drop(self.0.pop()?);
        }
        Some(self)
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        while self.0.pop().is_some() {
            sched::cond_resched();
        }
    }
}

/// A change that is being undone.
struct Unfinished {
    steps: Steps,
    /// The number of leading steps that are not undone yet.
    left: usize,
}

impl Unfinished {
    fn none() -> Self {
        Self {
            steps: Steps(KVVec::new()),
            left: 0,
        }
    }
}

/// A VMA that is not in a map, with all memory that inserting it needs.
struct Nodes {
    vma: RBTreeNode<u64, Vma>,
    mapping: Option<RBTreeNode<BoKey, Hold>>,
}

impl Nodes {
    /// Allocates the nodes. Fails with `ENOMEM`, and as [`Hold::new`] does.
    fn new(vma: Vma) -> Result<Self> {
        let mapping = match &vma.backing {
            Backing::Bo { bo, .. } => {
                let key = (identity(bo), vma.span.start);
                let hold = Hold::new(bo, vma.attributes.needed)?;
                Some(RBTreeNode::new(key, hold, account())?)
            }
            Backing::Mirror | Backing::Userptr { .. } | Backing::Null => None,
        };
        let vma = RBTreeNode::new(vma.span.start, vma, account())?;
        Ok(Self { vma, mapping })
    }
}

impl VmaMap {
    fn new() -> Self {
        Self {
            tree: RBTree::new(),
            mappings: RBTree::new(),
            unfinished: Unfinished::none(),
            left: KVVec::new(),
        }
    }

    /// Inserts a VMA, which must not be empty nor overlap another.
    fn insert(&mut self, nodes: Nodes) {
        // INVARIANT: The caller guarantees that the VMA is not empty and does not overlap;
        // `Nodes::new()` took the keys from it.
        self.tree.insert(nodes.vma);
        if let Some(mapping) = nodes.mapping {
            self.mappings.insert(mapping);
        }
    }

    /// Removes the VMA that starts at `start`, if there is one.
    fn remove(&mut self, start: u64) -> Option<Nodes> {
        let key = match &self.tree.get(&start)?.backing {
            Backing::Bo { bo, .. } => Some((identity(bo), start)),
            Backing::Mirror | Backing::Userptr { .. } | Backing::Null => None,
        };
        // INVARIANT: The VMA and its key in `mappings` are removed together.
        Some(Nodes {
            vma: self.tree.remove_node(&start)?,
            mapping: key.and_then(|key| self.mappings.remove_node(&key)),
        })
    }

    /// Returns the span of the first VMA that maps `bo`.
    pub(crate) fn first_of(&self, bo: &Bo) -> Option<Span> {
        let cursor = self.mappings.cursor_lower_bound(&(identity(bo), 0))?;
        let (&(of, start), _) = cursor.current();
        let vma = self.tree.get(&start)?;
        (of == identity(bo)).then(|| vma.span.clone())
    }

    /// Returns the spans of all VMAs that map `bo`.
    pub(crate) fn spans_of<'a>(&'a self, bo: &Bo) -> impl Iterator<Item = Span> + 'a {
        let of = identity(bo);
        let mut next = Some(0);
        core::iter::from_fn(move || {
            let cursor = self.mappings.cursor_lower_bound(&(of, next?))?;
            let (&(found, start), _) = cursor.current();
            next = start.checked_add(1);
            let vma = self.tree.get(&start)?;
            (found == of).then(|| vma.span.clone())
        })
    }

    /// Returns the VMA at `addr`.
    pub(crate) fn find(&self, addr: u64) -> Option<&Vma> {
        self.first_from(addr).filter(|vma| vma.span.start <= addr)
    }

    /// Returns the first VMA that ends after `addr`.
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

    /// Returns the VMAs that overlap `span`, in ascending order.
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

    /// Returns the VMAs that overlap any of `spans`, each once, in ascending order.
    pub(crate) fn overlapping_any<'a>(
        &'a self,
        spans: &'a SortedSpans,
    ) -> impl Iterator<Item = &'a Vma> {
        let mut done = 0;
        let vmas = spans.iter().flat_map(|span| self.overlapping(span));
        // A VMA that overlaps several spans is found with each of them.
        vmas.filter(move |vma| {
            let is_new = vma.span.start >= done;
            done = vma.span.end.max(done);
            is_new
        })
    }

    /// Returns all VMAs, in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Vma> {
        self.tree.values()
    }

    /// Undoes the last step that is not undone. Returns whether there was one.
    fn undo_one(&mut self) -> bool {
        let Some(last) = self.unfinished.left.checked_sub(1) else {
            return false;
        };
        self.unfinished.left = last;
        let Some(step) = self.unfinished.steps.0.get_mut(last) else {
            return false;
        };
        // The inserted nodes stay in the step, as they may hold the last reference to a buffer.
        let undone = match mem::replace(step, Step::Undone(None)) {
            Step::Inserted(start) => Step::Undone(self.remove(start)),
            Step::Removed(nodes) => {
                // All later steps are undone, so the map is as it was at the removal.
                self.insert(nodes);
                return true;
            }
            undone @ Step::Undone(_) => undone,
        };
        if let Some(step) = self.unfinished.steps.0.get_mut(last) {
            *step = undone;
        }
        true
    }

    /// Takes a completely undone change out of the map.
    fn take_undone(&mut self) -> Option<Unfinished> {
        let is_undone = self.unfinished.left == 0 && !self.unfinished.steps.0.is_empty();
        is_undone.then(|| mem::replace(&mut self.unfinished, Unfinished::none()))
    }
}

/// One step of a change.
enum Step {
    /// A VMA was to be inserted at this address, and was unless the change failed.
    Inserted(u64),
    /// These nodes were removed.
    Removed(Nodes),
    /// Nothing is to be undone. The nodes were inserted and removed again.
    Undone(#[expect(dead_code, reason = "is kept to be dropped")] Option<Nodes>),
}

/// A change of a map. Undone when dropped.
#[must_use = "a change that is not committed is undone at once"]
pub(crate) struct Changes<'a> {
    map: Guard<'a, VmaMap, MutexBackend>,
    steps: Steps,
}

/// What a committed change removed. It holds references to buffers: drop it after the GPU's
/// mappings are removed and without locks, as dropping the last reference frees the buffer.
#[must_use = "buffers must not be dropped before the GPU's mappings of them"]
pub(crate) struct Retired {
    vmas: Steps,
}

/// A VMA that was taken out of the map. It may hold the last reference to a buffer: drop it as
/// [`Retired`].
#[must_use = "buffers must not be dropped before the GPU's mappings of them"]
pub(crate) struct RetiredVma {
    _was: Step,
}

impl Changes<'_> {
    /// Returns the map with the steps made so far.
    pub(crate) fn map(&self) -> &VmaMap {
        &self.map
    }

    /// Commits the change, and unlocks the map.
    pub(crate) fn commit(mut self) -> Retired {
        Retired {
            vmas: self.take_steps(),
        }
    }

    fn take_steps(&mut self) -> Steps {
        mem::replace(&mut self.steps, Steps(KVVec::new()))
    }

    /// Inserts a VMA. Fails with `EEXIST` if it is empty or overlaps another, with `ENOMEM`, and, if
    /// it maps a buffer and needs its contents, as [`Hold::new`] does.
    pub(crate) fn insert(&mut self, vma: Vma) -> Result {
        if vma.span.is_empty() || self.map.overlapping(vma.span.clone()).next().is_some() {
            return Err(EEXIST);
        }
        let key = vma.span.start;
        let nodes = Nodes::new(vma)?;
        self.steps.0.push(Step::Inserted(key), account())?;
        self.map.insert(nodes);
        Ok(())
    }

    /// Removes the VMA that starts at `start`, if any. Fails with `ENOMEM`.
    fn remove(&mut self, start: u64) -> Result {
        self.steps.0.push(Step::Undone(None), account())?;
        if let (Some(nodes), Some(step)) = (self.map.remove(start), self.steps.0.last_mut()) {
            *step = Step::Removed(nodes);
        }
        Ok(())
    }

    /// Removes everything in `span`, and splits the VMAs that cross its ends.
    ///
    /// Calls `each` with every part before its removal, and fails with its error. Also fails with
    /// `EINTR` for a killed caller, and with `ENOMEM`.
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

    /// Splits the VMA that crosses `addr`, if there is one.
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

    /// Replaces a VMA by one with the same span.
    pub(crate) fn replace(&mut self, vma: Vma) -> Result {
        self.remove(vma.span.start)?;
        self.insert(vma)
    }

    /// Returns the span of `vma`, a mirror that is not inserted yet, joined with the neighbours
    /// that have the same attributes.
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
    /// Undoes the change. A killed caller leaves the remaining steps in the map.
    fn drop(&mut self) {
        if self.steps.0.is_empty() {
            return;
        }
        let steps = self.take_steps();
        // There is no other unfinished change: locking the map undid it.
        self.map.unfinished = Unfinished {
            left: steps.0.len(),
            steps,
        };
        while sched::check_killed().is_ok() {
            if !self.map.undo_one() {
                // The caller still holds references to the buffers of its operations, so this frees
                // none.
                drop(self.map.take_undone());
                return;
            }
        }
    }
}
