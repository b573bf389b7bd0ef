// SPDX-License-Identifier: GPL-2.0

//! The service of faults, and prefetches: has a range's memory where it is to be, and maps it.
//!
//! What both have in common is one loop, [`serve`]. What they want of it is an [`Aim`].

use super::{
    bind::bind,
    meter::Meter,
    migrate::{
        self,
        Memory,
        To,
        Why, //
    },
    revisit,
    to_cpu,
    to_gpu,
    Context,
    Mirror, //
};
use crate::{
    fault::{
        Fault,
        Served, //
    },
    gpu::Access,
    stats::Stat,
    vm::{
        attributes::MigrationPolicy,
        vma::Vma, //
    }, //
};
use gpusvm::{
    Attempt,
    Ctx,
    Found,
    Guard,
    Range,
    RangeFlag,
    Retry,
    Stale, //
};
use kernel::{
    prelude::*,
    sizes::SZ_64K,
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// How many times a range is tried whose pages the CPU takes away meanwhile. After that only the page
/// of the fault is mapped: the smaller, the sooner.
const TRIES: u32 = 3;

/// How much a fault populates, in bytes, of memory that is mostly not populated: as much as a fault of the
/// CPU maps around the page of a file.
const FAULT_AROUND: usize = SZ_64K;

/// Services a fault of the GPU in `vma`, a mirror. With `page_only` it maps no more than its page, if
/// that is not mapped yet.
///
/// Fails with `ENOENT` where the process has no memory, `EPERM` for a write to what may only be
/// read, `EIO` for the memory of some device, `EFAULT` for pages that cannot be had or a process
/// that is gone, `EACCES` for an exclusive atomic on memory that never moves, `EBUSY` when the CPU kept
/// changing its mappings, `EAGAIN` when it unmapped what was there, which is to be collected first, and
/// `ENOMEM`; for an exclusive atomic also as [`migrate::to_vram`] does.
pub(crate) fn fault(
    vm: &Context,
    svm: &mut Guard<'_, Mirror>,
    vma: &Vma,
    fault: Fault,
    page_only: bool,
) -> Result<Served> {
    if !page_only {
        vm.dev.stats.inc(Stat::SvmPagefaultCount);
    }
    serve(vm, svm, vma, &Aim::fault(vm, vma, fault, page_only))
}

/// Maps the range at `addr` in `vma`, a mirror, for reading, before the GPU needs it, after moving it
/// to where it is to be: copies that a write would make are not made.
///
/// Fails as [`fault()`] does; what cannot move is no failure.
pub(crate) fn prefetch(
    vm: &Context,
    svm: &mut Guard<'_, Mirror>,
    vma: &Vma,
    addr: u64,
    to: To,
) -> Result<Served> {
    let done = serve(vm, svm, vma, &Aim::prefetch(vm, vma, addr, to));
    vxe_sim::drm_dbg!(
        &vm.dev,
        "process {}: prefetch at {addr:#x} to {to:?}: {:#x?}",
        vm.pid,
        done.as_ref().map(|served| &served.span)
    );
    done
}

/// What a range is mapped for, and what may be done for that.
struct Aim<'a> {
    /// What is to work.
    fault: Fault,
    /// Where the memory is to be; none for that of the system.
    placement: Option<Memory<'a>>,
    moving: Moving,
    narrowing: Narrowing,
    /// What counts it.
    meter: Meter<'a>,
}

/// How memory gets to where it is to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moving {
    /// Once, if it may move now. What is mapped is good enough, and what cannot move as well.
    IfItMay,
    /// Once, whether it is mapped or not. What cannot move is mapped where it is.
    First(MigrationPolicy),
    /// As often as the CPU takes it back: what is elsewhere is not mapped.
    Always,
}

/// When a range is content with the page that it is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Narrowing {
    /// From the beginning.
    AtOnce,
    /// After some tries that were lost to the CPU.
    InTheEnd,
    /// Never: single pages do not move.
    Never,
}

impl<'a> Aim<'a> {
    /// What a fault wants. An atomic that is to be the GPU's alone wants the memory on the device, wherever
    /// it was advised to live.
    fn fault(vm: &'a Context, vma: &Vma, fault: Fault, page_only: bool) -> Self {
        let meter = Meter::of(&vm.dev.stats);
        if fault.access == Access::Atomic && migrate::is_exclusive(vm, vma) {
            return Self {
                fault,
                placement: vm.memory.as_ref().map(Memory::Own),
                moving: Moving::Always,
                narrowing: Narrowing::Never,
                meter,
            };
        }
        Self {
            fault,
            placement: migrate::placement(vm, vma),
            moving: Moving::IfItMay,
            narrowing: if page_only {
                Narrowing::AtOnce
            } else {
                Narrowing::InTheEnd
            },
            meter,
        }
    }

