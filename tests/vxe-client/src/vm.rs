// SPDX-License-Identifier: GPL-2.0

//! Address spaces of the GPU.

use crate::{request, sys, Bind, Device, Error, ExecQueue, Fence, Result, Timeout, Wait};
use std::sync::{
    atomic::{AtomicBool, AtomicU64, Ordering},
    Arc,
};

/// How long [`Vm::bind`] waits for the kernel to say that it is done. No bind takes a part of it,
/// but a system under stress may.
const BIND_TIMEOUT: Timeout = Timeout::ms(60_000);

/// An address space of the GPU. Clones share it; it is destroyed with the last of them and of the
/// queues on it.
#[derive(Clone)]
pub struct Vm {
    inner: Arc<VmInner>,
}

struct VmInner {
    device: Device,
    id: u32,
    alive: AtomicBool,
}

impl VmInner {
    fn destroy(&self) -> Result<()> {
        if !self.alive.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let mut destroy = sys::drm_xe_vm_destroy { vm_id: self.id, ..Default::default() };
        // SAFETY: a destroyed VM accesses no memory any more.
        unsafe { self.device.call(&request::VM_DESTROY, &mut destroy) }
    }
}

impl Drop for VmInner {
    fn drop(&mut self) {
        // That it fails on a closed device is as good.
        let _ = self.destroy();
    }
}

impl Vm {
    /// A VM in which the GPU may fault.
    ///
    /// # Errors
    ///
    /// What the ioctl says; EINVAL from a device that knows no faults.
    pub fn new(device: &Device) -> Result<Self> {
        Self::with_flags(
            device,
            sys::DRM_XE_VM_CREATE_FLAG_LR_MODE | sys::DRM_XE_VM_CREATE_FLAG_FAULT_MODE,
        )
    }

    /// A VM with the given `DRM_XE_VM_CREATE_FLAG_*`.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn with_flags(device: &Device, flags: u32) -> Result<Self> {
        let mut create = sys::drm_xe_vm_create { flags, ..Default::default() };
        // SAFETY: a new VM accesses no memory.
        unsafe { device.call(&request::VM_CREATE, &mut create) }?;
        Ok(Self {
            inner: Arc::new(VmInner {
                device: device.clone(),
                id: create.vm_id,
                alive: AtomicBool::new(true),
            }),
        })
    }

    /// A VM in which every address of the process is the same address on the GPU.
    ///
    /// # Errors
    ///
    /// What the ioctls say.
    pub fn mirrored(device: &Device) -> Result<Self> {
        let bits = device.config()?.va_bits;
        let vm = Self::new(device)?;
        vm.bind(&[Bind::mirror(0, 1 << bits)])?;
        Ok(vm)
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.inner.id
    }

    /// The device that it is on.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// Destroys the VM now, though queues or clones may be left.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn destroy(&self) -> Result<()> {
        self.inner.destroy()
    }

    /// Executes bind operations and waits until they are done.
    ///
    /// # Errors
    ///
    /// What the ioctls say.
    pub fn bind(&self, binds: &[Bind]) -> Result<()> {
        self.bind_on(binds, None)
    }

    /// As [`Vm::bind`], on a bind queue.
    ///
    /// # Errors
    ///
    /// What the ioctls say.
    pub fn bind_on(&self, binds: &[Bind], queue: Option<&ExecQueue>) -> Result<()> {
        let word = Box::new(AtomicU64::new(0));
        let address = word.as_ptr() as u64;
        let fence = Fence { address, value: 1 };
        // SAFETY: the kernel writes one word, and it stays alive until that has happened.
        unsafe { self.bind_async(binds, queue, &[fence.to_sync()]) }?;
        let waited = self.device().wait_user_fence(&Wait::equal(address, 1, BIND_TIMEOUT));
        if waited.is_err() {
            // The kernel may still write it.
            Box::leak(word);
        }
        waited.map(|_| ())
    }

    /// Executes bind operations; says when they are done through `syncs`.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    ///
    /// # Safety
    ///
    /// The memory of user fences in `syncs` must be writable, shared memory until they signal.
    pub unsafe fn bind_async(
        &self,
        binds: &[Bind],
        queue: Option<&ExecQueue>,
        syncs: &[sys::drm_xe_sync],
    ) -> Result<()> {
        let ops: Vec<_> = binds.iter().map(|bind| *bind.as_raw()).collect();
        let mut args = sys::drm_xe_vm_bind {
            vm_id: self.id(),
            exec_queue_id: queue.map_or(0, ExecQueue::id),
            num_binds: ops
                .len()
                .try_into()
                .map_err(|_| Error::new(request::VM_BIND.name(), libc::E2BIG))?,
            num_syncs: syncs.len() as u32,
            syncs: syncs.as_ptr() as u64,
            ..Default::default()
        };
        match ops.as_slice() {
            [op] => args.__bindgen_anon_1.bind = *op,
            _ => args.__bindgen_anon_1.vector_of_binds = ops.as_ptr() as u64,
        }
        // SAFETY: the arrays live through the call; the caller answers for the fences.
        unsafe { self.device().call(&request::VM_BIND, &mut args) }
    }
}
