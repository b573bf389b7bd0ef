// SPDX-License-Identifier: GPL-2.0

//! The service of faults and of prefetches: one loop, [`serve`], migrates a range's memory by the policy of
//! [`migrate`](super::migrate), and maps it.

use super::{
    bind::bind,
    migrate::{
        self,
        Cause,
        Memory,
        To, //
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
    stats::{
        us_since,
        SizeStat,
        Stat,
        Stats, //
    },
    vm::vma::Vma, //
};
use gpusvm::{
    Ctx,
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

/// How many times a range is tried whose pages the CPU invalidates meanwhile. After that only the page
/// of the fault is mapped, which takes less time.
const TRIES: u32 = 3;

/// How much a fault populates, in bytes, of memory that is mostly not populated: as much as a fault of the
/// CPU maps around the page of a file.
const FAULT_AROUND: usize = SZ_64K;

/// Services a fault of the GPU in `vma`, a mirror. With `page_only` it maps no more than its page, if
/// that is not mapped yet.
///
/// Fails with `ENOENT` where the process has no memory, `EPERM` for a write to what may only be
/// read, `EIO` for the memory of some device, `EFAULT` for pages that cannot be had or a process
/// that is gone, `EACCES` for an exclusive atomic on memory that never migrates, `EBUSY` when the CPU kept
/// changing its mappings, `EAGAIN` when it unmapped what was there, which is to be collected first, and
/// `ENOMEM`; for an exclusive atomic also as a migration does.
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
    serve(vm, svm, vma, &Request::fault(vm, vma, fault, page_only))
}

/// Migrates the range at `addr` in `vma`, a mirror, before the GPU needs it, and maps it for reading: copies that a
/// write would make are not made.
///
/// Fails as [`fault()`] does; memory that cannot migrate is no failure.
pub(crate) fn prefetch(
    vm: &Context,
    svm: &mut Guard<'_, Mirror>,
    vma: &Vma,
    addr: u64,
    to: To,
) -> Result<Served> {
    let done = serve(vm, svm, vma, &Request::prefetch(vm, vma, addr, to));
    vxe_sim::drm_dbg!(
        &vm.dev,
        "process {}: prefetch at {addr:#x} to {to:?}: {:#x?}",
        vm.pid,
        done.as_ref().map(|served| &served.span)
    );
    done
}

/// What a fault or a prefetch asks for.
pub(super) struct Request<'a> {
    /// The access that is to work.
    pub(super) fault: Fault,
    pub(super) cause: Cause,
    /// The device memory to which the range is to migrate; none for system memory.
    pub(super) preferred: Option<Memory<'a>>,
    /// Whether no more than the page of the fault is to be mapped.
    page_only: bool,
    /// The counters of faults; a prefetch counts nothing.
    stats: Option<&'a Stats>,
}

impl<'a> Request<'a> {
    /// That of a fault. An exclusive atomic needs the memory on the device, whatever its preferred location.
    fn fault(vm: &'a Context, vma: &Vma, fault: Fault, page_only: bool) -> Self {
        let is_exclusive = fault.access == Access::Atomic && migrate::is_exclusive(vm, vma);
        let (cause, preferred) = if is_exclusive {
            (Cause::Atomic, vm.memory.as_ref().map(Memory::Own))
        } else {
            (Cause::Fault, migrate::preferred_location(vm, vma))
        };
        Self {
            fault,
            cause,
            preferred,
            page_only,
            stats: Some(&vm.dev.stats),
        }
    }

    /// That of a program which prefetches what is at `addr`.
    fn prefetch(vm: &'a Context, vma: &Vma, addr: u64, to: To) -> Self {
        Self {
            fault: Fault {
                addr,
                access: Access::Read,
            },
            cause: Cause::Prefetch(vma.attributes.policy),
            preferred: match to {
                To::System => None,
                To::Own => vm.memory.as_ref().map(Memory::Own),
                To::Advised => migrate::preferred_location(vm, vma),
            },
            page_only: false,
            stats: None,
        }
    }

    /// Adds `n` to a counter for ranges of `size` bytes.
    pub(super) fn count(&self, stat: SizeStat, size: usize, n: u64) {
        if let Some(stats) = self.stats {
            stats.add_for(stat, size as u64, n);
        }
    }

    pub(super) fn is_prefetch(&self) -> bool {
        matches!(self.cause, Cause::Prefetch(_))
    }

    /// How pages are to be found.
    fn ctx(&self, vm: &Context) -> Ctx {
        let mut ctx = Ctx::new(match self.fault.access {
            Access::Read => gpusvm::Access::Read,
            Access::Write | Access::Atomic => gpusvm::Access::Write,
        });
        ctx.devmem_possible = vm.memory.is_some() || self.preferred.is_some();
        ctx.devmem_only = self.cause == Cause::Atomic;
        ctx.allow_mixed = true;
        let owner = vm.dev.memory.owner();
        // A prefetch is told what to populate.
        if !self.is_prefetch() {
            ctx = ctx.with_fault_around(FAULT_AROUND, Some(owner));
        }
        if self.preferred.is_none() {
            // Pages come to system memory.
            return ctx;
        }
        // They stay in memory that the GPU reaches.
        ctx.with_owner(Some(owner))
    }

