// SPDX-License-Identifier: GPL-2.0

//! Mirroring: how a VM's GPU page table follows the page tables of the process.
//!
//! A range is mapped when the GPU faults on it ([`fault`]) or a program asks for it ([`prefetch`]),
//! and zapped in one place, [`Driver::invalidate`]: when the CPU changes its mappings, when the
//! range is removed, and before it is mapped anew for stronger access.
//!
//! Before it is mapped its memory may migrate ([`migrate`]). The memory of other devices is mapped where
//! it is, if this one reaches it.
//!
//! A range is mapped for what its pages bear: a read of memory that would be copied on write, or is
//! read-only, maps it for reading, and a write that comes later faults again.
//!
//! Lock order, outermost first: the SVM lock, the VM's map of VMAs, the notifier lock, then what
//! the page table, the TLB and a work queue take inside themselves. The collector's spinlock is
//! taken under the notifier lock, and only a work queue's inside it. What runs under the notifier
//! lock must not allocate with reclaim, and so must not take the map's lock, under which memory is
//! allocated.

mod bind;
mod bound;
pub(crate) mod migrate;
mod revisit;
mod serve;
mod thrashing;
mod timeslice;

use crate::{
    driver::{
        Device,
        VA_BITS, //
    },
    gpu::AddressSpace,
    memory::DeviceMemory,
    stats::{
        us_since,
        Stat,
        Stats, //
    },
    vm::{
        vma::Span,
        Vm, //
    }, //
};
pub(crate) use bind::pte_flags;
use bound::Bound;
pub(crate) use bound::Line;
use core::ops::Range;
use gpusvm::{
    pagemap::dmem,
    Config,
    Driver,
    Invalidation,
    WouldBlock, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sizes::{
        SZ_2M,
        SZ_512M,
        SZ_64K, //
    },
    sync::{
        aref::ARef,
        new_spinlock,
        Arc,
        SpinLock, //
    },
    task::Pid,
    time::{
        Instant,
        Monotonic, //
    }, //
};
pub(crate) use revisit::revisit;
use revisit::Revisits;
pub(crate) use serve::{
    fault,
    prefetch, //
};

/// The sizes of ranges, in bytes: those of xe where pages are of 4 KiB, the last of which is a page elsewhere.
const CHUNK_SIZES: &[usize] = if PAGE_SIZE < SZ_64K {
    &[SZ_2M, SZ_64K, PAGE_SIZE]
} else {
    &[SZ_2M, PAGE_SIZE]
};

/// What a VM mirrors: the whole GPU address space, with notifiers of 512 MiB as xe has them.
pub(crate) const CONFIG: Config = Config {
    start: 0,
    size: 1 << VA_BITS,
    notifier_size: SZ_512M,
    chunk_sizes: CHUNK_SIZES,
};

/// vxe as a driver of the gpusvm core.
pub(crate) struct Mirror;

/// What the callbacks of a VM's SVM need. They know no VM: it may be on its way out.
pub(crate) struct Context {
    /// The device.
    pub(crate) dev: ARef<Device>,
    /// The GPU's side of the VM.
    pub(crate) aspace: Arc<AddressSpace>,
    /// The way to the VM's garbage collection, while the VM is open.
    pub(crate) collector: Arc<Collector>,
    /// The device's memory, if it has any that pages may move to.
    pub(crate) memory: Option<DeviceMemory>,
    /// The process as one that pays for device memory.
    #[expect(dead_code, reason = "only dropped")]
    pub(crate) charged: Option<dmem::Registration>,
    /// The process.
    pub(crate) pid: Pid,
}

/// How a mirrored VM is reached from under the notifier lock.
///
/// It holds a reference to the VM that holds it, from [`connect`](Self::connect) to
/// [`disconnect`](Self::disconnect), which is when the VM is closed.
#[pin_data]
pub(crate) struct Collector {
    #[pin]
    vm: SpinLock<Option<Arc<Vm>>>,
    /// When ranges that fell back to system memory are unmapped.
    #[pin]
    revisits: Revisits,
}

