// SPDX-License-Identifier: GPL-2.0

//! What the service of faults counts: how many there were and how long they took, by the size of
//! their ranges, under xe's names.

use crate::stats::{
    Stat,
    Stats, //
};
use kernel::{
    sizes::{
        SZ_2M,
        SZ_4K,
        SZ_64K, //
    },
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// The counters for ranges of one size.
pub(super) struct SizeStats {
    /// Faults.
    pub(super) faults: Stat,
    /// Of these, how many found all mapped already.
    pub(super) valid: Stat,
    /// Time in them, in microseconds, as below.
    pub(super) fault_us: Stat,
    /// How many moved memory to a device.
    pub(super) migrations: Stat,
    /// Time for that.
    pub(super) migrate_us: Stat,
    /// Of this, to get the CPU's pages and map them for the device.
    pub(super) get_pages_us: Stat,
    /// Of this, to write the GPU's page table.
    pub(super) bind_us: Stat,
}

impl SizeStats {
    /// Those for ranges of `size` bytes; xe counts no other sizes.
    fn of(size: usize) -> Option<&'static Self> {
        match size {
            SZ_4K => Some(&Self {
                faults: Stat::Svm4kPagefaultCount,
                valid: Stat::Svm4kValidPagefaultCount,
                fault_us: Stat::Svm4kPagefaultUs,
                migrations: Stat::Svm4kMigrateCount,
                migrate_us: Stat::Svm4kMigrateUs,
                get_pages_us: Stat::Svm4kGetPagesUs,
                bind_us: Stat::Svm4kBindUs,
            }),
            SZ_64K => Some(&Self {
                faults: Stat::Svm64kPagefaultCount,
                valid: Stat::Svm64kValidPagefaultCount,
                fault_us: Stat::Svm64kPagefaultUs,
                migrations: Stat::Svm64kMigrateCount,
                migrate_us: Stat::Svm64kMigrateUs,
                get_pages_us: Stat::Svm64kGetPagesUs,
                bind_us: Stat::Svm64kBindUs,
            }),
            SZ_2M => Some(&Self {
                faults: Stat::Svm2mPagefaultCount,
                valid: Stat::Svm2mValidPagefaultCount,
                fault_us: Stat::Svm2mPagefaultUs,
                migrations: Stat::Svm2mMigrateCount,
                migrate_us: Stat::Svm2mMigrateUs,
                get_pages_us: Stat::Svm2mGetPagesUs,
                bind_us: Stat::Svm2mBindUs,
            }),
            _ => None,
        }
    }
}

/// Counts on behalf of a fault; a prefetch counts nothing.
#[derive(Clone, Copy)]
pub(super) struct Meter<'a>(Option<&'a Stats>);

impl<'a> Meter<'a> {
    /// Counts in `stats`.
    pub(super) fn of(stats: &'a Stats) -> Self {
        Self(Some(stats))
    }

    /// Counts nothing.
    pub(super) fn off() -> Self {
        Self(None)
    }

    /// Counts one of what `stat` chooses, for a range of `size` bytes.
    pub(super) fn inc(self, size: usize, stat: impl FnOnce(&SizeStats) -> Stat) {
        if let (Some(stats), Some(of_size)) = (self.0, SizeStats::of(size)) {
            stats.inc(stat(of_size));
        }
    }

    /// Adds the time since `started` to what `stat` chooses, for a range of `size` bytes.
    pub(super) fn add_us(
        self,
        size: usize,
        started: Instant<Monotonic>,
        stat: impl FnOnce(&SizeStats) -> Stat,
    ) {
        if let (Some(stats), Some(of_size)) = (self.0, SizeStats::of(size)) {
            stats.add_us(stat(of_size), started);
        }
    }
}
