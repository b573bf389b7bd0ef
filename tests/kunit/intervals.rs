// SPDX-License-Identifier: GPL-2.0

//! Tests of interval trees and their lists, against a model.

use crate::random::Random;
use core::ops::Range;
use kernel::prelude::*;
use kernel_ext::interval_tree::{Node, Tree};

/// The number of nodes; node `i` is within `[i * STEP, (i + 1) * STEP)`.
const PLACES: usize = 48;
const STEP: usize = 0x1000;

/// A tree, its possible nodes, and which of them are linked. The tree is not used after the nodes
/// are freed.
struct Model {
    nodes: KVec<Pin<KBox<Node>>>,
    linked: [bool; PLACES],
    tree: Pin<KBox<Tree>>,
}

impl Model {
    fn new(random: &mut Random) -> Result<Self> {
        let mut nodes = KVec::new();
        for place in 0..PLACES {
            // Some nodes touch their neighbour, some do not; none overlaps it.
            let start = place * STEP + [0, 1, 0x10][random.below(3)];
            let end = (place + 1) * STEP - [0, 1, 0x800][random.below(3)];
            nodes.push(
                KBox::pin_init(Node::new(start..end), GFP_KERNEL)?,
                GFP_KERNEL,
            )?;
        }
        Ok(Self {
            nodes,
            linked: [false; PLACES],
            tree: KBox::pin_init(Tree::new(), GFP_KERNEL)?,
        })
    }

    fn node(&self, place: usize) -> *mut Node {
        (&raw const *self.nodes[place]).cast_mut()
    }

    fn toggle(&mut self, place: usize) {
        let node = self.node(place);
        // SAFETY: No other thread uses the tree; `linked` says whether the node is linked.
        unsafe {
            if self.linked[place] {
                self.tree.remove(node);
            } else {
                self.tree.insert(node);
            }
        }
        self.linked[place] = !self.linked[place];
    }

    fn first(&self, span: Range<usize>) -> *mut Node {
        // SAFETY: No other thread uses the tree.
        unsafe { self.tree.first(span) }
    }

    /// Returns the node that `first(span)` must return according to the model.
    fn expected(&self, span: &Range<usize>) -> *mut Node {
        (0..PLACES)
            .filter(|&place| self.linked[place])
            .find(|&place| {
                let node = &self.nodes[place];
                node.start() < span.end && span.start < node.end()
            })
            .map_or(core::ptr::null_mut(), |place| self.node(place))
    }

    /// Checks that the list contains all nodes of the tree, in the tree's order.
    fn check_order(&self) -> Result {
        let mut node = self.first(0..usize::MAX);
        for place in (0..PLACES).filter(|&place| self.linked[place]) {
            ensure_eq!(node, self.node(place));
            // The node that the tree finds next must be the next in the list.
            // SAFETY: The node is linked, and no other thread uses the tree.
            let (after, next) = unsafe { ((*node).end(), self.tree.next(node)) };
            ensure_eq!(self.first(after..usize::MAX), next);
            node = next;
        }
        ensure!(node.is_null());
        // SAFETY: No other thread uses the tree.
        let empty = unsafe { self.tree.is_empty() };
        ensure_eq!(empty, !self.linked.contains(&true));
        Ok(())
    }
}

fn pinned(span: Range<usize>) -> Result<Pin<KBox<Node>>> {
    KBox::pin_init(Node::new(span), GFP_KERNEL)
}

fn raw(node: &Pin<KBox<Node>>) -> *mut Node {
    (&raw const **node).cast_mut()
}

#[kunit_tests(gpusvm_intervals)]
mod tests {
    use super::*;

    #[test]
    fn random_changes_follow_a_model() -> Result {
        let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
        let mut model = Model::new(&mut random)?;
        model.check_order()?;
        for _ in 0..600 {
            model.toggle(random.below(PLACES));
            model.check_order()?;
            for _ in 0..8 {
                let start = random.below(PLACES * STEP);
                let span = start..start + 1 + random.below(3 * STEP);
                ensure_eq!(model.first(span.clone()), model.expected(&span));
            }
        }
        Ok(())
    }

