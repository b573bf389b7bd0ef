// SPDX-License-Identifier: GPL-2.0

//! Revisits: a range that fell back to system memory gets another chance to migrate.
//!
//! Faults decide where memory lives, and a mapped range causes none. So a delayed work item of the
//! VM later unmaps ranges that did not migrate to their preferred location. If the GPU still uses a
//! range, it faults, and the decision is made anew.
//!
//! - A [pinned](super::thrashing) range is unmapped when its time is over.
//! - A range whose migration was *refused*, because the device was full, the cgroup at its limit,
//!   or its pages held by another thread, has no such time: there can be any number of these
//!   ranges, and no event tells when there is room. The VM probes: it unmaps one of them. If one
//!   migrates, there is room, and the next probe, [`PROBE_MS`] later, is for twice as many. If none
//!   does, the next probe is for one again, and its delay doubles. So while a device stays full, or
//!   the GPU does not fault, revisits cost a VM one range in [`MAX_PROBE_MS`].

use super::{
    range_state::RangeState,
    to_cpu,
    Context,
    Mirror, //
};
use crate::{
    stats::Stat,
    vm::SPAN, //
};
use core::ops::{
    DerefMut,
    Range, //
};
use gpusvm::Guard;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_spinlock,
        SpinLock, //
    },
    time::msecs_to_jiffies, //
};
use kernel_ext::{
    sched::cond_resched,
    time::jiffies, //
};

/// The delay of the first probe, in milliseconds. Doubled after each probe without success.
const PROBE_MS: u32 = 100;

/// The longest delay of a probe, in milliseconds.
const MAX_PROBE_MS: u32 = 3200;

/// The most refused ranges that a probe unmaps.
const MAX_PROBES: u32 = 256;

/// The longest delay of the work item, in milliseconds: once queued, it cannot be made to run
/// sooner.
const TICK_MS: u32 = 100;

/// How many ranges are scanned in one critical section of the SVM lock.
const SCAN_BATCH: usize = 256;

/// How many ranges are unmapped in one critical section of the SVM lock.
const UNMAP_BATCH: usize = 16;

/// Why a range is in system memory instead of its preferred location. Changed under the SVM lock.
pub(super) struct Fallback(Atomic<u32>);

impl Fallback {
    const NONE: u32 = 0;
    const PINNED: u32 = 1;
    const REFUSED: u32 = 2;

    pub(super) fn new() -> Self {
        Self(Atomic::new(Self::NONE))
    }

    /// Clears the state before a new decision. Returns whether a migration was refused.
    pub(super) fn clear(&self) -> bool {
        self.0.xchg(Self::NONE, Relaxed) == Self::REFUSED
    }
}

/// Returns whether `now` has reached `then`; both in jiffies, which wrap around.
fn is_over(now: usize, then: usize) -> bool {
    now.wrapping_sub(then) <= usize::MAX / 2
}

/// Returns the earlier of two times at most `usize::MAX / 2` apart.
fn earlier(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if is_over(a, b) { b } else { a }),
        (a, b) => a.or(b),
    }
}

/// When a VM unmaps ranges that fell back to system memory.
#[pin_data]
pub(super) struct Revisits {
    #[pin]
    plan: SpinLock<RevisitPlan>,
}

impl Revisits {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            plan <- new_spinlock!(RevisitPlan::new(), "vxe_revisits"),
        })
    }
}

/// Records that a range was pinned in system memory. The SVM lock is held.
pub(super) fn pinned(vm: &Context, state: &RangeState) {
    state.fallback.0.store(Fallback::PINNED, Relaxed);
    update(vm, |plan, _| plan.pinned(state.thrashing.pinned_until()));
}

/// Records that the migration of a range was refused. The SVM lock is held.
pub(super) fn refused(vm: &Context, state: &RangeState) {
    state.fallback.0.store(Fallback::REFUSED, Relaxed);
    update(vm, RevisitPlan::refused);
}

/// Records that a range whose migration was refused has migrated.
pub(super) fn migrated(vm: &Context) {
    update(vm, RevisitPlan::migrated);
}

/// Applies `change` to the plan of a VM, and queues the work item accordingly.
fn update(vm: &Context, change: impl FnOnce(&mut RevisitPlan, usize)) {
    let now = jiffies::now();
    let delay = {
        let mut plan = vm.collector.revisits.plan.lock();
        change(&mut plan, now);
        plan.delay(now)
    };
    if let Some(delay) = delay {
        vm.collector.revisit_in(delay);
    }
}

