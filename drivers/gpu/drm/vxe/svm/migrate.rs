// SPDX-License-Identifier: GPL-2.0

//! Where the memory of ranges lives: what moves it, and when.
//!
//! A fault moves a range of 64 KiB or more of anonymous memory to where its VMA prefers it, which is
//! the device's memory if nobody said otherwise. What does not move, because there is no room or
//! somebody holds it, stays where it is and is used there.
//!
//! Memory that CPU and GPU, or two halves of a GPU's work, keep taking from each other moves to and
//! fro and does nothing else. So each range has a [`History`]: one that has to come again soon after it
//! came may stay for longer each time, as far as the CPU goes; and if that does not help it is left in
//! system memory, where both reach it, for a time that grows, too. Both times are capped.
//!
//! All of this happens under the SVM lock.

use super::{
    Context,
    Mirror, //
};
use crate::{
    fault::Fault,
    gpu::Access,
    memory::Pagemap,
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
        to_device::Moved,
        PageMap,
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
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::msecs_to_jiffies, //
};
use kernel_ext::jiffies;

/// The smallest range that a fault moves, in bytes.
const MIN_SIZE: usize = SZ_64K;

/// How often a range is tried whose pages somebody else held or changed.
const TRIES: u32 = 3;

/// How long an atomic, or a range that came back once, may stay on the device at least, in
/// milliseconds. Doubled with each time more.
const STAY_MS: u32 = 5;

/// No range may stay for longer, in milliseconds.
const MAX_STAY_MS: u32 = 40;

/// No range may stay for longer for an atomic that is to be the device's alone, in milliseconds: it has
/// to be there until the GPU is told.
const MAX_ATOMIC_STAY_MS: u32 = 320;

/// A range that has to come again within this time bounces, in milliseconds.
const WINDOW_MS: u32 = 250;

/// A range that bounces so often is left in system memory.
const PATIENCE: u32 = 3;

/// How long that is at first, in milliseconds. Doubled with each time more.
const LEAVE_MS: u32 = 50;

/// No range is left there for longer, in milliseconds.
const MAX_LEAVE_MS: u32 = 3200;

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

/// What is known of a range's way to and fro. Changed under the SVM lock.
pub(crate) struct History {
    /// When the range came to the device last, or may come again, in jiffies; if it ever did.
    settled: Atomic<usize>,
    came: Atomic<bool>,
    /// How often in a row it had to come again soon.
    bounces: Atomic<u32>,
}

/// What becomes of a range that should move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It moves, and may stay for so many milliseconds.
    Move(u32),
    /// It is left in system memory for so many milliseconds, from now on.
    Leave(u32),
    /// It is left in system memory still.
    Left,
}

/// `first`, doubled `times` times, but not more than `max`.
fn growing(first: u32, times: u32, max: u32) -> u32 {
    first
        .checked_shl(times)
        .filter(|grown| grown >> times == first)
        .map_or(max, |grown| grown.min(max))
}

impl History {
    pub(super) fn new() -> Self {
        Self {
            settled: Atomic::new(0),
            came: Atomic::new(false),
            bounces: Atomic::new(0),
        }
    }

    /// How often the range had to come again soon.
    pub(super) fn bounces(&self) -> u32 {
        self.bounces.load(Relaxed)
    }

    /// Decides at the time `now`, in jiffies, for a range that has to come.
    fn decide(&self, now: usize) -> Verdict {
        if !self.has_come() {
            return Verdict::Move(0);
        }
        // A time to come is one long ago, by the clock that wraps around.
        let since = now.wrapping_sub(self.settled.load(Relaxed));
        if since > usize::MAX / 2 {
            return Verdict::Left;
        }
        if since > msecs_to_jiffies(WINDOW_MS) {
            self.bounces.store(0, Relaxed);
            return Verdict::Move(0);
        }
        let bounces = self.bounces().saturating_add(1);
        self.bounces.store(bounces, Relaxed);
        // Once left alone, it gets one more chance each time.
        if bounces >= PATIENCE && (bounces - PATIENCE) % 2 == 0 {
            let ms = growing(LEAVE_MS, (bounces - PATIENCE) / 2, MAX_LEAVE_MS);
            self.settled
                .store(now.wrapping_add(msecs_to_jiffies(ms)), Relaxed);
            return Verdict::Leave(ms);
        }
        Verdict::Move(growing(STAY_MS, bounces - 1, MAX_STAY_MS))
    }

