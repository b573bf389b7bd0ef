// SPDX-License-Identifier: GPL-2.0

//! VMs: GPU address spaces that programs make, fill and destroy.
//!
//! A VM is open from its creation to [`Vm::close`], which comes with VM_DESTROY or with the end of
//! the file. Jobs may hold on to a closed VM: they find nothing mapped, and their faults fail.
//!
//! # Locking
//!
//! Outermost first: the SVM lock ([`svm_lock`]), the lock of the map of VMAs, the notifier lock.
//! Every change of the map, of the page table and of ranges is made with the SVM lock held. So who
//! holds it may look a VMA up, let the map's lock go and work with a copy. The map's lock keeps the
//! map readable for others; memory is allocated under it, so that nothing takes it under the
//! notifier lock. The fault queue's lock is a leaf.
//!
//! C header: `DRM_IOCTL_XE_VM_*` in [`include/uapi/drm/xe_drm.h`](srctree/include/uapi/drm/xe_drm.h)

mod at_once;
pub(crate) mod attributes;
pub(crate) mod bind;
mod buffer;
pub(crate) mod madvise;
mod map;
mod op;
pub(crate) mod property;
pub(crate) mod query_attrs;
mod spans;
mod svm_lock;
pub(crate) mod vma;
pub(crate) mod workers;

use crate::{
    check::ensure,
    client::Membership,
    driver::{
        Device,
        VA_BITS, //
    },
    exec_queue::Execution,
    fault::{
        Fault,
        FaultQueue,
        Served,
        TearDown, //
    },
    gpu::{
        Access,
        AddressSpace, //
    },
    ioctl::Ioctl,
    memory::DeviceMemory,
    objects::{
        Counted,
        Kind, //
    },
    svm::{
        self,
        Collector,
        Context,
        Mirror, //
        StaleSpan,
    },
    uapi, //
};
pub(crate) use at_once::AtOnce;
use gpusvm::{
    pagemap::dmem,
    Guard,
    Range,
    Retry, //
};
use kernel::{
    alloc::Flags,
    mm::Mm,
    prelude::*,
    seq_file::{
        seq_print,
        SeqFile, //
    },
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    workqueue::{
        new_delayed_work,
        new_work,
        DelayedWork,
        Work, //
    }, //
};
use kernel_ext::{
    mm::{
        live_mm,
        memcg::ActiveMemcg, //
    },
    sched,
    workqueue::cancel_delayed, //
};
use map::{
    Retired,
    VmaMaps, //
};
use property::FailedFaults;
use svm_lock::LockedSvm;
use vma::{
    Backing,
    Span, //
};
use vxe_sim::debugfs::has_overflowed;
use workers::{
    Workers,
    COLLECTION,
    REVISIT,
    SERVICE, //
};

/// All addresses of a VM, in bytes.
pub(crate) const SPAN: Span = 0..1 << VA_BITS;

/// How memory is allocated whose amount is userspace's choice: charged to its memory cgroup, and without
/// a report where there is none.
fn account() -> Flags {
    GFP_KERNEL_ACCOUNT | __GFP_NOWARN
}

/// How often the service of a fault is begun anew when it has spent its attempts or its time, both
/// of which are bounded each time: a second is not much on a machine that is busy.
const ROUNDS: u32 = 16;

/// How a VM maps what is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// When the GPU faults on it.
    OnFault,
    /// When it is bound. The process's addresses cannot be mirrored.
    AtOnce,
}

/// Which VM a VM is: no other has been, or will be, the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmIdentity(u64);

impl VmIdentity {
    /// A number that no other VM has had, or will have.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    fn new() -> Self {
        static MADE: Atomic<u64> = Atomic::new(0);
        Self(MADE.fetch_add(1, Relaxed))
    }
}

