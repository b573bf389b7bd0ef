// SPDX-License-Identifier: GPL-2.0

//! Where the memory of ranges lives: what moves it, and when.
//!
//! A fault moves a range of 64 KiB or more of anonymous memory to where its VMA prefers it, which is
//! the device's memory if nobody said otherwise. What does not move, because there is no room or
//! somebody holds it, stays where it is and is used there.
//!
//! Memory that CPU and GPU, or two halves of a GPU's work, keep taking from each other moves to and
//! fro and does nothing else. [`history`](super::history) is there against that.
//!
//! All of this happens under the SVM lock.

use super::{
    history::{
        growing,
        Verdict,
        STAY_MS, //
    },
    revisit,
    Context,
    Mirror, //
};
use crate::{
    fault::Fault,
    gpu::Access,
    memory::{
        Advance,
        Pagemap, //
    },
    stats::Stat,
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
        PageMapRef, //
    },
    Attempt,
    Found,
    RangeFlag,
    ScanResult, //
};
use kernel::{
    fmt,
    prelude::*,
    sizes::SZ_64K,
    time::{
        Instant,
        Monotonic, //
    }, //
};
use kernel_ext::time::jiffies;

/// The smallest range that a fault moves, in bytes.
const MIN_SIZE: usize = SZ_64K;

/// How often a range is tried whose pages somebody else held or changed.
const TRIES: u32 = 3;

/// No range may stay for longer for an atomic that is to be the device's alone, in milliseconds: it has
/// to be there until the GPU is told.
const MAX_ATOMIC_STAY_MS: u32 = 320;

/// Why something moves: for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The GPU faulted.
    Fault,
    /// A program said that the GPU will.
    Prefetch,
    /// The GPU cannot work where it is.
    Access,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fault => "fault",
            Self::Prefetch => "prefetch",
            Self::Access => "access",
        })
    }
}

/// Why a range does not move: for messages.
enum Refusal {
    /// It is too small, or no anonymous memory.
    Unmovable,
    /// It is left in system memory for so many milliseconds.
    Bounces(u32),
    /// It still is.
    Bounced,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmovable => f.write_str("too small, or not anonymous"),
            Self::Bounces(ms) => write!(f, "it bounces, and is left alone for {ms} ms"),
            Self::Bounced => f.write_str("it bounced, and is left alone"),
        }
    }
}

/// Where a program wants memory to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    /// In system memory.
    System,
    /// In the memory of the device.
    Own,
    /// Where it was advised to live.
    Advised,
}

/// The memory of a device.
pub(crate) enum Memory<'a> {
    /// The VM's own.
    Own(&'a Pagemap),
    /// Another, of whatever driver.
    Other(PageMapRef),
}

impl Memory<'_> {
    /// Charges the process for all that a migration of the range may need, as far as that is known before.
    fn advance<'d>(
        &self,
        vm: &'d Context,
        found: &Found<'_, '_, Mirror>,
    ) -> Result<Option<Advance<'d>>> {
        match (self, found.mm()) {
            (Self::Own(_), Some(mm)) => vm.dev.memory.advance(&vm.dev, mm, found.size()),
            _ => Ok(None),
        }
    }

    /// Moves what can move of a range. (To another device's memory it does from everywhere, as that
    /// was asked for by its name; but where something was never written and is not to move, nothing does, as
    /// the other driver takes all or nothing.)
    fn populate(
        &self,
        found: &mut Found<'_, '_, Mirror>,
        sources: Sources,
        stay_ms: u32,
        attempt: &Attempt<'_>,
    ) -> Result<Moved> {
        match self {
            Self::Own(memory) => found.populate(memory, sources, stay_ms),
            Self::Other(memory) => {
                let size = found.size();
                match found.scan_for(memory, attempt) {
                    ScanResult::Equal => {
                        return Ok(Moved {
                            local: size,
                            ..Moved::default()
                        })
                    }
                    ScanResult::Unpopulated if sources == Sources::Populated => {
                        return Ok(Moved {
                            holes: size,
                            ..Moved::default()
                        })
                    }
                    _ => {}
                }
                found.populate_any(memory, stay_ms)?;
                // Its driver does not tell. What is not all there is taken for nothing.
                let (moved, unreachable) = match found.scan_for(memory, attempt) {
                    ScanResult::Equal => (size, 0),
                    ScanResult::Other | ScanResult::MixedDevice => (0, size),
                    _ => (0, 0),
                };
                Ok(Moved {
                    moved,
                    copied: moved,
                    left: size - moved,
                    unreachable,
                    ..Moved::default()
                })
            }
        }
    }
}

