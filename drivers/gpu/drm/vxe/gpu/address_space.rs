// SPDX-License-Identifier: GPL-2.0

//! A GPU address space: a page table, the TLB in front of it, and the bus behind it.
//!
//! A driver has one for each VM. It changes the page table in three steps, each of which is a
//! method: stage (allocates; before any lock), then map or zap, then make the TLB forget what the
//! second step said. Only the first may sleep, so the others can run in an MMU notifier's callback.
//! The GPU neither knows nor waits for any of the driver's locks.
//!
//! ```text
//! let mut staged = aspace.stage(va, len)?;             // may sleep
//! // … under the notifier's lock, once what is mapped is known to be valid:
//! if let Some(stale) = aspace.map(&mut staged, va, len, target, flags)? {
//!     aspace.invalidate_tlb(stale.start, stale.end - stale.start);
//! }
//! // … in the notifier's callback:
//! if let Some(stale) = aspace.zap(va, len) {
//!     aspace.invalidate_tlb(stale.start, stale.end - stale.start);
//! }
//! // Now the GPU does not use the old pages any more.
//! ```
//!
//! Lock order: TLB set, then page table; both are spinlocks, and never held when a method returns.

use super::{
    expected::Expected,
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

/// Why an access did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AccessError {
    /// The page is not mapped, or not for such an access: its fault handler may know better.
    Fault,
    /// The bus refused.
    Bus(Error),
}

/// What happened in an address space so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// Accesses whose translation was in the TLB.
    pub(crate) tlb_hits: u64,
    /// Accesses whose translation was not, or did not allow them: they asked the page table.
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
    expected: Expected,
    invalidations: Atomic<u64>,
    faults: Atomic<u64>,
}

impl AddressSpace {
    /// An empty address space of `va_bits` bits, whose memory is behind `bus`. It is charged to the memory
    /// cgroup of the caller.
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
                expected: Expected::new(),
                invalidations: Atomic::new(0),
                faults: Atomic::new(0),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Allocates all that mapping `[va, va + len)` can need, in however many [`Self::map`] calls,
    /// or an [`Self::unmap`] of it.
    ///
    /// Fails with `EINVAL` if that is not a span of pages within the address space, and `ENOMEM`.
    /// May sleep.
    pub(crate) fn stage(&self, va: u64, len: u64) -> Result<Staged> {
        self.table.stage(va, len)
    }

    /// Allocates all that mapping all of `spans` can need, which come in ascending order and do not
    /// overlap: in proportion to what the page table has then.
    ///
    /// Fails as [`Self::stage`] does, and with `EINTR` for a caller who is killed. May sleep.
    pub(crate) fn stage_all(&self, spans: impl Iterator<Item = Range<u64>>) -> Result<Staged> {
        self.table.stage_all(spans)
    }

    /// Allocates all that an [`Self::unmap`] of each of `spans` needs, which come in ascending order and do
    /// not overlap: nothing, but where a large page is split. Nobody may map anything there meanwhile.
    ///
    /// Fails as [`Self::stage_all`] does. May sleep.
    pub(crate) fn stage_removals(&self, spans: impl Iterator<Item = Range<u64>>) -> Result<Staged> {
        self.table.stage_removals(spans)
    }

    /// Maps `[va, va + len)` to the memory that begins at `target`, in place of what was mapped.
    ///
    /// Pages are 2 MiB where the span has such pages and the target is aligned to them, and 4 KiB
    /// elsewhere. Never allocates nor sleeps.
    ///
    /// Returns the span that may have had other translations before, if any had: the caller hands
    /// it to [`Self::invalidate_tlb`] before it lets go of the memory that was mapped there. Where
    /// a page only got more rights, that may be left out.
    ///
    /// Fails with `EINVAL`, and changes nothing, if this is no span of pages or not within what was
    /// staged, or if `target` is not aligned to pages; with `ENOMEM`, after a part, if `staged` has
    /// been used for the same addresses before.
    pub(crate) fn map(
        &self,
        staged: &mut Staged,
        va: u64,
        len: u64,
        target: Target,
        flags: PteFlags,
    ) -> Result<Option<Range<u64>>> {
        self.table.map(staged, va, len, target, flags)
    }

