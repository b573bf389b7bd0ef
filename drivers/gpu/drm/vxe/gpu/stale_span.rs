// SPDX-License-Identifier: GPL-2.0

//! Changes of a page table, and the flush of the TLB that they need.

use super::{
    AddressSpace,
    PteFlags,
    Staged,
    Target, //
};
use crate::stats::{
    Stat,
    Stats, //
};
use core::ops::Range;
use kernel::prelude::*;

/// The smallest span around all stale translations of a TLB.
///
/// A driver changes a page table by these methods only, so each change adds the span that it made
/// stale. Spans are only added, never replaced, so the flush covers all of them.
#[must_use = "translations that changed must be flushed"]
pub(crate) struct StaleSpan {
    span: Option<Range<u64>>,
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

    /// Maps `[va, va + len)` to the memory from `target` on. Fails as [`AddressSpace::map`] does;
    /// then a part may be mapped.
    pub(crate) fn map(
        &mut self,
        aspace: &AddressSpace,
        staged: &mut Staged,
        va: u64,
        len: u64,
        target: Target,
        flags: PteFlags,
    ) -> Result {
        self.add(aspace.map(staged, va, len, target, flags)?);
        Ok(())
    }

    /// Clears the pages of `span`, large pages as a whole, as [`AddressSpace::zap`] does.
    pub(crate) fn zap(&mut self, aspace: &AddressSpace, span: Range<u64>) {
        let cleared = aspace.zap(span.start, span.end - span.start);
        self.add_removed(span, cleared);
    }

    /// Clears exactly the pages of `span`, as [`AddressSpace::unmap`] does, with the memory that
    /// [`AddressSpace::stage_removals`] allocated for it.
    pub(crate) fn unmap(&mut self, aspace: &AddressSpace, staged: &mut Staged, span: Range<u64>) {
        let len = span.end - span.start;
        let cleared = match aspace.unmap(staged, span.start, len) {
            Ok(cleared) => cleared,
            // Cannot happen, as the caller has allocated for the span. The zap may clear too much;
            // faults map that again.
            Err(_) => aspace.zap(span.start, len),
        };
        self.add_removed(span, cleared);
    }

    fn add(&mut self, stale: Option<Range<u64>>) {
        self.is_changed |= stale.is_some();
        self.span = match (self.span.take(), stale) {
            (Some(a), Some(b)) => Some(a.start.min(b.start)..a.end.max(b.end)),
            (a, b) => a.or(b),
        };
    }

    /// Adds `span`, whose translations were removed, and the span that this made stale. Before the
    /// memory is freed `span` is flushed in any case: another thread may have removed a translation
    /// before, and not have flushed it yet.
    fn add_removed(&mut self, span: Range<u64>, stale: Option<Range<u64>>) {
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
        faux, //
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
