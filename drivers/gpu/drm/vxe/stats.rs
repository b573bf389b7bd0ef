// SPDX-License-Identifier: GPL-2.0

//! The counters of a GT, under the names that xe gives them.
//!
//! They are what `dri/<device>/gt0/stats` shows, one `name: value` a line; writing a true value
//! there sets them to zero. A counter whose event does not exist on this device stays zero: programs
//! look some of them up and expect to find them all.
//!
//! C header: `drivers/gpu/drm/xe/xe_gt_stats_types.h`

use core::ops::Range;
use kernel::{
    seq_file::{
        seq_print,
        SeqFile, //
    },
    sizes::{
        SZ_2M,
        SZ_4K,
        SZ_64K, //
    },
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        Instant,
        Monotonic, //
    }, //
};

macro_rules! stats {
    ($($(#[$doc:meta])* $id:ident = $name:literal,)*) => {
        /// A counter. Times are in microseconds, amounts of data in KiB.
        #[allow(dead_code, reason = "some events do not exist on this device")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Stat {
            $($(#[$doc])* $id,)*
        }

        /// The counters in the order in which they are shown.
        const NAMES: &[&str] = &[$($name,)*];
    };
}

stats! {
    /// SVM page faults handled.
    SvmPagefaultCount = "svm_pagefault_count",
    /// TLB invalidations.
    TlbInvalCount = "tlb_inval_count",
    /// TLB invalidations because the CPU changed its mappings.
    SvmTlbInvalCount = "svm_tlb_inval_count",
    /// Time spent in these.
    SvmTlbInvalUs = "svm_tlb_inval_us",
    /// Faults on what is bound explicitly.
    VmaPagefaultCount = "vma_pagefault_count",
    /// The size of what they were on.
    VmaPagefaultKb = "vma_pagefault_kb",
    /// Prefetches of addresses with nothing behind.
    InvalidPrefetchPagefaultCount = "invalid_prefetch_pagefault_count",
    /// SVM faults on a range of 4 KiB.
    Svm4kPagefaultCount = "svm_4K_pagefault_count",
    /// SVM faults on a range of 64 KiB.
    Svm64kPagefaultCount = "svm_64K_pagefault_count",
    /// SVM faults on a range of 2 MiB.
    Svm2mPagefaultCount = "svm_2M_pagefault_count",
    /// SVM faults on a range of 4 KiB that was mapped already.
    Svm4kValidPagefaultCount = "svm_4K_valid_pagefault_count",
    /// SVM faults on a range of 64 KiB that was mapped already.
    Svm64kValidPagefaultCount = "svm_64K_valid_pagefault_count",
    /// SVM faults on a range of 2 MiB that was mapped already.
    Svm2mValidPagefaultCount = "svm_2M_valid_pagefault_count",
    /// Time spent in faults on ranges of 4 KiB.
    Svm4kPagefaultUs = "svm_4K_pagefault_us",
    /// Time spent in faults on ranges of 64 KiB.
    Svm64kPagefaultUs = "svm_64K_pagefault_us",
    /// Time spent in faults on ranges of 2 MiB.
    Svm2mPagefaultUs = "svm_2M_pagefault_us",
    /// Ranges of 4 KiB moved to device memory.
    Svm4kMigrateCount = "svm_4K_migrate_count",
    /// Ranges of 64 KiB moved to device memory.
    Svm64kMigrateCount = "svm_64K_migrate_count",
    /// Ranges of 2 MiB moved to device memory.
    Svm2mMigrateCount = "svm_2M_migrate_count",
    /// Time spent moving ranges of 4 KiB.
    Svm4kMigrateUs = "svm_4K_migrate_us",
    /// Time spent moving ranges of 64 KiB.
    Svm64kMigrateUs = "svm_64K_migrate_us",
    /// Time spent moving ranges of 2 MiB.
    Svm2mMigrateUs = "svm_2M_migrate_us",
    /// Time spent copying to device memory.
    SvmDeviceCopyUs = "svm_device_copy_us",
    /// Time spent copying ranges of 4 KiB to device memory.
    Svm4kDeviceCopyUs = "svm_4K_device_copy_us",
    /// Time spent copying ranges of 64 KiB to device memory.
    Svm64kDeviceCopyUs = "svm_64K_device_copy_us",
    /// Time spent copying ranges of 2 MiB to device memory.
    Svm2mDeviceCopyUs = "svm_2M_device_copy_us",
    /// Time spent copying to system memory.
    SvmCpuCopyUs = "svm_cpu_copy_us",
    /// Time spent copying ranges of 4 KiB to system memory.
    Svm4kCpuCopyUs = "svm_4K_cpu_copy_us",
    /// Time spent copying ranges of 64 KiB to system memory.
    Svm64kCpuCopyUs = "svm_64K_cpu_copy_us",
    /// Time spent copying ranges of 2 MiB to system memory.
    Svm2mCpuCopyUs = "svm_2M_cpu_copy_us",
    /// Data copied to device memory.
    SvmDeviceCopyKb = "svm_device_copy_kb",
    /// Data copied to device memory in ranges of 4 KiB.
    Svm4kDeviceCopyKb = "svm_4K_device_copy_kb",
    /// Data copied to device memory in ranges of 64 KiB.
    Svm64kDeviceCopyKb = "svm_64K_device_copy_kb",
    /// Data copied to device memory in ranges of 2 MiB.
    Svm2mDeviceCopyKb = "svm_2M_device_copy_kb",
    /// Data copied to system memory.
    SvmCpuCopyKb = "svm_cpu_copy_kb",
    /// Data copied to system memory in ranges of 4 KiB.
    Svm4kCpuCopyKb = "svm_4K_cpu_copy_kb",
    /// Data copied to system memory in ranges of 64 KiB.
    Svm64kCpuCopyKb = "svm_64K_cpu_copy_kb",
    /// Data copied to system memory in ranges of 2 MiB.
    Svm2mCpuCopyKb = "svm_2M_cpu_copy_kb",
    /// Time spent getting the CPU's pages of ranges of 4 KiB.
    Svm4kGetPagesUs = "svm_4K_get_pages_us",
    /// Time spent getting the CPU's pages of ranges of 64 KiB.
    Svm64kGetPagesUs = "svm_64K_get_pages_us",
    /// Time spent getting the CPU's pages of ranges of 2 MiB.
    Svm2mGetPagesUs = "svm_2M_get_pages_us",
    /// Time spent writing the page tables for ranges of 4 KiB.
    Svm4kBindUs = "svm_4K_bind_us",
    /// Time spent writing the page tables for ranges of 64 KiB.
    Svm64kBindUs = "svm_64K_bind_us",
    /// Time spent writing the page tables for ranges of 2 MiB.
    Svm2mBindUs = "svm_2M_bind_us",
    /// Faults that left memory in the system's because it moves to and fro: not one of xe's.
    SvmThrashCount = "svm_thrash_count",
    /// Ranges in system memory that were unmapped, so that the next fault looks whether they can move.
    SvmRevisitCount = "svm_revisit_count",
    /// Faults that left memory in the system's because the device's was full: not one of xe's.
    SvmFullCount = "svm_full_count",
    /// Migrations that were tried again because somebody else held pages: not one of xe's.
    SvmMigrateRetryCount = "svm_migrate_retry_count",
    /// Blocks of device memory that were evicted to make room: not one of xe's.
    SvmEvictCount = "svm_evict_count",
    /// Their size: not one of xe's.
    SvmEvictKb = "svm_evict_kb",
    /// Suspended long-running queues: never here, every queue has its own engine.
    HwEngineGroupSuspendLrQueueCount = "hw_engine_group_suspend_lr_queue_count",
    /// Suspends that were not needed: none here.
    HwEngineGroupSkipLrQueueCount = "hw_engine_group_skip_lr_queue_count",
    /// Waits for DMA-fence queues: there are none here.
    HwEngineGroupWaitDmaQueueCount = "hw_engine_group_wait_dma_queue_count",
    /// Time spent suspending queues: none here.
    HwEngineGroupSuspendLrQueueUs = "hw_engine_group_suspend_lr_queue_us",
    /// Time spent waiting for DMA-fence queues: none here.
    HwEngineGroupWaitDmaQueueUs = "hw_engine_group_wait_dma_queue_us",
    /// Entries of 4 KiB in page reclaim lists: this GPU has no such lists.
    Prl4kEntryCount = "prl_4k_entry_count",
    /// Entries of 64 KiB in page reclaim lists: none here.
    Prl64kEntryCount = "prl_64k_entry_count",
    /// Entries of 2 MiB in page reclaim lists: none here.
    Prl2mEntryCount = "prl_2m_entry_count",
    /// Page reclaims issued: none here.
    PrlIssuedCount = "prl_issued_count",
    /// Page reclaims aborted: none here.
    PrlAbortedCount = "prl_aborted_count",
}

/// The counters of one GT. They count up from when the device was made, or from the last reset.
pub(crate) struct Stats([Atomic<u64>; NAMES.len()]);

impl Stats {
    /// All counters at zero.
    pub(crate) fn new() -> Self {
        Self([const { Atomic::new(0) }; NAMES.len()])
    }

    /// Adds to a counter. May be called in any context.
    pub(crate) fn add(&self, stat: Stat, n: u64) {
        // A `Stat` always has its counter: there is one for each name.
        if let Some(counter) = self.0.get(stat as usize) {
            counter.add(n, Relaxed);
        }
    }

    /// Adds one to a counter.
    pub(crate) fn inc(&self, stat: Stat) {
        self.add(stat, 1);
    }

    /// Adds the time since `start` to a counter, in microseconds.
    pub(crate) fn add_us(&self, stat: Stat, start: Instant<Monotonic>) {
        let ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(0);
        self.add(stat, ns / 1000);
    }

    /// Sets all counters to zero. What is counted meanwhile may be lost.
    pub(crate) fn reset(&self) {
        for counter in &self.0 {
            counter.store(0, Relaxed);
        }
    }

    /// Prints one line a counter.
    pub(crate) fn show(&self, m: &SeqFile) {
        for (name, counter) in NAMES.iter().zip(&self.0) {
            seq_print!(m, "{}: {}\n", name, counter.load(Relaxed));
        }
    }
}

/// Counts one job of the copy engine: what it copies in contiguous pieces, and how long it takes.
pub(crate) struct CopyStats {
    to_device: bool,
    /// The piece that may go on, by its addresses in the device's memory.
    piece: Range<u64>,
    /// Bytes in pieces of sizes that have a counter, and in all.
    by_size: [u64; SIZES.len()],
    all: u64,
}

/// The sizes that xe counts, in bytes.
const SIZES: [u64; 3] = [SZ_4K as u64, SZ_64K as u64, SZ_2M as u64];

/// The counters of one direction, by size and then for all.
struct CopyCounters {
    kb: [Stat; SIZES.len()],
    us: [Stat; SIZES.len()],
    all_kb: Stat,
    all_us: Stat,
}

const TO_DEVICE: CopyCounters = CopyCounters {
    kb: [
        Stat::Svm4kDeviceCopyKb,
        Stat::Svm64kDeviceCopyKb,
        Stat::Svm2mDeviceCopyKb,
    ],
    us: [
        Stat::Svm4kDeviceCopyUs,
        Stat::Svm64kDeviceCopyUs,
        Stat::Svm2mDeviceCopyUs,
    ],
    all_kb: Stat::SvmDeviceCopyKb,
    all_us: Stat::SvmDeviceCopyUs,
};

const TO_SYSTEM: CopyCounters = CopyCounters {
    kb: [
        Stat::Svm4kCpuCopyKb,
        Stat::Svm64kCpuCopyKb,
        Stat::Svm2mCpuCopyKb,
    ],
    us: [
        Stat::Svm4kCpuCopyUs,
        Stat::Svm64kCpuCopyUs,
        Stat::Svm2mCpuCopyUs,
    ],
    all_kb: Stat::SvmCpuCopyKb,
    all_us: Stat::SvmCpuCopyUs,
};

impl CopyStats {
    /// Nothing so far.
    pub(crate) fn new(to_device: bool) -> Self {
        Self {
            to_device,
            piece: 0..0,
            by_size: [0; SIZES.len()],
            all: 0,
        }
    }

    /// Adds `len` bytes at an address in the device's memory.
    pub(crate) fn add(&mut self, addr: u64, len: u64) {
        self.all += len;
        if self.piece.end != addr {
            self.end_piece();
            self.piece = addr..addr;
        }
        self.piece.end += len;
    }

    fn end_piece(&mut self) {
        let len = self.piece.end - self.piece.start;
        for (size, bytes) in SIZES.iter().zip(&mut self.by_size) {
            if *size == len {
                *bytes += len;
            }
        }
    }

    /// Adds all that to the counters; the job was begun at `started`.
    pub(crate) fn finish(mut self, stats: &Stats, started: Instant<Monotonic>) {
        self.end_piece();
        let counters = if self.to_device { TO_DEVICE } else { TO_SYSTEM };
        for (kb, bytes) in counters.kb.into_iter().zip(self.by_size) {
            stats.add(kb, bytes / 1024);
        }
        for (us, size) in counters.us.into_iter().zip(SIZES) {
            if size == self.all {
                stats.add_us(us, started);
            }
        }
        stats.add(counters.all_kb, self.all / 1024);
        stats.add_us(counters.all_us, started);
    }
}
