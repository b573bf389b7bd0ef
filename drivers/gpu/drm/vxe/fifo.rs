// SPDX-License-Identifier: GPL-2.0

//! First in, first out: a list of boxed nodes that own each other.
//!
//! A node has an owner at any time: a list, or whoever took it out. So it can be in one list only,
//! is changed without a lock by whoever has it, and nothing is allocated to put it anywhere.
//!
//! Each operation takes constant time but for [`Fifo::pop_front`], which does on the average.

use kernel::prelude::*;

/// What can be in a [`Fifo`].
pub(crate) struct Node<T> {
    next: Option<KBox<Node<T>>>,
    /// What it is about.
    pub(crate) value: T,
}

impl<T> Node<T> {
    /// A node in no list.
    pub(crate) fn new(value: T, flags: kernel::alloc::Flags) -> Result<KBox<Self>> {
        Ok(KBox::new(Self { next: None, value }, flags)?)
    }
}

/// A list of nodes.
pub(crate) struct Fifo<T> {
    /// The first ones, in order.
    front: Option<KBox<Node<T>>>,
    /// Those behind them, the last one first.
    back: Option<KBox<Node<T>>>,
}

impl<T> Fifo<T> {
    /// An empty list.
    pub(crate) const fn new() -> Self {
        Self {
            front: None,
            back: None,
        }
    }

    /// Whether there are no nodes.
    pub(crate) fn is_empty(&self) -> bool {
        self.front.is_none() && self.back.is_none()
    }

    /// Puts a node behind all others.
    pub(crate) fn push_back(&mut self, node: KBox<Node<T>>) {
        push(&mut self.back, node);
    }

    /// Puts a node before all others.
    pub(crate) fn push_front(&mut self, node: KBox<Node<T>>) {
        push(&mut self.front, node);
    }

    /// Takes the first node out.
    pub(crate) fn pop_front(&mut self) -> Option<KBox<Node<T>>> {
        if self.front.is_none() {
            while let Some(node) = pop(&mut self.back) {
                push(&mut self.front, node);
            }
        }
        pop(&mut self.front)
    }

    /// Takes the nodes out of which `f` says so, in order. The others stay, in order.
    pub(crate) fn take_if(&mut self, f: impl Fn(&T) -> bool) -> Self {
        let (mut taken, mut kept) = (Self::new(), Self::new());
        while let Some(node) = self.pop_front() {
            let list = if f(&node.value) {
                &mut taken
            } else {
                &mut kept
            };
            list.push_back(node);
        }
        *self = kept;
        taken
    }
}

impl<T> Drop for Fifo<T> {
    /// Node by node: a node that dropped the one behind it would need stack for all of them.
    fn drop(&mut self) {
        while self.pop_front().is_some() {}
    }
}

fn push<T>(list: &mut Option<KBox<Node<T>>>, mut node: KBox<Node<T>>) {
    node.next = list.take();
    *list = Some(node);
}

fn pop<T>(list: &mut Option<KBox<Node<T>>>) -> Option<KBox<Node<T>>> {
    let mut node = list.take()?;
    *list = node.next.take();
    Some(node)
}

#[kunit_tests(vxe_fifo)]
mod tests {
    use super::*;

    fn list(values: &[u32]) -> Result<Fifo<u32>> {
        let mut list = Fifo::new();
        for value in values {
            list.push_back(Node::new(*value, GFP_KERNEL)?);
        }
        Ok(list)
    }

    fn is(mut list: Fifo<u32>, values: &[u32]) -> bool {
        let same = values
            .iter()
            .all(|value| list.pop_front().is_some_and(|node| node.value == *value));
        same && list.pop_front().is_none() && list.is_empty()
    }

    #[test]
    fn nodes_come_out_as_they_went_in() -> Result {
        let mut fifo = list(&[1, 2, 3])?;
        assert!(!fifo.is_empty());
        assert!(fifo.pop_front().is_some_and(|node| node.value == 1));
        fifo.push_back(Node::new(4, GFP_KERNEL)?);
        fifo.push_front(Node::new(0, GFP_KERNEL)?);
        assert!(is(fifo, &[0, 2, 3, 4]));
        assert!(is(Fifo::new(), &[]));
        Ok(())
    }

    #[test]
    fn some_are_taken_out() -> Result {
        let mut fifo = list(&[1, 2, 3, 4, 5])?;
        assert!(fifo.pop_front().is_some());
        fifo.push_back(Node::new(6, GFP_KERNEL)?);
        let even = fifo.take_if(|value| value % 2 == 0);
        assert!(is(even, &[2, 4, 6]) && is(fifo, &[3, 5]));
        Ok(())
    }

    #[test]
    fn long_lists_are_dropped() -> Result {
        let mut fifo = Fifo::new();
        for value in 0..20_000u32 {
            fifo.push_back(Node::new(value, GFP_KERNEL)?);
        }
        drop(fifo);
        Ok(())
    }
}
