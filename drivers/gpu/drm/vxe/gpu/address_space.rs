// SPDX-License-Identifier: GPL-2.0

//! A GPU address space: a page table, with a TLB, on a bus.
//!
//! A driver has one for each VM. It changes the page table in three steps, each a method: stage
//! (allocates; called without locks), then map or zap, then invalidate the TLB for the span that
//! the second step made stale. A [`StaleSpan`](super::StaleSpan) makes the last two. Only the first
//! step may sleep, so an MMU notifier callback can take the others. The GPU neither knows the
//! driver's locks nor waits for them.
//!
//! ```text
//! let mut staged = aspace.stage(va, len)?;             // may sleep
//! let mut stale = StaleSpan::new();
//! // … under the notifier's lock, once the pages are known to be valid:
//! stale.map(&aspace, &mut staged, va, len, target, flags)?;
//! stale.flush(&aspace, &stats);
//! // … in the notifier's callback:
//! stale.zap(&aspace, va..va + len);
//! stale.flush(&aspace, &stats);
//! // Now the GPU does not use the old pages any more.
//! ```
//!
//! Lock order: TLB set, then page table; both are spinlocks, and not held when a method returns.

use super::{
    expected::ExpectedAccesses,
    page_table::{Access, PageTable, PteFlags, Staged, PAGE_SHIFT, PAGE_SIZE},
    tlb::Tlb,
    Bus, Target,
};
use core::ops::Range;
use kernel::{
    fmt,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, //
    },
};

/// Why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AccessError {
    /// The page is not mapped, or not for this access. A fault handler may map it.
    Fault,
    /// An error of the bus.
    Bus(Error),
}

/// Counters of an address space.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// Accesses whose translation was in the TLB.
    pub(crate) tlb_hits: u64,
    /// Accesses that the TLB had no translation for, or one that did not allow them.
    pub(crate) tlb_misses: u64,
    /// Invalidations of the TLB.
    pub(crate) tlb_invalidations: u64,
    /// Accesses that the page table did not allow, either.
    pub(crate) faults: u64,
}

/// A GPU address space.
#[pin_data]
pub(crate) struct AddressSpace {
    bus: Arc<Bus>,
    va_bits: u32,
    #[pin]
    table: PageTable,
    tlb: Pin<KVBox<Tlb>>,
    expected: ExpectedAccesses,
    invalidations: Atomic<u64>,
    faults: Atomic<u64>,
}

