// SPDX-License-Identifier: GPL-2.0

//! The radix tree of a page table, without its lock.
//!
//! Levels are counted from the leaves: a slot of level 0 is a small page, one of level 1 a large
//! page or a table of small ones, and so on up to the root, a slot of level [`ROOT_LEVEL`] for the
//! whole address space. Leaves are only at levels 0 and 1. An empty table is removed at once, so
//! that its memory is freed.
//!
//! Operations that change the tree work within one large page (except [`Tree::detach`]), so they
//! are short enough for a spinlock; the caller iterates over large pages.

use super::{
    node::{Node, NodeList, Slot, SLOTS, SLOT_BITS},
    Pte,
    Target,
    LARGE_PAGE_SIZE,
    PAGE_SHIFT,
    PAGE_SIZE, //
};
use core::ops::Range;
use kernel::prelude::*;

/// The level of the slot that spans all addresses: four tables translate 48 bits.
const ROOT_LEVEL: u32 = 4;

/// Address bits below the index of a slot at `level`.
const fn shift(level: u32) -> u32 {
    PAGE_SHIFT + SLOT_BITS * level
}

/// Address bits that the tree translates.
pub(super) const TREE_BITS: u32 = shift(ROOT_LEVEL);

/// The index of the slot of `level` for `va` in its table.
const fn index(va: u64, level: u32) -> usize {
    // CAST: Less than `SLOTS`.
    ((va >> shift(level)) % SLOTS as u64) as usize
}

/// Counts the nodes that mapping spans takes at most: if nothing is mapped and all leaves are
/// small.
///
/// Splitting leaves takes no more: it happens only where an empty slot would have taken a node. A
/// table that several spans share counts once, so the count is proportional to the final size of
/// the page table.
pub(super) struct WorstCase {
    nodes: u64,
    /// For each level of tables, the number of the first table that was not counted yet.
    next: [u64; ROOT_LEVEL as usize],
}

impl WorstCase {
    pub(super) const fn new() -> Self {
        Self {
            nodes: 0,
            next: [0; ROOT_LEVEL as usize],
        }
    }

    /// Adds a span that is not empty. Spans must be in ascending order and not overlap.
    pub(super) fn add(&mut self, span: &Range<u64>) {
        let last = span.end.saturating_sub(1);
        for (level, next) in (1..).zip(&mut self.next) {
            let (first, last) = (span.start >> shift(level), last >> shift(level));
            let first = first.max(*next);
            // Cannot overflow: addresses have 48 bits.
            self.nodes += (last + 1).saturating_sub(first);
            *next = (last + 1).max(*next);
        }
    }

    pub(super) fn nodes(&self) -> Result<usize> {
        Ok(usize::try_from(self.nodes)?)
    }
}

/// The resources and results of one change.
pub(super) struct Change<'a> {
    /// The source of new nodes, if the change may need any.
    staged: Option<&'a mut NodeList>,
    /// Nodes that were removed from the tree, to be freed without the lock.
    pub(super) pruned: NodeList,
    /// The span of all translations that were removed or changed.
    pub(super) stale: Option<Range<u64>>,
    /// Whether `staged` had no node left, so that the change is incomplete.
    pub(super) starved: bool,
}

impl<'a> Change<'a> {
    pub(super) fn new(staged: Option<&'a mut NodeList>) -> Self {
        Self {
            staged,
            pruned: NodeList::new(),
            stale: None,
            starved: false,
        }
    }

    fn node(&mut self) -> Option<KBox<Node>> {
        let node = match &mut self.staged {
            Some(staged) => staged.pop(),
            None => None,
        };
        self.starved |= node.is_none();
        node
    }

    fn mark_stale(&mut self, start: u64, size: u64) {
        // Cannot overflow: both ends are addresses of the tree.
        let end = start + size;
        self.stale = Some(match self.stale.take() {
            Some(span) => span.start.min(start)..span.end.max(end),
            None => start..end,
        });
    }
}

/// How [`Tree::zap`] treats a large leaf that the span only partly covers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Edges {
    /// Clears it as a whole.
    Widen,
    /// Splits it into small leaves, which takes a node, and clears those in the span.
    Split,
}

/// A leaf that [`Tree::next_leaf`] returns.
pub(super) struct Leaf {
    pub(super) start: u64,
    pub(super) size: u64,
    pub(super) pte: Pte,
}

/// A radix tree of 48-bit addresses.
///
/// All addresses must be less than 2^[`TREE_BITS`]. Spans to map or zap lie within one large page.
pub(super) struct Tree {
    root: Slot,
}

impl Tree {
    pub(super) const fn new() -> Self {
        Self { root: Slot::Empty }
    }

    /// Returns the translation of the page of `va`.
    pub(super) fn translate(&self, va: u64) -> Option<Pte> {
        let mut slot = &self.root;
        let mut level = ROOT_LEVEL;
        loop {
            match slot {
                Slot::Empty => return None,
                Slot::Leaf(pte) => {
                    let within = va % (1 << shift(level)) / PAGE_SIZE * PAGE_SIZE;
                    return Some(Pte::new(pte.target().offset(within), pte.flags()));
                }
                Slot::Table { node, .. } => {
                    // Slots of level 0 are not tables.
                    level = level.checked_sub(1)?;
                    slot = node.slots.get(index(va, level))?;
                }
            }
        }
    }

