// SPDX-License-Identifier: GPL-2.0

//! The migration policy, [`decide`], and its execution, [`migrate`]. The SVM lock is held.
//!
//! - The *preferred location* of memory is the faulting device, unless the program advised another.
//! - A *fault* of the GPU migrates a range of at least 64 KiB there. Memory on another device is
//!   used in place, as two devices that access it in turn would thrash. A read fault migrates no
//!   page that was never written.
//! - A range that [thrashes](super::thrashing) gets a *timeslice* on the device, or is *pinned* in
//!   system memory.
//! - A *prefetch* migrates a range of any size to the location, and with the policy, that the
//!   program asks for.
//! - An *exclusive atomic* needs the whole range on the faulting device, for a timeslice.
//!
//! Only anonymous memory migrates. Memory that does not migrate, because the device is full or
//! another thread holds its pages, is mapped in place; [`revisit`](mod@super::revisit) repeats the
//! decision later.

use super::{
    revisit,
    serve::Request,
    thrashing::{
        doubled,
        TIMESLICE_MS, //
    },
    Context,
    Mirror, //
};
use crate::{
    gpu::Access,
    memory::DeviceMemory,
    stats::{
        us_since,
        SizeStat,
        Stat, //
    },
    vm::{
        attributes::{
            Atomics,
            Location,
            MigrationPolicy, //
        },
        vma::Vma, //
    }, //
};
use gpusvm::{
    pagemap::{
        to_device::{
            Moved,
            Sources, //
        },
        PagemapRef, //
    },
    Attempt,
    LockedRange,
    RangeFlag,
    ScanResult, //
};
use kernel::{
    prelude::*,
    sizes::SZ_64K,
    time::Instant, //
};
use kernel_ext::time::jiffies;

/// The smallest range that a fault migrates, in bytes.
const MIN_SIZE: usize = SZ_64K;

/// How many times to try a migration whose pages another thread held or changed.
const TRIES: u32 = 3;

/// The longest timeslice for an exclusive atomic, in milliseconds: the range must stay on the
/// device until the GPU has mapped it.
const MAX_ATOMIC_MS: u32 = 320;

/// Why a range is to migrate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The GPU faulted.
    Fault,
    /// A program prefetches.
    Prefetch(MigrationPolicy),
    /// The GPU faulted on an atomic that must exclude the CPU.
    Atomic,
}

/// Where a prefetch migrates memory to: system memory, the VM's own device, or the preferred
/// location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    System,
    Own,
    Preferred,
}

/// The memory of a device: the VM's own, or another device's, of any driver.
pub(crate) enum Memory<'a> {
    Own(&'a DeviceMemory),
    Other(PagemapRef),
}

/// Returns whether an atomic of the GPU in `vma` needs the memory on the device.
pub(crate) fn is_exclusive(vm: &Context, vma: &Vma) -> bool {
    vm.memory.is_some() && vma.attributes.atomics.are_exclusive()
}

/// Returns the preferred location of a VMA's memory; `None` for system memory, also if the
/// preferred device has been unbound, or if only the CPU may use atomics.
pub(super) fn preferred_location<'a>(vm: &'a Context, vma: &Vma) -> Option<Memory<'a>> {
    let own = vm.memory.as_ref();
    match &vma.attributes.location {
        _ if vma.attributes.atomics == Atomics::Cpu => None,
        Location::FaultingDevice => own.map(Memory::Own),
        Location::System => None,
        Location::Device { place, .. } => {
            let memory = place.open().ok()?;
            let own = own.filter(|own| own.pagemap().as_raw() == memory.as_raw());
            Some(own.map_or(Memory::Other(memory), Memory::Own))
        }
    }
}

/// Decides which pages of a range migrate to its preferred location, which is on a device, and the
/// timeslice there in milliseconds; `None` if the range stays in place. `tries` counts earlier
/// attempts for this request.
///
/// Fails with `EACCES` if the range must not be mapped in place but can never migrate.
fn decide(
    vm: &Context,
    found: &LockedRange<'_, '_, Mirror>,
    request: &Request<'_>,
    tries: u32,
) -> Result<Option<(Sources, u32)>> {
    let (state, is_movable) = (found.data(), found.has(RangeFlag::MigrateDevmem));
    let decision = match request.cause {
        Cause::Atomic if !is_movable => return Err(EACCES),
        Cause::Atomic => {
            let ms = doubled(TIMESLICE_MS, tries, MAX_ATOMIC_MS);
            (Sources::Devices, ms)
        }
        _ if tries != 0 || !is_movable => return Ok(None),
        Cause::Prefetch(MigrationPolicy::AllPages) => (Sources::Devices, TIMESLICE_MS),
        Cause::Prefetch(MigrationPolicy::OnlySystemPages) => (Sources::System, TIMESLICE_MS),
        Cause::Fault if found.size() < MIN_SIZE => return Ok(None),
        Cause::Fault => match (
            state.thrashing.timeslice(jiffies::now()),
            request.fault.access,
        ) {
            (Some(ms), Access::Read) => (Sources::Populated, ms),
            (Some(ms), Access::Write) => (Sources::System, ms),
            (Some(ms), Access::Atomic) => (Sources::System, ms.max(TIMESLICE_MS)),
            (None, _) => {
                vm.dev.stats.inc(Stat::SvmThrashCount);
                revisit::pinned(vm, state);
                return Ok(None);
            }
        },
    };
    Ok(Some(decision))
}