/// When the work item of a VM runs, and what it does.
struct RevisitPlan {
    /// The earliest end of a pin, in jiffies.
    next: Option<usize>,
    /// When refused ranges are probed, in jiffies, if there are any.
    probe: Option<usize>,
    /// The delay of the next probe, in milliseconds.
    wait_ms: u32,
    /// How many ranges the last probe unmapped.
    probes: u32,
    /// Whether a refused range has migrated since.
    has_room: bool,
    /// The end address of the last range that was probed.
    cursor: usize,
}

/// The work of one pass over the ranges of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pass {
    now: usize,
    /// How many refused ranges to unmap.
    probes: u32,
    /// The address from which refused ranges are unmapped.
    cursor: usize,
}

impl RevisitPlan {
    const fn new() -> Self {
        Self {
            next: None,
            probe: None,
            wait_ms: PROBE_MS,
            probes: 0,
            has_room: false,
            cursor: 0,
        }
    }

    fn pinned(&mut self, until: usize) {
        self.next = earlier(self.next, Some(until));
    }

    fn refused(&mut self, now: usize) {
        self.probe
            .get_or_insert(now.wrapping_add(msecs_to_jiffies(self.wait_ms)));
    }

    fn migrated(&mut self, now: usize) {
        self.has_room = true;
        self.wait_ms = PROBE_MS;
        if self.probe.is_some() {
            let soon = now.wrapping_add(msecs_to_jiffies(PROBE_MS));
            self.probe = earlier(self.probe, Some(soon));
        }
    }

    /// Returns the delay of the work item in jiffies, or `None` if it has nothing to do.
    fn delay(&self, now: usize) -> Option<usize> {
        let first = earlier(self.next, self.probe)?;
        let left = if is_over(now, first) {
            0
        } else {
            first.wrapping_sub(now)
        };
        Some(left.clamp(1, msecs_to_jiffies(TICK_MS).max(1)))
    }

    /// Begins a pass if one is due. The caller passes it to [`end`](Self::end).
    fn begin(&mut self, now: usize) -> Option<Pass> {
        let is_due = |then: &usize| is_over(now, *then);
        let probes = match self.probe.take_if(|then| is_due(then)) {
            Some(_) if self.has_room => (self.probes * 2).clamp(1, MAX_PROBES),
            Some(_) => {
                self.wait_ms = (self.wait_ms * 2).min(MAX_PROBE_MS);
                1
            }
            None => 0,
        };
        if probes != 0 {
            (self.probes, self.has_room) = (probes, false);
        } else if !self.next.as_ref().is_some_and(is_due) {
            return None;
        }
        self.next = None;
        Some(Pass {
            now,
            probes,
            cursor: self.cursor,
        })
    }

    /// Ends a pass that has `probes` left, and saw ranges pinned until `next`, or `refused` ones.
    fn end(&mut self, pass: &Pass, cursor: usize, probes: u32, next: Option<usize>, refused: bool) {
        self.next = earlier(self.next, next);
        if refused {
            self.probe
                .get_or_insert(pass.now.wrapping_add(msecs_to_jiffies(self.wait_ms)));
        }
        // The next pass begins at the first range, if this one reached the end.
        self.cursor = if probes == 0 { cursor } else { 0 };
    }
}

/// Unmaps ranges of a VM whose pin is over, or which are probed. Sleeps. Takes the SVM lock with
/// `lock`, for a bounded number of ranges at a time, and returns if that fails.
pub(crate) fn revisit<'a, G>(vm: &Context, lock: impl Fn() -> Result<G>)
where
    G: DerefMut<Target = Guard<'a, Mirror>>,
{
    let begun = vm.collector.revisits.plan.lock().begin(jiffies::now());
    let Some(pass) = begun else {
        return update(vm, |_, _| ());
    };
    let (mut probes, mut cursor) = (pass.probes, pass.cursor);
    let (mut next, mut refused) = (None, false);
    let mut rest = to_cpu(&SPAN);
    let end = rest.end;
    while !rest.is_empty() {
        let mut due: [Range<usize>; UNMAP_BATCH] = [const { 0..0 }; UNMAP_BATCH];
        let mut free = due.iter_mut();
        let Ok(mut guard) = lock() else {
            return;
        };
        let mut scanned = 0;
        let mut ranges = guard.ranges(rest.clone());
        rest = loop {
            let Some(range) = ranges.next() else {
                break 0..0;
            };
            let (span, data) = (range.span(), range.data());
            let is_due = match data.fallback.0.load(Relaxed) {
                // The range is not mapped, so the GPU faults on it anyway; or it is on a device.
                _ if data.access().is_none() || data.in_device() != 0 => false,
                Fallback::PINNED => {
                    let until = data.thrashing.pinned_until();
                    let is_due = is_over(pass.now, until);
                    next = earlier(next, (!is_due).then_some(until));
                    is_due
                }
                Fallback::REFUSED => {
                    let is_due = probes != 0 && span.start >= pass.cursor;
                    if is_due {
                        (probes, cursor) = (probes - 1, span.end);
                    }
                    refused |= !is_due;
                    is_due
                }
                _ => false,
            };
            scanned += 1;
            let behind = span.end..end;
            if is_due {
                if let Some(place) = free.next() {
                    *place = span;
                }
            }
            if scanned == SCAN_BATCH || free.len() == 0 {
                break behind;
            }
        };
        drop(ranges);
        for span in due.into_iter().take_while(|span| !span.is_empty()) {
            vxe_sim::drm_dbg!(
                &vm.dev,
                "process {}: {span:#x?} is unmapped, so that a fault decides anew where it lives",
                vm.pid
            );
            guard.invalidate(span);
            vm.dev.stats.inc(Stat::SvmRevisitCount);
        }
        drop(guard);
        cond_resched();
    }
    update(vm, |plan, _| plan.end(&pass, cursor, probes, next, refused));
}

