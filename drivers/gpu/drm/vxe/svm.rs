// SPDX-License-Identifier: GPL-2.0

//! Mirroring: how a VM's GPU page table follows the page tables of the process.
//!
//! A range is mapped when the GPU faults on it ([`fault`]) or a program asks for it ([`populate`]),
//! and let go of in one place, [`Driver::invalidate`]: when the CPU changes its mappings, when the
//! range is removed, and before it is mapped anew for stronger access.
//!
//! Before that its memory may move ([`migrate`]). The memory of other devices is mapped where it is, if
//! this one reaches it.
//!
//! A range is mapped for what its pages bear: a read of memory that would be copied on write, or is
//! read-only, maps it for reading, and a write that comes later faults again.
//!
//! Lock order, outermost first: the SVM lock, the VM's map of VMAs, the notifier lock, then what
//! the page table, the TLB and a work queue take inside themselves. The collector's spinlock is
//! taken under the notifier lock, and only a work queue's inside it. What runs under the notifier
//! lock must not allocate with reclaim, and so must not take the map's lock, under which memory is
//! allocated.

mod meter;
pub(crate) mod migrate;

use crate::{
    driver::{
        Device,
        VA_BITS, //
    },
    fault::{
        Fault,
        Served, //
    },
    gpu::{
        Access,
        AddressSpace,
        PteFlag,
        PteFlags,
        Staged,
        Target, //
    },
    memory::{
        self,
        Pagemap, //
    },
    stats::{
        Stat,
        Stats, //
    },
    vm::{
        vma::{
            Span,
            Vma, //
        },
        Vm, //
    }, //
};
use core::ops::Range;
use gpusvm::{
    Config,
    Ctx,
    Driver,
    DrmDevice,
    Found,
    Guard,
    Invalidation,
    Mapped,
    NewRange,
    PageSet,
    Protocol,
    RangeFlag,
    Retry,
    Stale,
    View, //
};
use kernel::{
    fmt,
    prelude::*,
    sizes::{
        SZ_2M,
        SZ_4K,
        SZ_512M,
        SZ_64K, //
    },
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
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
use meter::Meter;
use migrate::{
    History,
    Memory,
    To, //
};

/// The sizes of ranges, in bytes: those of xe.
const CHUNK_SIZES: &[usize] = &[SZ_2M, SZ_64K, SZ_4K];

/// What a VM mirrors: the whole GPU address space, with notifiers of 512 MiB as xe has them.
pub(crate) const CONFIG: Config = Config {
    start: 0,
    size: 1 << VA_BITS,
    notifier_size: SZ_512M,
    chunk_sizes: CHUNK_SIZES,
};

/// How many times a range is tried whose pages the CPU takes away meanwhile. After that only the page
/// of the fault is mapped: the smaller, the sooner.
const TRIES: u32 = 3;

/// vxe as a driver of the gpusvm core.
pub(crate) struct Mirror;

/// What the callbacks of a VM's SVM need. They know no VM: it may be on its way out.
pub(crate) struct Context {
    /// The device that pages are mapped for.
    pub(crate) dev: ARef<Device>,
    /// The GPU's side of the VM.
    pub(crate) aspace: Arc<AddressSpace>,
    /// The way to the VM's garbage collection, while the VM is open.
    pub(crate) collector: Arc<Collector>,
    /// The device's memory, if it has any that pages may move to.
    pub(crate) memory: Option<Pagemap>,
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
}

impl Collector {
    /// A collector of no VM yet.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                vm <- new_spinlock!(None, "vxe_collector"),
            }),
            GFP_KERNEL,
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

/// What is known of the GPU's mapping of a range.
pub(crate) struct Bound {
    /// The strongest access that works on all of it: see [`Bound::access`].
    access: Atomic<u32>,
    /// How many pieces it consists of.
    segments: Atomic<u32>,
    /// How many of its bytes are in device memory.
    in_device: Atomic<usize>,
    /// How it moves.
    history: History,
}