    /// Clears the pages of `[va, va + len)`, which faults may bring back.
    ///
    /// A large page of which only a part is meant goes as a whole, so that nothing needs to be
    /// allocated; but no page that a different [`Self::map`] call made. The TLB is not touched.
    ///
    /// Returns the span that was cleared, for [`Self::invalidate_tlb`], or `None` if there was
    /// nothing. It may be wider than what was asked. Never allocates nor sleeps.
    pub(crate) fn zap(&self, va: u64, len: u64) -> Option<Range<u64>> {
        self.table.zap(va, len)
    }

    /// Clears exactly the pages of `[va, va + len)`: large pages are split at its edges.
    ///
    /// For mappings that no fault brings back. Returns the span that was cleared, as
    /// [`Self::zap`] does. Never allocates nor sleeps.
    ///
    /// Fails as [`Self::map`] does.
    pub(crate) fn unmap(
        &self,
        staged: &mut Staged,
        va: u64,
        len: u64,
    ) -> Result<Option<Range<u64>>> {
        self.table.zap_exact(staged, va, len)
    }

    /// Makes the GPU forget the translations of `[va, va + len)`.
    ///
    /// On return, no access through a translation that the page table had before this call, and
    /// has no longer, is in flight or can start. Waits for accesses of at most one page each;
    /// never allocates nor sleeps. A span that does not consist of pages is widened to pages.
    pub(crate) fn invalidate_tlb(&self, va: u64, len: u64) {
        let Some(last) = len.checked_sub(1) else {
            return;
        };
        // Cannot overflow: page numbers are far from 2^64.
        let end = (va.saturating_add(last) >> PAGE_SHIFT) + 1;
        self.tlb.invalidate(va >> PAGE_SHIFT..end);
        self.invalidations.add(1, Relaxed);
    }

    /// Says that the page at `va` was mapped for an access that faulted, and that comes again.
    pub(crate) fn expect_access(&self, va: u64) {
        self.expected.note(va >> PAGE_SHIFT);
    }

    /// Whether the page at `va` was not accessed since [`Self::expect_access`] said that it would. May
    /// say that it was although it was not, as not all pages are remembered.
    pub(crate) fn expects_access(&self, va: u64) -> bool {
        self.expected.has(va >> PAGE_SHIFT)
    }

    /// What happened so far. Counters are read one after the other, while they may move.
    pub(crate) fn counters(&self) -> Counters {
        let (tlb_hits, tlb_misses) = self.tlb.hits_and_misses();
        Counters {
            tlb_hits,
            tlb_misses,
            tlb_invalidations: self.invalidations.load(Relaxed),
            faults: self.faults.load(Relaxed),
        }
    }

    /// The span of `len` bytes at the address `addr` of a program, which may be in canonical form:
    /// its highest bit copied upwards. `None` if it is not within the address space.
    pub(super) fn span(&self, addr: u64, len: u64) -> Option<Range<u64>> {
        // `va_bits` is in 21..=48.
        let unused = u64::BITS - self.va_bits;
        let start = addr << unused >> unused;
        // CAST: For a shift that keeps the sign.
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

    /// Stores a 32-bit value at `va`, which is aligned, at once.
    pub(super) fn store_u32(&self, va: u64, value: u32) -> Result<(), AccessError> {
        self.access(va, Access::Write, |bus, at| bus.store_u32(at, value))
    }

    /// Stores a 64-bit value at `va`, which is aligned, at once.
    pub(super) fn store_u64(&self, va: u64, value: u64) -> Result<(), AccessError> {
        self.access(va, Access::Write, |bus, at| bus.store_u64(at, value))
    }

    /// Adds to the 32-bit value at `va`, which is aligned: one operation towards GPU and CPUs.
    pub(super) fn add_u32(&self, va: u64, delta: u32) -> Result<(), AccessError> {
        self.access(va, Access::Atomic, |bus, at| {
            bus.fetch_add_u32(at, delta).map(|_| ())
        })
    }

    /// Translates `va`, and runs `f` with its place behind the bus while no invalidation of it can
    /// finish. `f` must not sleep.
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
                self.expected.met(va >> PAGE_SHIFT);
                done.map_err(AccessError::Bus)
            }
            None => {
                self.faults.add(1, Relaxed);
                Err(AccessError::Fault)
            }
        }
    }
}

/// The counters, and what is mapped, a line for each contiguous span: for debugfs.
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