/// A GPU address space.
#[pin_data]
pub(crate) struct Vm {
    dev: ARef<Device>,
    identity: VmIdentity,
    client: Membership,
    mode: Mode,
    /// How many of its queues for jobs are open.
    queues: Atomic<usize>,
    aspace: Arc<AddressSpace>,
    collector: Arc<Collector>,
    #[pin]
    faults: FaultQueue<Execution>,
    #[pin]
    failed: FailedFaults,
    #[pin]
    map: VmaMaps,
    #[pin]
    svm: LockedSvm,
    #[pin]
    workers: Workers,
    #[pin]
    service: Work<Vm, SERVICE>,
    #[pin]
    collection: Work<Vm, COLLECTION>,
    #[pin]
    revisit: DelayedWork<Vm, REVISIT>,
    _counted: Counted,
}

impl Vm {
    /// An open VM of the calling process, charged to its memory cgroup. Whoever makes it must
    /// [close](Self::close) it.
    ///
    /// Fails with `EINVAL` for a kernel thread, `ENODEV` if the device is unbound, and `ENOMEM`.
    fn new(dev: &Device, mode: Mode) -> Result<Arc<Self>> {
        let task = kernel::current!();
        let mm: &Mm = task.mm().ok_or(EINVAL)?;
        let client = Membership::new(&dev.queues, mm)?;
        let dma = dev.dma.as_ref().ok_or(ENODEV)?;
        let aspace = AddressSpace::new(dev.bus.clone(), VA_BITS)?;
        let collector = Collector::new()?;
        let (memory, charged) = match mode {
            Mode::OnFault => (memory_of(dev)?, Some(dmem::register()?)),
            Mode::AtOnce => (None, None),
        };
        let context = Context {
            dev: dev.into(),
            aspace: aspace.clone(),
            collector: collector.clone(),
            memory,
            charged,
            pid: task.group_leader().pid(),
        };
        let vm = Arc::pin_init(
            try_pin_init!(Self {
                dev: dev.into(),
                identity: VmIdentity::new(),
                client,
                mode,
                queues: Atomic::new(0),
                aspace,
                collector,
                faults <- FaultQueue::new(),
                failed <- FailedFaults::new(),
                map <- VmaMaps::new(),
                svm <- LockedSvm::new(mm, dma, context),
                workers <- Workers::new(),
                service <- new_work!("Vm::service"),
                collection <- new_work!("Vm::collection"),
                revisit <- new_delayed_work!("Vm::revisit"),
                _counted: dev.objects.count(Kind::Vm),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        vm.collector.connect(&vm);
        Ok(vm)
    }

    /// The address space of the process that it was made for.
    pub(crate) fn mm(&self) -> Option<&Mm> {
        self.svm.mm()
    }

    /// The process that it was made for.
    pub(crate) fn client(&self) -> &Membership {
        &self.client
    }

    /// The GPU's side.
    pub(crate) fn aspace(&self) -> &Arc<AddressSpace> {
        &self.aspace
    }

    /// Which VM it is.
    pub(crate) fn identity(&self) -> VmIdentity {
        self.identity
    }

    /// Counts one more open queue for jobs.
    pub(crate) fn queue_opened(&self) {
        self.queues.add(1, Relaxed);
    }

    /// Counts one less.
    pub(crate) fn queue_closed(&self) {
        let _ = self.queues.fetch_sub(1, Relaxed);
    }

    /// Whether the VM may not be destroyed yet: one that maps at once may not while it has queues for
    /// jobs, as with xe, whose jobs depend on all that is mapped.
    pub(crate) fn is_held_by_queues(&self) -> bool {
        self.mode == Mode::AtOnce && self.queues.load(Relaxed) != 0
    }

    /// Whether the VM is closed, which it then stays.
    pub(crate) fn is_closed(&self) -> bool {
        self.faults.is_closed()
    }

    /// The faults that wait.
    pub(crate) fn faults(&self) -> &FaultQueue<Execution> {
        &self.faults
    }

    /// The faults that could not be serviced.
    pub(crate) fn failed(&self) -> &FailedFaults {
        &self.failed
    }

    /// The device.
    pub(crate) fn dev(&self) -> &Device {
        &self.dev
    }

    /// Services a fault: makes its access possible.
    ///
    /// Fails with `ENOENT` if the VM is closed, `EINTR` if it is closed meanwhile, `EFAULT` if its process is
    /// exiting, `EINVAL` where nothing is bound, `EPERM` for a write to what is bound for reading, `EACCES` for
    /// an atomic where the GPU may do none, and as [`svm::fault`] and [`buffer::fault`] do.
    pub(crate) fn service(self: &Arc<Self>, fault: Fault) -> Result<Served> {
        let _charged = self.charge_process()?;
        let mut done = self.try_service(fault, false);
        for _ in 1..ROUNDS {
            // The CPU keeps changing its mappings, or is just slow. Others get their turn at the lock
            // before the next round, which is content with one page.
            if !matches!(done, Err(EBUSY)) {
                break;
            }
            done = self.try_service(fault, true);
        }
        if done.is_err() {
            // Who remembers it charges nobody.
            self.failed.make_room();
        }
        done
    }

    /// Has what the calling thread, a worker of the kernel's, allocates for the process be charged to that, as
    /// long as the result is kept. Fails with `EFAULT` for a process that is exiting.
    fn charge_process(&self) -> Result<ActiveMemcg> {
        let mm = self.mm().ok_or(EFAULT)?;
        live_mm::charge(mm)
    }

    /// Holds the lock for as long as one [`Retry`] lasts, at the most.
    fn try_service(self: &Arc<Self>, fault: Fault, page_only: bool) -> Result<Served> {
        let mut svm = self.lock_svm_killable()?;
        let mut retry = Retry::bounded();
        while retry.next().is_some() {
            if self.is_closed() {
                return Err(ENOENT);
            }
            self.collect_garbage(&mut svm)?;
            match self.service_locked(&mut svm, fault, page_only) {
                // With what the CPU unmapped go attributes, maybe.
                Err(EAGAIN) => continue,
                done => return done,
            }
        }
        Err(Retry::spent())
    }

    fn service_locked(
        &self,
        svm: &mut Guard<'_, Mirror>,
        fault: Fault,
        page_only: bool,
    ) -> Result<Served> {
        let vma = self.map.lock().find(fault.addr).cloned().ok_or(EINVAL)?;
        if vma.read_only && fault.access != Access::Read {
            return Err(EPERM);
        }
        if fault.access == Access::Atomic && !vma.attributes.atomics.by_device() {
            return Err(EACCES);
        }
        match &vma.backing {
            Backing::Mirror => svm::fault(self.svm.context(), svm, &vma, fault, page_only),
            Backing::Bo { bo, offset } => buffer::fault(self.svm.context(), &vma, bo, *offset),
        }
    }

    /// For loops under the SVM lock that userspace can make long: lets others run if it is time. Fails with
    /// `EINTR` for a caller who is killed, and with `ENOENT` if the VM was closed meanwhile.
    fn go_on(&self) -> Result {
        sched::check_killed()?;
        if self.is_closed() {
            return Err(ENOENT);
        }
        Ok(())
    }

    /// Removes the ranges that the CPU unmapped, and resets attributes that go with them. Fails as
    /// [`go_on`](Self::go_on) does: the worker does the rest then, which was told of all of them, or who tears
    /// the VM down.
    fn collect_garbage(&self, svm: &mut Guard<'_, Mirror>) -> Result {
        let reset = |range: &Range<Mirror>| {
            let span = svm::to_gpu(range.span());
            madvise::reset_unmapped(&self.dev, &self.map, &span)
        };
        svm.collect_garbage_while(|| self.go_on(), reset).map(drop)
    }

    /// Drops what a change of the map removed; without locks. A worker drops what a caller leaves who is killed.
    fn retire(self: &Arc<Self>, retired: Retired) {
        if self.map.retire(retired) {
            self.queue_collection();
        }
    }

    /// As [`collect_garbage`](Self::collect_garbage), for a worker.
    fn collect_garbage_as_worker(self: &Arc<Self>) {
        self.map.drop_left();
        let charged = self.charge_process();
        let Ok(mut svm) = self.lock_svm_killable() else {
            return;
        };
        let _ = match charged {
            Ok(_) => self.collect_garbage(&mut svm),
            // No fault of it is serviced any more, whatever the attributes are.
            Err(_) => svm
                .collect_garbage_while(|| self.go_on(), |_| Ok(()))
                .map(drop),
        };
    }

    /// Closes the VM: nothing is mapped any more, and no fault serviced. Faults that wait fail. It leaves the
    /// list of the device when all is taken out.
    ///
    /// Waits for no fault that is being serviced: what that still needs goes when it is done. Nor for
    /// others who have the SVM lock, or for more to be taken out than `at_once` allows: a worker does that then.
    /// The process that closes a VM cannot be killed, as it may have been killed already. May be called any
    /// number of times. Sleeps.
    pub(crate) fn close(self: &Arc<Self>, at_once: &AtOnce) {
        let whose = self.faults.close();
        self.workers.kill();
        self.collector.disconnect();
        // Nobody enqueues it any more.
        cancel_delayed::<_, REVISIT>(self);
        // The GPU is cut off in any case.
        self.zap_all();
        if whose == TearDown::Yours && !self.try_tear_down(at_once) {
            self.queue_collection();
        }
    }

    /// Takes everything out of a closed VM, if nobody is in the way and `at_once` allows it; else it has to be
    /// torn down.
    fn try_tear_down(&self, at_once: &AtOnce) -> bool {
        let Some(mut svm) = self.svm.try_lock_closed() else {
            return false;
        };
        loop {
            if !at_once.take() {
                return false;
            }
            if !svm.remove_first(svm::to_cpu(&SPAN)) {
                break;
            }
            sched::cond_resched();
        }
        self.zap_all();
        drop(svm);
        let is_done = self.drop_vmas_while(|| at_once.take());
        if is_done {
            self.dev.vms.remove(self.identity);
        }
        is_done
    }

    /// Takes everything out of a closed VM, which may take long; or leaves that to who has the SVM lock. For
    /// workers.
    pub(crate) fn tear_down(&self) {
        let Some(mut svm) = self.svm.try_lock_closed() else {
            return;
        };
        svm.remove_all(svm::to_cpu(&SPAN));
        self.zap_all();
        drop(svm);
        self.drop_vmas_while(|| true);
        self.dev.vms.remove(self.identity);
    }

    /// The device goes: has nothing mapped for it, now and later, of a closed VM. Waits for nobody who waits for
    /// userspace.
    pub(crate) fn unmap(&self) {
        self.svm.shut();
        self.zap_all();
    }

    /// Drops the VMAs of a closed VM as long as it is to `go_on`, and with them buffers, maybe: without locks,
    /// and after the GPU's mappings of them. Whether none is left.
    ///
    /// The SVM lock was held since the VM was closed, so that nobody adds any.
    fn drop_vmas_while(&self, go_on: impl Fn() -> bool) -> bool {
        while go_on() {
            if self.map.take_any().is_none() {
                return true;
            }
            sched::cond_resched();
        }
        false
    }

    fn zap_all(&self) {
        let mut stale = StaleSpan::new();
        stale.add(self.aspace.zap(SPAN.start, SPAN.end - SPAN.start));
        stale.flush(&self.aspace, &self.dev.stats);
    }

    /// Prints VMAs, and ranges unless somebody is at work on them, for debugfs.
    pub(crate) fn show(self: &Arc<Self>, m: &SeqFile) -> Result {
        let counts = self.faults.counts();
        let mode = match self.mode {
            Mode::OnFault => "on fault",
            Mode::AtOnce => "at once",
        };
        seq_print!(m, "  maps {}\n", mode);
        seq_print!(
            m,
            "  faults: served={} coalesced={} failed={}\n",
            counts.served,
            counts.coalesced,
            counts.failed
        );
        seq_print!(m, "  vmas:\n");
        for vma in self.map.lock_killable()?.iter() {
            // A buffer that is too small is thrown away, and all of this done again with a larger one.
            if has_overflowed(m) || sched::check_killed().is_err() {
                return Ok(());
            }
            seq_print!(m, "    {}\n", vma);
        }
        seq_print!(m, "  ranges:\n");
        let Some(svm) = self.try_lock_svm() else {
            seq_print!(m, "    busy\n");
            return Ok(());
        };
        for range in svm.ranges(svm::to_cpu(&SPAN)) {
            if has_overflowed(m) || sched::check_killed().is_err() {
                break;
            }
            seq_print!(m, "    {}\n", svm::Line(range));
        }
        Ok(())
    }
}

/// The device's memory for a new VM. One that cannot be had is one that is not there: all stays in system
/// memory then. Fails with `ENODEV` and `EINTR`.
fn memory_of(dev: &Device) -> Result<Option<DeviceMemory>> {
    match dev.memory.pagemap(dev) {
        Err(e) if e != ENODEV && e != EINTR => {
            vxe_sim::drm_dbg!(dev, "a VM goes without device memory: {e:?}");
            Ok(None)
        }
        done => done,
    }
}

/// VM_CREATE.
///
/// Fails as xe does, and with `EOPNOTSUPP` for what vxe has none of: scratch pages, and VMs that
/// are not in long-running mode (their fences are DMA fences).
pub(crate) fn create_ioctl(
    ioctl: &mut Ioctl<'_>,
    args: &mut uapi::drm_xe_vm_create,
) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    const SCRATCH: u32 = uapi::DRM_XE_VM_CREATE_FLAG_SCRATCH_PAGE;
    const LR: u32 = uapi::DRM_XE_VM_CREATE_FLAG_LR_MODE;
    const FAULT: u32 = uapi::DRM_XE_VM_CREATE_FLAG_FAULT_MODE;
    const NO_OVERCOMMIT: u32 = uapi::DRM_XE_VM_CREATE_FLAG_NO_VM_OVERCOMMIT;

    let has = |flag| args.flags & flag != 0;
    ensure!(dev, args.extensions == 0, EINVAL);
    ensure!(dev, args.reserved == [0; 2], EINVAL);
    ensure!(
        dev,
        args.flags & !(SCRATCH | LR | FAULT | NO_OVERCOMMIT) == 0,
        EINVAL
    );
    ensure!(dev, !(has(SCRATCH) && has(FAULT)), EINVAL);
    ensure!(dev, has(LR) || !has(FAULT), EINVAL);
    ensure!(dev, has(FAULT) || !has(NO_OVERCOMMIT), EINVAL);
    ensure!(dev, has(LR) && !has(SCRATCH), EOPNOTSUPP);

    let mode = if has(FAULT) {
        Mode::OnFault
    } else {
        Mode::AtOnce
    };
    let vm = Vm::new(dev, mode)?;
    // Who unplugs the device closes all VMs that are known then, and that are known to it.
    let added = match ioctl.registered() {
        Ok(_registered) => file.inner().add_vm(vm.clone()),
        Err(e) => Err(e),
    };
    args.vm_id = added.inspect_err(|_| vm.close(&AtOnce::new()))?;
    Ok(0)
}

/// VM_DESTROY.
///
/// Fails with `EINVAL`, with `ENOENT` for no such VM, and with `EBUSY` for one that maps at once and has
/// queues for jobs.
pub(crate) fn destroy_ioctl(
    ioctl: &mut Ioctl<'_>,
    args: &mut uapi::drm_xe_vm_destroy,
) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    ensure!(dev, args.pad == 0, EINVAL);
    ensure!(dev, args.reserved == [0; 2], EINVAL);
    file.inner().remove_vm(args.vm_id)?;
    Ok(0)
}
