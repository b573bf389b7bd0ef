// SPDX-License-Identifier: GPL-2.0

//! Writes the pages of a range to the GPU page table, with the access rights of the VMA and the
//! pages.

use super::{
    migrate,
    to_gpu,
    Context,
    Mirror, //
    StaleSpan,
};
use crate::{
    fault::Serviced,
    gpu::{
        Access,
        PteFlag,
        PteFlags,
        Staged,
        Target, //
    },
    memory,
    vm::vma::{
        Span,
        Vma, //
    }, //
};
use gpusvm::{
    Mapped,
    Protocol,
    Range,
    View, //
};
use kernel::prelude::*;

/// Writes the pages of a range to the GPU page table. The notifier lock is held.
///
/// Fails with `EINVAL` if the pages do not fit into the page table; then nothing is mapped.
pub(super) fn bind(
    vm: &Context,
    staged: &mut Staged,
    vma: &Vma,
    range: &Range<Mirror>,
    view: View<'_>,
) -> Result<Serviced> {
    let span = to_gpu(view.span());
    let (mut stale, mut segments, mut in_device) = (StaleSpan::new(), 0, 0);
    // The rights that all pages have.
    let mut rights = PteFlag::Writable | PteFlag::Atomic;
    let mut map = |run: PteRun| -> Result {
        segments += 1;
        let flags = run.flags(vm, vma);
        rights &= flags;
        stale.add(run.map(vm, staged, flags)?);
        Ok(())
    };
    let mut run: Option<PteRun> = None;
    let mut result = Ok(());
    for segment in view.segments() {
        if segment.proto != Protocol::SYSTEM {
            in_device += segment.len;
        }
        run = match run.take() {
            Some(run) if run.continues_with(&segment) => Some(run.and(&segment)),
            before => {
                if let Some(before) = before {
                    result = map(before);
                }
                Some(PteRun::of(&segment))
            }
        };
        if result.is_err() {
            break;
        }
    }
    if let (Ok(()), Some(run)) = (result, run) {
        result = map(run);
    }
    if let Err(e) = result {
        stale.add(vm.aspace.zap(span.start, span.end - span.start));
        stale.flush(&vm.aspace, &vm.dev.stats);
        range.data().set(None, 0, 0);
        return Err(e);
    }
    stale.flush(&vm.aspace, &vm.dev.stats);

    let access = match rights {
        flags if flags.contains(PteFlag::Atomic) => Access::Atomic,
        flags if flags.contains(PteFlag::Writable) => Access::Write,
        _ => Access::Read,
    };
    range.data().set(Some(access), segments, in_device);
    Ok(Serviced { span, access })
}

/// Returns the PTE flags of pages in `vma` by whether they are `writable` and allow `atomics`.
pub(crate) fn pte_flags(vma: &Vma, writable: bool, atomics: bool) -> PteFlags {
    if !writable || vma.read_only {
        PteFlags::empty()
    } else if atomics && vma.attributes.atomics.by_device() {
        PteFlag::Writable | PteFlag::Atomic
    } else {
        PteFlag::Writable.into()
    }
}

/// Segments that are contiguous in the GPU's address space and on the bus: they may share a large
/// page.
struct PteRun {
    va: u64,
    target: Target,
    len: u64,
    writable: bool,
}

impl PteRun {
    fn of(segment: &Mapped<'_>) -> Self {
        Self {
            // CAST: Addresses and sizes have at most 64 bits.
            va: segment.va as u64,
            target: memory::target(segment.proto, segment.addr),
            len: segment.len as u64,
            writable: segment.writable,
        }
    }

    fn continues_with(&self, next: &Mapped<'_>) -> bool {
        let end = self.target.checked_offset(self.len);
        end == Some(memory::target(next.proto, next.addr)) && self.writable == next.writable
    }

    fn and(self, next: &Mapped<'_>) -> Self {
        Self {
            // Does not overflow: a range has at most 2 MiB.
            len: self.len + next.len as u64,
            ..self
        }
    }

    /// Returns the PTE flags for the run.
    fn flags(&self, vm: &Context, vma: &Vma) -> PteFlags {
        let in_system = matches!(self.target, Target::System(_));
        let atomics = !(in_system && migrate::is_exclusive(vm, vma));
        pte_flags(vma, self.writable, atomics)
    }

    fn map(&self, vm: &Context, staged: &mut Staged, flags: PteFlags) -> Result<Option<Span>> {
        vm.aspace.map(staged, self.va, self.len, self.target, flags)
    }
}
