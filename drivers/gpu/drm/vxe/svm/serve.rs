// SPDX-License-Identifier: GPL-2.0

//! The service of faults and prefetches: [`serve`] migrates the memory of a range by the policy of
//! [`migrate`](super::migrate), and maps the range.

use super::{
    bind::bind,
    migrate::{
        self,
        Cause,
        Destination, //
        Memory,
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
        Serviced, //
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

/// How many attempts the CPU may invalidate before only the page of the fault is mapped, which
/// takes less time.
const TRIES: u32 = 3;

/// How many bytes a fault populates of memory that is mostly unpopulated: as much as a CPU fault
/// maps around a page of a file.
const FAULT_AROUND: usize = SZ_64K;

/// Services a GPU fault in `vma`, a mirror. With `page_only` maps at most the page of the fault,
/// unless the range is mapped already.
///
/// Fails with `ENOENT` where the process has no memory, `EPERM` for a write to read-only memory,
/// `EIO` for a `VM_IO` or `VM_PFNMAP` mapping, `EFAULT` for pages that cannot be faulted in or a
/// process that has exited, `EACCES` for an exclusive atomic on memory that never migrates, `EBUSY`
/// when the CPU kept changing its mappings, `EAGAIN` when the CPU unmapped the range, which the
/// caller must collect first, and `ENOMEM`; for an exclusive atomic also as the migration does.
pub(crate) fn fault(
    vm: &Context,
    svm: &mut Guard<'_, Mirror>,
    vma: &Vma,
    fault: Fault,
    page_only: bool,
) -> Result<Serviced> {
    if !page_only {
        vm.dev.stats.inc(Stat::SvmPagefaultCount);
    }
    serve(vm, svm, vma, &Request::fault(vm, vma, fault, page_only))
}

/// Migrates the range at `addr` in `vma`, a mirror, before the GPU needs it, and maps it for
/// reading, which breaks no copy-on-write.
///
/// Fails as [`fault()`] does; memory that cannot migrate is not an error.
pub(crate) fn prefetch(
    vm: &Context,
    svm: &mut Guard<'_, Mirror>,
    vma: &Vma,
    addr: u64,
    to: Destination,
) -> Result<Serviced> {
    let done = serve(vm, svm, vma, &Request::prefetch(vm, vma, addr, to));
    vxe_sim::drm_dbg!(
        &vm.dev,
        "process {}: prefetch at {addr:#x} to {to:?}: {:#x?}",
        vm.pid,
        done.as_ref().map(|served| &served.span)
    );
    done
}

/// The request of a fault or a prefetch.
pub(super) struct Request<'a> {
    /// The access that the mapping must allow.
    pub(super) fault: Fault,
    pub(super) cause: Cause,
    /// The device memory that the range is to migrate to; `None` for system memory.
    pub(super) preferred: Option<Memory<'a>>,
    /// Whether to map at most the page of the fault.
    page_only: bool,
    /// The counters of faults; `None` for a prefetch.
    stats: Option<&'a Stats>,
}

impl<'a> Request<'a> {
    /// Creates the request of a fault. An exclusive atomic needs the memory on the device, whatever
    /// its preferred location.
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

    /// Creates the request of a prefetch at `addr`.
    fn prefetch(vm: &'a Context, vma: &Vma, addr: u64, to: Destination) -> Self {
        Self {
            fault: Fault {
                addr,
                access: Access::Read,
            },
            cause: Cause::Prefetch(vma.attributes.policy),
            preferred: match to {
                Destination::System => None,
                Destination::Own => vm.memory.as_ref().map(Memory::Own),
                Destination::Preferred => migrate::preferred_location(vm, vma),
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

    /// Returns the parameters by which the core finds and faults in pages.
    fn ctx(&self, vm: &Context) -> Ctx {
        let mut ctx = Ctx::new(match self.fault.access {
            Access::Read => gpusvm::Access::Read,
            Access::Write | Access::Atomic => gpusvm::Access::Write,
        });
        ctx.devmem_possible = vm.memory.is_some() || self.preferred.is_some();
        ctx.devmem_only = self.cause == Cause::Atomic;
        ctx.allow_mixed = true;
        let owner = vm.dev.memory.owner();
        // A prefetch populates what the program asked for, no more.
        if !self.is_prefetch() {
            ctx = ctx.with_fault_around(FAULT_AROUND, Some(owner));
        }
        if self.preferred.is_none() {
            // Without an owner, the core's fault on the pages migrates them to system memory.
            return ctx;
        }
        // Pages stay in device memory that this GPU can access.
        ctx.with_owner(Some(owner))
    }

    /// Returns whether to map only one page, after `lost` attempts that the CPU invalidated. Not
    /// for an exclusive atomic: single pages do not migrate.
    fn is_page_enough(&self, lost: u32) -> bool {
        self.cause != Cause::Atomic && (self.page_only || lost >= TRIES)
    }

    /// Starts the wait for the access to a mapping that was made after `lost` attempts. The notifier
    /// lock is held. Not for a prefetch, which no access follows.
    fn mapped(&self, vm: &Context, range: &Range<Mirror>, served: &Serviced, lost: u32) {
        if served.resolves(&self.fault) && !self.is_prefetch() {
            let wait = &range.data().access_wait;
            wait.begin(&vm.aspace, self.fault.addr, lost != 0);
        }
    }
}

/// Migrates and maps the range at the address of a request.
fn serve(
    vm: &Context,
    svm: &mut Guard<'_, Mirror>,
    vma: &Vma,
    request: &Request<'_>,
) -> Result<Serviced> {
    let started = Instant::<Monotonic>::now();
    let ctx = request.ctx(vm);
    let window = to_cpu(&vma.span);
    // CAST: The address lies in `window`.
    let addr = request.fault.addr as usize;

    let mut retry = Retry::bounded();
    let (mut counted, mut evicted, mut lost, mut tries) = (false, false, 0, 0);
    let mut refused = false;
    while let Some(mut attempt) = retry.next() {
        if request.is_page_enough(lost) {
            // If the range is a single page already, all that remains is another attempt.
            let _ = attempt.narrow(addr, window.clone());
        }
        if is_unmapped(svm, addr) {
            return Err(EAGAIN);
        }
        let mut found = match svm.find_or_insert(addr, window.clone(), &ctx, &attempt) {
            Ok(found) => found,
            Err(EAGAIN) => {
                // The existing range does not fit the VMA any more. Remove only this one: ranges
                // that the CPU unmapped are collected by the caller, which also updates memory
                // attributes.
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

        // Another worker may have mapped the range since the GPU faulted.
        let before = found.commit(|_, range| {
            let served = Serviced {
                span: to_gpu(span.clone()),
                access: range.data().access()?,
            };
            request.mapped(vm, range, &served, lost);
            Some(served)
        });
        if let Ok(Some(served)) = before {
            // The first attempt of a prefetch migrates a range that is mapped, too.
            if served.resolves(&request.fault) && !(request.is_prefetch() && tries == 0) {
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

        // Allocate all memory before `get()` and the notifier lock: the sooner the pages are
        // committed, the less likely the CPU has invalidated them.
        let mut staged = vm.aspace.stage(span.start as u64, size as u64)?;
        let get_started = Instant::<Monotonic>::now();
        match found.get(&ctx, &attempt) {
            Ok(()) => {}
            // The range has memory of several devices.
            Err(EOPNOTSUPP) if !evicted => {
                evicted = true;
                let _ = migrate::to_system(vm, &found, &attempt);
                continue;
            }
            Err(EAGAIN) => {
                lost += 1;
                continue;
            }
            // A CPU fault has migrated part of the range back.
            Err(EFAULT) if ctx.devmem_only => continue,
            Err(e) if (e == EFAULT || e == EPERM) && attempt.narrow(addr, span) => continue,
            Err(e) => {
                // An empty range would block a bind of a buffer at its addresses.
                found.remove();
                return Err(e);
            }
        }
        request.count(SizeStat::GetPagesUs, size, us_since(get_started));

        let bind_started = Instant::<Monotonic>::now();
        let bound = found.commit(|view, range| -> Result<Serviced> {
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
        if served.resolves(&request.fault) {
            request.count(SizeStat::PagefaultUs, size, us_since(started));
            return Ok(served);
        }
    }
    Err(Retry::spent())
}

/// Returns whether the CPU unmapped the range at `addr`, or part of it.
fn is_unmapped(svm: &Guard<'_, Mirror>, addr: usize) -> bool {
    let mut at = svm.ranges(addr..addr.saturating_add(1));
    at.any(|range| range.has(RangeFlag::Unmapped))
}
