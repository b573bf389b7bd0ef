// SPDX-License-Identifier: GPL-2.0

//! An open file: the VMs and exec queues that a program created through it, by their ids.
//!
//! A VM or queue is closed when its id is removed, by an ioctl or with the file; later users of
//! other references find it closed. VMs are closed before the queues that run in them: closing a VM
//! fails its jobs, also those that wait for a page which userspace holds back.

use crate::{
    bo::Bo,
    check::ensure,
    driver::{
        Device,
        VxeDriver, //
    },
    exec_queue::{
        ExecQueue,
        QueueKind, //
    },
    gpu::timestamp,
    queues::QueuesRef,
    vm::{
        workers::WATCH_MS,
        TeardownBudget,
        Vm,
        VmIdentity, //
    }, //
};
use kernel::{
    drm,
    maple_tree::MapleTreeAlloc,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
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
        new_mutex,
        Arc,
        Mutex, //
    },
    task::Pid,
    time::msecs_to_jiffies,
    workqueue::{
        impl_has_delayed_work,
        new_delayed_work,
        DelayedWork,
        WorkItem, //
    }, //
};
use kernel_ext::{
    sched,
    workqueue::{
        cancel_delayed,
        enqueue_delayed,
        HasQueue,
        OwnedQueue, //
    }, //
};
use vxe_sim::{
    debugfs::has_overflowed,
    fdinfo::{
        FdInfo,
        Printer, //
    }, //
};

/// The largest id. Ids start at 1; 0 stands for none.
const MAX_ID: usize = u32::MAX as usize;

/// An open file.
#[pin_data]
pub(crate) struct File {
    dev: ARef<Device>,
    /// The process that opened the file.
    pid: Pid,
    /// Bounds what closing the file tears down itself of all its VMs.
    budget: Arc<TeardownBudget>,
    /// How long the jobs of the file's queues have run, in ticks of the reference clock.
    ticks: Arc<Atomic<u64>>,
    // Dropped before `queues`: closing a VM fails its faults, which ends jobs whose fault is never
    // serviced.
    #[pin]
    vms: MapleTreeAlloc<KBox<VmId>>,
    #[pin]
    queues: MapleTreeAlloc<KBox<QueueId>>,
}

impl drm::file::DriverFile for File {
    type Driver = VxeDriver;

