// SPDX-License-Identifier: GPL-2.0

//! The VMAs of a VM: which do not overlap, and change all together or not at all.
//!
//! A change of several steps is made through [`Changes`], which undoes all of them unless they are
//! committed. What is undone was there before, so that undoing needs no memory.
//!
//! VMAs, and what undoing takes, are charged to the memory cgroup of who makes the change. A change ends
//! with `EINTR` when its maker is killed, however many VMAs it is about. Who is killed does not undo what
//! he did, which takes a quarter as long as doing it: that is left in the map for whoever locks it next,
//! and [`VmaMaps::lock`] is the only way to a map. Of a VM that is closed nobody has to.

use super::{
    account,
    vma::{
        Backing,
        Span,
        Vma, //
    }, //
};
use crate::bo::Bo;
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

/// Which buffer a VMA maps, and its first address.
type BoKey = (usize, u64);

/// What VMAs of a buffer are found by. Each of them keeps it alive, so that no other is at its place.
fn identity(bo: &Bo) -> usize {
    core::ptr::from_ref(bo).addr()
}

/// The VMAs of a VM, and the lock that they need.
#[pin_data]
pub(crate) struct VmaMaps {
    #[pin]
    inner: Mutex<VmaMap>,
}

/// A map that is locked, and in which nothing is left to be undone.
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

impl VmaMaps {
    /// No VMAs.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_mutex!(VmaMap::new(), "vxe_vma_map"),
        })
    }

    /// Locks the map, and first undoes what somebody left who was killed: so this may take as long as a
    /// quarter of that call did, and drop buffers.
    pub(crate) fn lock(&self) -> MapGuard<'_> {
        loop {
            let mut map = self.inner.lock();
            while map.undo_one() {
                sched::cond_resched();
            }
            match map.take_undone() {
                None => return MapGuard(map),
                // Without the map's lock, as it may have the last reference to a buffer. The SVM lock may be
                // held: none of what the end of a buffer takes is ever held by who waits for that.
                Some(undone) => {
                    drop(map);
                    drop(undone);
                }
            }
        }
    }

    /// As [`lock`](Self::lock). Fails with `EINTR` for a caller who is killed, and leaves the rest.
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

    /// Drops what a change removed. Returns whether the caller was killed, and left some of it for who calls
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
            // There is no memory to leave it: it is dropped here and now, without the lock.
            drop(map);
            drop(rest);
            return false;
        }
        // Does not allocate.
        map.left.push(rest, account()).is_ok()
    }

    /// Drops what others left who were killed.
    pub(crate) fn drop_left(&self) {
        loop {
            let left = mem::replace(&mut self.inner.lock().left, KVVec::new());
            if left.is_empty() {
                return;
            }
            drop(left);
        }
    }

    /// Takes one VMA, or something that was one, out for good; none if there is none. For a VM that is
    /// closed: nothing is undone any more.
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
        // Frees the memory of what is empty.
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
/// The key of each VMA is the start of its span, no span is empty, and no two overlap. `mappings` has a key
/// for each VMA that maps a buffer, and no other. What the steps in `unfinished` removed fits in again in
/// their reverse order.
pub(crate) struct VmaMap {
    tree: RBTree<u64, Vma>,
    mappings: RBTree<BoKey, ()>,
    unfinished: Unfinished,
    /// What changes removed, and nobody has dropped yet.
    left: KVVec<Steps>,
}

/// The steps of a change. Dropped, they let others run if it is time.
struct Steps(KVVec<Step>);

impl Steps {
    /// Drops them one by one, and returns the rest when the caller is killed.
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

/// A change that is to be undone.
struct Unfinished {
    steps: Steps,
    /// How many of the steps are not undone, the first of them.
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
    fn new() -> Self {
        Self {
            tree: RBTree::new(),
            mappings: RBTree::new(),
            unfinished: Unfinished::none(),
            left: KVVec::new(),
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

    /// Undoes the last step that is not undone, if there is one, and whether there was.
    fn undo_one(&mut self) -> bool {
        let Some(last) = self.unfinished.left.checked_sub(1) else {
            return false;
        };
        self.unfinished.left = last;
        let Some(step) = self.unfinished.steps.0.get_mut(last) else {
            return false;
        };
        // What was inserted stays in the step, as it may have the last reference to a buffer.
        let undone = match mem::replace(step, Step::Undone(None)) {
            Step::Inserted(start) => Step::Undone(self.remove(start)),
            Step::Removed(nodes) => {
                // All that was done since is undone, so that it fits as it did before.
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

    /// What is left of a change when all of it is undone.
    fn take_undone(&mut self) -> Option<Unfinished> {
        let is_undone = self.unfinished.left == 0 && !self.unfinished.steps.0.is_empty();
        is_undone.then(|| mem::replace(&mut self.unfinished, Unfinished::none()))
    }
}

/// One step of a change.
enum Step {
    /// A VMA was inserted at this address, or would have been.
    Inserted(u64),
    /// This was removed.
    Removed(Nodes),
    /// Nothing is to be undone, or not any more. This was inserted.
    Undone(#[expect(dead_code, reason = "is kept to be dropped")] Option<Nodes>),
}

/// A change of a map; undone when dropped.
#[must_use = "a change that is not committed is undone at once"]
pub(crate) struct Changes<'a> {
    map: Guard<'a, VmaMap, MutexBackend>,
    steps: Steps,
}

/// What a committed change removed. It holds buffers: to be dropped after the GPU has let go of
/// them, and without locks, as the last reference to a buffer frees it.
#[must_use = "buffers must not be dropped before the GPU's mappings of them"]
pub(crate) struct Retired {
    vmas: Steps,
}

/// A VMA that was taken out. It may hold the last reference to a buffer, and is to be dropped as what is
/// [`Retired`].
#[must_use = "buffers must not be dropped before the GPU's mappings of them"]
pub(crate) struct RetiredVma {
    _was: Step,
}

impl Changes<'_> {
    /// The map as the change has made it so far.
    pub(crate) fn map(&self) -> &VmaMap {
        &self.map
    }

    /// Makes the change last, and unlocks the map.
    pub(crate) fn commit(mut self) -> Retired {
        Retired {
            vmas: self.take_steps(),
        }
    }

    fn take_steps(&mut self) -> Steps {
        mem::replace(&mut self.steps, Steps(KVVec::new()))
    }

    /// Inserts a VMA where there is none. Fails with `EEXIST` where there is, and with `ENOMEM`.
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

    /// Removes the VMA that starts at `start`, if any.
    fn remove(&mut self, start: u64) -> Result {
        self.steps.0.push(Step::Undone(None), account())?;
        if let (Some(nodes), Some(step)) = (self.map.remove(start), self.steps.0.last_mut()) {
            *step = Step::Removed(nodes);
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
    /// Undoes the change. The rest is left in the map when the caller is killed.
    fn drop(&mut self) {
        if self.steps.0.is_empty() {
            return;
        }
        let steps = self.take_steps();
        // There is none yet: the map was locked by `VmaMaps`.
        self.map.unfinished = Unfinished {
            left: steps.0.len(),
            steps,
        };
        while sched::check_killed().is_ok() {
            if !self.map.undo_one() {
                // Whose buffers it was about has them still, so that none is freed here.
                drop(self.map.take_undone());
                return;
            }
        }
    }
}