impl Bound {
    const NOT: u32 = 0;
    const READ: u32 = 1;
    const WRITE: u32 = 2;
    const ATOMIC: u32 = 3;

    fn new() -> Self {
        Self {
            access: Atomic::new(Self::NOT),
            segments: Atomic::new(0),
            in_device: Atomic::new(0),
            history: History::new(),
        }
    }

    /// How many bytes of the mapping are in device memory.
    fn in_device(&self) -> usize {
        self.in_device.load(Relaxed)
    }

    /// The strongest access that works on all of the range; none if it is not mapped.
    fn access(&self) -> Option<Access> {
        match self.access.load(Relaxed) {
            Self::READ => Some(Access::Read),
            Self::WRITE => Some(Access::Write),
            Self::ATOMIC => Some(Access::Atomic),
            _ => None,
        }
    }

    /// Notes what is mapped now. The notifier lock is held.
    fn set(&self, access: Option<Access>, segments: u32, in_device: usize) {
        let access = match access {
            None => Self::NOT,
            Some(Access::Read) => Self::READ,
            Some(Access::Write) => Self::WRITE,
            Some(Access::Atomic) => Self::ATOMIC,
        };
        self.access.store(access, Relaxed);
        self.segments.store(segments, Relaxed);
        self.in_device.store(in_device, Relaxed);
    }
}

impl Driver for Mirror {
    const NAME: &'static CStr = c"vxe";
    type Vm = Context;
    type Range = Bound;

    fn new_range(vm: &Context) -> Result<NewRange<Bound>> {
        let pages = PageSet::one(DrmDevice::of(&*vm.dev));
        Ok(NewRange::new(Bound::new(), pages))
    }

    fn invalidate(vm: &Context, invalidation: &Invalidation<'_, Self>) {
        let started = Instant::<Monotonic>::now();
        let mut stale = Hull::new();
        for range in invalidation.ranges() {
            let span = to_gpu(range.span());
            stale.add(vm.aspace.zap(span.start, span.end - span.start));
            range.data().set(None, 0, 0);
        }
        if stale.flush(&vm.aspace, &vm.dev.stats) {
            vm.dev.stats.inc(Stat::SvmTlbInvalCount);
            vm.dev.stats.add_us(Stat::SvmTlbInvalUs, started);
        }
    }

    fn garbage(vm: &Context) {
        vm.collector.wake();
    }
}

/// The smallest span around all addresses whose translations a TLB has to forget.
///
/// Spans are added to it and never replace each other, so that none is left out.
#[must_use = "translations that changed must be flushed"]
pub(crate) struct Hull(Option<Span>);

