// SPDX-License-Identifier: GPL-2.0

//! The copy engine: copies between the device's memory and system memory.
//!
//! It works on bus addresses, not in an address space, and independently of the engines that run
//! batches: a driver copies pages with it while no batch can access them. It has no lock, queue or
//! thread: each call copies on the calling thread, and calls may run concurrently.

use super::{page_table::PAGE_SIZE, Bus, Target};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, //
    },
};
use kernel_ext::sched::cond_resched;

/// A contiguous piece of memory to copy or clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CopyRun {
    /// The source; `None` to write zeros.
    pub(crate) from: Option<Target>,
    /// The destination.
    pub(crate) to: Target,
    /// The length in bytes.
    pub(crate) len: u64,
}

/// The bytes copied so far, by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CopyCounters {
    /// From system memory to the device's memory.
    pub(crate) to_vram: u64,
    /// From the device's memory to system memory.
    pub(crate) to_system: u64,
    /// Within the device's memory, or between devices.
    pub(crate) within: u64,
    /// Zeros written.
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
    /// Creates a copy engine on a device's bus.
    pub(crate) fn new(bus: Arc<Bus>) -> Self {
        Self {
            bus,
            to_vram: Atomic::new(0),
            to_system: Atomic::new(0),
            within: Atomic::new(0),
            cleared: Atomic::new(0),
        }
    }

    /// Executes `runs` in order, and returns when all are complete. Sleeps.
    ///
    /// On failure a part may have been copied. Fails as [`Bus`] does, with `EINVAL` for a run that
    /// wraps around, and with `EOPNOTSUPP` for a copy within system memory.
    pub(crate) fn run(&self, runs: impl IntoIterator<Item = CopyRun>) -> Result {
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

    /// Executes `run` from `done` up to the next page boundary on either side. Returns the number
    /// of bytes.
    fn piece(&self, run: &CopyRun, done: u64) -> Result<u64> {
        let rest = |at: Target| PAGE_SIZE - at.addr() % PAGE_SIZE;
        let to = run.to.offset(done);
        let from = run.from.map(|from| from.offset(done));
        let len = (run.len - done)
            .min(rest(to))
            .min(from.map_or(PAGE_SIZE, rest));
        // CAST: At most a page.
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

    /// Returns the bytes copied so far. The counters are read one by one.
    pub(crate) fn counters(&self) -> CopyCounters {
        CopyCounters {
            to_vram: self.to_vram.load(Relaxed),
            to_system: self.to_system.load(Relaxed),
            within: self.within.load(Relaxed),
            cleared: self.cleared.load(Relaxed),
        }
    }
}
