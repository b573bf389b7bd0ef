// SPDX-License-Identifier: GPL-2.0

//! SVM: the VM's GPU page table mirrors the CPU page tables of the process.
//!
//! A range is mapped when the GPU faults on it ([`fault`]) or a program prefetches it
//! ([`prefetch`]). [`Driver::invalidate`] alone zaps it: when the CPU changes its mappings, when
//! the range is removed, and before the range is mapped anew with more access rights.
//!
//! Before a range is mapped its memory may migrate ([`migrate`]). Memory on another device is
//! mapped in place if this device can access it.
//!
//! A range is mapped with the rights that its pages have at that time: after a read fault on memory
//! that is read-only or copied on write, the mapping is read-only, and a later write faults again.
//!
//! Lock order, outermost first: the SVM lock, the lock of the VM's VMA map, the notifier lock, then
//! the inner locks of the page table, the TLB and a work queue. The collector's spinlock nests
//! inside the notifier lock, and only a work queue's locks nest inside the collector's. A holder of
//! the notifier lock must not allocate with reclaim, so it must not take the VMA map's lock, whose
//! holders do.

mod access_wait;
mod bind;
pub(crate) mod migrate;
mod range_state;
mod revisit;
mod serve;
mod thrashing;

use crate::{
    driver::{
        Device,
        VA_BITS, //
    },
    gpu::{
        AddressSpace,
        StaleSpan, //
    },
    memory::DeviceMemory,
    stats::{
        us_since,
        Stat, //
    },
    vm::{
        vma::Span,
        Vm, //
    }, //
};
pub(crate) use access_wait::AccessWait;
pub(crate) use bind::{
    bind_userptr,
    pte_flags,
    Writer, //
};
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
pub(crate) use range_state::Line;
use range_state::RangeState;
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

/// The SVM of each VM covers the whole GPU address space, with notifiers of 512 MiB as in xe.
pub(crate) const CONFIG: Config = Config {
    start: 0,
    size: 1 << VA_BITS,
    notifier_size: SZ_512M,
    chunk_sizes: CHUNK_SIZES,
};

/// vxe as a driver of the gpusvm core.
pub(crate) struct Mirror;

/// The data of a VM's SVM for the driver's callbacks. Has no reference to the VM, which may be in
/// teardown.
pub(crate) struct Context {
    /// The device.
    pub(crate) dev: ARef<Device>,
    /// The VM's GPU address space.
    pub(crate) aspace: Arc<AddressSpace>,
    /// Queues the VM's garbage collection while the VM is open.
    pub(crate) collector: Arc<Collector>,
    /// The device's memory, if the device has any that pages can migrate to.
    pub(crate) memory: Option<DeviceMemory>,
    /// Makes the process chargeable for device memory.
    #[expect(dead_code, reason = "only dropped")]
    pub(crate) charged: Option<dmem::Registration>,
    /// The process.
    pub(crate) pid: Pid,
}

/// A link to an SVM's VM, for callers under the notifier lock.
///
/// Holds a reference to the VM that owns it, from [`connect`](Self::connect) until
/// [`disconnect`](Self::disconnect) when the VM is closed.
#[pin_data]
pub(crate) struct Collector {
    #[pin]
    vm: SpinLock<Option<Arc<Vm>>>,
    /// The schedule for ranges that fell back to system memory.
    #[pin]
    revisits: Revisits,
}

impl Collector {
    /// Creates a collector without a VM.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                vm <- new_spinlock!(None, "vxe_collector"),
                revisits <- Revisits::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Links `vm`.
    pub(crate) fn connect(&self, vm: &Arc<Vm>) {
        *self.vm.lock() = Some(vm.clone());
    }

    /// Drops the reference to the VM.
    pub(crate) fn disconnect(&self) {
        // The statement above releases the spinlock, so the reference is dropped without it.
        let vm = self.vm.lock().take();
        drop(vm);
    }

    /// Queues [`revisit()`] in `delay` jiffies, unless it is queued already. Does not sleep.
    fn revisit_in(&self, delay: usize) {
        let vm = self.vm.lock();
        if let Some(vm) = &*vm {
            // As in `wake()`.
            vm.queue_revisit(delay);
        }
    }

    /// Queues garbage collection. Does not sleep.
    fn wake(&self) {
        let vm = self.vm.lock();
        if let Some(vm) = &*vm {
            // If the work is queued already, the queue drops this reference under the spinlock. It
            // is not the last one: `self.vm` holds another.
            vm.queue_collection();
        }
    }
}

#[vtable]
impl Driver for Mirror {
    const NAME: &'static CStr = c"vxe";
    type Vm = Context;
    type Range = RangeState;

    fn new_range(_vm: &Context) -> Result<RangeState> {
        Ok(RangeState::new())
    }

    fn invalidate(vm: &Context, invalidation: &Invalidation<'_, Self>) {
        let started = Instant::<Monotonic>::now();
        let mut stale = StaleSpan::new();
        for range in invalidation.ranges() {
            let wait = &range.data().access_wait;
            wait.end(&vm.aspace, invalidation.can_wait());
            let span = to_gpu(range.span());
            stale.zap(&vm.aspace, span);
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
        // The locks of the page table and the TLB are spinlocks, held for the access to one page at
        // most.
        Self::invalidate(vm, invalidation);
        Ok(())
    }

    fn garbage(vm: &Context) {
        vm.collector.wake();
    }
}

/// Converts CPU addresses to GPU addresses, which are the same.
pub(crate) fn to_gpu(span: Range<usize>) -> Span {
    // CAST: `usize` has 64 bits on all architectures of this driver.
    span.start as u64..span.end as u64
}

/// Converts GPU addresses to CPU addresses, which are the same.
pub(crate) fn to_cpu(span: &Span) -> Range<usize> {
    // CAST: `usize` has 64 bits on all architectures of this driver.
    span.start as usize..span.end as usize
}

/// Returns the end of the largest chunk around `addr`.
pub(crate) fn end_of_chunk(addr: u64) -> u64 {
    // Does not overflow: addresses have 48 bits.
    (addr / SZ_2M as u64 + 1) * SZ_2M as u64
}