    /// Returns the first leaf that ends beyond `from`.
    pub(super) fn next_leaf(&self, from: u64) -> Option<Leaf> {
        next_leaf(&self.root, ROOT_LEVEL, 0, from)
    }

    /// Maps the pages of `span`, which lie within one large page, to the memory of `first` and
    /// following.
    ///
    /// Makes a large leaf if the span is a large page and the target is aligned to it. Replaces
    /// existing mappings.
    pub(super) fn map(&mut self, span: &Range<u64>, first: Pte, change: &mut Change<'_>) {
        let base = span.start / LARGE_PAGE_SIZE * LARGE_PAGE_SIZE;
        let large = span.start == base
            && span.end - base == LARGE_PAGE_SIZE
            && first.target().is_aligned(LARGE_PAGE_SIZE);

        visit(
            &mut self.root,
            Levels(ROOT_LEVEL, 1),
            base,
            true,
            change,
            &mut |slot, change| {
                if large {
                    set_large(slot, base, first, change);
                } else {
                    set_small(slot, base, span, first, change);
                }
            },
        );
    }

    /// Returns whether a large leaf maps the page of `va`.
    pub(super) fn is_large(&self, va: u64) -> bool {
        self.next_leaf(va)
            .is_some_and(|leaf| leaf.start <= va && leaf.size == LARGE_PAGE_SIZE)
    }

    /// Detaches the largest table around `va` that only spans addresses in `within`: so that
    /// clearing a large span takes one step for each table and not for each page. Returns `None` if
    /// there is no such table.
    ///
    /// Detaches tables of up to 1 GiB, which are quick to free.
    pub(super) fn detach(
        &mut self,
        va: u64,
        within: &Range<u64>,
        change: &mut Change<'_>,
    ) -> Option<DetachedTable> {
        let span = |level| {
            let base = va >> shift(level) << shift(level);
            // Cannot overflow: addresses have 48 bits.
            base..base + (1 << shift(level))
        };
        let fits = |level: &u32| {
            let span = span(*level);
            within.start <= span.start && span.end <= within.end
        };
        let level = [2, 1].into_iter().find(fits)?;
        let Range { start, end } = span(level);
        let first = self.next_leaf(start)?.start;
        let mut table = None;
        visit(
            &mut self.root,
            Levels(ROOT_LEVEL, level),
            start,
            false,
            change,
            &mut |slot, change| {
                let last = end_of_last(slot, level, start);
                if let Slot::Table { .. } = slot {
                    if let (Slot::Table { mut node, .. }, Some(last)) = (slot.take(), last) {
                        change.mark_stale(first, last - first);
                        let mut tables = None;
                        if level == 1 {
                            // The table has only leaves, and the next fault may need a node.
                            node.clear_leaves();
                            change.pruned.push(node);
                        } else {
                            tables = Some(node);
                        }
                        table = Some(DetachedTable {
                            end,
                            _tables: tables,
                        });
                    }
                }
            },
        );
        table
    }

    /// Clears the pages of `span`, which lie within one large page.
    pub(super) fn zap(&mut self, span: &Range<u64>, edges: Edges, change: &mut Change<'_>) {
        let base = span.start / LARGE_PAGE_SIZE * LARGE_PAGE_SIZE;
        let whole = span.end - span.start == LARGE_PAGE_SIZE;

        visit(
            &mut self.root,
            Levels(ROOT_LEVEL, 1),
            base,
            false,
            change,
            &mut |slot, change| {
                if matches!(slot, Slot::Leaf(_)) {
                    if whole || edges == Edges::Widen {
                        *slot = Slot::Empty;
                        change.mark_stale(base, LARGE_PAGE_SIZE);
                        return;
                    }
                    if !make_table(slot, change) {
                        return;
                    }
                }
                let Slot::Table { node, live } = slot else {
                    return;
                };
                for (page, slot) in pages(node, span) {
                    if !slot.is_empty() {
                        *slot = Slot::Empty;
                        // `live` counted this slot.
                        *live -= 1;
                        change.mark_stale(base + page * PAGE_SIZE, PAGE_SIZE);
                    }
                }
                prune(slot, change);
            },
        );
    }
}

/// A table that was detached from a tree, to be dropped without the lock.
pub(super) struct DetachedTable {
    /// The end of the table's span.
    pub(super) end: u64,
    /// The table, unless it held only leaves.
    _tables: Option<KBox<Node>>,
}

/// Returns the end of the last leaf in `slot`, a slot of `level` that spans addresses from `base`
/// on.
fn end_of_last(slot: &Slot, level: u32, base: u64) -> Option<u64> {
    match slot {
        Slot::Empty => None,
        Slot::Leaf(_) => Some(base + (1 << shift(level))),
        Slot::Table { node, .. } => {
            let level = level.checked_sub(1)?;
            // CAST: Widens.
            let mut children = node.slots.iter().enumerate().rev();
            children
                .find_map(|(i, slot)| end_of_last(slot, level, base + ((i as u64) << shift(level))))
        }
    }
}