impl Collector {
    /// A collector of no VM yet.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                vm <- new_spinlock!(None, "vxe_collector"),
                revisits <- Revisits::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// From now on garbage is that of `vm`.
    pub(crate) fn connect(&self, vm: &Arc<Vm>) {
        *self.vm.lock() = Some(vm.clone());
    }

    /// From now on nobody collects.
    pub(crate) fn disconnect(&self) {
        // The reference goes when the lock is released.
        let vm = self.vm.lock().take();
        drop(vm);
    }

    /// Has [`revisit()`] called in so many jiffies, if it is not about to be. Does not sleep.
    fn revisit_in(&self, delay: usize) {
        let vm = self.vm.lock();
        if let Some(vm) = &*vm {
            // As in `wake()`.
            vm.queue_revisit(delay);
        }
    }

    /// Has garbage collected soon. Does not sleep.
    fn wake(&self) {
        let vm = self.vm.lock();
        if let Some(vm) = &*vm {
            // A reference that the queue does not want is dropped here, under the lock, where it
            // cannot be the last.
            vm.queue_collection();
        }
    }
}

#[vtable]
impl Driver for Mirror {
    const NAME: &'static CStr = c"vxe";
    type Vm = Context;
    type Range = Bound;

    fn new_range(_vm: &Context) -> Result<Bound> {
        Ok(Bound::new())
    }

    fn invalidate(vm: &Context, invalidation: &Invalidation<'_, Self>) {
        let started = Instant::<Monotonic>::now();
        let mut stale = StaleSpan::new();
        for range in invalidation.ranges() {
            let timeslice = &range.data().timeslice;
            timeslice.end(&vm.aspace, invalidation.can_wait());
            let span = to_gpu(range.span());
            stale.add(vm.aspace.zap(span.start, span.end - span.start));
            range.data().set(None, 0, 0);
        }
        if stale.flush(&vm.aspace, &vm.dev.stats) {
            vm.dev.stats.inc(Stat::SvmTlbInvalCount);
            vm.dev.stats.add(Stat::SvmTlbInvalUs, us_since(started));
        }
    }

    fn try_invalidate(
        vm: &Context,
        invalidation: &Invalidation<'_, Self>,
    ) -> Result<(), WouldBlock> {
        // The page table and the TLB have spinlocks only, which are held for an access of a page at most.
        Self::invalidate(vm, invalidation);
        Ok(())
    }

    fn garbage(vm: &Context) {
        vm.collector.wake();
    }
}

/// The smallest span around all addresses whose translations a TLB has to forget.
///
/// Spans are added to it and never replace each other, so that none is left out.
#[must_use = "translations that changed must be flushed"]
pub(crate) struct StaleSpan(Option<Span>);

impl StaleSpan {
    /// Of nothing.
    pub(crate) fn new() -> Self {
        Self(None)
    }

    /// Adds what a change of the page table says is stale.
    pub(crate) fn add(&mut self, stale: Option<Span>) {
        self.0 = match (self.0.take(), stale) {
            (Some(a), Some(b)) => Some(a.start.min(b.start)..a.end.max(b.end)),
            (a, b) => a.or(b),
        };
    }

    /// Makes the TLB forget; returns whether there was anything.
    pub(crate) fn flush(self, aspace: &AddressSpace, stats: &Stats) -> bool {
        let Some(span) = self.0 else { return false };
        aspace.invalidate_tlb(span.start, span.end - span.start);
        stats.inc(Stat::TlbInvalCount);
        true
    }
}

/// CPU addresses as GPU addresses: the same.
pub(crate) fn to_gpu(span: Range<usize>) -> Span {
    // CAST: Addresses have 64 bits on what this driver runs on.
    span.start as u64..span.end as u64
}

/// GPU addresses as CPU addresses: the same.
pub(crate) fn to_cpu(span: &Span) -> Range<usize> {
    // CAST: Addresses have 64 bits on what this driver runs on.
    span.start as usize..span.end as usize
}

/// Where the largest chunk around `addr` ends.
pub(crate) fn end_of_chunk(addr: u64) -> u64 {
    // Does not overflow: addresses have 48 bits.
    (addr / SZ_2M as u64 + 1) * SZ_2M as u64
}