impl Hull {
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

/// Services a fault of the GPU in `vma`, a mirror. With `page_only` it maps no more than its page, if
/// that is not mapped yet.
///
/// Fails with `ENOENT` where the process has no memory, `EPERM` for a write to what may only be
/// read, `EIO` for the memory of some device, `EFAULT` for pages that cannot be had or a process
/// that is gone, `EBUSY` when the CPU kept changing its mappings, `EAGAIN` when it unmapped what was
/// there, which is to be collected first, and `ENOMEM`.
pub(crate) fn fault(
    vm: &Context,
    svm: &mut Guard<'_, Mirror>,
    vma: &Vma,
    fault: Fault,
    page_only: bool,
) -> Result<Served> {
    if !page_only {
        vm.dev.stats.inc(Stat::SvmPagefaultCount);
    }
    map_at(vm, svm, vma, Aim::Serve { fault, page_only })
}

/// Maps the range at `addr` in `vma`, a mirror, for reading, before the GPU needs it, after moving it
/// to where it is to be: copies that a write would make are not made.
///
/// Fails as [`fault`] does; what cannot move is no failure.
pub(crate) fn prefetch(
    vm: &Context,
    svm: &mut Guard<'_, Mirror>,
    vma: &Vma,
    addr: u64,
    to: To,
) -> Result<Served> {
    let done = map_at(vm, svm, vma, Aim::Prefetch { addr, to });
    kernel_ext::drm_dbg!(
        &vm.dev,
        "process {}: prefetch at {addr:#x} to {to:?}: {:#x?}",
        vm.pid,
        done.as_ref().map(|served| &served.span)
    );
    done
}

/// What a range is mapped for.
#[derive(Clone, Copy)]
enum Aim {
    /// A fault, with no more than its page if need be.
    Serve { fault: Fault, page_only: bool },
    /// A program's foresight.
    Prefetch { addr: u64, to: To },
}

fn map_at(vm: &Context, svm: &mut Guard<'_, Mirror>, vma: &Vma, aim: Aim) -> Result<Served> {
    let started = Instant::<Monotonic>::now();
    let (fault, page_only, to, meter) = match aim {
        Aim::Serve { fault, page_only } => (fault, page_only, None, Meter::of(&vm.dev.stats)),
        Aim::Prefetch { addr, to } => {
            let access = Access::Read;
            (Fault { addr, access }, false, Some(to), Meter::off())
        }
    };
    let exclusive = fault.access == Access::Atomic && migrate::is_exclusive(vm, vma);
    let placement = match to {
        Some(To::System) => None,
        Some(To::Own) => vm.memory.as_ref().map(Memory::Own),
        // Where it was advised to live does not count for an atomic that must be the device's.
        None if exclusive => vm.memory.as_ref().map(Memory::Own),
        Some(To::Advised) | None => migrate::placement(vm, vma),
    };
    let mut ctx = Ctx::new(match fault.access {
        Access::Read => gpusvm::Access::Read,
        Access::Write | Access::Atomic => gpusvm::Access::Write,
    });
    ctx.devmem_possible = vm.memory.is_some() || placement.is_some();
    ctx.devmem_only = exclusive;
    ctx.allow_mixed = true;
    if placement.is_some() {
        // Pages stay in memory that the GPU reaches; else they come to system memory.
        ctx = ctx.with_owner(vm.dev.memory.owner());
    }
    let window = to_cpu(&vma.span);
    // CAST: The address lies in the window.
    let addr = fault.addr as usize;

    let mut retry = Retry::bounded();
    let (mut counted, mut evicted, mut lost, mut moves) = (false, false, 0, 0);
    while let Some(mut attempt) = retry.next() {
        if (page_only || lost >= TRIES) && !exclusive {
            // If the range is that small already, there is nothing better than to try again. What is
            // to be the device's alone cannot be that small: single pages do not move.
            let _ = attempt.narrow(addr, window.clone());
        }
        if is_unmapped(svm, addr) {
            return Err(EAGAIN);
        }
        let mut found = match svm.find_or_insert(addr, window.clone(), &ctx, &attempt) {
            Ok(found) => found,
            Err(EAGAIN) => {
                // What is there fits no more. It makes way, alone: what the CPU unmapped is for those
                // to collect who know of attributes.
                if let Some(found) = svm.find(addr) {
                    found.remove();
                }
                continue;
            }
            Err(e) => return Err(e),
        };
        let (span, size) = (found.span(), found.size());
        if !counted {
            meter.inc(size, |stats| stats.faults);
            counted = true;
        }

        // Somebody else may have had it mapped since the GPU looked.
        if let Ok(Some(access)) = found.commit(|_| found.data().access()) {
            let served = Served {
                span: to_gpu(span.clone()),
                access,
            };
            // A prefetch that was done is as good; one that is to do moves.
            if served.settles(&fault) && (to.is_none() || moves != 0) {
                meter.inc(size, |stats| stats.valid);
                return Ok(served);
            }
        }

        // Once; an exclusive atomic as often as the CPU takes the memory back.
        if let Some(memory) = placement.as_ref().filter(|_| moves == 0 || exclusive) {
            let migrate_started = Instant::<Monotonic>::now();
            let moved = if exclusive {
                match migrate::on_atomic(vm, &mut found, memory, moves, &attempt) {
                    Ok(moved) => Some(moved),
                    Err(e) if e == EACCES || moves >= TRIES => {
                        found.remove();
                        return Err(e);
                    }
                    Err(_) => None,
                }
            } else if to.is_some() {
                let policy = vma.attributes.policy;
                migrate::on_prefetch(vm, &mut found, memory, policy, &attempt);
                None
            } else {
                migrate::on_fault(vm, &mut found, memory, &fault, &attempt)
            };
            if moved.is_some_and(|moved| moved.moved != 0) {
                meter.inc(size, |stats| stats.migrations);
                meter.add_us(size, migrate_started, |stats| stats.migrate_us);
            }
        }
        if moves == 0 && to.is_some() && placement.is_none() && found.data().in_device() != 0 {
            // If that fails it stays where it is.
            let _ = migrate::to_system(vm, &mut found, migrate::Why::Prefetch, &attempt);
        }
        moves += 1;

        let get_started = Instant::<Monotonic>::now();
        match found.get(&ctx, &attempt) {
            Ok(()) => {}
            // Memory of several devices in one range.
            Err(EOPNOTSUPP) if !evicted => {
                evicted = true;
                let _ = migrate::to_system(vm, &mut found, migrate::Why::Access, &attempt);
                continue;
            }
            Err(EAGAIN) => {
                lost += 1;
                continue;
            }
            // The CPU has taken some of it back.
            Err(EFAULT) if exclusive => continue,
            Err(e) if (e == EFAULT || e == EPERM) && attempt.narrow(addr, span) => continue,
            Err(e) => {
                // Nothing is mapped there, so that nothing is to be in the way of a bind.
                found.remove();
                return Err(e);
            }
        }
        meter.add_us(size, get_started, |stats| stats.get_pages_us);

        let bind_started = Instant::<Monotonic>::now();
        // All memory is allocated before the notifier lock is taken.
        let mut staged = vm.aspace.stage(span.start as u64, size as u64)?;
        let served = match found.commit(|view| bind(vm, &mut staged, vma, &found, view)) {
            Ok(served) => served?,
            Err(Stale) => {
                lost += 1;
                continue;
            }
        };
        meter.add_us(size, bind_started, |stats| stats.bind_us);
        if served.settles(&fault) {
            meter.add_us(size, started, |stats| stats.fault_us);
            return Ok(served);
        }
        if found.data().in_device() != 0 {
            // Shared with another process since a fork: where it is, nobody makes a copy for a write.
            // If it is somewhere else now, the next attempt finds that out.
            let _ = migrate::to_system(vm, &mut found, migrate::Why::Access, &attempt);
        }
    }
    Err(Retry::spent())
}

/// Whether the CPU unmapped the range at `addr`, or part of it.
fn is_unmapped(svm: &Guard<'_, Mirror>, addr: usize) -> bool {
    let mut at = svm.ranges(addr..addr.saturating_add(1));
    at.any(|range| range.has(RangeFlag::Unmapped))
}

/// Writes the pages of a range into the GPU's page table. The notifier lock is held.
///
/// Fails with `EINVAL` if the pages do not fit into the page table, and then maps nothing.
fn bind(
    vm: &Context,
    staged: &mut Staged,
    vma: &Vma,
    range: &Found<'_, '_, Mirror>,
    view: View<'_>,
) -> Result<Served> {
    let span = to_gpu(view.span());
    let (mut stale, mut segments, mut in_device) = (Hull::new(), 0, 0);
    // What works on all of it.
    let mut rights = PteFlag::Writable | PteFlag::Atomic;
    let mut map = |run: Run| -> Result {
        segments += 1;
        let flags = run.flags(vm, vma);
        rights &= flags;
        stale.add(run.map(vm, staged, flags)?);
        Ok(())
    };
    let mut run: Option<Run> = None;
    let mut result = Ok(());
    for segment in view.segments() {
        if segment.proto != Protocol::SYSTEM {
            in_device += segment.len;
        }
        run = match run.take() {
            Some(run) if run.continues_with(&segment) => Some(run.and(&segment)),
            before => {
                if let Some(before) = before {
                    result = map(before);
                }
                Some(Run::of(&segment))
            }
        };
        if result.is_err() {
            break;
        }
    }
    if let (Ok(()), Some(run)) = (result, run) {
        result = map(run);
    }
    if let Err(e) = result {
        stale.add(vm.aspace.zap(span.start, span.end - span.start));
        stale.flush(&vm.aspace, &vm.dev.stats);
        range.data().set(None, 0, 0);
        return Err(e);
    }
    stale.flush(&vm.aspace, &vm.dev.stats);

    let access = match rights {
        flags if flags.contains(PteFlag::Atomic) => Access::Atomic,
        flags if flags.contains(PteFlag::Writable) => Access::Write,
        _ => Access::Read,
    };
    range.data().set(Some(access), segments, in_device);
    Ok(Served { span, access })
}

/// What the GPU may do with pages in `vma` that are writable or not, and bear its atomics or not.
pub(crate) fn pte_flags(vma: &Vma, writable: bool, atomics: bool) -> PteFlags {
    if !writable || vma.read_only {
        PteFlags::empty()
    } else if atomics && vma.attributes.atomics.by_device() {
        PteFlag::Writable | PteFlag::Atomic
    } else {
        PteFlag::Writable.into()
    }
}

/// Neighbouring segments that are neighbours on the bus as well: they may share a large page.
struct Run {
    va: u64,
    target: Target,
    len: u64,
    writable: bool,
}

impl Run {
    fn of(segment: &Mapped) -> Self {
        Self {
            // CAST: Addresses and sizes have 64 bits at most.
            va: segment.va as u64,
            target: memory::target(segment.proto, segment.addr),
            len: segment.len as u64,
            writable: segment.writable,
        }
    }

