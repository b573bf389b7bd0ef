// SPDX-License-Identifier: GPL-2.0

//! Writes the pages of a range, or of a userptr, to the GPU page table, with the access rights of
//! the VMA and the pages.

use super::{
    migrate,
    to_gpu,
    Context,
    Mirror, //
};
use crate::{
    fault::Serviced,
    gpu::{
        Access,
        PteFlag,
        PteFlags,
        Staged,
        StaleSpan,
        Target, //
    },
    memory,
    vm::vma::Vma, //
};
use core::ops::Range;
use gpusvm::{
    Mapped,
    Protocol,
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
    range: &gpusvm::Range<Mirror>,
    view: View<'_>,
) -> Result<Serviced> {
    let span = to_gpu(view.span());
    let mut in_device = 0;
    let runs = view.segments().map(|segment| {
        if segment.proto != Protocol::SYSTEM {
            in_device += segment.len;
        }
        PteRun::of(&segment)
    });
    let mut writer = Writer::new(vm, vma);
    if let Err(e) = writer.write(staged, runs) {
        writer.stale.zap(&vm.aspace, span);
        writer.flush();
        range.data().set(None, 0, 0);
        return Err(e);
    }
    let segments = writer.segments;
    let access = writer.flush();
    range.data().set(Some(access), segments, in_device);
    Ok(Serviced { span, access })
}

/// Writes the part of a userptr that a view shows, and that lies in `span` of the process, to the
/// GPU page table: `span.start` to the start of the writer's VMA. The notifier lock is held.
///
/// Fails as [`bind`] does.
pub(crate) fn bind_userptr(
    writer: &mut Writer<'_>,
    staged: &mut Staged,
    span: &Range<usize>,
    view: View<'_>,
) -> Result {
    let start = writer.vma.span.start;
    let runs = view.segments().filter_map(|segment| {
        let from = segment.va.max(span.start);
        let to = (segment.va + segment.len).min(span.end);
        let len = to.checked_sub(from).filter(|len| *len != 0)?;
        Some(PteRun {
            // CAST: Addresses and sizes have at most 64 bits.
            va: start + (from - span.start) as u64,
            target: memory::target(segment.proto, segment.addr).offset((from - segment.va) as u64),
            len: len as u64,
            writable: segment.writable,
        })
    });
    writer.write(staged, runs)
}

/// Writes pages to the GPU page table with the access rights of a VMA.
pub(crate) struct Writer<'a> {
    vm: &'a Context,
    vma: &'a Vma,
    /// The rights that all pages have.
    rights: PteFlags,
    segments: u32,
    stale: StaleSpan,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(vm: &'a Context, vma: &'a Vma) -> Self {
        Self {
            vm,
            vma,
            rights: PteFlag::Writable | PteFlag::Atomic,
            segments: 0,
            stale: StaleSpan::new(),
        }
    }

    /// Writes `runs`, in ascending order. Joins those that are contiguous.
    #[inline]
    fn write(&mut self, staged: &mut Staged, runs: impl Iterator<Item = PteRun>) -> Result {
        let mut last: Option<PteRun> = None;
        for run in runs {
            last = match last.take() {
                Some(last) if last.continues_with(&run) => Some(last.and(&run)),
                before => {
                    if let Some(before) = before {
                        self.map(staged, before)?;
                    }
                    Some(run)
                }
            };
        }
        last.map_or(Ok(()), |run| self.map(staged, run))
    }

    fn map(&mut self, staged: &mut Staged, run: PteRun) -> Result {
        self.segments += 1;
        let flags = run.flags(self.vm, self.vma);
        self.rights &= flags;
        let aspace = &self.vm.aspace;
        self.stale
            .map(aspace, staged, run.va, run.len, run.target, flags)
    }

    /// Flushes the TLB. Returns the strongest access that all pages allow.
    pub(crate) fn flush(self) -> Access {
        self.stale.flush(&self.vm.aspace, &self.vm.dev.stats);
        self.rights.strongest_access()
    }
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

    fn continues_with(&self, next: &Self) -> bool {
        self.target.checked_offset(self.len) == Some(next.target) && self.writable == next.writable
    }

    fn and(self, next: &Self) -> Self {
        Self {
            // Does not overflow: both are parts of one range or userptr.
            len: self.len + next.len,
            ..self
        }
    }

    /// Returns the PTE flags for the run.
    fn flags(&self, vm: &Context, vma: &Vma) -> PteFlags {
        let in_system = matches!(self.target, Target::System(_));
        let atomics = !(in_system && migrate::is_exclusive(vm, vma));
        pte_flags(vma, self.writable, atomics)
    }
}
