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

    /// All of them, sorted.
    pub(super) fn sorted(mut self) -> SortedSpans {
        self.0.sort_unstable_by_key(|span| span.start);
        SortedSpans(self.0)
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
        for span in list.sorted().iter() {
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
            assert_eq!(&*sorted(spans)?, &[1..9]);
        }
        assert_eq!(&*sorted(&[7..8, 1..2, 4..5, 3..4])?, &[1..2, 3..5, 7..8]);
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