impl AddressSpace {
    /// Creates an empty address space of `va_bits` bits on `bus`, charged to the memory cgroup of
    /// the caller.
    ///
    /// Fails with `EINVAL` if `va_bits` is not in 21..=48, and `ENOMEM`. May sleep.
    pub(crate) fn new(bus: Arc<Bus>, va_bits: u32) -> Result<Arc<Self>> {
        let table = PageTable::new(va_bits)?;
        let tlb = KVBox::pin_init(Tlb::new(), GFP_KERNEL_ACCOUNT)?;
        Arc::pin_init(
            pin_init!(Self {
                bus,
                va_bits,
                table <- table,
                tlb,
                expected: ExpectedAccesses::new(),
                invalidations: Atomic::new(0),
                faults: Atomic::new(0),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Allocates all memory that mapping `[va, va + len)` can need, in any number of [`Self::map`]
    /// calls, or an [`Self::unmap`] of it.
    ///
    /// Fails with `EINVAL` unless this is a span of pages within the address space, and `ENOMEM`.
    /// May sleep.
    pub(crate) fn stage(&self, va: u64, len: u64) -> Result<Staged> {
        self.table.stage(va, len)
    }

    /// Allocates all memory that mapping all of `spans` can need. The spans are in ascending order
    /// and do not overlap. The amount is proportional to the page table's size afterwards.
    ///
    /// Fails as [`Self::stage`] does, and with `EINTR` if the caller is killed. May sleep.
    pub(crate) fn stage_all(&self, spans: impl Iterator<Item = Range<u64>>) -> Result<Staged> {
        self.table.stage_all(spans)
    }

    /// Allocates all memory that an [`Self::unmap`] of each of `spans` needs: none, except where a
    /// large page is split. The spans are in ascending order and do not overlap. The caller must
    /// prevent new mappings there meanwhile.
    ///
    /// Fails as [`Self::stage_all`] does. May sleep.
    pub(crate) fn stage_removals(&self, spans: impl Iterator<Item = Range<u64>>) -> Result<Staged> {
        self.table.stage_removals(spans)
    }

    /// Maps `[va, va + len)` to the memory from `target` on, replacing existing mappings.
    ///
    /// Pages are 2 MiB where the span contains such pages and the target is aligned to them, and 4
    /// KiB elsewhere. Neither allocates nor sleeps.
    ///
    /// Returns the span that may have had other translations before, if any. The caller passes it
    /// to [`Self::invalidate_tlb`] before it frees the memory that was mapped there. It may omit
    /// that if pages only got more rights.
    ///
    /// Fails with `EINVAL`, without a change, unless this is a span of pages within the staged one,
    /// or if `target` is not aligned to pages; with `ENOMEM`, after a part, if `staged` was used
    /// for the same addresses before.
    pub(super) fn map(
        &self,
        staged: &mut Staged,
        va: u64,
        len: u64,
        target: Target,
        flags: PteFlags,
    ) -> Result<Option<Range<u64>>> {
        self.table.map(staged, va, len, target, flags)
    }

    /// Clears the pages of `[va, va + len)`, which faults may map again.
    ///
    /// Clears a large page as a whole, even if the span contains only a part of it, so that this
    /// needs no memory; but no page that a different [`Self::map`] call mapped. Does not invalidate
    /// the TLB.
    ///
    /// Returns the span that was cleared, for [`Self::invalidate_tlb`], or `None`. The span may be
    /// larger than the requested one. Neither allocates nor sleeps.
    pub(super) fn zap(&self, va: u64, len: u64) -> Option<Range<u64>> {
        self.table.zap(va, len)
    }

    /// Clears exactly the pages of `[va, va + len)`: splits large pages at the ends.
    ///
    /// For mappings that no fault maps again. Returns the span that was cleared, as [`Self::zap`]
    /// does. Neither allocates nor sleeps.
    ///
    /// Fails as [`Self::map`] does.
    pub(super) fn unmap(
        &self,
        staged: &mut Staged,
        va: u64,
        len: u64,
    ) -> Result<Option<Range<u64>>> {
        self.table.zap_exact(staged, va, len)
    }

    /// Invalidates the TLB for `[va, va + len)`.
    ///
    /// On return, no access is in flight or can start that uses a translation which the page table
    /// had before this call and no longer has. Waits for accesses of at most one page each; neither
    /// allocates nor sleeps. A span that does not consist of whole pages is widened.
    pub(super) fn invalidate_tlb(&self, va: u64, len: u64) {
        let Some(last) = len.checked_sub(1) else {
            return;
        };
        // Cannot overflow: page numbers are far below 2^64.
        let end = (va.saturating_add(last) >> PAGE_SHIFT) + 1;
        self.tlb.invalidate(va >> PAGE_SHIFT..end);
        self.invalidations.add(1, Relaxed);
    }

    /// Records that the page at `va` was mapped for an access that faulted and will be repeated.
    pub(crate) fn expect_access(&self, va: u64) {
        self.expected.add(va >> PAGE_SHIFT);
    }

    /// Returns whether the page at `va` was not accessed since [`Self::expect_access`]. May return
    /// false for a page that was not accessed, as only few pages are recorded.
    pub(crate) fn expects_access(&self, va: u64) -> bool {
        self.expected.is_expected(va >> PAGE_SHIFT)
    }

    /// Returns the counters. They are read one by one while they may change.
    pub(crate) fn counters(&self) -> Counters {
        let (tlb_hits, tlb_misses) = self.tlb.hits_and_misses();
        Counters {
            tlb_hits,
            tlb_misses,
            tlb_invalidations: self.invalidations.load(Relaxed),
            faults: self.faults.load(Relaxed),
        }
    }

    /// Returns the span of `len` bytes at address `addr` of a command, which may be in canonical
    /// form (its highest bit copied upwards). `None` if it is not within the address space.
    pub(super) fn span(&self, addr: u64, len: u64) -> Option<Range<u64>> {
        // Does not underflow: `va_bits` is in 21..=48.
        let unused = u64::BITS - self.va_bits;
        let start = addr << unused >> unused;
        // CAST: For an arithmetic shift.
        let canonical = (((addr << unused) as i64) >> unused) as u64;
        let end = start.checked_add(len)?;
        ((addr == start || addr == canonical) && end <= 1 << self.va_bits).then_some(start..end)
    }

    /// Reads `buf.len()` bytes at `va`, within one page. Not atomic.
    pub(super) fn read(&self, va: u64, buf: &mut [u8]) -> Result<(), AccessError> {
        self.access(va, Access::Read, |bus, at| bus.read(at, buf))
    }

    /// Writes `data` at `va`, within one page. Not atomic.
    pub(super) fn write(&self, va: u64, data: &[u8]) -> Result<(), AccessError> {
        self.access(va, Access::Write, |bus, at| bus.write(at, data))
    }

    /// Loads the 32-bit value at `va`, which is aligned, in a single access.
    pub(super) fn load_u32(&self, va: u64) -> Result<u32, AccessError> {
        let mut value = 0;
        self.access(va, Access::Read, |bus, at| {
            value = bus.load_u32(at)?;
            Ok(())
        })?;
        Ok(value)
    }

    /// Stores a 32-bit value at `va`, which is aligned, in a single access.
    pub(super) fn store_u32(&self, va: u64, value: u32) -> Result<(), AccessError> {
        self.access(va, Access::Write, |bus, at| bus.store_u32(at, value))
    }

    /// Stores a 64-bit value at `va`, which is aligned, in a single access.
    pub(super) fn store_u64(&self, va: u64, value: u64) -> Result<(), AccessError> {
        self.access(va, Access::Write, |bus, at| bus.store_u64(at, value))
    }

    /// Adds to the 32-bit value at `va`, which is aligned. Atomic towards GPU and CPUs.
    pub(super) fn add_u32(&self, va: u64, delta: u32) -> Result<(), AccessError> {
        self.access(va, Access::Atomic, |bus, at| {
            bus.fetch_add_u32(at, delta).map(|_| ())
        })
    }

    /// Translates `va`, and calls `f` with the bus target. No invalidation of `va` completes
    /// meanwhile. `f` must not sleep.
    fn access(
        &self,
        va: u64,
        access: Access,
        f: impl FnOnce(&Bus, Target) -> Result,
    ) -> Result<(), AccessError> {
        let done = self.tlb.access(
            va >> PAGE_SHIFT,
            access,
            || self.table.translate(va),
            |pte| f(&self.bus, pte.target().offset(va % PAGE_SIZE)),
        );
        match done {
            Some(done) => {
                self.expected.accessed(va >> PAGE_SHIFT);
                done.map_err(AccessError::Bus)
            }
            None => {
                self.faults.add(1, Relaxed);
                Err(AccessError::Fault)
            }
        }
    }
}

/// The counters, and a line for each contiguous mapped span, for debugfs.
impl fmt::Display for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counters = self.counters();
        f.write_fmt(fmt!(
            "tlb: hits={} misses={} invalidations={}; faults={}\n",
            counters.tlb_hits,
            counters.tlb_misses,
            counters.tlb_invalidations,
            counters.faults
        ))?;
        self.table.dump(f)
    }
}
