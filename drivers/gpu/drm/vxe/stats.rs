// SPDX-License-Identifier: GPL-2.0

//! The counters of a GT, with the names of xe; Documentation/gpu/vxe.rst says what they count.
//!
//! `dri/<device>/gt0/stats` shows one `name: value` a line; writing a true value resets all
//! counters.
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

/// The sizes for which xe counts ranges and copies separately, in bytes.
const SIZES: [u64; 3] = [SZ_4K as u64, SZ_64K as u64, SZ_2M as u64];

/// The names of a counter for each of [`SIZES`].
macro_rules! by_size {
    ($what:literal) => {
        [
            concat!("svm_4K_", $what),
            concat!("svm_64K_", $what),
            concat!("svm_2M_", $what),
        ]
    };
}

macro_rules! stats {
    ($(#[$doc:meta])* $stat:ident, $names:ty: $($id:ident = $name:expr,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) enum $stat {
            $($id,)*
        }

        impl $stat {
            const NAMES: &'static [$names] = &[$($name,)*];
        }
    };
}

stats! {
    /// A counter. Times are in microseconds, amounts of data in KiB.
    Stat, &str:
    SvmPagefaultCount = "svm_pagefault_count",
    TlbInvalCount = "tlb_inval_count",
    SvmTlbInvalCount = "svm_tlb_inval_count",
    SvmTlbInvalUs = "svm_tlb_inval_us",
    VmaPagefaultCount = "vma_pagefault_count",
    VmaPagefaultKb = "vma_pagefault_kb",
    SvmDeviceCopyUs = "svm_device_copy_us",
    SvmCpuCopyUs = "svm_cpu_copy_us",
    SvmDeviceCopyKb = "svm_device_copy_kb",
    SvmCpuCopyKb = "svm_cpu_copy_kb",
    // xe does not have the following.
    ExecJobCount = "exec_job_count",
    SvmThrashCount = "svm_thrash_count",
    SvmRevisitCount = "svm_revisit_count",
    SvmFullCount = "svm_full_count",
    SvmMigrateRetryCount = "svm_migrate_retry_count",
    SvmEvictCount = "svm_evict_count",
    SvmEvictKb = "svm_evict_kb",
    BoEvictCount = "bo_evict_count",
    BoEvictKb = "bo_evict_kb",
}

stats! {
    /// A counter for each of [`SIZES`].
    SizeStat, [&str; SIZES.len()]:
    PagefaultCount = by_size!("pagefault_count"),
    ValidPagefaultCount = by_size!("valid_pagefault_count"),
    PagefaultUs = by_size!("pagefault_us"),
    MigrateCount = by_size!("migrate_count"),
    MigrateUs = by_size!("migrate_us"),
    DeviceCopyUs = by_size!("device_copy_us"),
    CpuCopyUs = by_size!("cpu_copy_us"),
    DeviceCopyKb = by_size!("device_copy_kb"),
    CpuCopyKb = by_size!("cpu_copy_kb"),
    GetPagesUs = by_size!("get_pages_us"),
    BindUs = by_size!("bind_us"),
}

/// Counters of xe for events that this device does not have. Some programs expect their names.
const ALWAYS_ZERO: [&str; 11] = [
    "invalid_prefetch_pagefault_count",
    "hw_engine_group_suspend_lr_queue_count",
    "hw_engine_group_skip_lr_queue_count",
    "hw_engine_group_wait_dma_queue_count",
    "hw_engine_group_suspend_lr_queue_us",
    "hw_engine_group_wait_dma_queue_us",
    "prl_4k_entry_count",
    "prl_64k_entry_count",
    "prl_2m_entry_count",
    "prl_issued_count",
    "prl_aborted_count",
];

/// The counters of one GT, since the device was created or the last reset.
pub(crate) struct Stats {
    all: [Atomic<u64>; Stat::NAMES.len()],
    by_size: [[Atomic<u64>; SIZES.len()]; SizeStat::NAMES.len()],
}