    /// What a program's foresight wants.
    fn prefetch(vm: &'a Context, vma: &Vma, addr: u64, to: To) -> Self {
        Self {
            fault: Fault {
                addr,
                access: Access::Read,
            },
            placement: match to {
                To::System => None,
                To::Own => vm.memory.as_ref().map(Memory::Own),
                To::Advised => migrate::placement(vm, vma),
            },
            moving: Moving::First(vma.attributes.policy),
            narrowing: Narrowing::InTheEnd,
            meter: Meter::off(),
        }
    }

    /// How pages are to be found.
    fn ctx(&self, vm: &Context) -> Ctx {
        let mut ctx = Ctx::new(match self.fault.access {
            Access::Read => gpusvm::Access::Read,
            Access::Write | Access::Atomic => gpusvm::Access::Write,
        });
        ctx.devmem_possible = vm.memory.is_some() || self.placement.is_some();
        ctx.devmem_only = self.moving == Moving::Always;
        ctx.allow_mixed = true;
        let owner = vm.dev.memory.owner();
        // A prefetch is told what to populate.
        if !matches!(self.moving, Moving::First(_)) {
            ctx = ctx.with_fault_around(FAULT_AROUND, Some(owner));
        }
        if self.placement.is_none() {
            // Pages come to system memory.
            return ctx;
        }
        // They stay in memory that the GPU reaches.
        ctx.with_owner(Some(owner))
    }

    /// Whether no more than a page is to be mapped, after `lost` tries.
    fn is_content_with_a_page(&self, lost: u32) -> bool {
        match self.narrowing {
            Narrowing::AtOnce => true,
            Narrowing::InTheEnd => lost >= TRIES,
            Narrowing::Never => false,
        }
    }

    /// Whether nothing is left to do, with a range that is mapped, after `moves` times to move it.
    fn is_met(&self, served: &Served, moves: u32) -> bool {
        let has_moved = moves != 0 || !matches!(self.moving, Moving::First(_));
        has_moved && served.settles(&self.fault)
    }

    /// Has a range where it is to be, as far as that can be, after `moves` times before. Returns whether it
    /// was refused, and may move later.
    ///
    /// Fails if it is not to be mapped where it is.
    fn bring(
        &self,
        vm: &Context,
        found: &mut Found<'_, '_, Mirror>,
        moves: u32,
        attempt: &Attempt<'_>,
    ) -> Result<bool> {
        let started = Instant::<Monotonic>::now();
        let was_refused = moves == 0 && found.data().away.reset();
        let moved = match (&self.placement, self.moving) {
            (Some(memory), Moving::Always) => {
                match migrate::on_atomic(vm, found, memory, moves, attempt) {
                    Err(e) if e == EACCES || moves >= TRIES => return Err(e),
                    moved => Some(moved),
                }
            }
            (Some(memory), Moving::IfItMay) if moves == 0 => {
                migrate::on_fault(vm, found, memory, &self.fault, attempt)
            }
            (Some(memory), Moving::First(policy)) if moves == 0 => {
                migrate::on_prefetch(vm, found, memory, policy, attempt)
            }
            (None, Moving::First(_)) if moves == 0 && found.data().in_device() != 0 => {
                // If that fails it stays where it is.
                let _ = migrate::to_system(vm, found, Why::Prefetch, attempt);
                None
            }
            _ => None,
        };
        if matches!(&moved, Some(Ok(moved)) if moved.moved != 0) {
            let size = found.size();
            self.meter.inc(size, |stats| stats.migrations);
            self.meter.add_us(size, started, |stats| stats.migrate_us);
            if was_refused {
                revisit::came(vm);
            }
        }
        Ok(moved.is_some_and(|moved| migrate::is_refused(&moved)))
    }

    /// Notes, under the notifier lock, that the range was mapped, after `lost` tries. An access follows
    /// that faulted, but for a prefetch.
    fn mapped(&self, vm: &Context, range: &Range<Mirror>, served: &Served, lost: u32) {
        if served.settles(&self.fault) && !matches!(self.moving, Moving::First(_)) {
            let grace = &range.data().grace;
            grace.begin(&vm.aspace, self.fault.addr, lost != 0);
        }
    }
}