    /// Whether to map no more than a page, after `lost` tries in which the CPU invalidated the range. Not for an
    /// exclusive atomic: single pages do not migrate.
    fn is_page_enough(&self, lost: u32) -> bool {
        self.cause != Cause::Atomic && (self.page_only || lost >= TRIES)
    }

    /// Starts the timeslice of what is mapped, under the notifier lock, after `lost` tries. No access follows a
    /// prefetch.
    fn mapped(&self, vm: &Context, range: &Range<Mirror>, served: &Served, lost: u32) {
        if served.settles(&self.fault) && !self.is_prefetch() {
            let timeslice = &range.data().timeslice;
            timeslice.begin(&vm.aspace, self.fault.addr, lost != 0);
        }
    }
}

/// Migrates and maps the range at the address of a request.
fn serve(
    vm: &Context,
    svm: &mut Guard<'_, Mirror>,
    vma: &Vma,
    request: &Request<'_>,
) -> Result<Served> {
    let started = Instant::<Monotonic>::now();
    let ctx = request.ctx(vm);
    let window = to_cpu(&vma.span);
    // CAST: The address lies in the window.
    let addr = request.fault.addr as usize;

    let mut retry = Retry::bounded();
    let (mut counted, mut evicted, mut lost, mut tries) = (false, false, 0, 0);
    let mut refused = false;
    while let Some(mut attempt) = retry.next() {
        if request.is_page_enough(lost) {
            // If the range is that small already, there is nothing better than to try again.
            let _ = attempt.narrow(addr, window.clone());
        }
        if is_unmapped(svm, addr) {
            return Err(EAGAIN);
        }
        let mut found = match svm.find_or_insert(addr, window.clone(), &ctx, &attempt) {
            Ok(found) => found,
            Err(EAGAIN) => {
                // The range that is there does not fit any more. It is removed, alone: what the CPU
                // unmapped is collected by the caller, who knows of attributes.
                if let Some(found) = svm.find(addr) {
                    found.remove();
                }
                continue;
            }
            Err(e) => return Err(e),
        };
        let (span, size) = (found.span(), found.size());
        if !counted {
            request.count(SizeStat::PagefaultCount, size, 1);
            counted = true;
        }

        // Another thread may have mapped it since the GPU faulted.
        let before = found.commit(|_, range| {
            let served = Served {
                span: to_gpu(span.clone()),
                access: range.data().access()?,
            };
            request.mapped(vm, range, &served, lost);
            Some(served)
        });
        if let Ok(Some(served)) = before {
            // A prefetch migrates what is mapped, too.
            if served.settles(&request.fault) && !(request.is_prefetch() && tries == 0) {
                request.count(SizeStat::ValidPagefaultCount, size, 1);
                return Ok(served);
            }
        }

        match migrate::migrate(vm, &mut found, request, tries, &attempt) {
            Ok(is_refused) => refused |= is_refused,
            Err(e) => {
                found.remove();
                return Err(e);
            }
        }
        tries += 1;

        // All memory is allocated before the notifier lock is taken, and before the pages are there: the
        // sooner they are committed, the less likely it is that the CPU has invalidated them.
        let mut staged = vm.aspace.stage(span.start as u64, size as u64)?;
        let get_started = Instant::<Monotonic>::now();
        match found.get(&ctx, &attempt) {
            Ok(()) => {}
            // Memory of several devices in one range.
            Err(EOPNOTSUPP) if !evicted => {
                evicted = true;
                let _ = migrate::to_system(vm, &found, &attempt);
                continue;
            }
            Err(EAGAIN) => {
                lost += 1;
                continue;
            }
            // The CPU has faulted on some of it, which has migrated back.
            Err(EFAULT) if ctx.devmem_only => continue,
            Err(e) if (e == EFAULT || e == EPERM) && attempt.narrow(addr, span) => continue,
            Err(e) => {
                // An empty range would keep a bind of a buffer from its addresses.
                found.remove();
                return Err(e);
            }
        }
        request.count(SizeStat::GetPagesUs, size, us_since(get_started));

        let bind_started = Instant::<Monotonic>::now();
        let bound = found.commit(|view, range| -> Result<Served> {
            let served = bind(vm, &mut staged, vma, range, view)?;
            request.mapped(vm, range, &served, lost);
            Ok(served)
        });
        let served = match bound {
            Ok(served) => served?,
            Err(Stale) => {
                lost += 1;
                continue;
            }
        };
        request.count(SizeStat::BindUs, size, us_since(bind_started));
        if refused && found.data().in_device() == 0 {
            revisit::refused(vm, found.data());
        }
        if served.settles(&request.fault) {
            request.count(SizeStat::PagefaultUs, size, us_since(started));
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
