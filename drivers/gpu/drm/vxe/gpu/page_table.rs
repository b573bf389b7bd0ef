// SPDX-License-Identifier: GPL-2.0

//! The page table of an address space.
//!
//! A page is unmapped, or mapped by a small leaf (4 KiB) or a large one (2 MiB). Changes are made
//! in place, under a spinlock that is held for one large page at a time: nodes are allocated before
//! that ([`PageTable::stage`]) and freed afterwards. A concurrent walk of the GPU sees each page
//! before or after the change. Changes do not touch the TLBs: each returns the span whose
//! translations changed, which the caller must invalidate.
//!
//! No leaf is larger than the [`PageTable::map`] call that made it. So mappings do not depend on
//! their neighbours: zapping a page zaps another only if the same call mapped both.
//!
//! Lock order: the table's lock nests inside that of a TLB set, and no lock nests inside the
//! table's.

mod node;
#[cfg(CONFIG_KUNIT = "y")]
mod tests;
mod tree;

use super::Target;
use core::ops::Range;
use kernel::{
    bits::bit_u64,
    fmt,
    impl_flags,
    prelude::*,
    sync::{new_spinlock, Arc, SpinLock}, //
};
use kernel_ext::sched;
use node::{NodeList, NodePool};
use tree::{Change, Edges, Leaf, Tree, WorstCase};

pub(crate) use node::Staged;

/// Address bits within a page.
pub(crate) const PAGE_SHIFT: u32 = 12;
/// Bytes of a GPU page, which is independent of the CPU's page size.
pub(crate) const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Address bits within a large page.
pub(crate) const LARGE_PAGE_SHIFT: u32 = 21;
/// Bytes of a large page of the GPU.
pub(crate) const LARGE_PAGE_SIZE: u64 = 1 << LARGE_PAGE_SHIFT;

/// The kinds of access that a translation may allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Atomic read-modify-write.
    Atomic,
}

impl_flags!(
    /// The rights of a translation besides reading.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct PteFlags(u64);

    /// A right of a translation.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum PteFlag {
        /// Writing.
        Writable = bit_u64(0),
        /// Atomic operations; they need [`Self::Writable`] too.
        Atomic = bit_u64(1),
    }
);

impl PteFlags {
    /// Returns the strongest access that the rights allow.
    pub(crate) fn strongest_access(self) -> Access {
        if self.contains(PteFlag::Atomic) {
            Access::Atomic
        } else if self.contains(PteFlag::Writable) {
            Access::Write
        } else {
            Access::Read
        }
    }
}

/// A page table entry: the bus address of a page, with flags in the low bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pte(u64);

impl Pte {
    const FLAGS: u64 = PteFlags::all_bits();
    /// The page is in the device's own memory.
    const VRAM: u64 = bit_u64(2);
    /// The page is in another device's memory.
    const PEER: u64 = bit_u64(3);

    /// Creates an entry for the page at `target`, which is aligned.
    pub(super) fn new(target: Target, flags: PteFlags) -> Self {
        let kind = match target {
            Target::System(_) => 0,
            Target::Vram(_) => Self::VRAM,
            Target::Peer(_) => Self::PEER,
        };
        Self((target.addr() & !(PAGE_SIZE - 1)) | kind | u64::from(flags))
    }

    /// Returns the bus target of the page.
    pub(super) fn target(self) -> Target {
        let addr = self.0 & !(PAGE_SIZE - 1);
        if self.0 & Self::VRAM != 0 {
            Target::Vram(addr)
        } else if self.0 & Self::PEER != 0 {
            Target::Peer(addr)
        } else {
            Target::System(addr)
        }
    }

    /// Returns the rights.
    pub(super) fn flags(self) -> PteFlags {
        let mut flags = PteFlags::empty();
        for flag in [PteFlag::Writable, PteFlag::Atomic] {
            if self.0 & Self::FLAGS & flag as u64 != 0 {
                flags |= flag;
            }
        }
        flags
    }

    /// Returns whether the entry allows `access`.
    pub(super) fn allows(self, access: Access) -> bool {
        let flags = self.flags();
        match access {
            Access::Read => true,
            Access::Write => flags.contains(PteFlag::Writable),
            Access::Atomic => flags.contains_all(PteFlag::Writable | PteFlag::Atomic),
        }
    }
}

// The bits of target kinds and rights are distinct.
const _: () = assert!((Pte::VRAM | Pte::PEER) & Pte::FLAGS == 0 && Pte::PEER < PAGE_SIZE);

/// A page table.
#[pin_data]
pub(super) struct PageTable {
    /// The end of the address space.
    end: u64,
    pool: Arc<NodePool>,
    #[pin]
    tree: SpinLock<Tree>,
}

