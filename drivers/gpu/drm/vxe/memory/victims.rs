// SPDX-License-Identifier: GPL-2.0

//! What makes room in the device's memory for others.
//!
//! Buffers whose contents nobody needs are purged first. Without such, the least recently used block
//! of pages of processes or buffer is evicted to system memory. Blocks and buffers have their numbers
//! from one clock: a block from its arrival, a buffer from its last bind, fault of the GPU or arrival.
//!
//! What was used just now is spared, except by the creation of a buffer. Who can have no other memory
//! waits until it may be evicted, and for memory that others move meanwhile. Each move ends, and what
//! has arrived has its time: so two buffers that do not both fit take turns.

use super::residents::Found;
use crate::{
    bo::{
        Bo,
        BoData, //
    },
    driver::Device,
    stats::Stat,
    vm::Vm, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::msecs_to_jiffies, //
};
use kernel_ext::{
    cgroup::dmem::{
        Chooser,
        Want, //
    },
    sched,
    time::jiffies, //
};
use vxe_sim::gem::Listing;

/// For how long to wait for memory that may be evicted later, in milliseconds, without anything that
/// was evicted meanwhile.
const WAIT_MS: u32 = 10_000;

/// How many cgroups may have no system memory for a buffer before nothing more is evicted. Each
/// attempt reclaims memory.
const MAX_REFUSING: usize = 16;

/// What may be evicted.
#[derive(Clone, Copy)]
pub(crate) struct Policy<'a> {
    /// Whether others may be evicted at all.
    evicts: bool,
    /// Also what was used just now.
    pub(crate) any: bool,
    /// Wait for what may be evicted later.
    waits: bool,
    /// No buffer of this VM, and none that is bound there.
    pub(crate) spares: Option<&'a Vm>,
}

impl<'a> Policy<'a> {
    /// For a new buffer.
    pub(crate) const CREATE: Self = Self {
        evicts: true,
        any: true,
        waits: true,
        spares: None,
    };

    /// For a buffer that the GPU uses.
    pub(crate) const USE: Self = Self {
        any: false,
        ..Self::CREATE
    };

    /// For pages of processes, which can stay in system memory.
    pub(crate) const PAGES: Self = Self {
        waits: false,
        ..Self::USE
    };

    /// For a limit that was lowered.
    pub(crate) const RECLAIM: Self = Self {
        waits: false,
        ..Self::CREATE
    };

    /// For what takes only free memory.
    pub(crate) const FREE_ONLY: Self = Self {
        evicts: false,
        ..Self::PAGES
    };

    /// For a buffer that is bound in `vm`, in place of no other that the VM needs.
    pub(crate) fn sparing(vm: &'a Vm) -> Self {
        Self {
            spares: Some(vm),
            ..Self::USE
        }
    }
}

/// Counts memory that is allocated, and may be evicted later, until it is dropped.
pub(crate) struct InMotion(Arc<Atomic<usize>>);

impl InMotion {
    pub(super) fn new(count: &Arc<Atomic<usize>>) -> Self {
        count.add(1, Relaxed);
        Self(count.clone())
    }
}

impl Drop for InMotion {
    fn drop(&mut self) {
        let _ = self.0.fetch_sub(1, Relaxed);
    }
}

/// The cgroups without system memory for their buffers, each by its [key](Bo::memcg_key).
struct Refusing {
    keys: [usize; MAX_REFUSING],
    count: usize,
}

impl Refusing {
    fn new() -> Self {
        Self {
            keys: [0; MAX_REFUSING],
            count: 0,
        }
    }

    /// Returns whether the cgroup of `bo` is one of them.
    fn has(&self, bo: &Bo) -> bool {
        self.keys
            .iter()
            .take(self.count)
            .any(|key| *key == bo.memcg_key())
    }

    /// Adds the cgroup of `bo`. Returns false if there are too many.
    fn add(&mut self, bo: &Bo) -> bool {
        let Some(place) = self.keys.get_mut(self.count) else {
            return false;
        };
        *place = bo.memcg_key();
        self.count += 1;
        true
    }
}

/// A search for memory to free, for one allocation.
pub(super) struct Victims<'a> {
    dev: &'a Device,
    policy: &'a Policy<'a>,
    /// The last number that is considered: what is passed by gets a larger one.
    newest: u64,
    /// How many numbers this gave to what it passed by.
    passed: u64,
    /// Since when this waits, in jiffies, if it does.
    waiting: Option<usize>,
    /// The cgroups that have no system memory for their buffers.
    refusing: Refusing,
}

impl<'a> Victims<'a> {
    pub(super) fn new(dev: &'a Device, policy: &'a Policy<'a>) -> Self {
        Self {
            dev,
            policy,
            newest: dev.memory.residents.newest(),
            passed: 0,
            waiting: None,
            refusing: Refusing::new(),
        }
    }

