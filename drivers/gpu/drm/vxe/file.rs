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
        VxeDriver, //
    },
    exec_queue::ExecQueue,
    vm::Vm, //
};
use kernel::{
    drm,
    maple_tree::MapleTreeAlloc,
    prelude::*,
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
    task::Pid, //
};

/// The largest id; 0 is none, and ids are given out from 1.
const MAX_ID: usize = u32::MAX as usize;

/// An open file.
#[pin_data]
pub(crate) struct File {
    dev: ARef<Device>,
    /// The process that opened it.
    pid: Pid,
    // Dropped before `queues`: a closed VM fails its faults, and a job ends whose fault never would.
    #[pin]
    vms: MapleTreeAlloc<KBox<VmId>>,
    #[pin]
    queues: MapleTreeAlloc<KBox<QueueId>>,
}

impl drm::file::DriverFile for File {
    type Driver = VxeDriver;

    fn open(dev: &Device) -> Result<Pin<KBox<Self>>> {
        KBox::pin_init(
            pin_init!(Self {
                dev: dev.into(),
                pid: kernel::current!().group_leader().pid(),
                queues <- MapleTreeAlloc::new(),
                vms <- MapleTreeAlloc::new(),
            }),
            GFP_KERNEL,
        )
    }
}

impl File {
    /// Gives a new VM an id.
    pub(crate) fn add_vm(&self, vm: Arc<Vm>) -> Result<u32> {
        self.dev.vms.add(&vm, self.pid)?;
        let id = VmId {
            vm,
            dev: self.dev.clone(),
        };
        let id = KBox::new(id, GFP_KERNEL)?;
        let id = self.vms.alloc_range(1, id, 1..=MAX_ID, GFP_KERNEL)?;
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
        self.vms.erase(id as usize).map(drop).ok_or(ENOENT)
    }

    /// Gives a new queue an id.
    pub(crate) fn add_queue(&self, queue: Arc<ExecQueue>) -> Result<u32> {
        let id = KBox::new(QueueId::new(queue), GFP_KERNEL)?;
        let id = self.queues.alloc_range(1, id, 1..=MAX_ID, GFP_KERNEL)?;
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
    dev: ARef<Device>,
}

impl Drop for VmId {
    fn drop(&mut self) {
        self.vm.close();
        self.dev.vms.remove(&self.vm);
    }
}

/// The VMs of a device that are open, for debugfs.
#[pin_data]
pub(crate) struct VmList {
    #[pin]
    vms: Mutex<KVec<ListedVm>>,
}

/// A VM that is open.
struct ListedVm {
    vm: Arc<Vm>,
    /// The process that made it.
    pid: Pid,
}

impl VmList {
    /// An empty list.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            vms <- new_mutex!(KVec::new(), "VmList::vms"),
        })
    }

    fn add(&self, vm: &Arc<Vm>, pid: Pid) -> Result {
        let listed = ListedVm {
            vm: vm.clone(),
            pid,
        };
        Ok(self.vms.lock().push(listed, GFP_KERNEL)?)
    }

    fn remove(&self, vm: &Arc<Vm>) {
        let mut vms = self.vms.lock();
        let removed = vms
            .iter()
            .position(|listed| Arc::ptr_eq(&listed.vm, vm))
            .and_then(|at| vms.remove(at).ok());
        // Maybe the last reference, whose end must not hold up others.
        drop(vms);
        drop(removed);
    }

    /// Closes all of them. No new one may be added any more. Sleeps.
    pub(crate) fn close_all(&self) {
        loop {
            // Closing takes locks of the VM, so that the list's must not be held.
            let listed = self.vms.lock().pop();
            match listed {
                Some(listed) => listed.vm.close(),
                None => return,
            }
        }
    }

    /// Prints all VMs.
    pub(crate) fn show(&self, m: &SeqFile) -> Result {
        // Showing a VM takes its locks, so that the list's must not be held.
        let mut vms = KVec::new();
        {
            let list = self.vms.lock();
            vms.reserve(list.len(), GFP_KERNEL)?;
            for listed in list.iter() {
                vms.push((listed.vm.clone(), listed.pid), GFP_KERNEL)?;
            }
        }
        for (vm, pid) in vms {
            seq_print!(m, "vm of process {}\n", pid);
            vm.show(m)?;
        }
        Ok(())
    }
}
