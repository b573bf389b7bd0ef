// SPDX-License-Identifier: GPL-2.0

//! Buffers in a GPU page table.
//!
//! A buffer's pages stay where they are while it lives, so that its mapping changes only when
//! programs bind. All functions need the VM's SVM lock, which is what keeps faults and binds apart.

use super::vma::{
    Span,
    Vma, //
};
use crate::{
    bo::Bo,
    fault::Served,
    gpu::{
        Access,
        AddressSpace,
        PteFlag,
        Staged,
        LARGE_PAGE_SIZE, //
    },
    stats::Stat,
    svm::{
        pte_flags,
        Context,
        Hull, //
    }, //
};
use kernel::prelude::*;

/// Services a fault in `vma`, which maps `bo` from `offset` bytes on: maps all of it.
///
/// Fails with `ENOMEM`.
pub(super) fn fault(vm: &Context, vma: &Vma, bo: &Bo, offset: u64) -> Result<Served> {
    vm.dev.stats.inc(Stat::VmaPagefaultCount);
    let size = vma.span.end - vma.span.start;
    vm.dev.stats.add(Stat::VmaPagefaultKb, size / 1024);
    populate(vm, vma, bo, offset)
}

/// Maps all of `vma`, which maps `bo` from `offset` bytes on.
///
/// Fails as [`fault`] does.
pub(super) fn populate(vm: &Context, vma: &Vma, bo: &Bo, offset: u64) -> Result<Served> {
    let staged = stage(&vm.aspace, vma)?;
    write(vm, staged, vma, bo, offset)
}

/// Allocates what writing a mapping of `vma` can need. Fails with `ENOMEM`.
pub(super) fn stage(aspace: &AddressSpace, vma: &Vma) -> Result<Staged> {
    aspace.stage(vma.span.start, vma.span.end - vma.span.start)
}

/// Maps `vma` to `bo` from `offset` bytes on.
///
/// Fails with `EINVAL`, after a part, if the buffer is too short, or has no pages yet.
pub(super) fn write(
    vm: &Context,
    mut staged: Staged,
    vma: &Vma,
    bo: &Bo,
    offset: u64,
) -> Result<Served> {
    let flags = pte_flags(vma, true, true);
    let mut stale = Hull::new();
    let (mut at, mut skip) = (vma.span.start, offset);
    let mut result = Ok(());
    for segment in bo.pinned_segments() {
        if skip >= segment.len {
            skip -= segment.len;
            continue;
        }
        let len = (segment.len - skip).min(vma.span.end - at);
        if len == 0 {
            break;
        }
        let target = segment.target.offset(skip);
        match vm.aspace.map(&mut staged, at, len, target, flags) {
            Ok(changed) => stale.add(changed),
            Err(e) => {
                result = Err(e);
                break;
            }
        }
        skip = 0;
        at += len;
    }
    stale.flush(&vm.aspace, &vm.dev.stats);
    result?;
    if at != vma.span.end {
        return Err(EINVAL);
    }
    Ok(Served {
        span: vma.span.clone(),
        access: if flags.contains(PteFlag::Atomic) {
            Access::Atomic
        } else if flags.contains(PteFlag::Writable) {
            Access::Write
        } else {
            Access::Read
        },
    })
}

/// The removal of a mapping, with all the memory that it needs: what is beside it stays mapped,
/// even in a large page that it shares.
pub(super) struct Removal {
    span: Span,
    /// For the large pages that `span` has only the end, or only the beginning, of.
    edges: [Option<(Span, Staged)>; 2],
}

impl Removal {
    /// Fails with `ENOMEM`.
    pub(super) fn stage(aspace: &AddressSpace, span: Span) -> Result<Self> {
        let stage = |part: Span| -> Result<Option<(Span, Staged)>> {
            if part.is_empty() {
                return Ok(None);
            }
            let staged = aspace.stage(part.start, part.end - part.start)?;
            Ok(Some((part, staged)))
        };
        // Does not overflow: addresses have 48 bits.
        let middle = span.start.next_multiple_of(LARGE_PAGE_SIZE).min(span.end);
        let tail = (span.end - span.end % LARGE_PAGE_SIZE).max(middle);
        Ok(Self {
            edges: [stage(span.start..middle)?, stage(tail..span.end)?],
            span,
        })
    }

    /// Removes, and adds what the TLB has to forget to `stale`.
    pub(super) fn carry_out(self, aspace: &AddressSpace, stale: &mut Hull) {
        for (part, mut staged) in self.edges.into_iter().flatten() {
            // Cannot fail: the part is what was staged. What is left is zapped below.
            if let Ok(changed) = aspace.unmap(&mut staged, part.start, part.end - part.start) {
                stale.add(changed);
            }
        }
        // Whatever is left now are whole large pages.
        stale.add(aspace.zap(self.span.start, self.span.end - self.span.start));
    }
}