/// Migrates the memory of a range by the policy before the range is mapped. Returns whether nothing
/// migrated but a later attempt may succeed. Sleeps; takes the mmap lock.
///
/// Retries, up to a bound, pages that another thread held or changed. Memory on a device that the
/// preferred location cannot access migrates by way of system memory.
///
/// Fails only for an exclusive atomic: as [`decide`] does, and after the last retry with `ENOSPC`
/// if the device is full, `ENODEV` if it has been unbound, `EFAULT` if the process has exited, or
/// `ENOMEM`.
pub(super) fn migrate(
    vm: &Context,
    found: &mut LockedRange<'_, '_, Mirror>,
    request: &Request<'_>,
    tries: u32,
    attempt: &Attempt<'_>,
) -> Result<bool> {
    let (started, cause) = (Instant::now(), request.cause);
    let was_refused = tries == 0 && found.data().fallback.clear();
    let Some(memory) = &request.preferred else {
        if request.is_prefetch() && tries == 0 && found.data().in_device() != 0 {
            // Pages that do not migrate are mapped in place.
            let _ = to_system(vm, found, attempt);
        }
        return Ok(false);
    };
    let Some((sources, ms)) = decide(vm, found, request, tries)? else {
        return Ok(false);
    };
    let is_new = found.data().thrashing.is_new();
    let (mut moved, mut result) = (Moved::default(), Ok(()));
    for round in 1..=TRIES {
        let last = match memory.populate(vm, found, sources, ms, attempt) {
            Ok(last) => last,
            Err(e) => {
                result = Err(e);
                break;
            }
        };
        moved = Moved {
            moved: moved.moved + last.moved,
            copied: moved.copied + last.copied,
            ..last
        };
        let is_far = last.unreachable != 0 && sources > Sources::System;
        // If nothing moved of a range that migrated before, or nothing for a second time, retries
        // are useless.
        let may_move = is_far || last.moved != 0 || (is_new && round == 1);
        if last.left == 0 || round == TRIES || !may_move {
            break;
        }
        if is_far && to_system(vm, found, attempt).is_err() {
            break;
        }
        vm.dev.stats.inc(Stat::SvmMigrateRetryCount);
    }
    vxe_sim::drm_dbg!(
        &vm.dev,
        "process {}: {:#x?} to a device ({cause:?}), timeslice {ms} ms: {result:?}, {moved:?}",
        vm.pid,
        found.span()
    );
    if moved.moved != 0 {
        let us = us_since(started);
        found.data().thrashing.migrated(jiffies::now(), us / 1000);
        request.count(SizeStat::MigrateCount, found.size(), 1);
        request.count(SizeStat::MigrateUs, found.size(), us);
        if was_refused {
            revisit::migrated(vm);
        }
        return Ok(false);
    }
    if result == Err(ENOSPC) {
        vm.dev.stats.inc(Stat::SvmFullCount);
    }
    match result {
        Ok(()) => Ok(moved.local == 0 && moved.left != 0),
        Err(e) if cause == Cause::Atomic && tries >= TRIES => Err(e),
        // These errors mean that the device or the process no longer exists.
        Err(e) => Ok(e != ENODEV && e != EFAULT),
    }
}

/// Migrates pages of a range that are on any device to system memory. Sleeps; takes the mmap lock.
/// Fails as [`LockedRange::evict`] does.
pub(super) fn to_system(
    vm: &Context,
    found: &LockedRange<'_, '_, Mirror>,
    attempt: &Attempt<'_>,
) -> Result {
    let (span, done) = (found.span(), found.evict(attempt));
    vxe_sim::drm_dbg!(
        &vm.dev,
        "process {}: {span:#x?} to system memory: {done:?}",
        vm.pid
    );
    done
}

impl Memory<'_> {
    /// Migrates pages of a range. To another device migrates all pages from all locations, or none.
    fn populate(
        &self,
        vm: &Context,
        found: &mut LockedRange<'_, '_, Mirror>,
        sources: Sources,
        ms: u32,
        attempt: &Attempt<'_>,
    ) -> Result<Moved> {
        let (size, mut moved) = (found.size(), Moved::default());
        let memory = match self {
            Self::Own(memory) => {
                // The process is charged for all that may be needed before any page is locked.
                let _precharge = match found.mm() {
                    Some(mm) => vm.dev.memory.precharge(&vm.dev, mm, size)?,
                    None => None,
                };
                return found.populate(memory, sources, ms);
            }
            Self::Other(memory) => memory,
        };
        match found.scan_for(memory, attempt) {
            ScanResult::Equal => moved.local = size,
            ScanResult::Unpopulated if sources == Sources::Populated => moved.holes = size,
            _ => {
                found.populate_any(memory, ms)?;
                // The other device's driver does not report what moved.
                match found.scan_for(memory, attempt) {
                    ScanResult::Equal => (moved.moved, moved.copied) = (size, size),
                    ScanResult::Other | ScanResult::MixedDevice => {
                        (moved.left, moved.unreachable) = (size, size);
                    }
                    _ => moved.left = size,
                }
            }
        }
        Ok(moved)
    }
}