impl fmt::Display for Memory<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own(_) => "device memory",
            Self::Other(_) => "another device's memory",
        })
    }
}

/// The memory where what is in a VMA should live; none for that of the system, which takes the place
/// of a device that is gone, and is where atomics are the CPU's alone.
pub(crate) fn placement<'a>(vm: &'a Context, vma: &Vma) -> Option<Memory<'a>> {
    let own = vm.memory.as_ref();
    if vma.attributes.atomics == Atomics::Cpu {
        return None;
    }
    match &vma.attributes.location {
        Location::FaultingDevice => own.map(Memory::Own),
        Location::System => None,
        Location::Device { place, .. } => match place.open() {
            Ok(memory) => Some(match own {
                Some(own) if own.page_map().as_raw() == memory.as_raw() => Memory::Own(own),
                _ => Memory::Other(memory),
            }),
            Err(e) => {
                vxe_sim::drm_dbg!(
                    &vm.dev,
                    "process {}: the memory preferred at {:#x} cannot be had: {e:?}",
                    vm.pid,
                    vma.span.start
                );
                None
            }
        },
    }
}

/// Whether an atomic of the GPU in `vma` needs the memory to be the device's.
pub(crate) fn is_exclusive(vm: &Context, vma: &Vma) -> bool {
    vm.memory.is_some() && vma.attributes.atomics.are_exclusive()
}

/// Moves a range to where a program said that the GPU will need it. What cannot move stays where it
/// is, and is mapped there. Returns what came of it; none if nothing was tried.
pub(super) fn on_prefetch(
    vm: &Context,
    found: &mut Found<'_, '_, Mirror>,
    memory: &Memory<'_>,
    policy: MigrationPolicy,
    attempt: &Attempt<'_>,
) -> Option<Result<Moved>> {
    if !found.has(RangeFlag::MigrateDevmem) {
        vxe_sim::drm_dbg!(
            &vm.dev,
            "process {}: {:#x?} cannot move to {memory} (prefetch): not anonymous memory",
            vm.pid,
            found.span()
        );
        return None;
    }
    let sources = sources(policy);
    let moved = to_vram(vm, found, memory, sources, Why::Prefetch, STAY_MS, attempt);
    Some(moved)
}

/// Whether a migration that ended so moved nothing, and may do better at another time.
pub(super) fn is_refused(moved: &Result<Moved>) -> bool {
    match moved {
        Ok(moved) => moved.moved == 0 && moved.local == 0 && moved.left != 0,
        // There is no such device or process any more.
        Err(e) => *e != ENODEV && *e != EFAULT,
    }
}

/// Moves a range to the device for an atomic that is to be exclusive, and has it stay there for a time
/// that grows with `tries`.
///
/// Fails with `EACCES` for memory that never moves, and as [`to_vram`] does.
pub(super) fn on_atomic(
    vm: &Context,
    found: &mut Found<'_, '_, Mirror>,
    memory: &Memory<'_>,
    tries: u32,
    attempt: &Attempt<'_>,
) -> Result<Moved> {
    if !found.has(RangeFlag::MigrateDevmem) {
        vxe_sim::drm_dbg!(
            &vm.dev,
            "process {}: {:#x?} cannot move to {memory} (atomic): not anonymous memory",
            vm.pid,
            found.span()
        );
        return Err(EACCES);
    }
    let stay_ms = growing(STAY_MS, tries, MAX_ATOMIC_STAY_MS);
    to_vram(
        vm,
        found,
        memory,
        Sources::Devices,
        Why::Access,
        stay_ms,
        attempt,
    )
}

/// What moves, as a program says.
fn sources(policy: MigrationPolicy) -> Sources {
    match policy {
        MigrationPolicy::AllPages => Sources::Devices,
        MigrationPolicy::OnlySystemPages => Sources::System,
    }
}

/// Whether a fault moves the range, if it is not there.
fn is_movable(found: &Found<'_, '_, Mirror>) -> bool {
    found.has(RangeFlag::MigrateDevmem) && found.size() >= MIN_SIZE
}

