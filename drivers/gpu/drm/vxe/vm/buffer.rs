// SPDX-License-Identifier: GPL-2.0

//! Mappings of buffers in a GPU page table.
//!
//! Binds, unbinds, and moves and the loss of the memory change the mapping of a buffer. All functions
//! but [`Vm::maps`] and [`Vm::zap_buffer`] require the VM's SVM lock, which serializes faults and
//! binds.
//!
//! Where a buffer is mapped in the page table, the map has a VMA of it, whenever the map's lock is
//! free: a mapping is written after its VMA was inserted, and removed before that is.

use super::{
    map::VmaMap,
    spans::{
        SortedSpans,
        Spans, //
    },
    vma::{
        Backing,
        Vma, //
    },
    Vm, //
};
use crate::{
    bo::{
        Allowed,
        Bo,
        BoData,
        Payer, //
    },
    fault::Serviced,
    gpu::{
        AddressSpace,
        Staged, //
        StaleSpan,
    },
    memory::Policy,
    stats::Stat,
    svm::{
        pte_flags,
        Context, //
    }, //
};
use kernel::{
    mm::Mm,
    prelude::*, //
};
use kernel_ext::sched;

/// How often a fault brings a buffer to the GPU that others evict before it is mapped.
const MAX_TRIES: u32 = 16;

/// Services a fault in `vma`, which maps `bo` from `offset` bytes on, by mapping all of it.
///
/// Fails as [`populate`] does.
pub(super) fn fault(
    vm: &Context,
    mm: Option<&Mm>,
    vma: &Vma,
    bo: &Bo,
    offset: u64,
) -> Result<Serviced> {
    vm.dev.stats.inc(Stat::VmaPagefaultCount);
    let size = vma.span.end - vma.span.start;
    vm.dev.stats.add(Stat::VmaPagefaultKb, size / 1024);
    populate(vm, mm, vma, bo, offset)
}

/// Maps all of `vma`, which maps `bo` from `offset` bytes on. Brings the buffer to where the GPU may
/// use it, charged to the process of `mm`.
///
/// Fails with `EACCES` if the contents of the buffer may be or were purged, with `EFAULT` for a process
/// that is gone, with `ENOMEM`, as [`BoData::make_resident`] does, and with `EINVAL` and `EINTR` as
/// [`write`] does.
pub(super) fn populate(
    vm: &Context,
    mm: Option<&Mm>,
    vma: &Vma,
    bo: &Bo,
    offset: u64,
) -> Result<Serviced> {
    bo.check_needed().map_err(|_| EACCES)?;
    let size = vma.span.end - vma.span.start;
    for _ in 0..MAX_TRIES {
        let allowed = if bo.is_movable() {
            let payer = Payer::Process(mm.ok_or(EFAULT)?);
            BoData::make_resident(bo, payer, &Policy::USE)?
        } else {
            Allowed::Placement
        };
        let mut staged = vm.aspace.stage(vma.span.start, size)?;
        match write(vm, &mut staged, vma, bo, offset, allowed) {
            Err(EAGAIN) => {}
            done => return done,
        }
    }
    Err(EBUSY)
}

/// Writes the mapping of `vma`, to `bo` from `offset` bytes on, into the page table.
///
/// Fails with `EACCES` if the buffer was purged, `EAGAIN` if it is moving or in a place that is not
/// `allowed`, `EINVAL` if it is too short or has no segments yet, and with `EINTR` for a killed caller.
/// A part may be mapped then.
fn write(
    vm: &Context,
    staged: &mut Staged,
    vma: &Vma,
    bo: &Bo,
    offset: u64,
    allowed: Allowed,
) -> Result<Serviced> {
    let memory = bo.hold_memory(allowed)?;
    let flags = pte_flags(vma, true, true);
    let mut stale = StaleSpan::new();
    let (segments, mut skip) = memory.segments_from(offset);
    let mut at = vma.span.start;
    let mut result = Ok(());
    for segment in segments {
        result = sched::check_killed();
        if result.is_err() {
            break;
        }
        let len = (segment.len - skip).min(vma.span.end - at);
        if len == 0 {
            break;
        }
        let target = segment.target.offset(skip);
        result = stale.map(&vm.aspace, staged, at, len, target, flags);
        if result.is_err() {
            break;
        }
        skip = 0;
        at += len;
    }
    stale.flush(&vm.aspace, &vm.dev.stats);
    result?;
    if at != vma.span.end {
        return Err(EINVAL);
    }
    Ok(Serviced {
        span: vma.span.clone(),
        access: flags.strongest_access(),
    })
}

/// A removal of mappings, with all memory that it needs. Neighbouring mappings stay, even in a
/// large page that has to be split.
pub(super) struct Removals {
    spans: SortedSpans,
    staged: Staged,
}

impl Removals {
    /// Prepares the removal of all mappings in `spans`. The caller holds the SVM lock until
    /// [`apply`](Self::apply), so nothing is mapped there meanwhile.
    ///
    /// Fails with `EINTR` for a killed caller, and `ENOMEM`.
    pub(super) fn stage(aspace: &AddressSpace, spans: Spans) -> Result<Self> {
        let spans = spans.sorted()?;
        let staged = aspace.stage_removals(spans.iter())?;
        Ok(Self { spans, staged })
    }

    /// Removes the mappings and flushes the TLB.
    pub(super) fn apply(mut self, vm: &Context) {
        let mut stale = StaleSpan::new();
        for span in self.spans.iter() {
            stale.unmap(&vm.aspace, &mut self.staged, span.clone());
            sched::cond_resched();
        }
        stale.flush(&vm.aspace, &vm.dev.stats);
    }
}

/// Maps the buffers that `map` has in `spans`. What fails, or is left when the caller is killed, is
/// left to faults.
pub(super) fn write_all(vm: &Context, staged: &mut Staged, map: &VmaMap, spans: &SortedSpans) {
    for vma in map.overlapping_any(spans) {
        let Backing::Bo { bo, offset } = &vma.backing else {
            continue;
        };
        if sched::check_killed().is_err() {
            break;
        }
        let _ = write(vm, staged, vma, bo, *offset, Allowed::Placement);
    }
}

impl Vm {
    /// Returns whether `bo` is bound. The caller holds no lock of a map.
    pub(crate) fn maps(&self, bo: &Bo) -> bool {
        self.map.lock().first_of(bo).is_some()
    }

    /// Removes all mappings of `bo` from the page table. The caller has made sure that no more are
    /// written, and holds no lock of a map.
    pub(crate) fn zap_buffer(&self, bo: &Bo) {
        let mut stale = StaleSpan::new();
        let map = self.map.lock();
        for span in map.spans_of(bo) {
            stale.zap(&self.aspace, span);
            sched::cond_resched();
        }
        drop(map);
        stale.flush(&self.aspace, &self.dev.stats);
    }
}