    fn open(dev: &Device) -> Result<Pin<KBox<Self>>> {
        let budget = Arc::new(TeardownBudget::new(), GFP_KERNEL_ACCOUNT)?;
        let ticks = Arc::new(Atomic::new(0), GFP_KERNEL_ACCOUNT)?;
        KBox::pin_init(
            pin_init!(Self {
                dev: dev.into(),
                budget,
                ticks,
                pid: kernel::current!().group_leader().pid(),
                queues <- MapleTreeAlloc::new(),
                vms <- MapleTreeAlloc::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }
}

impl File {
    /// Adds a VM and returns its id. Fails with `ENOMEM`.
    pub(crate) fn add_vm(&self, vm: Arc<Vm>) -> Result<u32> {
        // From here on, dropping the id closes the VM.
        let id = VmId {
            vm,
            budget: Some(self.budget.clone()),
        };
        self.dev.vms.add(&id.vm, self.pid)?;
        let id = KBox::new(id, GFP_KERNEL_ACCOUNT)?;
        let id = self
            .vms
            .alloc_range(1, id, 1..=MAX_ID, GFP_KERNEL_ACCOUNT)?;
        // CAST: At most `MAX_ID`.
        Ok(id as u32)
    }

    /// Looks up the VM with this id. Fails with `ENOENT`.
    pub(crate) fn vm(&self, id: u32) -> Result<Arc<Vm>> {
        let mut vms = self.vms.lock();
        // CAST: Widens.
        let id = vms.load(id as usize).ok_or(ENOENT)?;
        Ok(id.vm.clone())
    }

    /// Closes the VM with this id. Fails with `ENOENT`, and with `EBUSY` for a VM without faults
    /// that has queues. Sleeps.
    pub(crate) fn remove_vm(&self, id: u32) -> Result {
        ensure!(&*self.dev, !self.vm(id)?.is_held_by_queues(), EBUSY);
        // CAST: Widens.
        let mut id = self.vms.erase(id as usize).ok_or(ENOENT)?;
        // VM_DESTROY closes one VM, with a budget of its own.
        id.budget = None;
        Ok(())
    }

    /// Creates a queue in `vm` and returns its id. Fails as [`ExecQueue::new`] does.
    pub(crate) fn create_queue(&self, vm: Arc<Vm>, kind: QueueKind) -> Result<u32> {
        let queue = ExecQueue::new(&self.dev, vm, kind, self.ticks.clone())?;
        let id = KBox::new(QueueId::new(queue), GFP_KERNEL_ACCOUNT)?;
        let id = self
            .queues
            .alloc_range(1, id, 1..=MAX_ID, GFP_KERNEL_ACCOUNT)?;
        // CAST: At most `MAX_ID`.
        Ok(id as u32)
    }

    /// Looks up the queue with this id. Fails with `ENOENT`.
    pub(crate) fn queue(&self, id: u32) -> Result<Arc<ExecQueue>> {
        let mut queues = self.queues.lock();
        // CAST: Widens.
        let id = queues.load(id as usize).ok_or(ENOENT)?;
        Ok(id.0.clone())
    }

    /// Closes the queue with this id. Fails with `ENOENT`. Waits until the engine leaves the queue.
    pub(crate) fn remove_queue(&self, id: u32) -> Result {
        // CAST: Widens.
        self.queues.erase(id as usize).map(drop).ok_or(ENOENT)
    }
}

impl FdInfo for File {
    /// Prints the keys of xe: the sizes of the file's buffers in each region, and how long its jobs
    /// have run. As with xe, `gtt` is system memory that the GPU can access.
    fn show(&self, to: &Printer<'_>) {
        let kind = self.dev.bo_kind.as_ref();
        to.memory::<Bo>(c"system", None, false);
        to.memory(c"gtt", kind, false);
        if self.dev.regions.has_vram() {
            to.memory(c"vram0", kind, true);
        }
        // Read before the time-stamp, so that a file never uses more than all of the time.
        let ticks = self.ticks.load(Relaxed);
        to.print(fmt!("drm-cycles-bcs:\t{ticks}\n"));
        to.print(fmt!("drm-total-cycles-bcs:\t{}\n", timestamp()));
        let engines = self.dev.queues.engines.count();
        if engines > 1 {
            to.print(fmt!("drm-engine-capacity-bcs:\t{engines}\n"));
        }
    }
}

/// The id of a queue. Dropping it closes the queue.
struct QueueId(Arc<ExecQueue>);

impl QueueId {
    fn new(queue: Arc<ExecQueue>) -> Self {
        if !queue.is_bind() {
            queue.vm().queue_opened();
        }
        Self(queue)
    }
}

impl Drop for QueueId {
    fn drop(&mut self) {
        self.0.close();
        if !self.0.is_bind() {
            self.0.vm().queue_closed();
        }
    }
}

/// The id of a VM. Dropping it closes the VM.
struct VmId {
    vm: Arc<Vm>,
    /// The budget shared by all VMs of a file that is closed; none for a VM that is destroyed
    /// alone.
    budget: Option<Arc<TeardownBudget>>,
}

impl Drop for VmId {
    fn drop(&mut self) {
        match &self.budget {
            Some(budget) => self.vm.close(budget),
            None => self.vm.close(&TeardownBudget::new()),
        }
    }
}

/// The VMs of a device that are not torn down yet.
///
/// debugfs shows them, unbinding closes them, and while a worker runs for one of them a delayed
/// work checks every [`WATCH_MS`] whether its process has exited.
#[pin_data]
pub(crate) struct VmList {
    /// By [`VmIdentity::number`].
    #[pin]
    vms: Mutex<RBTree<u64, ListedVm>>,
    queues: QueuesRef,
    #[pin]
    watch: DelayedWork<VmList>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for VmList { self.watch }
}

impl HasQueue for VmList {
    fn queue(&self) -> &OwnedQueue {
        &self.queues.work
    }
}

impl WorkItem for VmList {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let (mut next, mut at_work) = (0, false);
        while let Some((number, listed)) = this.first_from(next) {
            at_work |= listed.vm.watch_workers();
            next = number.wrapping_add(1);
            sched::cond_resched();
        }
        if at_work {
            this.watch();
        }
    }
}

/// A VM that is not torn down.
#[derive(Clone)]
struct ListedVm {
    vm: Arc<Vm>,
    /// The process that created the VM.
    pid: Pid,
}

impl VmList {
    /// Creates an empty list. Fails with `ENOMEM`.
    pub(crate) fn new(queues: &QueuesRef) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                vms <- new_mutex!(RBTree::new(), "VmList::vms"),
                queues: queues.clone(),
                watch <- new_delayed_work!("VmList::watch"),
            }),
            GFP_KERNEL,
        )
    }

    /// Schedules a check of all VMs in [`WATCH_MS`]. Called by a worker that runs for an open VM.
    /// The workers are flushed before [`unwatch`](Self::unwatch).
    pub(crate) fn watch(self: &Arc<Self>) {
        let delay = msecs_to_jiffies(WATCH_MS);
        // If the work is pending already, it checks all VMs that are listed when it runs.
        let _ = enqueue_delayed(self, delay);
    }

    /// Cancels the check. No VM may be open, and the work must not be running.
    pub(crate) fn unwatch(self: &Arc<Self>) {
        cancel_delayed(self);
    }

    /// Adds a VM. Fails with `ENOMEM`.
    fn add(&self, vm: &Arc<Vm>, pid: Pid) -> Result {
        let memory = RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?;
        let listed = ListedVm {
            vm: vm.clone(),
            pid,
        };
        let node = memory.into_node(vm.identity().number(), listed);
        self.vms.lock().insert(node);
        Ok(())
    }

    /// Removes a VM, if it is listed.
    pub(crate) fn remove(&self, vm: VmIdentity) {
        let removed = self.vms.lock().remove_node(&vm.number());
        // Dropped after the unlock, as it may be the last reference to the VM.
        drop(removed);
    }

    /// Calls `f` with each VM, or with `only` this one. `f` may take locks of the VM: the list's lock
    /// is not held. A VM that is added meanwhile may be left out.
    pub(crate) fn for_each(&self, only: Option<VmIdentity>, mut f: impl FnMut(&Arc<Vm>)) {
        let (mut next, last) = match only {
            Some(vm) => (vm.number(), vm.number()),
            None => (0, u64::MAX),
        };
        while let Some((number, listed)) = self.first_from(next).filter(|(n, _)| *n <= last) {
            f(&listed.vm);
            next = number.wrapping_add(1);
            sched::cond_resched();
        }
    }

    /// Returns the first VM whose number is at least `number`, with its number.
    fn first_from(&self, number: u64) -> Option<(u64, ListedVm)> {
        let list = self.vms.lock();
        let cursor = list.cursor_lower_bound(&number)?;
        let (number, listed) = cursor.current();
        Some((*number, listed.clone()))
    }

    /// Closes all VMs and unmaps them from the device that is unbound, also closed VMs whose SVM
    /// lock another thread still holds. The caller makes sure that no VM is added any more. Waits
    /// for no thread that waits for userspace. Sleeps.
    pub(crate) fn close_all(&self) {
        // `Vm::close()` takes locks of the VM, so the list's lock is not held. All VMs are closed
        // before the first is unmapped, which may take long.
        let mut next = 0;
        while let Some((number, listed)) = self.first_from(next) {
            listed.vm.close(&TeardownBudget::new());
            next = number.wrapping_add(1);
        }
        while let Some((_, listed)) = self.first_from(0) {
            // Another thread may still hold the SVM lock, for tearing the VM down; it cannot map
            // anything after this.
            listed.vm.unmap();
            self.remove(listed.vm.identity());
        }
    }

    /// Prints all VMs to debugfs.
    pub(crate) fn show(&self, m: &SeqFile) -> Result {
        let mut next = 0;
        // `Vm::show()` takes locks of the VM, so the list's lock is not held.
        while let Some((number, listed)) = self.first_from(next) {
            if has_overflowed(m) || sched::check_killed().is_err() {
                break;
            }
            seq_print!(m, "vm of process {}\n", listed.pid);
            listed.vm.show(m)?;
            next = number.wrapping_add(1);
        }
        Ok(())
    }
}