/// Moves a range on which the GPU faulted to where it should live, if it may move now. Returns what
/// came of it; none if nothing was tried. Where it bounces, [`revisit`](mod@super::revisit) ends that.
///
/// It is the fault's business to map what there is then: errors are no errors of its.
pub(super) fn on_fault(
    vm: &Context,
    found: &mut Found<'_, '_, Mirror>,
    memory: &Memory<'_>,
    fault: &Fault,
    attempt: &Attempt<'_>,
) -> Option<Result<Moved>> {
    let stays = |why| {
        vxe_sim::drm_dbg!(
            &vm.dev,
            "process {}: {:#x?} does not move to {memory} (fault): {why}",
            vm.pid,
            found.span()
        );
    };
    if !is_movable(found) {
        stays(Refusal::Unmovable);
        return None;
    }
    let data = found.data();
    let refusal = match data.history.decide(jiffies::now()) {
        Verdict::Move(ms) if fault.access == Access::Atomic => Ok(ms.max(STAY_MS)),
        Verdict::Move(ms) => Ok(ms),
        Verdict::Leave(ms) => Err(Refusal::Bounces(ms)),
        Verdict::Left => Err(Refusal::Bounced),
    };
    let stay = match refusal {
        Ok(ms) => ms,
        Err(why) => {
            stays(why);
            vm.dev.stats.inc(Stat::SvmThrashCount);
            revisit::leave(vm, &data.away, data.history.settled());
            return None;
        }
    };
    // What is on a device that this one reaches is used there: two that work on it in turn would have
    // it move to and fro. A read takes no memory for what was never written.
    let sources = match fault.access {
        Access::Read => Sources::Populated,
        Access::Write | Access::Atomic => Sources::System,
    };
    let moved = to_vram(vm, found, memory, sources, Why::Fault, stay, attempt);
    Some(moved)
}

/// Moves what can move of a range from `sources` to `memory`, and has it stay there for `stay_ms`
/// milliseconds even if the CPU touches it. The result says how much moved, was copied for that, and was
/// left where it was.
///
/// What may be held or changed by somebody else just then is tried again, within a bound; what is on a
/// device that does not reach the memory comes by way of the system's. Sleeps; takes the mmap lock.
///
/// Fails, and leaves all where it was: with `ENOSPC` when the memory is full, `ENODEV` when its device
/// is gone, `EFAULT` when the process is, `ENOMEM`.
pub(crate) fn to_vram(
    vm: &Context,
    found: &mut Found<'_, '_, Mirror>,
    memory: &Memory<'_>,
    sources: Sources,
    why: Why,
    stay_ms: u32,
    attempt: &Attempt<'_>,
) -> Result<Moved> {
    let mut total = Moved::default();
    let start = Instant::<Monotonic>::now();
    for round in 1..=TRIES {
        let moved = memory
            .advance(vm, found)
            .and_then(|_advance| memory.populate(found, sources, stay_ms, attempt))
            .inspect_err(|e| {
                vxe_sim::drm_dbg!(
                    &vm.dev,
                    "process {}: {:#x?} cannot move to {memory} ({why}): {e:?}",
                    vm.pid,
                    found.span()
                );
                if *e == ENOSPC {
                    vm.dev.stats.inc(Stat::SvmFullCount);
                }
            });
        let moved = match moved {
            Ok(moved) => moved,
            // What moved before is there.
            Err(_) if total.moved != 0 => break,
            Err(e) => return Err(e),
        };
        let is_new = !found.data().history.has_come();
        total = Moved {
            moved: total.moved + moved.moved,
            copied: total.copied + moved.copied,
            ..moved
        };
        // What is left never moves, or somebody held it just then: of a range that never came, or not
        // as a whole, it is worth another look.
        let is_far = moved.unreachable != 0 && sources > Sources::System;
        let stuck = moved.moved == 0 && !is_far && (round > 1 || !is_new);
        if total.left == 0 || round == TRIES || stuck {
            break;
        }
        if is_far && to_system(vm, found, why, attempt).is_err() {
            break;
        }
        vm.dev.stats.inc(Stat::SvmMigrateRetryCount);
    }
    if total.moved != 0 {
        let took = u32::try_from(start.elapsed().as_millis()).unwrap_or(u32::MAX);
        found.data().history.came(jiffies::now(), took);
    }
    vxe_sim::drm_dbg!(
        &vm.dev,
        "process {}: {:#x?} to {memory} ({why}): {} KiB moved, {} KiB copied, {} KiB left, stays {stay_ms} ms",
        vm.pid,
        found.span(),
        total.moved / 1024,
        total.copied / 1024,
        total.left / 1024
    );
    Ok(total)
}

/// Brings what is in device memory of a range, whosever that is, back to system memory.
///
/// Sleeps; takes the mmap lock. Fails as [`Found::evict`] does.
pub(crate) fn to_system(
    vm: &Context,
    found: &mut Found<'_, '_, Mirror>,
    why: Why,
    attempt: &Attempt<'_>,
) -> Result {
    let done = found.evict(attempt);
    vxe_sim::drm_dbg!(
        &vm.dev,
        "process {}: {:#x?} to system memory ({why}): {done:?}",
        vm.pid,
        found.span()
    );
    done
}