#[cfg(CONFIG_KUNIT = "y")]
#[kunit_tests(vxe_revisit)]
mod tests {
    use super::*;

    /// Shortly before jiffies wrap around.
    const NOW: usize = usize::MAX - 2;

    fn after(ms: u32) -> usize {
        NOW.wrapping_add(msecs_to_jiffies(ms))
    }

    #[test]
    fn times_wrap_around() {
        assert!(is_over(after(10), after(0)) && is_over(NOW, NOW) && !is_over(NOW, after(10)));
        assert_eq!(earlier(Some(after(10)), Some(NOW)), Some(NOW));
        assert_eq!(earlier(Some(NOW), Some(after(10))), Some(NOW));
        assert_eq!(earlier(None, Some(NOW)), Some(NOW));
        assert_eq!(earlier(None, None), None);
    }

    #[test]
    fn without_such_ranges_nothing_is_due() {
        let mut plan = RevisitPlan::new();
        assert_eq!(plan.delay(NOW), None);
        assert_eq!(plan.begin(NOW), None);
    }

    #[test]
    fn pinned_ranges_are_due_in_time() {
        let mut plan = RevisitPlan::new();
        plan.pinned(after(1000));
        plan.pinned(after(400));
        plan.pinned(after(800));
        assert_eq!(plan.delay(after(380)), Some(msecs_to_jiffies(20)));
        assert!(plan
            .delay(NOW)
            .is_some_and(|delay| delay <= msecs_to_jiffies(TICK_MS)));
        assert_eq!(plan.begin(after(380)), None);
        let pass = plan.begin(after(400));
        assert!(pass.is_some_and(|pass| pass.probes == 0));
        // Another range is pinned meanwhile; the pass saw a third.
        plan.pinned(after(900));
        if let Some(pass) = pass {
            plan.end(&pass, 0, 0, Some(after(800)), false);
        }
        assert_eq!(plan.begin(after(780)), None);
        assert!(plan.begin(after(800)).is_some());
    }

    /// Returns how many passes and probes there are in `ms` milliseconds if each probe is refused
    /// again, or, with `has_room`, migrates.
    fn probe(plan: &mut RevisitPlan, from: u32, ms: u32, has_room: bool) -> (u32, u32) {
        let (mut passes, mut probes) = (0, 0);
        for ms in from..from + ms {
            if let Some(pass) = plan.begin(after(ms)) {
                passes += 1;
                probes += pass.probes;
                if has_room {
                    plan.migrated(after(ms));
                } else {
                    plan.refused(after(ms));
                }
                plan.end(&pass, 0, 0, None, true);
            }
        }
        (passes, probes)
    }

    #[test]
    fn a_device_that_stays_full_is_probed_seldom() {
        let mut plan = RevisitPlan::new();
        plan.refused(NOW);
        let (passes, probes) = probe(&mut plan, 0, 60 * MAX_PROBE_MS, false);
        // One range each, with delays that double up to the longest.
        assert_eq!(passes, probes);
        assert!((55..=70).contains(&probes));
        // Once there is room: one range within one delay, then twice as many each time.
        let from = 60 * MAX_PROBE_MS;
        let (passes, probes) = probe(&mut plan, from, MAX_PROBE_MS + 10 * PROBE_MS, true);
        assert!(passes >= 10 && probes > 500);
    }
}
