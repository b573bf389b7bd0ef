// SPDX-License-Identifier: GPL-2.0

//! Lists of addresses, as changes of a VM collect them.
//!
//! Neighbours become one, so that a list is as long as what it names is scattered, and not as the
//! operations were many that named it.

use super::{
    account,
    vma::Span, //
};
use kernel::prelude::*;
use kernel_ext::sched;

/// After how many steps of sorting it is looked whether the caller was killed.
const STEPS: usize = 1024;

/// Spans in the order in which they were added. They may overlap.
pub(super) struct Spans(KVVec<Span>);

/// Spans in ascending order that neither overlap nor touch each other.
pub(super) struct SortedSpans(KVVec<Span>);

impl Spans {
    /// None.
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

    /// All of them, sorted. Fails with `EINTR` for a caller who is killed.
    pub(super) fn sorted(mut self) -> Result<SortedSpans> {
        sort(&mut self.0)?;
        Ok(SortedSpans(self.0))
    }
}

/// Sorts by first addresses, in place: a heap sort. That of the `core` crate has functions that do not
/// return, which the kernel's tools do not know as such.
fn sort(spans: &mut [Span]) -> Result {
    if spans.is_sorted_by_key(|span| span.start) {
        return Ok(());
    }
    for root in (0..spans.len() / 2).rev() {
        go_on(root)?;
        sift_down(spans, root);
    }
    for end in (1..spans.len()).rev() {
        go_on(end)?;
        // The last of the heap, which is `spans[..=end]`, is its greatest then.
        spans.swap(0, end);
        if let Some(heap) = spans.get_mut(..end) {
            sift_down(heap, 0);
        }
    }
    Ok(())
}

/// Before each step, of which so many are left. Fails with `EINTR` for a caller who is killed.
fn go_on(left: usize) -> Result {
    if left % STEPS != 0 {
        return Ok(());
    }
    sched::check_killed()
}

/// Makes a heap of what is one below `root`, but maybe not there.
fn sift_down(heap: &mut [Span], mut root: usize) {
    let start = |heap: &[Span], i: usize| heap.get(i).map(|span| span.start);
    loop {
        // Does not overflow: a `usize` holds the size of the array in bytes.
        let left = 2 * root + 1;
        let right = left + 1;
        // Nothing is less than any address.
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
    /// The spans, one by one.
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
        // With gaps, so that none are neighbours.
        for count in [2, 3, 7, 64, 1001] {
            let mut list = Spans::new();
            for i in 0..count {
                // 1003 is not a multiple of any factor of the others.
                let at = 2 * (i * 1003 % count);
                list.add(at..at + 1)?;
            }
            let mut wanted = (0..count).map(|i| 2 * i..2 * i + 1);
            let sorted = list.sorted()?;
            assert!(sorted.iter().eq(wanted.by_ref()));
        }
        Ok(())
    }

    /// However many there are: what is contiguous takes one place.
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