    /// Whether the range ever came to the device.
    fn has_come(&self) -> bool {
        self.came.load(Relaxed)
    }

    /// The range came to the device.
    fn came(&self, now: usize) {
        self.settled.store(now, Relaxed);
        self.came.store(true, Relaxed);
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
    fn page_map(&self) -> &PageMap {
        match self {
            Self::Own(memory) => memory.page_map(),
            Self::Other(memory) => memory,
        }
    }

    /// Moves what can move of a range.
    fn populate(
        &self,
        found: &mut Found<'_, '_, Mirror>,
        stay_ms: u32,
        attempt: &Attempt<'_>,
    ) -> Result<Moved> {
        match self {
            Self::Own(memory) => found.populate(memory, stay_ms),
            Self::Other(memory) => {
                let size = found.size();
                if found.scan_for(memory, attempt) == ScanResult::Equal {
                    return Ok(Moved {
                        local: size,
                        ..Moved::default()
                    });
                }
                found.populate_any(memory, stay_ms)?;
                // Its driver does not tell. What is not all there is taken for nothing.
                let moved = match found.scan_for(memory, attempt) {
                    ScanResult::Equal => size,
                    _ => 0,
                };
                Ok(Moved {
                    moved,
                    copied: moved,
                    left: size - moved,
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
                kernel_ext::drm_dbg!(
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
/// is, and is mapped there.
pub(super) fn on_prefetch(
    vm: &Context,
    found: &mut Found<'_, '_, Mirror>,
    memory: &Memory<'_>,
    policy: MigrationPolicy,
    attempt: &Attempt<'_>,
) {
    if !found.has(RangeFlag::MigrateDevmem) {
        kernel_ext::drm_dbg!(
            &vm.dev,
            "process {}: {:#x?} cannot move to {memory} (prefetch): not anonymous memory",
            vm.pid,
            found.span()
        );
        return;
    }
    gather(vm, found, memory, policy, attempt);
    // An error was told, and leaves all where it was.
    let _ = to_vram(vm, found, memory, Why::Prefetch, STAY_MS, attempt);
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
        kernel_ext::drm_dbg!(
            &vm.dev,
            "process {}: {:#x?} cannot move to {memory} (atomic): not anonymous memory",
            vm.pid,
            found.span()
        );
        return Err(EACCES);
    }
    gather(vm, found, memory, MigrationPolicy::AllPages, attempt);
    let stay_ms = growing(STAY_MS, tries, MAX_ATOMIC_STAY_MS);
    to_vram(vm, found, memory, Why::Access, stay_ms, attempt)
}

/// Brings pages from other devices' memory to where they can move from, if all pages are to move.
fn gather(
    vm: &Context,
    found: &mut Found<'_, '_, Mirror>,
    memory: &Memory<'_>,
    policy: MigrationPolicy,
    attempt: &Attempt<'_>,
) {
    if policy == MigrationPolicy::AllPages {
        if let ScanResult::Other | ScanResult::MixedDevice =
            found.scan_for(memory.page_map(), attempt)
        {
            // If that fails they stay where they are.
            let _ = to_system(vm, found, Why::Access, attempt);
        }
    }
}

/// Whether a fault moves the range, if it is not there.
fn is_movable(found: &Found<'_, '_, Mirror>) -> bool {
    found.has(RangeFlag::MigrateDevmem) && found.size() >= MIN_SIZE
}

/// Moves a range on which the GPU faulted to where it should live, if it may move now. Returns what
/// came of it; none if nothing was tried.
///
/// It is the fault's business to map what there is then, so that errors are not returned.
pub(super) fn on_fault(
    vm: &Context,
    found: &mut Found<'_, '_, Mirror>,
    memory: &Memory<'_>,
    fault: &Fault,
    attempt: &Attempt<'_>,
) -> Option<Moved> {
    let stays = |why| {
        kernel_ext::drm_dbg!(
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
    let stay = match found.data().history.decide(jiffies::now()) {
        Verdict::Move(ms) if fault.access == Access::Atomic => ms.max(STAY_MS),
        Verdict::Move(ms) => ms,
        Verdict::Leave(ms) => {
            stays(Refusal::Bounces(ms));
            vm.dev.stats.inc(Stat::SvmThrashCount);
            return None;
        }
        Verdict::Left => {
            stays(Refusal::Bounced);
            vm.dev.stats.inc(Stat::SvmThrashCount);
            return None;
        }
    };
    to_vram(vm, found, memory, Why::Fault, stay, attempt).ok()
}

/// Moves what can move of a range to `memory`, and has it stay there for `stay_ms` milliseconds even if
/// the CPU touches it. The result says how much moved, was copied for that, and was left where it was:
/// because it is there already, too, or never moves.
///
/// What may be held or changed by somebody else just then is tried again, within a bound. Sleeps; takes
/// the mmap lock.
///
/// Fails, and leaves all where it was: with `ENOSPC` when the memory is full, `ENODEV` when its device
/// is gone, `EFAULT` when the process is, `ENOMEM`.
pub(crate) fn to_vram(
    vm: &Context,
    found: &mut Found<'_, '_, Mirror>,
    memory: &Memory<'_>,
    why: Why,
    stay_ms: u32,
    attempt: &Attempt<'_>,
) -> Result<Moved> {
    let mut total = Moved::default();
    for round in 1..=TRIES {
        let moved = memory.populate(found, stay_ms, attempt).inspect_err(|e| {
            kernel_ext::drm_dbg!(
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
        let stuck = moved.moved == 0 && (round > 1 || !is_new);
        if total.left == 0 || round == TRIES || stuck {
            break;
        }
        vm.dev.stats.inc(Stat::SvmMigrateRetryCount);
    }
    if total.moved != 0 {
        found.data().history.came(jiffies::now());
    }
    kernel_ext::drm_dbg!(
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
    kernel_ext::drm_dbg!(
        &vm.dev,
        "process {}: {:#x?} to system memory ({why}): {done:?}",
        vm.pid,
        found.span()
    );
    done
}

#[cfg(CONFIG_KUNIT = "y")]
#[kunit_tests(vxe_migrate)]
mod tests {
    use super::*;

    /// A time at which the clock wraps around soon.
    const NOW: usize = usize::MAX - 2;

    fn after(ms: u32) -> usize {
        NOW.wrapping_add(msecs_to_jiffies(ms))
    }

    #[test]
    fn times_grow_up_to_a_cap() {
        assert_eq!(growing(5, 0, 40), 5);
        assert_eq!(growing(5, 2, 40), 20);
        assert_eq!(growing(5, 3, 40), 40);
        assert_eq!(growing(5, 4, 40), 40);
        assert_eq!(growing(5, 31, 40), 40);
        assert_eq!(growing(5, 99, 40), 40);
    }

    #[test]
    fn what_comes_seldom_moves() {
        let history = History::new();
        for round in 0..10 {
            let now = after(round * 2 * WINDOW_MS);
            assert_eq!(history.decide(now), Verdict::Move(0));
            history.came(now);
        }
        assert_eq!(history.bounces(), 0);
    }

    #[test]
    fn what_bounces_is_left_for_a_growing_time() {
        let history = History::new();
        let (mut now, mut left, mut longest) = (NOW, 0, 0);
        for _ in 0..60 {
            match history.decide(now) {
                Verdict::Move(ms) => {
                    assert!(ms <= MAX_STAY_MS);
                    history.came(now);
                    now = now.wrapping_add(1);
                }
                Verdict::Leave(ms) => {
                    assert!(ms >= longest && ms <= MAX_LEAVE_MS);
                    (longest, left) = (ms, left + 1);
                    assert_eq!(history.decide(now), Verdict::Left);
                    now = now.wrapping_add(msecs_to_jiffies(ms)).wrapping_add(1);
                }
                // For longer than was said.
                Verdict::Left => assert_eq!(left, 0),
            }
        }
        assert!(left >= 7 && longest == MAX_LEAVE_MS);
        // When it has calmed down, all is forgotten.
        let now = now.wrapping_add(msecs_to_jiffies(2 * WINDOW_MS));
        assert_eq!(history.decide(now), Verdict::Move(0));
    }
}