/// Has the range at the address of an aim where it is to be, and maps it.
fn serve(vm: &Context, svm: &mut Guard<'_, Mirror>, vma: &Vma, aim: &Aim<'_>) -> Result<Served> {
    let started = Instant::<Monotonic>::now();
    let (ctx, meter) = (aim.ctx(vm), aim.meter);
    let window = to_cpu(&vma.span);
    // CAST: The address lies in the window.
    let addr = aim.fault.addr as usize;

    let mut retry = Retry::bounded();
    let (mut counted, mut evicted, mut lost, mut moves) = (false, false, 0, 0);
    let mut refused = false;
    while let Some(mut attempt) = retry.next() {
        if aim.is_content_with_a_page(lost) {
            // If the range is that small already, there is nothing better than to try again.
            let _ = attempt.narrow(addr, window.clone());
        }
        if is_unmapped(svm, addr) {
            return Err(EAGAIN);
        }
        let mut found = match svm.find_or_insert(addr, window.clone(), &ctx, &attempt) {
            Ok(found) => found,
            Err(EAGAIN) => {
                // What is there fits no more. It makes way, alone: what the CPU unmapped is for those
                // to collect who know of attributes.
                if let Some(found) = svm.find(addr) {
                    found.remove();
                }
                continue;
            }
            Err(e) => return Err(e),
        };
        let (span, size) = (found.span(), found.size());
        if !counted {
            meter.inc(size, |stats| stats.faults);
            counted = true;
        }

        // Somebody else may have had it mapped since the GPU looked.
        let before = found.commit(|_, range| {
            let served = Served {
                span: to_gpu(span.clone()),
                access: range.data().access()?,
            };
            aim.mapped(vm, range, &served, lost);
            Some(served)
        });
        if let Ok(Some(served)) = before {
            if aim.is_met(&served, moves) {
                meter.inc(size, |stats| stats.valid);
                return Ok(served);
            }
        }

        match aim.bring(vm, &mut found, moves, &attempt) {
            Ok(is_refused) => refused |= is_refused,
            Err(e) => {
                found.remove();
                return Err(e);
            }
        }
        moves += 1;

        // All memory is allocated before the notifier lock is taken, and before the pages are there: the
        // sooner they are committed, the more likely it is that the CPU has left them alone.
        let mut staged = vm.aspace.stage(span.start as u64, size as u64)?;
        let get_started = Instant::<Monotonic>::now();
        match found.get(&ctx, &attempt) {
            Ok(()) => {}
            // Memory of several devices in one range.
            Err(EOPNOTSUPP) if !evicted => {
                evicted = true;
                let _ = migrate::to_system(vm, &mut found, Why::Access, &attempt);
                continue;
            }
            Err(EAGAIN) => {
                lost += 1;
                continue;
            }
            // The CPU has taken some of it back.
            Err(EFAULT) if ctx.devmem_only => continue,
            Err(e) if (e == EFAULT || e == EPERM) && attempt.narrow(addr, span) => continue,
            Err(e) => {
                // Nothing is mapped there, so that nothing is to be in the way of a bind.
                found.remove();
                return Err(e);
            }
        }
        meter.add_us(size, get_started, |stats| stats.get_pages_us);

        let bind_started = Instant::<Monotonic>::now();
        let bound = found.commit(|view, range| -> Result<Served> {
            let served = bind(vm, &mut staged, vma, range, view)?;
            aim.mapped(vm, range, &served, lost);
            Ok(served)
        });
        let served = match bound {
            Ok(served) => served?,
            Err(Stale) => {
                lost += 1;
                continue;
            }
        };
        meter.add_us(size, bind_started, |stats| stats.bind_us);
        if refused && found.data().in_device() == 0 {
            revisit::refuse(vm, &found.data().away);
        }
        if served.settles(&aim.fault) {
            meter.add_us(size, started, |stats| stats.fault_us);
            return Ok(served);
        }
    }
    Err(Retry::spent())
}

/// Whether the CPU unmapped the range at `addr`, or part of it.
fn is_unmapped(svm: &Guard<'_, Mirror>, addr: usize) -> bool {
    let mut at = svm.ranges(addr..addr.saturating_add(1));
    at.any(|range| range.has(RangeFlag::Unmapped))
}
