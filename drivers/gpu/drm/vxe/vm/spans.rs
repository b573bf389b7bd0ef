// SPDX-License-Identifier: GPL-2.0

//! Lists of addresses that changes of a VM collect.
//!
//! Adjacent spans are joined when added, so the length of a list depends on how scattered the
//! addresses are, not on the number of operations.

use super::{
    account,
    vma::Span, //
};
use kernel::prelude::*;
use kernel_ext::sched;

/// How many steps of a sort lie between two checks whether the caller was killed.
const STEPS: usize = 1024;

/// Spans in the order in which they were added. They may overlap.
pub(super) struct Spans(KVVec<Span>);

/// Spans in ascending order of their starts. [`iter`](Self::iter) joins those that overlap or
/// touch.
pub(super) struct SortedSpans(KVVec<Span>);

impl Spans {
    /// Creates an empty list.
    pub(super) const fn new() -> Self {
        Self(KVVec::new())
    }

    /// Adds a span that is not empty. Fails with `ENOMEM`.
    pub(super) fn add(&mut self, span: Span) -> Result {
        match self.0.last_mut() {
            Some(last) if last.end == span.start => last.end = span.end,
            Some(last) if span.end == last.start => last.start = span.start,
            _ => self.0.push(span, account())?,
        }
        Ok(())
    }

    /// Sorts the spans. Fails with `EINTR` for a killed caller.
    pub(super) fn sorted(mut self) -> Result<SortedSpans> {
        sort(&mut self.0)?;
        Ok(SortedSpans(self.0))
    }
}

/// Sorts by start, in place, with a heap sort. The sort of `core` has functions that do not return,
/// which objtool does not know.
fn sort(spans: &mut [Span]) -> Result {
    if spans.is_sorted_by_key(|span| span.start) {
        return Ok(());
    }
    for root in (0..spans.len() / 2).rev() {
        check_continue(root)?;
        sift_down(spans, root);
    }
    for end in (1..spans.len()).rev() {
        check_continue(end)?;
        // The heap is `spans[..=end]`, and its first element is the greatest.
        spans.swap(0, end);
        if let Some(heap) = spans.get_mut(..end) {
            sift_down(heap, 0);
        }
    }
    Ok(())
}

/// Called before each step with the number of steps left. Fails with `EINTR` for a killed caller.
fn check_continue(left: usize) -> Result {
    if left % STEPS != 0 {
        return Ok(());
    }
    sched::check_killed()
}

/// Restores the heap property at `root`. It holds below `root` already.
fn sift_down(heap: &mut [Span], mut root: usize) {
    let start = |heap: &[Span], i: usize| heap.get(i).map(|span| span.start);
    loop {
        // Does not overflow: a `usize` can hold the size of the array in bytes.
        let left = 2 * root + 1;
        let right = left + 1;
        // `None`, for no child, is less than any address.
        let child = if start(heap, right) > start(heap, left) {
            right
        } else {
            left
        };
        if start(heap, child) <= start(heap, root) {
            return;
        }
        heap.swap(root, child);
        root = child;
    }
}

impl SortedSpans {
    /// Returns the joined spans.
    pub(super) fn iter(&self) -> impl Iterator<Item = Span> + '_ {
        let mut spans = self.0.iter().cloned().peekable();
        core::iter::from_fn(move || {
            let mut span = spans.next()?;
            while let Some(next) = spans.next_if(|next| next.start <= span.end) {
                span.end = span.end.max(next.end);
            }
            Some(span)
        })
    }
}

#[cfg(CONFIG_KUNIT = "y")]
#[kunit_tests(vxe_vm_spans)]
mod tests {
    use super::*;

    fn sorted(spans: &[Span]) -> Result<KVec<Span>> {
        let mut list = Spans::new();
        for span in spans {
            list.add(span.clone())?;
        }
        let mut sorted = KVec::new();
        for span in list.sorted()?.iter() {
            sorted.push(span, GFP_KERNEL)?;
        }
        Ok(sorted)
    }

    #[test]
    fn spans_are_sorted_and_joined() -> Result {
        assert!(sorted(&[])?.is_empty());
        for spans in [
            &[1..2, 2..3, 3..9][..],
            &[3..9, 2..3, 1..2],
            &[1..2, 5..9, 2..5],
            &[1..9, 4..5, 3..6],
            &[4..5, 1..9, 1..9],
            &[6..9, 1..4, 4..6],
        ] {
            let sorted = sorted(spans)?;
            assert!(sorted.iter().eq([&(1..9)]));
        }
        assert_eq!(&*sorted(&[7..8, 1..2, 4..5, 3..4])?, &[1..2, 3..5, 7..8]);
        Ok(())
    }

    #[test]
    fn any_order_is_sorted() -> Result {
        // With gaps, so that no two spans are adjacent.
        for count in [2, 3, 7, 64, 1001] {
            let mut list = Spans::new();
            for i in 0..count {
                // 1003 is coprime to each count.
                let at = 2 * (i * 1003 % count);
                list.add(at..at + 1)?;
            }
            let mut wanted = (0..count).map(|i| 2 * i..2 * i + 1);
            let sorted = list.sorted()?;
            assert!(sorted.iter().eq(wanted.by_ref()));
        }
        Ok(())
    }

    /// However many adjacent spans are added, they take one entry.
    #[test]
    fn neighbours_take_no_memory() -> Result {
        let mut list = Spans::new();
        for i in 0..100_000 {
            list.add(i..i + 1)?;
        }
        for i in (200_000..300_000).rev() {
            list.add(i..i + 1)?;
        }
        assert_eq!(list.0.len(), 2);
        Ok(())
    }
}