    #[test]
    fn insertion_order_does_not_matter() -> Result {
        for (multiplier, offset) in [(1, 0), (PLACES - 1, PLACES - 1), (5, 3), (7, 20)] {
            let mut model = Model::new(&mut Random::new(7))?;
            // Insert in ascending order, in descending order, and in two permutations.
            for i in 0..PLACES {
                model.toggle((i * multiplier + offset) % PLACES);
                model.check_order()?;
            }
            for i in 0..PLACES {
                model.toggle((i * 11 + 1) % PLACES);
                model.check_order()?;
            }
        }
        Ok(())
    }

    #[test]
    fn ends_are_exclusive() -> Result {
        let tree = KBox::pin_init(Tree::new(), GFP_KERNEL)?;
        let node = pinned(0x1000..0x3000)?;
        // SAFETY: No other thread uses the tree; it is not used after the node is freed.
        unsafe {
            tree.insert(raw(&node));
            ensure!(tree.first(0..0x1000).is_null());
            ensure!(tree.first(0x3000..0x4000).is_null());
            ensure_eq!(tree.first(0..0x1001), raw(&node));
            ensure_eq!(tree.first(0x2fff..0x3000), raw(&node));
            ensure_eq!(tree.first(0x1800..0x1801), raw(&node));
        }
        Ok(())
    }

    #[test]
    fn an_empty_span_meets_nothing() -> Result {
        let tree = KBox::pin_init(Tree::new(), GFP_KERNEL)?;
        let node = pinned(0..0x3000)?;
        // SAFETY: No other thread uses the tree; it is not used after the node is freed.
        unsafe {
            tree.insert(raw(&node));
            for at in [0, 1, 0x1000, 0x3000] {
                let reversed = at + 1..at;
                ensure!(tree.first(at..at).is_null());
                ensure!(tree.first(reversed).is_null());
            }
        }
        Ok(())
    }

    #[test]
    fn both_ends_of_the_address_space() -> Result {
        const LAST: usize = usize::MAX;
        let tree = KBox::pin_init(Tree::new(), GFP_KERNEL)?;
        let (low, high) = (pinned(0..1)?, pinned(LAST - 0xfff..LAST)?);
        // The end of a node that includes the last address is 0.
        let last = pinned(Range {
            start: LAST,
            end: 0,
        })?;
        ensure_eq!((low.start(), low.end()), (0, 1));
        ensure_eq!((high.start(), high.end()), (LAST - 0xfff, LAST));
        ensure_eq!((last.start(), last.end()), (LAST, 0));
        // SAFETY: No other thread uses the tree; it is not used after the nodes are freed.
        unsafe {
            tree.insert(raw(&last));
            tree.insert(raw(&high));
            tree.insert(raw(&low));
            ensure_eq!(tree.first(0..LAST), raw(&low));
            ensure_eq!(tree.first(1..LAST), raw(&high));
            ensure_eq!(tree.first(LAST - 1..LAST), raw(&high));
            ensure_eq!(tree.next(raw(&low)), raw(&high));
            ensure_eq!(tree.next(raw(&high)), raw(&last));
            ensure!(tree.next(raw(&last)).is_null());
            tree.remove(raw(&high));
            ensure!(tree.first(1..LAST).is_null());
            ensure_eq!(tree.next(raw(&low)), raw(&last));
        }
        Ok(())
    }

    #[test]
    fn a_removed_node_can_be_inserted_again() -> Result {
        let (one, two) = (
            KBox::pin_init(Tree::new(), GFP_KERNEL)?,
            KBox::pin_init(Tree::new(), GFP_KERNEL)?,
        );
        let node = pinned(0x1000..0x2000)?;
        // SAFETY: No other thread uses the trees; the node is in one tree at a time.
        unsafe {
            for tree in [&one, &two, &one] {
                ensure!(tree.is_empty());
                tree.insert(raw(&node));
                ensure!(!tree.is_empty());
                ensure_eq!(tree.first(0..usize::MAX), raw(&node));
                tree.remove(raw(&node));
                ensure!(tree.is_empty());
                ensure!(tree.first(0..usize::MAX).is_null());
            }
        }
        Ok(())
    }
}
