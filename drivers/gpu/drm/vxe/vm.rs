// SPDX-License-Identifier: GPL-2.0

//! VMs: GPU address spaces that programs create, fill and destroy.
//!
//! A VM is open from its creation until [`Vm::close`], which VM_DESTROY and the close of the file
//! call. Jobs may hold references to a closed VM: nothing is mapped in it, and their faults fail.
//!
//! # Locking
//!
//! Outermost first: the SVM lock ([`svm_lock`]), the lock of the map of VMAs, the notifier lock.
//! Every change of the map and of ranges, and every new mapping in the page table, is made with the
//! SVM lock held. So a thread that holds the SVM lock may look up a VMA, release the map's lock and
//! work with a copy. Mappings are removed with other locks, too: the notifier locks, the map's, or
//! none when the VM is closed. Whoever frees memory after that flushes the TLB for all of its
//! addresses ([`StaleSpan::zap`]), as what another thread has removed may not be flushed yet.
//! The map's lock protects the map from readers without the SVM lock. Memory is allocated under it,
//! so it must not be taken under the notifier lock. The fault queue's lock is a leaf.
//!
//! C header: `DRM_IOCTL_XE_VM_*` in [`include/uapi/drm/xe_drm.h`](srctree/include/uapi/drm/xe_drm.h)

pub(crate) mod attributes;
pub(crate) mod bind;
mod buffer;
pub(crate) mod madvise;
mod map;
mod null;
mod op;
pub(crate) mod property;
pub(crate) mod query_attrs;
mod spans;
mod svm_lock;
mod teardown_budget;
mod userptr;
pub(crate) mod vma;
pub(crate) mod workers;

use crate::{
    check::ensure,
    client::ClientRef,
    driver::{
        Device,
        VA_BITS, //
    },
    exec_queue::Execution,
    fault::{
        Fault,
        FaultQueue,
        Serviced,
        TearDown, //
    },
    gpu::{
        Access,
        AddressSpace,
        StaleSpan, //
    },
    ioctl::Ioctl,
    memory::DeviceMemory,
    objects::{
        Counted,
        ObjectKind, //
    },
    svm::{
        self,
        Collector,
        Context,
        Mirror, //
    },
    uapi, //
};
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
        memcg::Memcg, //
    },
    sched,
    workqueue::cancel_delayed, //
};
use map::{
    LockedVmaMap, //
    Retired,
};
use property::FailedFaults;
use svm_lock::LockedSvm;
pub(crate) use teardown_budget::TeardownBudget;
use userptr::VmUserptrs;
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

/// Returns the flags for allocations whose size userspace chooses: charged to its memory cgroup,
/// and without a warning when they fail.
fn account() -> Flags {
    GFP_KERNEL_ACCOUNT | __GFP_NOWARN
}

/// How often the service of a fault starts over after a [`Retry`] is spent. Each `Retry` is bounded
/// to about a second, which may be too short on a busy machine.
const ROUNDS: u32 = 16;

/// When a VM maps what is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// When the GPU faults on it.
    OnFault,
    /// When it is bound. Such a VM cannot mirror the process.
    Immediate,
}

/// Identifies a VM. Identities are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmIdentity(u64);

impl VmIdentity {
    /// Returns the number, which no other VM has or will have.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    fn new() -> Self {
        static CREATED: Atomic<u64> = Atomic::new(0);
        Self(CREATED.fetch_add(1, Relaxed))
    }
}

