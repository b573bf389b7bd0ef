// SPDX-License-Identifier: GPL-2.0

//! The copy engine: moves memory between the device's own and the system's.
//!
//! It works on addresses of the bus, not of an address space, and so beside the engines that run
//! batches: a driver moves pages with it that no program can reach meanwhile. It has no lock and no
//! queue: whoever calls it lends it a thread, and any number may at once.

use super::{page_table::PAGE_SIZE, Bus, Target};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, //
    },
};
use kernel_ext::sched::cond_resched;

/// A contiguous piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where it comes from; nothing for zeros.
    pub(crate) from: Option<Target>,
    /// Where it goes to.
    pub(crate) to: Target,
    /// In bytes.
    pub(crate) len: u64,
}

/// How many bytes were moved, by where they went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    /// From system memory to the device's own.
    pub(crate) to_vram: u64,
    /// From the device's own memory to the system's.
    pub(crate) to_system: u64,
    /// Within the device's own memory, or between devices.
    pub(crate) within: u64,
    /// Zeros that were written.
    pub(crate) cleared: u64,
}

/// The copy engine of a device.
pub(crate) struct CopyEngine {
    bus: Arc<Bus>,
    to_vram: Atomic<u64>,
    to_system: Atomic<u64>,
    within: Atomic<u64>,
    cleared: Atomic<u64>,
}

impl CopyEngine {
    /// A copy engine on a device's bus.
    pub(crate) fn new(bus: Arc<Bus>) -> Self {
        Self {
            bus,
            to_vram: Atomic::new(0),
            to_system: Atomic::new(0),
            within: Atomic::new(0),
            cleared: Atomic::new(0),
        }
    }

    /// Carries out `runs`, one after the other, and returns when all is done. Sleeps.
    ///
    /// On failure a part may have been moved. Fails as [`Bus`] does, with `EINVAL` for a run that
    /// wraps around, and with `EOPNOTSUPP` for one that begins and ends in system memory.
    pub(crate) fn run(&self, runs: impl IntoIterator<Item = Run>) -> Result {
        for run in runs {
            run.to.checked_offset(run.len).ok_or(EINVAL)?;
            if let Some(from) = run.from {
                from.checked_offset(run.len).ok_or(EINVAL)?;
            }
            let mut done = 0;
            while done < run.len {
                done += self.piece(&run, done)?;
                cond_resched();
            }
        }
        Ok(())
    }

    /// Does as much of `run` from `done` on as lies within a page on both sides; returns how much.
    fn piece(&self, run: &Run, done: u64) -> Result<u64> {
        let rest = |at: Target| PAGE_SIZE - at.addr() % PAGE_SIZE;
        let to = run.to.offset(done);
        let from = run.from.map(|from| from.offset(done));
        let len = (run.len - done)
            .min(rest(to))
            .min(from.map_or(PAGE_SIZE, rest));
        // CAST: Not more than a page.
        let size = len as usize;
        let counter = match (from, to) {
            (None, _) => &self.cleared,
            (Some(Target::System(_)), _) => &self.to_vram,
            (Some(_), Target::System(_)) => &self.to_system,
            (Some(_), _) => &self.within,
        };
        match from {
            Some(from) => self.bus.copy(from, to, size)?,
            None => self.bus.clear(to, size)?,
        }
        counter.add(len, Relaxed);
        Ok(len)
    }

    /// What was moved since the device was made. Counters are read one after the other.
    pub(crate) fn moved(&self) -> Moved {
        Moved {
            to_vram: self.to_vram.load(Relaxed),
            to_system: self.to_system.load(Relaxed),
            within: self.within.load(Relaxed),
            cleared: self.cleared.load(Relaxed),
        }
    }
}
