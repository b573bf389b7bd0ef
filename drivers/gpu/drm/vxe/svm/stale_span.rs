// SPDX-License-Identifier: GPL-2.0

//! What is to be flushed from the TLB after changes of the page table.

use crate::{
    gpu::AddressSpace,
    stats::{
        Stat,
        Stats, //
    },
    vm::vma::Span, //
};

/// The smallest span around all stale translations of a TLB.
///
/// Spans are only added, never replaced, so the flush covers all of them.
#[must_use = "translations that changed must be flushed"]
pub(crate) struct StaleSpan {
    span: Option<Span>,
    /// Whether a translation of the page table changed.
    is_changed: bool,
}

impl StaleSpan {
    /// Creates an empty span.
    pub(crate) fn new() -> Self {
        Self {
            span: None,
            is_changed: false,
        }
    }

    /// Adds the span that a change of the page table made stale.
    pub(crate) fn add(&mut self, stale: Option<Span>) {
        self.is_changed |= stale.is_some();
        self.span = match (self.span.take(), stale) {
            (Some(a), Some(b)) => Some(a.start.min(b.start)..a.end.max(b.end)),
            (a, b) => a.or(b),
        };
    }

    /// Adds `span`, whose translations were removed, and the span that this made stale. Before the
    /// memory is freed `span` is flushed in any case: another thread may have removed a translation
    /// before, and not have flushed it yet.
    pub(crate) fn add_removed(&mut self, span: Span, stale: Option<Span>) {
        self.add(stale);
        let is_changed = self.is_changed;
        self.add(Some(span));
        self.is_changed = is_changed;
    }

    /// Invalidates the TLB for the span. Returns whether a translation changed.
    pub(crate) fn flush(self, aspace: &AddressSpace, stats: &Stats) -> bool {
        let Some(span) = self.span else { return false };
        aspace.invalidate_tlb(span.start, span.end - span.start);
        if self.is_changed {
            stats.inc(Stat::TlbInvalCount);
        }
        self.is_changed
    }
}

#[cfg(CONFIG_KUNIT = "y")]
#[kernel::prelude::kunit_tests(vxe_stale_span)]
mod tests {
    use super::*;
    use crate::gpu::Bus;
    use kernel::{
        device::Bound,
        faux,
        prelude::*, //
    };

    /// Returns whether the flush of `stale` reports a change, and how often it invalidates the TLB.
    fn flush(stale: StaleSpan) -> Result<(bool, u64)> {
        let device = faux::Registration::new(c"vxe-stale-span-kunit", None)?;
        let faux: &faux::Device<Bound> = device.as_ref();
        let aspace = AddressSpace::new(Bus::new(faux.as_ref(), None)?, 48)?;
        let changed = stale.flush(&aspace, &Stats::new());
        Ok((changed, aspace.counters().tlb_invalidations))
    }

    #[test]
    fn nothing_is_not_flushed() -> Result {
        assert_eq!(flush(StaleSpan::new())?, (false, 0));
        let mut stale = StaleSpan::new();
        stale.add(None);
        assert_eq!(flush(stale)?, (false, 0));
        Ok(())
    }

    #[test]
    fn changes_are_flushed_together() -> Result {
        let mut stale = StaleSpan::new();
        stale.add(Some(0x2000..0x3000));
        stale.add(Some(0x8000..0x9000));
        assert_eq!(stale.span, Some(0x2000..0x9000));
        assert_eq!(flush(stale)?, (true, 1));
        Ok(())
    }

    #[test]
    fn what_another_thread_removed_is_flushed() -> Result {
        let mut stale = StaleSpan::new();
        stale.add_removed(0x2000..0x3000, None);
        assert_eq!(flush(stale)?, (false, 1));
        let mut stale = StaleSpan::new();
        stale.add_removed(0x2000..0x3000, Some(0..0x20_0000));
        assert_eq!(stale.span, Some(0..0x20_0000));
        assert_eq!(flush(stale)?, (true, 1));
        Ok(())
    }
}