/// A GPU address space.
#[pin_data]
pub(crate) struct Vm {
    dev: ARef<Device>,
    identity: VmIdentity,
    client: ClientRef,
    mode: Mode,
    /// Whether binds may evict buffers of the VM for others that it maps at once.
    may_overcommit: bool,
    /// The number of open queues for jobs.
    queues: Atomic<usize>,
    aspace: Arc<AddressSpace>,
    collector: Arc<Collector>,
    #[pin]
    faults: FaultQueue<Execution>,
    #[pin]
    failed: FailedFaults,
    #[pin]
    map: LockedVmaMap,
    #[pin]
    svm: LockedSvm,
    userptrs: VmUserptrs,
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
    /// Creates an open VM for the calling process, charged to its memory cgroup. The caller must
    /// [close](Self::close) it.
    ///
    /// Fails with `EINVAL` for a kernel thread, `ENODEV` if the device is unbound, and `ENOMEM`.
    fn new(dev: &Device, mode: Mode, may_overcommit: bool) -> Result<Arc<Self>> {
        let task = kernel::current!();
        let mm: &Mm = task.mm().ok_or(EINVAL)?;
        let client = ClientRef::new(&dev.queues, mm)?;
        let dma = dev.dma.as_ref().ok_or(ENODEV)?;
        let aspace = AddressSpace::new(dev.bus.clone(), VA_BITS)?;
        let collector = Collector::new()?;
        let charged = Some(dmem::register()?);
        let memory = match mode {
            Mode::OnFault => memory_of(dev)?,
            Mode::Immediate => None,
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
                may_overcommit,
                queues: Atomic::new(0),
                aspace,
                collector,
                faults <- FaultQueue::new(),
                failed <- FailedFaults::new(),
                map <- LockedVmaMap::new(),
                svm <- LockedSvm::new(mm, dma, context),
                userptrs: VmUserptrs::new(),
                workers <- Workers::new(),
                service <- new_work!("Vm::service"),
                collection <- new_work!("Vm::collection"),
                revisit <- new_delayed_work!("Vm::revisit"),
                _counted: dev.objects.count(ObjectKind::Vm),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        vm.collector.connect(&vm);
        Ok(vm)
    }

    /// Returns the address space of the process that the VM was created for, if it has not exited.
    pub(crate) fn mm(&self) -> Option<&Mm> {
        self.svm.mm()
    }

    /// Returns the client that the VM belongs to.
    pub(crate) fn client(&self) -> &ClientRef {
        &self.client
    }

    /// Returns the GPU address space.
    pub(crate) fn aspace(&self) -> &Arc<AddressSpace> {
        &self.aspace
    }

    /// Returns the VM's identity.
    pub(crate) fn identity(&self) -> VmIdentity {
        self.identity
    }

    /// Counts one more open queue for jobs.
    pub(crate) fn queue_opened(&self) {
        self.queues.add(1, Relaxed);
    }

    /// Counts one open queue less.
    pub(crate) fn queue_closed(&self) {
        let _ = self.queues.fetch_sub(1, Relaxed);
    }

    /// Returns whether the VM has queues that forbid VM_DESTROY. As in xe, that is a VM without
    /// faults with open queues for jobs, since these depend on all of its mappings.
    pub(crate) fn is_held_by_queues(&self) -> bool {
        self.mode == Mode::Immediate && self.queues.load(Relaxed) != 0
    }

    /// Returns whether the VM is closed. A closed VM stays closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.faults.is_closed()
    }

    /// Returns the queue of pending faults.
    pub(crate) fn faults(&self) -> &FaultQueue<Execution> {
        &self.faults
    }

    /// Returns the faults that could not be serviced.
    pub(crate) fn failed(&self) -> &FailedFaults {
        &self.failed
    }

    /// Returns the device.
    pub(crate) fn dev(&self) -> &Device {
        &self.dev
    }

    /// Services a fault: maps its page for its access.
    ///
    /// Fails with `ENOENT` if the VM is closed, `EINTR` if it is closed meanwhile, `EFAULT` if its
    /// process is exiting, `EINVAL` where nothing is bound, `EPERM` for a write to a read-only
    /// binding, `EACCES` for an atomic where the GPU may do none, and as [`svm::fault`],
    /// [`buffer::fault`], [`userptr::fault`] and [`null::fault`] do.
    pub(crate) fn service(self: &Arc<Self>, fault: Fault) -> Result<Serviced> {
        self.memcg()?.charge(|| self.service_charged(fault))
    }