    fn continues_with(&self, next: &Mapped) -> bool {
        let end = self.target.checked_offset(self.len);
        end == Some(memory::target(next.proto, next.addr)) && self.writable == next.writable
    }

    fn and(self, next: &Mapped) -> Self {
        Self {
            // Does not overflow: a range has at most 2 MiB.
            len: self.len + next.len as u64,
            ..self
        }
    }

    /// What the GPU may do there.
    fn flags(&self, vm: &Context, vma: &Vma) -> PteFlags {
        let in_system = matches!(self.target, Target::System(_));
        let atomics = !(in_system && migrate::is_exclusive(vm, vma));
        pte_flags(vma, self.writable, atomics)
    }

    fn map(&self, vm: &Context, staged: &mut Staged, flags: PteFlags) -> Result<Option<Span>> {
        vm.aspace.map(staged, self.va, self.len, self.target, flags)
    }
}

/// A line for debugfs about a range, without its end.
pub(crate) struct Line<'a>(pub(crate) &'a gpusvm::Range<Mirror>);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (range, span, bound) = (self.0, self.0.span(), self.0.data());
        let state = if range.has(RangeFlag::PartialUnmap) {
            "cut"
        } else if range.has(RangeFlag::Unmapped) {
            "unmapped"
        } else if range.is_mapped() {
            "mapped"
        } else {
            "invalid"
        };
        let access = match bound.access() {
            None => "---",
            Some(Access::Read) => "r--",
            Some(Access::Write) => "rw-",
            Some(Access::Atomic) => "rwa",
        };
        write!(
            f,
            "{:#018x}-{:#018x} {:>5}K {:<8} {} segments={} device={}K bounces={}",
            span.start,
            span.end,
            range.size() / 1024,
            state,
            access,
            bound.segments.load(Relaxed),
            bound.in_device() / 1024,
            bound.history.bounces(),
        )
    }
}
