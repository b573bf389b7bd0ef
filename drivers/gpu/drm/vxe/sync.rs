// SPDX-License-Identifier: GPL-2.0

//! User fences, and those who wait for them.
//!
//! A user fence is a 64-bit word that gets a value when something is done. Who waits for one sleeps
//! in [`FenceWaiters`], of which a device has one: whoever writes a fence, or changes what a waiter
//! looks at, calls [`FenceWaiters::signal`] afterwards.
//!
//! The fence of a VM_BIND is at a CPU address of the process that bound, a [`UserFence`]; the fence
//! of an EXEC is at a GPU address, an [`ExecFence`], which the queue stores to.

use crate::{
    check::ensure,
    client::{
        Claim,
        Membership,
        Resource, //
    },
    driver::Device,
    uapi, //
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    mm::{
        Mm,
        MmWithUser, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        new_condvar,
        new_spinlock,
        Arc,
        CondVar,
        CondVarTimeoutResult,
        SpinLock, //
    },
    time::Jiffies,
    uaccess::UserSlice,
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};
use kernel_ext::{
    drm_dbg,
    use_mm::with_mm, //
};

/// Why [`FenceWaiters::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// Something was signalled; so many jiffies were left.
    Signalled(Jiffies),
    /// The time is up.
    TimedOut,
    /// The caller has a signal pending.
    Interrupted,
}

/// Who waits for any fence of a device.
///
/// What is waited for is in user memory, which cannot be looked at under a lock. So a waiter takes
/// the [`generation`](Self::generation), looks, and sleeps only if nothing was signalled since: a
/// signal between the two is not missed.
#[pin_data]
pub(crate) struct FenceWaiters {
    /// Counts the signals.
    #[pin]
    generation: SpinLock<u64>,
    #[pin]
    signalled: CondVar,
}

impl FenceWaiters {
    /// Nobody waits.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            generation <- new_spinlock!(0, "FenceWaiters::generation"),
            signalled <- new_condvar!("FenceWaiters::signalled"),
        })
    }

    /// What to pass to [`wait`](Self::wait): take it before looking.
    pub(crate) fn generation(&self) -> u64 {
        *self.generation.lock()
    }

    /// Wakes everybody, to look again. May be called in any context but a hard interrupt.
    pub(crate) fn signal(&self) {
        let mut generation = self.generation.lock();
        *generation = generation.wrapping_add(1);
        drop(generation);
        self.signalled.notify_all();
    }

    /// Sleeps, interruptibly, until something was signalled after `seen` was taken, or for
    /// `timeout` jiffies.
    pub(crate) fn wait(&self, seen: u64, mut timeout: Jiffies) -> Waited {
        let mut generation = self.generation.lock();
        while *generation == seen {
            match self
                .signalled
                .wait_interruptible_timeout(&mut generation, timeout)
            {
                CondVarTimeoutResult::Woken { jiffies } => timeout = jiffies,
                CondVarTimeoutResult::Timeout => return Waited::TimedOut,
                CondVarTimeoutResult::Signal { .. } => return Waited::Interrupted,
            }
        }
        Waited::Signalled(timeout)
    }
}

/// A fence in the memory of the process that asked for it.
#[pin_data]
pub(crate) struct UserFence {
    dev: ARef<Device>,
    /// The process, as one that may have others wait.
    client: Membership,
    /// It is one of its fences.
    _claim: Claim,
    /// The process's; it may be gone when the fence is signalled.
    mm: ARef<Mm>,
    /// A CPU address, 8-byte aligned.
    addr: u64,
    value: u64,
    #[pin]
    work: Work<UserFence>,
}

impl_has_work! {
    impl HasWork<Self> for UserFence { self.work }
}