    /// Purges a buffer whose contents are not needed, or without one evicts as
    /// [`evict_next`](Self::evict_next) does. Returns the number of bytes freed, or an error if the
    /// caller should try again.
    pub(super) fn free_next(&mut self, want: Want<'_>) -> Option<Result<u64>> {
        if !self.policy.evicts {
            return None;
        }
        let freed = match self.purge_next(want) {
            Some(bytes) => Some(Ok(bytes)),
            None => self.evict_next(want),
        };
        if matches!(freed, Some(Ok(_))) {
            self.waiting = None;
        }
        freed
    }

    /// Purges the first buffer whose contents are not needed, and that `want` allows to take.
    /// Returns the number of bytes freed, or `None` without such a buffer, or if the caller is
    /// killed.
    fn purge_next(&self, want: Want<'_>) -> Option<u64> {
        let kind = self.dev.bo_kind.as_ref()?;
        let mut chooser = Chooser::new(want);
        // Buffers that come back to the list get larger numbers.
        let (mut next, last) = (0, self.dev.memory.residents.newest());
        loop {
            sched::check_killed().ok()?;
            let listed = kind.first_listed(Listing::Purgeable, next);
            let Some((number, bo)) = listed.filter(|(number, _)| *number <= last) else {
                if chooser.try_harder() {
                    next = 0;
                    continue;
                }
                return None;
            };
            let purged = BoData::purge(&bo, |charge| chooser.may_take(charge));
            if purged.is_some() {
                return purged;
            }
            next = number.wrapping_add(1);
        }
    }

    /// Evicts the block or buffer that was used least recently, and that `want` allows to take, to
    /// system memory. Returns the number of bytes freed, or `None` without such memory. Fails as
    /// [`Block::evict`](gpusvm::pagemap::provider::Block::evict) and [`BoData::evict`] do, and with
    /// `EBUSY` after a wait. Of a device that goes only blocks are evicted.
    pub(super) fn evict_next(&mut self, want: Want<'_>) -> Option<Result<u64>> {
        let why = match want {
            Want::Limit(_) => "the limit of a cgroup",
            Want::Room(_) => "room",
            Want::All => "the device goes",
        };
        let (dev, residents) = (self.dev, &self.dev.memory.residents);
        let mut chooser = Chooser::new(want);
        let mut later = false;
        loop {
            let block = residents.find(self.newest, self.policy.any, &mut chooser, &mut later);
            let last = match &block {
                Some(Found { number, .. }) => *number,
                None => self.newest,
            };
            let buffer = match want {
                Want::All => None,
                _ => BoData::next_victim(
                    dev,
                    last,
                    self.policy,
                    |bo, charge| !self.refusing.has(bo) && chooser.may_take(charge),
                    &mut later,
                ),
            };
            if let Some((number, bo)) = buffer {
                // Others evict the next one. If it cannot go, it is passed by.
                self.passed += 1;
                if let Some(kind) = dev.bo_kind.as_ref() {
                    kind.renumber(Listing::Evictable, &bo, residents.tick());
                }
                let done = BoData::evict(&bo);
                vxe_sim::drm_dbg!(dev, "evicted buffer {number} ({why}): {done:?}");
                return Some(done.map_err(|e| self.refused(e, number, &bo)));
            }
            if let Some(found) = block {
                self.passed += 1;
                let Some(block) = residents.take(found) else {
                    continue;
                };
                let bytes = (block.pages() * PAGE_SIZE) as u64;
                let done = block.evict();
                match done {
                    Ok(()) => {
                        vxe_sim::drm_dbg!(dev, "evicted {} ({why})", block.memory());
                        dev.stats.inc(Stat::SvmEvictCount);
                        dev.stats.add(Stat::SvmEvictKb, bytes / 1024);
                    }
                    Err(e) => {
                        vxe_sim::drm_dbg!(dev, "cannot evict {} ({why}): {e:?}", block.memory());
                    }
                }
                return Some(done.map(|()| bytes));
            }
            if !chooser.try_harder() {
                break;
            }
        }
        // What arrived or was used since the search began may go as well.
        later |= residents.newest() > self.newest.saturating_add(self.passed);
        later |= dev.memory.in_motion.load(Relaxed) != 0;
        if later && self.may_wait() {
            sched::sleep_killable(1);
            (self.newest, self.passed) = (residents.newest(), 0);
            return Some(Err(EBUSY));
        }
        None
    }

    /// Returns the error for a buffer, whose number was `number`, that cannot be evicted. Its creator's
    /// cgroup may have no memory for it where others have: then this search takes no more buffers of
    /// that cgroup, and later ones find the buffer in its place.
    fn refused(&mut self, e: Error, number: u64, bo: &Bo) -> Error {
        if e != ENOMEM || !self.refusing.add(bo) {
            return e;
        }
        if let Some(kind) = self.dev.bo_kind.as_ref() {
            kind.renumber(Listing::Evictable, bo, number);
        }
        EBUSY
    }

    /// Returns whether to wait for what may be evicted later.
    fn may_wait(&mut self) -> bool {
        if !self.policy.waits {
            return false;
        }
        let since = *self.waiting.get_or_insert(jiffies::now());
        jiffies::since(since) <= msecs_to_jiffies(WAIT_MS)
    }
}