impl PageTable {
    /// Creates an empty table for addresses of `va_bits` bits.
    ///
    /// Fails with `EINVAL` if `va_bits` is not in 21..=48.
    pub(super) fn new(va_bits: u32) -> Result<impl PinInit<Self>> {
        if !(LARGE_PAGE_SHIFT..=tree::TREE_BITS).contains(&va_bits) {
            return Err(EINVAL);
        }
        let pool = NodePool::new()?;
        Ok(pin_init!(Self {
            end: 1 << va_bits,
            pool,
            tree <- new_spinlock!(Tree::new(), "vxe_gpu_page_table"),
        }))
    }

    /// Returns the span of `len` bytes at `va`.
    ///
    /// Fails with `EINVAL` if it is empty, does not consist of whole pages, or exceeds the address
    /// space.
    fn span(&self, va: u64, len: u64) -> Result<Range<u64>> {
        let end = va.checked_add(len).ok_or(EINVAL)?;
        if len == 0 || (va | len) % PAGE_SIZE != 0 || end > self.end {
            return Err(EINVAL);
        }
        Ok(va..end)
    }

    /// Allocates the nodes that mapping or splitting `[va, va + len)` can need, in any number of
    /// calls.
    ///
    /// Fails with `EINVAL` unless this is a span of pages, and `ENOMEM`. May sleep.
    pub(super) fn stage(&self, va: u64, len: u64) -> Result<Staged> {
        let span = self.span(va, len)?;
        self.stage_all(core::iter::once(span))
    }

    /// Allocates the nodes that mapping all of `spans` can need, in any number of calls. The spans
    /// must be in ascending order and not overlap.
    ///
    /// Fails with `EINVAL` unless all are spans of pages, `EINTR` if the caller is killed, and
    /// `ENOMEM`. May sleep.
    pub(super) fn stage_all(&self, spans: impl Iterator<Item = Range<u64>>) -> Result<Staged> {
        let (mut covered, mut worst) = (0..0, WorstCase::new());
        for span in spans {
            sched::check_killed()?;
            let span = self.span(span.start, span.end.saturating_sub(span.start))?;
            worst.add(&span);
            covered = extended(covered, span);
        }
        self.pool.stage(covered, worst.nodes()?)
    }

    /// Allocates the nodes that [clearing](Self::zap_exact) all of `spans` needs: one for each
    /// large leaf that a span only partly covers. The spans must be in ascending order and not
    /// overlap, and the caller must prevent new mappings there until they are cleared.
    ///
    /// Fails as [`Self::stage_all`] does. May sleep.
    pub(super) fn stage_removals(&self, spans: impl Iterator<Item = Range<u64>>) -> Result<Staged> {
        let (mut covered, mut count, mut counted) = (0..0, 0, None);
        for span in spans {
            sched::check_killed()?;
            let span = self.span(span.start, span.end.saturating_sub(span.start))?;
            for edge in [span.start, span.end] {
                let page = edge / LARGE_PAGE_SIZE;
                if edge % LARGE_PAGE_SIZE != 0
                    && counted != Some(page)
                    && self.tree.lock().is_large(edge)
                {
                    counted = Some(page);
                    // Cannot overflow: there are fewer large pages.
                    count += 1;
                }
            }
            covered = extended(covered, span);
        }
        self.pool.stage(covered, count)
    }

    /// Maps `[va, va + len)` to the memory from `target` on, replacing existing mappings.
    ///
    /// Returns the span that may have had other translations before, which the caller must
    /// invalidate in the TLBs. Does not sleep.
    ///
    /// Fails with `EINVAL`, without a change, unless this is a span of pages within the staged one,
    /// or if the target is not aligned to pages or wraps around; with `ENOMEM`, after a part, if
    /// `staged` runs out of nodes.
    pub(super) fn map(
        &self,
        staged: &mut Staged,
        va: u64,
        len: u64,
        target: Target,
        flags: PteFlags,
    ) -> Result<Option<Range<u64>>> {
        let span = self.span(va, len)?;
        if !contains(&staged.span, &span) || !target.is_aligned(PAGE_SIZE) {
            return Err(EINVAL);
        }
        target.checked_offset(len).ok_or(EINVAL)?;

        let mut change = Change::new(Some(&mut staged.nodes));
        for part in large_pages(span) {
            let first = Pte::new(target.offset(part.start - va), flags);
            self.tree.lock().map(&part, first, &mut change);
        }
        self.finish(change)
    }

    /// Clears all of `[va, va + len)`, and the rest of each large leaf that the span only partly
    /// covers.
    ///
    /// Returns the span that was cleared, which may be larger than the requested one, and which the
    /// caller must invalidate in the TLBs; `None` if nothing was mapped. A span that does not
    /// consist of whole pages is widened. Neither allocates nor sleeps.
    pub(super) fn zap(&self, va: u64, len: u64) -> Option<Range<u64>> {
        let end = va.saturating_add(len).min(self.end);
        let end = end.checked_next_multiple_of(PAGE_SIZE)?;
        let mut change = Change::new(None);
        self.zap_span(va / PAGE_SIZE * PAGE_SIZE..end, Edges::Widen, &mut change);
        let stale = change.stale.take();
        self.pool.put(change.pruned);
        stale
    }