    /// Implements [`service`](Self::service), with the process charged.
    fn service_charged(self: &Arc<Self>, fault: Fault) -> Result<Serviced> {
        let mut done = self.try_service(fault, false);
        for _ in 1..ROUNDS {
            // The CPU keeps changing its mappings, or the machine is slow. The next round maps one
            // page only. Between two rounds other threads can take the SVM lock.
            if !matches!(done, Err(EBUSY)) {
                break;
            }
            done = self.try_service(fault, true);
        }
        if done.is_err() {
            // Allocate here, where the process is charged: `FaultQueue` adds the fault later.
            self.failed.make_room();
        }
        done
    }

    /// Returns the memory cgroup of the VM's process, to charge the allocations of a worker to.
    /// Fails with `EFAULT` if the process is exiting.
    fn memcg(&self) -> Result<Memcg> {
        let mm = self.mm().ok_or(EFAULT)?;
        live_mm::memcg(mm)
    }

    /// Holds the SVM lock for one [`Retry`] at most.
    fn try_service(self: &Arc<Self>, fault: Fault, page_only: bool) -> Result<Serviced> {
        let mut svm = self.lock_svm_killable()?;
        let mut retry = Retry::bounded();
        while retry.next().is_some() {
            if self.is_closed() {
                return Err(ENOENT);
            }
            self.collect_garbage(&mut svm)?;
            match self.service_locked(&mut svm, fault, page_only) {
                // The CPU unmapped the range. Collect it first: that may reset attributes.
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
    ) -> Result<Serviced> {
        let vma = self.map.lock().find(fault.addr).cloned().ok_or(EINVAL)?;
        if vma.read_only && fault.access != Access::Read {
            return Err(EPERM);
        }
        if fault.access == Access::Atomic && !vma.attributes.atomics.by_device() {
            return Err(EACCES);
        }
        match &vma.backing {
            Backing::Mirror => svm::fault(self.svm.context(), svm, &vma, fault, page_only),
            Backing::Bo { bo, offset } => {
                buffer::fault(self.svm.context(), self.mm(), &vma, bo, *offset)
            }
            Backing::Userptr { userptr, offset } => {
                userptr::fault(self.svm.context(), &vma, userptr, *offset, fault)
            }
            Backing::Null => null::fault(self.svm.context(), &vma, fault.addr),
        }
    }

    /// Called in loops under the SVM lock whose length userspace controls: reschedules if needed.
    /// Fails with `EINTR` for a killed caller, and with `ENOENT` if the VM was closed meanwhile.
    fn check_continue(&self) -> Result {
        sched::check_killed()?;
        if self.is_closed() {
            return Err(ENOENT);
        }
        Ok(())
    }

    /// Removes the ranges that the CPU unmapped, and resets their attributes. Fails as
    /// [`check_continue`](Self::check_continue) does; then the collection work removes the
    /// remaining ranges, or the thread that tears the VM down.
    fn collect_garbage(&self, svm: &mut Guard<'_, Mirror>) -> Result {
        let reset = |range: &Range<Mirror>| {
            let span = svm::to_gpu(range.span());
            madvise::reset_unmapped(&self.dev, &self.map, &span)
        };
        svm.collect_garbage_while(|| self.check_continue(), reset)
            .map(drop)
    }

    /// Drops what a change of the map removed. The caller holds no lock. What a killed caller does
    /// not drop, the collection work drops.
    fn retire(self: &Arc<Self>, retired: Retired) {
        if self.map.retire(retired) {
            self.queue_collection();
        }
    }

    /// Collects garbage as [`collect_garbage`](Self::collect_garbage) does, for the collection
    /// work.
    fn collect_garbage_as_worker(self: &Arc<Self>) {
        self.map.drop_left();
        let memcg = self.memcg();
        let Ok(mut svm) = self.lock_svm_killable() else {
            return;
        };
        let _ = match memcg {
            Ok(memcg) => memcg.charge(|| self.collect_garbage(&mut svm)),
            // The process is exiting: no fault on the range is serviced again, so its attributes do
            // not matter.
            Err(_) => svm
                .collect_garbage_while(|| self.check_continue(), |_| Ok(()))
                .map(drop),
        };
    }

    /// Closes the VM: unmaps everything and fails all faults, pending and future. The VM leaves the
    /// device's list when it is torn down.
    ///
    /// The caller does not wait for a fault that is being serviced: the worker that services it
    /// tears the VM down afterwards. Nor does it wait for the SVM lock, or tear down more than
    /// `budget` allows: the collection work does that. The closing process may already be killed,
    /// so it must not rely on being killable. May be called any number of times. Sleeps.
    pub(crate) fn close(self: &Arc<Self>, budget: &TeardownBudget) {
        let teardown = self.faults.close();
        self.workers.kill();
        self.collector.disconnect();
        // The collector is disconnected, so nobody queues the work again.
        cancel_delayed::<_, REVISIT>(self);
        // Revokes the GPU's access now, whoever tears the VM down.
        self.zap_all();
        if teardown == TearDown::Caller && !self.try_tear_down(budget) {
            self.queue_collection();
        }
    }

    /// Tears down a closed VM, if its SVM lock is free and `budget` suffices. Returns whether all
    /// is torn down.
    fn try_tear_down(&self, budget: &TeardownBudget) -> bool {
        let Some(mut svm) = self.svm.try_lock_closed() else {
            return false;
        };
        loop {
            if !budget.take() {
                return false;
            }
            if !svm.remove_first(svm::to_cpu(&SPAN)) {
                break;
            }
            sched::cond_resched();
        }
        self.zap_all();
        drop(svm);
        let is_done = self.drop_vmas_while(|| budget.take());
        if is_done {
            self.dev.vms.remove(self.identity);
        }
        is_done
    }

    /// Tears down a closed VM, which may take long, or leaves that to the holder of the SVM lock.
    /// For workers.
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

    /// Unmaps a closed VM from a device that is unbound, and keeps the holder of the SVM lock from
    /// mapping anything later. Waits for no thread that waits for userspace.
    pub(crate) fn unmap(&self) {
        self.svm.shut();
        self.userptrs.shut();
        self.zap_all();
    }

    /// Drops the VMAs of a closed VM while `may_continue` returns true. Returns whether none is
    /// left. The caller holds no lock, as a VMA may hold the last reference to a buffer, and has
    /// removed the GPU's mappings.
    ///
    /// No VMA is added meanwhile: the caller has held the SVM lock since the VM was closed.
    fn drop_vmas_while(&self, may_continue: impl Fn() -> bool) -> bool {
        while may_continue() {
            if self.map.take_any().is_none() {
                return true;
            }
            sched::cond_resched();
        }
        false
    }

    fn zap_all(&self) {
        let mut stale = StaleSpan::new();
        stale.zap(&self.aspace, SPAN);
        stale.flush(&self.aspace, &self.dev.stats);
    }

    /// Prints the VMAs to debugfs, and the ranges unless another thread holds the SVM lock.
    pub(crate) fn show(self: &Arc<Self>, m: &SeqFile) -> Result {
        let counts = self.faults.counts();
        let mode = match self.mode {
            Mode::OnFault => "on fault",
            Mode::Immediate => "at once",
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
            // The seq_file discards an overflowing buffer and calls this again with a larger one.
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

/// Returns the device's memory for a new VM. If it cannot be had, returns none: all memory of the
/// VM then stays in system memory. Fails with `ENODEV` and `EINTR`.
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
/// Fails as xe does, and with `EOPNOTSUPP` for scratch pages and for VMs that are not in
/// long-running mode, whose fences are DMA fences.
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
        Mode::Immediate
    };
    let vm = Vm::new(dev, mode, has(FAULT) && !has(NO_OVERCOMMIT))?;
    // `drm_dev_unplug()` waits for the guard, so the VM is in the list before unbinding closes the
    // listed VMs.
    let added = match ioctl.registered() {
        Ok(_registered) => file.inner().add_vm(vm.clone()),
        Err(e) => Err(e),
    };
    args.vm_id = added.inspect_err(|_| vm.close(&TeardownBudget::new()))?;
    Ok(0)
}

/// VM_DESTROY.
///
/// Fails with `EINVAL`, with `ENOENT` for no such VM, and with `EBUSY` for a VM without faults that
/// has queues for jobs.
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