/// Returns the slots of `span` in a table of small pages, with their page numbers.
fn pages<'a>(node: &'a mut Node, span: &Range<u64>) -> impl Iterator<Item = (u64, &'a mut Slot)> {
    let count = (span.end - span.start) / PAGE_SIZE;
    // CAST: At most `SLOTS`.
    (0..)
        .zip(&mut node.slots)
        .skip(index(span.start, 0))
        .take(count as usize)
}

/// The level of the slot at which a visit starts, and the level of its target.
#[derive(Clone, Copy)]
struct Levels(u32, u32);

/// Calls `f` on the slot for `va` of the target level. With `create`, makes missing tables on the
/// way there. Removes empty tables on the way back.
fn visit(
    slot: &mut Slot,
    Levels(level, to): Levels,
    va: u64,
    create: bool,
    change: &mut Change<'_>,
    f: &mut dyn FnMut(&mut Slot, &mut Change<'_>),
) {
    if level <= to {
        return f(slot, change);
    }
    if slot.is_empty() {
        if !create {
            return;
        }
        let Some(node) = change.node() else { return };
        *slot = Slot::Table { node, live: 0 };
    }
    let Slot::Table { node, live } = slot else {
        return;
    };
    let level = level - 1;
    if let Some(child) = node.slots.get_mut(index(va, level)) {
        let was_empty = child.is_empty();
        visit(child, Levels(level, to), va, create, change, f);
        // `live` counts the slots that are not empty, of 512.
        match (was_empty, child.is_empty()) {
            (true, false) => *live += 1,
            (false, true) => *live -= 1,
            _ => {}
        }
    }
    prune(slot, change);
}

/// Removes an empty table from the tree.
fn prune(slot: &mut Slot, change: &mut Change<'_>) {
    if matches!(slot, Slot::Table { live: 0, .. }) {
        if let Slot::Table { node, .. } = slot.take() {
            change.pruned.push(node);
        }
    }
}

/// Makes a table of small pages of an empty slot or a large leaf. Returns false without a node.
fn make_table(slot: &mut Slot, change: &mut Change<'_>) -> bool {
    let leaf = match slot {
        Slot::Table { .. } => return true,
        Slot::Leaf(pte) => Some(*pte),
        Slot::Empty => None,
    };
    let Some(mut node) = change.node() else {
        return false;
    };
    let live = match leaf {
        Some(pte) => {
            node.fill_from(pte);
            // CAST: 512.
            SLOTS as u16
        }
        None => 0,
    };
    *slot = Slot::Table { node, live };
    true
}

/// Makes `slot`, a large page at `base`, one leaf.
fn set_large(slot: &mut Slot, base: u64, pte: Pte, change: &mut Change<'_>) {
    match slot.take() {
        Slot::Empty => {}
        Slot::Leaf(old) => {
            if old != pte {
                change.mark_stale(base, LARGE_PAGE_SIZE);
            }
        }
        Slot::Table { mut node, .. } => {
            node.clear_leaves();
            change.pruned.push(node);
            change.mark_stale(base, LARGE_PAGE_SIZE);
        }
    }
    *slot = Slot::Leaf(pte);
}

/// Maps `span` within `slot`, a large page at `base`, by small leaves from `first` on.
fn set_small(slot: &mut Slot, base: u64, span: &Range<u64>, first: Pte, change: &mut Change<'_>) {
    if !make_table(slot, change) {
        return;
    }
    let Slot::Table { node, live } = slot else {
        return;
    };
    let mut target: Target = first.target();
    for (page, slot) in pages(node, span) {
        let pte = Pte::new(target, first.flags());
        match slot {
            // `live` counts the slots that are not empty, of 512.
            Slot::Empty => *live += 1,
            Slot::Leaf(old) if *old == pte => {}
            _ => change.mark_stale(base + page * PAGE_SIZE, PAGE_SIZE),
        }
        *slot = Slot::Leaf(pte);
        target = target.offset(PAGE_SIZE);
    }
}

/// Returns the first leaf in `slot` that ends beyond `from`. `slot` is of `level` and spans
/// addresses from `base` on.
fn next_leaf(slot: &Slot, level: u32, base: u64, from: u64) -> Option<Leaf> {
    match slot {
        Slot::Empty => None,
        Slot::Leaf(pte) => Some(Leaf {
            start: base,
            size: 1 << shift(level),
            pte: *pte,
        }),
        Slot::Table { node, .. } => {
            // Slots of level 0 are not tables.
            let level = level.checked_sub(1)?;
            let size = 1 << shift(level);
            let first = from.saturating_sub(base) / size;
            (0u64..)
                .zip(&node.slots)
                .skip(usize::try_from(first).unwrap_or(usize::MAX))
                .find_map(|(i, slot)| next_leaf(slot, level, base + i * size, from))
        }
    }
}
