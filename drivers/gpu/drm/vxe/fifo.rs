// SPDX-License-Identifier: GPL-2.0

//! A FIFO of boxed nodes, each of which owns the next.
//!
//! A node has one owner at a time: a FIFO, or the code that took it out. So a node is in one FIFO
//! at most, its owner changes it without a lock, and moving it between FIFOs allocates nothing.
//!
//! All operations take constant time; [`Fifo::pop_front`] does so on average, and [`Fifo::take_if`]
//! takes linear time.

use kernel::prelude::*;

/// A node of a [`Fifo`].
pub(crate) struct FifoNode<T> {
    next: Option<KBox<FifoNode<T>>>,
    /// The node's value.
    pub(crate) value: T,
}

impl<T> FifoNode<T> {
    /// Creates a node that is in no FIFO.
    pub(crate) fn new(value: T, flags: kernel::alloc::Flags) -> Result<KBox<Self>> {
        Ok(KBox::new(Self { next: None, value }, flags)?)
    }
}

/// A FIFO of nodes.
pub(crate) struct Fifo<T> {
    /// The first nodes, in order.
    front: Option<KBox<FifoNode<T>>>,
    /// The nodes after `front`, in reverse order.
    back: Option<KBox<FifoNode<T>>>,
}

impl<T> Fifo<T> {
    /// Creates an empty FIFO.
    pub(crate) const fn new() -> Self {
        Self {
            front: None,
            back: None,
        }
    }

    /// Returns whether the FIFO has no nodes.
    pub(crate) fn is_empty(&self) -> bool {
        self.front.is_none() && self.back.is_none()
    }

    /// Appends a node.
    pub(crate) fn push_back(&mut self, node: KBox<FifoNode<T>>) {
        push(&mut self.back, node);
    }

    /// Prepends a node.
    pub(crate) fn push_front(&mut self, node: KBox<FifoNode<T>>) {
        push(&mut self.front, node);
    }

    /// Takes the first node.
    pub(crate) fn pop_front(&mut self) -> Option<KBox<FifoNode<T>>> {
        if self.front.is_none() {
            while let Some(node) = pop(&mut self.back) {
                push(&mut self.front, node);
            }
        }
        pop(&mut self.front)
    }

    /// Takes the nodes for which `f` returns true, in order. The other nodes stay, in order.
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
    /// Drops one node at a time: recursive drops of a long FIFO would overflow the stack.
    fn drop(&mut self) {
        while self.pop_front().is_some() {}
    }
}

fn push<T>(list: &mut Option<KBox<FifoNode<T>>>, mut node: KBox<FifoNode<T>>) {
    node.next = list.take();
    *list = Some(node);
}

fn pop<T>(list: &mut Option<KBox<FifoNode<T>>>) -> Option<KBox<FifoNode<T>>> {
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
            list.push_back(FifoNode::new(*value, GFP_KERNEL)?);
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
        fifo.push_back(FifoNode::new(4, GFP_KERNEL)?);
        fifo.push_front(FifoNode::new(0, GFP_KERNEL)?);
        assert!(is(fifo, &[0, 2, 3, 4]));
        assert!(is(Fifo::new(), &[]));
        Ok(())
    }

    #[test]
    fn some_are_taken_out() -> Result {
        let mut fifo = list(&[1, 2, 3, 4, 5])?;
        assert!(fifo.pop_front().is_some());
        fifo.push_back(FifoNode::new(6, GFP_KERNEL)?);
        let even = fifo.take_if(|value| value % 2 == 0);
        assert!(is(even, &[2, 4, 6]) && is(fifo, &[3, 5]));
        Ok(())
    }

    #[test]
    fn long_lists_are_dropped() -> Result {
        let mut fifo = Fifo::new();
        for value in 0..20_000u32 {
            fifo.push_back(FifoNode::new(value, GFP_KERNEL)?);
        }
        drop(fifo);
        Ok(())
    }
}
