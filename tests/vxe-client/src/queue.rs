// SPDX-License-Identifier: GPL-2.0

//! Queues of work for the GPU.

use crate::{
    request, sys, Batch, Device, Error, Fence, Mapping, Result, Timeout, Vm, Wait, WaitOp,
};
use std::sync::{Mutex, PoisonError};

/// A queue of batches on a VM, executed in order. Dropping it destroys it.
pub struct ExecQueue {
    vm: Vm,
    id: u32,
    /// Where [`ExecQueue::run`] has the GPU write how far it is; its lock orders the submissions.
    progress: Mutex<Progress>,
}

struct Progress {
    word: Mapping,
    submitted: u64,
}

impl ExecQueue {
    /// A queue on the device's first engine.
    ///
    /// # Errors
    ///
    /// What the ioctls say.
    pub fn new(vm: &Vm) -> Result<Self> {
        let engines = vm.device().engines()?;
        let engine =
            engines.first().ok_or(Error::new(request::EXEC_QUEUE_CREATE.name(), libc::ENODEV))?;
        Self::on_engine(vm, *engine)
    }

    /// A queue of bind operations.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn for_binds(vm: &Vm) -> Result<Self> {
        Self::on_engine(
            vm,
            sys::drm_xe_engine_class_instance {
                engine_class: sys::DRM_XE_ENGINE_CLASS_VM_BIND as u16,
                ..Default::default()
            },
        )
    }

    /// A queue on the given engine.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn on_engine(vm: &Vm, engine: sys::drm_xe_engine_class_instance) -> Result<Self> {
        let word = Mapping::anonymous(8)?;
        let mut create = sys::drm_xe_exec_queue_create {
            width: 1,
            num_placements: 1,
            vm_id: vm.id(),
            instances: &raw const engine as u64,
            ..Default::default()
        };
        // SAFETY: `engine` lives through the call; a queue without work accesses no memory.
        unsafe { vm.device().call(&request::EXEC_QUEUE_CREATE, &mut create) }?;
        Ok(Self {
            vm: vm.clone(),
            id: create.exec_queue_id,
            progress: Mutex::new(Progress { word, submitted: 0 }),
        })
    }

    /// Its number.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// The VM that it works on.
    pub const fn vm(&self) -> &Vm {
        &self.vm
    }

    fn device(&self) -> &Device {
        self.vm.device()
    }

    /// Has the GPU run a batch, and returns when it has.
    ///
    /// The VM must mirror the process, or the GPU will not find the memory.
    ///
    /// # Errors
    ///
    /// An error whose [`is_queue_banned`](Error::is_queue_banned) is true when the GPU could not
    /// access something; the queue is of no use then. Or what else the ioctls say.
    pub fn run(&self, batch: &Batch<'_>) -> Result<()> {
        let commands = batch.finished();
        let (address, value);
        {
            let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
            address = progress.word.address();
            value = progress.submitted + 1;
            // SAFETY: the commands touch only what `batch` borrows, the fence only a word that is
            // there for it. Both, and the commands, stay until the wait below has ended.
            unsafe {
                self.submit(commands.dwords().as_ptr() as u64, Some(Fence { address, value }))
            }?;
            progress.submitted = value;
        }
        let waited = self.wait(&Wait {
            address,
            op: WaitOp::Gte,
            value,
            mask: u64::MAX,
            timeout: Timeout::Forever,
            queue: 0,
        });
        if waited.as_ref().is_err_and(|e| e.errno() != libc::EIO) {
            // Not a word about what the GPU does. A destroyed queue does nothing.
            self.destroy();
        }
        waited
    }

    /// Submits the batch at a GPU virtual address.
    ///
    /// # Errors
    ///
    /// EAGAIN when the queue is full, ECANCELED when it was banned, or what else the ioctl says.
    ///
    /// # Safety
    ///
    /// Until the fence signals or the queue is gone, the batch must stay, and all that it and the
    /// fence write must be memory that Rust regards as shared: atomics, or reached only through
    /// raw pointers.
    pub unsafe fn submit(&self, batch: u64, fence: Option<Fence>) -> Result<()> {
        let sync = fence.map(Fence::to_sync);
        let mut exec = sys::drm_xe_exec {
            exec_queue_id: self.id,
            num_syncs: sync.iter().len() as u32,
            syncs: sync.as_ref().map_or(0, |s| std::ptr::from_ref(s) as u64),
            address: batch,
            num_batch_buffer: 1,
            ..Default::default()
        };
        // SAFETY: `sync` lives through the call; the caller answers for what the GPU does.
        unsafe { self.device().call(&request::EXEC, &mut exec) }
    }

    /// Waits for a fence of this queue; its ban ends the wait.
    ///
    /// # Errors
    ///
    /// ETIME when the time is over, EIO when the queue was banned, or what else the ioctl says.
    pub fn wait(&self, wait: &Wait) -> Result<()> {
        let wait = Wait { queue: self.id, ..*wait };
        self.device().wait_user_fence(&wait).map(|_| ())
    }

    /// Whether the queue was banned.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn is_banned(&self) -> Result<bool> {
        let mut property = sys::drm_xe_exec_queue_get_property {
            exec_queue_id: self.id,
            property: sys::DRM_XE_EXEC_QUEUE_GET_PROPERTY_BAN,
            ..Default::default()
        };
        // SAFETY: the call only fills in its argument.
        unsafe { self.device().call(&request::EXEC_QUEUE_GET_PROPERTY, &mut property) }?;
        Ok(property.value != 0)
    }

    fn destroy(&self) {
        let mut destroy =
            sys::drm_xe_exec_queue_destroy { exec_queue_id: self.id, ..Default::default() };
        // SAFETY: a destroyed queue accesses nothing any more. That the call fails where the queue
        // is gone already, or the device closed, is as good.
        let _ = unsafe { self.device().call(&request::EXEC_QUEUE_DESTROY, &mut destroy) };
    }
}

impl Drop for ExecQueue {
    fn drop(&mut self) {
        self.destroy();
    }
}
