// SPDX-License-Identifier: GPL-2.0

//! An open file: the VMs and exec queues that a program made through it, by their ids.
//!
//! What an id names is closed when the id goes, be it by an ioctl or with the file, and whoever else
//! still has a reference finds it closed. VMs go before the queues that run in them: their jobs fail, also
//! those that wait for a page which never comes.

use crate::{
    check::ensure,
    driver::{
        Device,
        Queues,
        VxeDriver, //
    },
    exec_queue::ExecQueue,
    vm::{
        workers::WATCH_MS,
        AtOnce,
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
    workqueue::cancel_delayed, //
};
use vxe_sim::debugfs::has_overflowed;

/// The largest id; 0 is none, and ids are given out from 1.
const MAX_ID: usize = u32::MAX as usize;

/// An open file.
#[pin_data]
pub(crate) struct File {
    dev: ARef<Device>,
    /// The process that opened it.
    pid: Pid,
    /// What is taken out of its VMs at once when all of them go.
    at_once: Arc<AtOnce>,
    // Dropped before `queues`: a closed VM fails its faults, and a job ends whose fault never would.
    #[pin]
    vms: MapleTreeAlloc<KBox<VmId>>,
    #[pin]
    queues: MapleTreeAlloc<KBox<QueueId>>,
}

impl drm::file::DriverFile for File {
    type Driver = VxeDriver;

    fn open(dev: &Device) -> Result<Pin<KBox<Self>>> {
        let at_once = Arc::new(AtOnce::new(), GFP_KERNEL_ACCOUNT)?;
        KBox::pin_init(
            pin_init!(Self {
                dev: dev.into(),
                at_once,
                pid: kernel::current!().group_leader().pid(),
                queues <- MapleTreeAlloc::new(),
                vms <- MapleTreeAlloc::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }
}

impl File {
    /// Gives a new VM an id.
    pub(crate) fn add_vm(&self, vm: Arc<Vm>) -> Result<u32> {
        // From here on it is closed when it has no id.
        let id = VmId {
            vm,
            at_once: Some(self.at_once.clone()),
        };
        self.dev.vms.add(&id.vm, self.pid)?;
        let id = KBox::new(id, GFP_KERNEL_ACCOUNT)?;
        let id = self
            .vms
            .alloc_range(1, id, 1..=MAX_ID, GFP_KERNEL_ACCOUNT)?;
        // CAST: Not more than `MAX_ID`.
        Ok(id as u32)
    }

    /// The VM with this id. Fails with `ENOENT`.
    pub(crate) fn vm(&self, id: u32) -> Result<Arc<Vm>> {
        let mut vms = self.vms.lock();
        // CAST: Widens.
        let id = vms.load(id as usize).ok_or(ENOENT)?;
        Ok(id.vm.clone())
    }

    /// Closes the VM with this id. Fails with `ENOENT`, and with `EBUSY` if its queues do not let it go.
    /// Sleeps.
    pub(crate) fn remove_vm(&self, id: u32) -> Result {
        ensure!(&*self.dev, !self.vm(id)?.is_held_by_queues(), EBUSY);
        // CAST: Widens.
        let mut id = self.vms.erase(id as usize).ok_or(ENOENT)?;
        // It goes alone.
        id.at_once = None;
        Ok(())
    }

    /// Gives a new queue an id.
    pub(crate) fn add_queue(&self, queue: Arc<ExecQueue>) -> Result<u32> {
        let id = KBox::new(QueueId::new(queue), GFP_KERNEL_ACCOUNT)?;
        let id = self
            .queues
            .alloc_range(1, id, 1..=MAX_ID, GFP_KERNEL_ACCOUNT)?;
        // CAST: Not more than `MAX_ID`.
        Ok(id as u32)
    }

    /// The queue with this id. Fails with `ENOENT`.
    pub(crate) fn queue(&self, id: u32) -> Result<Arc<ExecQueue>> {
        let mut queues = self.queues.lock();
        // CAST: Widens.
        let id = queues.load(id as usize).ok_or(ENOENT)?;
        Ok(id.0.clone())
    }

    /// Closes the queue with this id. Fails with `ENOENT`. Waits for the job that runs.
    pub(crate) fn remove_queue(&self, id: u32) -> Result {
        // CAST: Widens.
        self.queues.erase(id as usize).map(drop).ok_or(ENOENT)
    }
}

/// The id of a queue.
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

/// The id of a VM.
struct VmId {
    vm: Arc<Vm>,
    /// What is taken out at once of all VMs that go together; none of one that goes alone.
    at_once: Option<Arc<AtOnce>>,
}

impl Drop for VmId {
    fn drop(&mut self) {
        match &self.at_once {
            Some(at_once) => self.vm.close(at_once),
            None => self.vm.close(&AtOnce::new()),
        }
    }
}

/// The VMs of a device that are not torn down yet: for debugfs, for the device's end, and for a look now and then
/// for processes that are gone, as long as workers are at work.
#[pin_data]
pub(crate) struct VmList {
    /// By the [numbers](VmIdentity::number) of their identities.
    #[pin]
    vms: Mutex<RBTree<u64, ListedVm>>,
    queues: Arc<Queues>,
    #[pin]
    watch: DelayedWork<VmList>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for VmList { self.watch }
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
    /// The process that made it.
    pid: Pid,
}

impl VmList {
    /// An empty list. Fails with `ENOMEM`.
    pub(crate) fn new(queues: &Arc<Queues>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                vms <- new_mutex!(RBTree::new(), "VmList::vms"),
                queues: queues.clone(),
                watch <- new_delayed_work!("VmList::watch"),
            }),
            GFP_KERNEL,
        )
    }

    /// Has the VMs looked at in a while, of which workers work for one that is open. They are flushed before
    /// [`unwatch`](Self::unwatch).
    pub(crate) fn watch(self: &Arc<Self>) {
        let delay = msecs_to_jiffies(WATCH_MS);
        // If the work is queued already, it will look at all there are then.
        let _ = self.queues.work.enqueue_delayed(self.clone(), delay);
    }

    /// Looks at no VM any more. None may be open, and the work must not be running.
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

    /// Takes a VM out, if it is in the list.
    pub(crate) fn remove(&self, vm: VmIdentity) {
        let removed = self.vms.lock().remove_node(&vm.number());
        // Maybe the last reference, whose end must not hold up others.
        drop(removed);
    }

    /// The first VM with a number of `number` or more, and its number.
    fn first_from(&self, number: u64) -> Option<(u64, ListedVm)> {
        let list = self.vms.lock();
        let cursor = list.cursor_lower_bound(&number)?;
        let (number, listed) = cursor.current();
        Some((*number, listed.clone()))
    }

    /// Closes all of them, and has nothing mapped for the device that goes, also of those that are closed and
    /// whose SVM lock somebody has still. No new one may be added any more. Waits for nobody who waits for
    /// userspace. Sleeps.
    pub(crate) fn close_all(&self) {
        // Closing a VM takes its locks, so that the list's must not be held. All VMs are closed before
        // any is unmapped, which may take long.
        let mut next = 0;
        while let Some((number, listed)) = self.first_from(next) {
            listed.vm.close(&AtOnce::new());
            next = number.wrapping_add(1);
        }
        while let Some((_, listed)) = self.first_from(0) {
            // Whoever has its SVM lock still, and so may be tearing it down, maps nothing more.
            listed.vm.unmap();
            self.remove(listed.vm.identity());
        }
    }

    /// Prints all VMs.
    pub(crate) fn show(&self, m: &SeqFile) -> Result {
        let mut next = 0;
        // Showing a VM takes its locks, so that the list's must not be held.
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