    /// Clears exactly `[va, va + len)`: splits large leaves that the span only partly covers. The
    /// nodes for that come from [`Self::stage_removals`] or [`Self::stage`].
    ///
    /// Returns the span that was cleared, as [`Self::zap`] does. Does not sleep.
    ///
    /// Fails with `EINVAL`, without a change, unless this is a span of pages within the staged one;
    /// with `ENOMEM` as [`Self::map`] does.
    pub(super) fn zap_exact(
        &self,
        staged: &mut Staged,
        va: u64,
        len: u64,
    ) -> Result<Option<Range<u64>>> {
        let span = self.span(va, len)?;
        if !contains(&staged.span, &span) {
            return Err(EINVAL);
        }
        let mut change = Change::new(Some(&mut staged.nodes));
        self.zap_span(span, Edges::Split, &mut change);
        self.finish(change)
    }

    /// Returns the translation of the page of `va`.
    pub(super) fn translate(&self, va: u64) -> Option<Pte> {
        if va >= self.end {
            return None;
        }
        self.tree.lock().translate(va)
    }

    fn zap_span(&self, span: Range<u64>, edges: Edges, change: &mut Change<'_>) {
        let mut at = span.start;
        while at < span.end {
            let mut tree = self.tree.lock();
            // Skips unmapped addresses, so that the time depends on what is cleared.
            let Some(leaf) = tree.next_leaf(at) else {
                break;
            };
            let start = leaf.start.max(at);
            if let Some(table) = tree.detach(start, &span, change) {
                drop(tree);
                at = table.end;
                continue;
            }
            let Some(part) = large_pages(start..span.end).next() else {
                break;
            };
            tree.zap(&part, edges, change);
            at = part.end;
        }
    }

    /// Completes a change: frees nodes, and returns the stale span.
    fn finish(&self, mut change: Change<'_>) -> Result<Option<Range<u64>>> {
        let (stale, starved) = (change.stale.take(), change.starved);
        self.pool
            .put(core::mem::replace(&mut change.pruned, NodeList::new()));
        // Staging covers the worst case. It runs out of nodes only if two changes of the same
        // addresses use the nodes of one, which is a bug of the driver.
        if starved {
            return Err(ENOMEM);
        }
        Ok(stale)
    }

    /// Writes the mapped spans, a line for each that is contiguous in virtual addresses and on the
    /// bus.
    ///
    /// A concurrent change is shown either before or after it.
    pub(super) fn dump(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut run: Option<Leaf> = None;
        let mut at = 0;
        loop {
            let next = self.tree.lock().next_leaf(at);
            match (&mut run, next) {
                (Some(run), Some(leaf)) if run.continues_with(&leaf) => {
                    at = leaf.start + leaf.size;
                    run.size += leaf.size;
                }
                (_, next) => {
                    if let Some(run) = run.take() {
                        run.dump(f)?;
                    }
                    let Some(leaf) = next else { return Ok(()) };
                    at = leaf.start + leaf.size;
                    run = Some(leaf);
                }
            }
        }
    }
}

impl Leaf {
    fn continues_with(&self, next: &Leaf) -> bool {
        self.start + self.size == next.start
            && self.pte.flags() == next.pte.flags()
            && self.pte.target().checked_offset(self.size) == Some(next.pte.target())
    }

    fn dump(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = self.pte.flags();
        f.write_fmt(fmt!(
            "{:#014x}-{:#014x} r{}{} {}\n",
            self.start,
            self.start + self.size,
            if flags.contains(PteFlag::Writable) {
                'w'
            } else {
                '-'
            },
            if flags.contains(PteFlag::Atomic) {
                'a'
            } else {
                '-'
            },
            self.pte.target(),
        ))
    }
}

/// Returns the smallest span that includes both. The first one may be empty.
fn extended(covered: Range<u64>, span: Range<u64>) -> Range<u64> {
    if covered.is_empty() {
        return span;
    }
    covered.start.min(span.start)..covered.end.max(span.end)
}

/// Returns whether `inner` lies within `outer`.
fn contains(outer: &Range<u64>, inner: &Range<u64>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// Splits `span` at multiples of the large page size.
fn large_pages(span: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = span.start;
    core::iter::from_fn(move || {
        let start = at;
        // Cannot overflow: addresses have 48 bits.
        at = ((start / LARGE_PAGE_SIZE + 1) * LARGE_PAGE_SIZE).min(span.end);
        (start < span.end).then_some(start..at)
    })
}