impl Stats {
    /// Creates counters that are zero.
    pub(crate) fn new() -> Self {
        Self {
            all: [const { Atomic::new(0) }; Stat::NAMES.len()],
            by_size: [const { [const { Atomic::new(0) }; SIZES.len()] }; SizeStat::NAMES.len()],
        }
    }

    /// Adds `n` to a counter. May be called in any context.
    pub(crate) fn add(&self, stat: Stat, n: u64) {
        // The index is in bounds: the array has a counter for each name.
        if let Some(counter) = self.all.get(stat as usize) {
            counter.add(n, Relaxed);
        }
    }

    /// Adds one to a counter.
    pub(crate) fn inc(&self, stat: Stat) {
        self.add(stat, 1);
    }

    /// Adds `n` to the counter for `size` bytes, if `size` is one of [`SIZES`].
    pub(crate) fn add_for(&self, stat: SizeStat, size: u64, n: u64) {
        let counters = SIZES
            .iter()
            .zip(self.by_size.get(stat as usize).into_iter().flatten());
        for (_, counter) in counters.filter(|(of, _)| **of == size) {
            counter.add(n, Relaxed);
        }
    }

    /// Sets all counters to zero. A concurrent addition may be lost.
    pub(crate) fn reset(&self) {
        for counter in self.all.iter().chain(self.by_size.as_flattened()) {
            counter.store(0, Relaxed);
        }
    }

    /// Prints one line a counter.
    pub(crate) fn show(&self, m: &SeqFile) {
        let names = Stat::NAMES.iter().chain(SizeStat::NAMES.as_flattened());
        let counters = self.all.iter().chain(self.by_size.as_flattened());
        for (name, counter) in names.zip(counters) {
            seq_print!(m, "{}: {}\n", name, counter.load(Relaxed));
        }
        for name in ALWAYS_ZERO {
            seq_print!(m, "{}: 0\n", name);
        }
    }
}

/// Returns the time since `start` in microseconds.
pub(crate) fn us_since(start: Instant<Monotonic>) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(0) / 1000
}

/// Counts one job of the copy engine: bytes by the size of contiguous runs, time by the size of the
/// job.
pub(crate) struct CopyStats<'a> {
    stats: &'a Stats,
    kb: (Stat, SizeStat),
    us: (Stat, SizeStat),
    started: Instant<Monotonic>,
    /// The last contiguous run, in addresses of the device's memory.
    piece: Range<u64>,
    total: u64,
}

impl<'a> CopyStats<'a> {
    /// Begins counting a job that copies to or from the device's memory.
    pub(crate) fn begin(stats: &'a Stats, to_device: bool) -> Self {
        let (kb, us) = if to_device {
            (Stat::SvmDeviceCopyKb, Stat::SvmDeviceCopyUs)
        } else {
            (Stat::SvmCpuCopyKb, Stat::SvmCpuCopyUs)
        };
        let (size_kb, size_us) = if to_device {
            (SizeStat::DeviceCopyKb, SizeStat::DeviceCopyUs)
        } else {
            (SizeStat::CpuCopyKb, SizeStat::CpuCopyUs)
        };
        Self {
            stats,
            kb: (kb, size_kb),
            us: (us, size_us),
            started: Instant::now(),
            piece: 0..0,
            total: 0,
        }
    }

    /// Adds `len` bytes at an address in the device's memory.
    pub(crate) fn add(&mut self, addr: u64, len: u64) {
        self.total += len;
        if self.piece.end != addr {
            self.count_piece();
            self.piece = addr..addr;
        }
        self.piece.end += len;
    }

    fn count_piece(&self) {
        let len = self.piece.end - self.piece.start;
        self.stats.add_for(self.kb.1, len, len / 1024);
    }

    /// Ends the job and adds it to the counters.
    pub(crate) fn finish(self) {
        self.count_piece();
        let us = us_since(self.started);
        self.stats.add(self.kb.0, self.total / 1024);
        self.stats.add(self.us.0, us);
        self.stats.add_for(self.us.1, self.total, us);
    }
}