impl UserFence {
    /// A fence that will write `value` to `addr` in the caller's memory.
    ///
    /// Fails with `EFAULT` unless `addr` can be read, with `EBUSY` if the process has too many that
    /// were not signalled, and with `ENOMEM`.
    fn new(dev: &Device, addr: u64, value: u64) -> Result<Arc<Self>> {
        let _: u64 = uapi::read(addr)?;
        let mm: ARef<Mm> = {
            let task = kernel::current!();
            let mm: &MmWithUser = task.mm().ok_or(EINVAL)?;
            let mm: &Mm = mm;
            mm.into()
        };
        let client = Membership::new(&dev.queues, &mm)?;
        let claim = client.claim(Resource::Fence)?;
        Arc::pin_init(
            pin_init!(Self {
                dev: dev.into(),
                client,
                _claim: claim,
                mm,
                addr,
                value,
                work <- new_work!("UserFence::work"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Signals the fence, soon: the value is written by a worker, which holds no lock, as the write
    /// may fault, and which is one of the client's own, as that may take for ever.
    ///
    /// May be called in any context, with any lock held. A second call does nothing more.
    pub(crate) fn signal(self: Arc<Self>) {
        // If it is queued already, the fence is about to be signalled as asked.
        let _ = self.client.fences.enqueue(self.clone());
    }

    /// Writes the value. Fails with `ESRCH` if the process is gone, with `EFAULT` if the address
    /// is.
    fn write(&self) -> Result {
        let mm = MmWithUser::into_mmput_async(self.mm.mmget_not_zero().ok_or(ESRCH)?);
        with_mm(&mm, || {
            UserSlice::new(uapi::user_ptr(self.addr), size_of::<u64>())
                .writer()
                .write(&self.value)
        })?
    }
}

impl WorkItem for UserFence {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if let Err(e) = this.write() {
            drm_dbg!(&*this.dev, "user fence not written: {:?}", e);
        }
        this.dev.fences.signal();
    }
}

/// The fence of an EXEC, stored by the GPU when the batch has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExecFence {
    /// A GPU address, 8-byte aligned.
    pub(crate) addr: u64,
    pub(crate) value: u64,
}

/// The fence that an EXEC asks for with the `num` sync entries at user address `syncs`.
///
/// Fails as [`fence`] does.
pub(crate) fn exec_fence(dev: &Device, syncs: u64, num: u32) -> Result<Option<ExecFence>> {
    fence(dev, syncs, num)
}

/// The fence that a VM_BIND asks for with the `num` sync entries at user address `syncs`.
///
/// Fails as [`fence`] does, with `EFAULT` unless the fence can be read, and with `EBUSY` if the process
/// has too many fences that were not written.
pub(crate) fn bind_fence(dev: &Device, syncs: u64, num: u32) -> Result<Option<Arc<UserFence>>> {
    match fence(dev, syncs, num)? {
        Some(fence) => UserFence::new(dev, fence.addr, fence.value).map(Some),
        None => Ok(None),
    }
}

/// Parses sync entries. All VMs are of the kind that never signals a DMA fence, so that the only
/// entry there may be is one user fence to signal.
///
/// The device has no sync objects, so that a handle of one never names any.
///
/// Fails with `EFAULT`; with `EINVAL` for too many entries, unknown types or flags, non-zero
/// reserved fields, a misaligned address, and a second user fence; with `EOPNOTSUPP` for a sync
/// object to signal, and for a user fence to wait for; with `ENOENT` for a sync object to wait for.
fn fence(dev: &Device, syncs: u64, num: u32) -> Result<Option<ExecFence>> {
    ensure!(dev, num <= uapi::DRM_XE_MAX_SYNCS, EINVAL);
    let mut found = None;
    // CAST: `num` was checked to be small.
    let len = num as usize * size_of::<uapi::drm_xe_sync>();
    let mut entries = UserSlice::new(uapi::user_ptr(syncs), len).reader();
    for _ in 0..num {
        let sync: uapi::drm_xe_sync = entries.read()?;
        ensure!(dev, sync.extensions == 0, EINVAL);
        ensure!(
            dev,
            sync.flags & !uapi::DRM_XE_SYNC_FLAG_SIGNAL == 0,
            EINVAL
        );
        ensure!(dev, sync.reserved == [0; 2], EINVAL);
        match sync.type_ {
            uapi::DRM_XE_SYNC_TYPE_USER_FENCE => {
                ensure!(dev, sync.flags == uapi::DRM_XE_SYNC_FLAG_SIGNAL, EOPNOTSUPP);
                ensure!(dev, sync.addr() & 7 == 0, EINVAL);
                ensure!(dev, found.is_none(), EINVAL);
                found = Some(ExecFence {
                    addr: sync.addr(),
                    value: sync.timeline_value,
                });
            }
            uapi::DRM_XE_SYNC_TYPE_SYNCOBJ | uapi::DRM_XE_SYNC_TYPE_TIMELINE_SYNCOBJ => {
                let timeline = sync.type_ == uapi::DRM_XE_SYNC_TYPE_TIMELINE_SYNCOBJ;
                ensure!(dev, sync.flags == 0, EOPNOTSUPP);
                ensure!(dev, sync.addr() >> 32 == 0, EINVAL);
                ensure!(dev, !timeline || sync.timeline_value != 0, EINVAL);
                drm_dbg!(dev, "there are no sync objects: {}", sync.handle());
                return Err(ENOENT);
            }
            _ => {
                drm_dbg!(dev, "unknown type of sync: {}", sync.type_);
                return Err(EINVAL);
            }
        }
    }
    Ok(found)
}
