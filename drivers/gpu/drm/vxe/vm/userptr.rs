// SPDX-License-Identifier: GPL-2.0

//! Userptrs: memory of a process at other addresses of the GPU.
//!
//! VM_BIND gets the pages, for writing unless the binding is read-only, and fails if it cannot. When
//! the CPU changes its mappings, the core calls [`UserptrDriver::revoke`], which zaps all of the
//! GPU's addresses of the userptr; the next fault of the GPU gets the pages again and maps the VMA
//! of the fault. This is so in all VMs: xe preempts the jobs of a VM without faults, and binds the
//! userptrs again before it resumes them. Here such a job waits for its fault instead.
//!
//! Parts of a split VMA share the userptr, which is removed with the last of them. If other memory
//! was bound at some of its addresses meanwhile, that is zapped as well, and faults map it again.
//!
//! The memory belongs to the process that bound it, which may be a child of the VM's process.
//!
//! Lock order, outermost first: the SVM lock, the userptr's mutex, the notifier lock of the VM's
//! userptrs, the locks of the page table and the TLB.

use super::{
    map::LockedVmaMap,
    spans::SortedSpans,
    vma::{
        Backing,
        Span,
        Vma, //
    },
    Vm, //
};
use crate::{
    driver::Device,
    fault::{
        Fault,
        Serviced, //
    },
    gpu::{
        Access,
        AddressSpace,
        Staged, //
        StaleSpan,
    },
    stats::{
        us_since,
        Stat, //
    },
    svm::{
        self,
        migrate,
        AccessWait,
        Context,
        Writer, //
    }, //
};
use core::ops::Range;
use gpusvm::{
    Ctx,
    LockedUserptr,
    Retry,
    Userptr,
    UserptrDriver,
    Userptrs,
    WouldBlock, //
};
use kernel::{
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        SetOnce, //
    },
    time::{
        Instant,
        Monotonic, //
    }, //
};
use kernel_ext::sched;

/// vxe as a driver of userptrs.
pub(crate) struct ByAddress;

/// A userptr of a VM.
pub(crate) type VmUserptr = Userptr<ByAddress>;

/// The data that the userptrs of a VM share. Has no reference to the VM, as [`Context`].
pub(crate) struct UserptrContext {
    dev: ARef<Device>,
    aspace: Arc<AddressSpace>,
}

/// The data of a userptr.
pub(crate) struct UserptrState {
    /// The GPU's addresses that it was bound at.
    span: Span,
    access_wait: AccessWait,
}

/// The flush of the TLB that [`UserptrDriver::finish`] makes.
pub(crate) struct Flush {
    stale: StaleSpan,
    started: Instant<Monotonic>,
}

impl Flush {
    fn end(self, vm: &UserptrContext) {
        if self.stale.flush(&vm.aspace, &vm.dev.stats) {
            vm.dev.stats.inc(Stat::SvmTlbInvalCount);
            vm.dev
                .stats
                .add(Stat::SvmTlbInvalUs, us_since(self.started));
        }
    }
}

/// Zaps the GPU's addresses of a userptr.
fn zap(vm: &UserptrContext, userptr: &VmUserptr) -> Flush {
    let started = Instant::<Monotonic>::now();
    let mut stale = StaleSpan::new();
    stale.zap(&vm.aspace, userptr.data().span.clone());
    Flush { stale, started }
}

#[vtable]
impl UserptrDriver for ByAddress {
    const NAME: &'static CStr = c"vxe-userptr";
    type Vm = UserptrContext;
    type Userptr = UserptrState;
    type Pending = Flush;

    fn revoke(vm: &UserptrContext, userptr: &VmUserptr, can_wait: bool) -> Option<Flush> {
        userptr.data().access_wait.end(&vm.aspace, can_wait);
        Some(zap(vm, userptr))
    }

    fn finish(vm: &UserptrContext, _userptr: &VmUserptr, flush: Flush) {
        flush.end(vm);
    }

    fn try_revoke(vm: &UserptrContext, userptr: &VmUserptr) -> Result<(), WouldBlock> {
        // The locks of the page table and the TLB are spinlocks, held for the access to one page at
        // most.
        userptr.data().access_wait.end(&vm.aspace, false);
        zap(vm, userptr).end(vm);
        Ok(())
    }
}

/// The userptrs of a VM, which begin with the first.
pub(super) struct VmUserptrs(SetOnce<Arc<Userptrs<ByAddress>>>);

impl VmUserptrs {
    pub(super) fn new() -> Self {
        Self(SetOnce::new())
    }

    /// Returns what the userptrs share. Fails with `ENODEV` for an unbound device, and `ENOMEM`.
    fn get(&self, vm: &Context) -> Result<&Arc<Userptrs<ByAddress>>> {
        if self.0.as_ref().is_none() {
            let dma = vm.dev.dma.as_ref().ok_or(ENODEV)?;
            let context = UserptrContext {
                dev: vm.dev.clone(),
                aspace: vm.aspace.clone(),
            };
            // Another thread may be first; then the new object is dropped.
            self.0
                .populate(Userptrs::new(core::slice::from_ref(dma), context)?);
        }
        self.0.as_ref().ok_or(ENOMEM)
    }

    /// Unmaps all, and lets nothing be mapped any more.
    pub(super) fn shut(&self) {
        if let Some(userptrs) = self.0.as_ref() {
            userptrs.shut();
        }
    }
}

impl Vm {
    /// Creates the userptr of a binding of `span` to the calling process's memory at `addr`, and
    /// gets its pages. The caller holds no lock.
    ///
    /// If other threads keep changing the CPU's mappings there, the userptr is bound without its
    /// pages, which the GPU's faults get: xe fails with `ENOMEM` then.
    ///
    /// Fails with `EINVAL` for addresses beyond the last one, `EFAULT` where the process has no
    /// memory, `EPERM` for memory that may not be written, `EOPNOTSUPP` for memory of a kind that
    /// cannot be mapped, `ENODEV` for an unbound device, `EINTR` for a killed caller, and `ENOMEM`.
    pub(super) fn pin_userptr(
        &self,
        span: &Span,
        addr: u64,
        read_only: bool,
    ) -> Result<Arc<VmUserptr>> {
        let end = addr.checked_add(span.end - span.start).ok_or(EINVAL)?;
        let task = kernel::current!();
        let mm = task.mm().ok_or(EINVAL)?;
        let context = self.svm.context();
        let state = UserptrState {
            span: span.clone(),
            access_wait: AccessWait::new(),
        };
        let space = self.userptrs.get(context)?;
        // CAST: `usize` has 64 bits on all architectures of this driver.
        let userptr = Userptr::new(space, mm, addr as usize..end as usize, state)?;
        let ctx = ctx(context, !read_only);
        let mut locked = userptr.lock_killable()?;
        let mut retry = Retry::bounded();
        while let Some(attempt) = retry.next() {
            match locked.get(&ctx, &attempt) {
                Err(EAGAIN) => {}
                Ok(()) | Err(EBUSY) => break,
                Err(e) => return Err(e),
            }
        }
        drop(locked);
        Ok(userptr)
    }
}

/// Returns the parameters of getting a userptr's pages.
fn ctx(vm: &Context, writes: bool) -> Ctx {
    let mut ctx = Ctx::new(if writes {
        gpusvm::Access::Write
    } else {
        gpusvm::Access::Read
    });
    ctx.allow_mixed = true;
    match &vm.memory {
        Some(_) => ctx.with_owner(Some(vm.dev.memory.owner())),
        None => ctx,
    }
}

/// Services a fault in `vma`, which maps `userptr` from `offset` bytes on, by mapping all of it.
///
/// Fails with `EACCES` for an atomic that needs the memory on the device, and as [`populate`] does.
pub(super) fn fault(
    vm: &Context,
    vma: &Vma,
    userptr: &VmUserptr,
    offset: u64,
    fault: Fault,
) -> Result<Serviced> {
    vm.dev.stats.inc(Stat::VmaPagefaultCount);
    let size = vma.span.end - vma.span.start;
    vm.dev.stats.add(Stat::VmaPagefaultKb, size / 1024);
    if fault.access == Access::Atomic && migrate::is_exclusive(vm, vma) {
        return Err(EACCES);
    }
    populate(vm, vma, userptr, offset, !vma.read_only, Some(fault))
}

/// Gets the pages of `userptr`, for writing if `writes`, and maps those of `vma`, which begin
/// `offset` bytes from its start, for `fault` if that is given. The SVM lock is held.
///
/// Fails with `EFAULT` where the process has no memory, or has exited, `EPERM` for memory that may
/// not be written, `EOPNOTSUPP` for memory of a kind that cannot be mapped, `EBUSY` when the CPU
/// kept changing its mappings, `EINTR` for a killed caller, and `ENOMEM`.
pub(super) fn populate(
    vm: &Context,
    vma: &Vma,
    userptr: &VmUserptr,
    offset: u64,
    writes: bool,
    fault: Option<Fault>,
) -> Result<Serviced> {
    let ctx = ctx(vm, writes);
    let mut locked = userptr.lock_killable()?;
    let mut was_lost = false;
    let mut retry = Retry::bounded();
    while let Some(attempt) = retry.next() {
        let mut staged = vm
            .aspace
            .stage(vma.span.start, vma.span.end - vma.span.start)?;
        let bound = locked.get(&ctx, &attempt).and_then(|()| {
            let expected = fault.map(|fault| Expected { fault, was_lost });
            write(vm, &mut staged, vma, &mut locked, offset, expected)
        });
        match bound {
            Err(EAGAIN) => was_lost = true,
            bound => return bound,
        }
    }
    Err(Retry::spent())
}

/// An access that the GPU repeats when its fault is serviced.
struct Expected {
    fault: Fault,
    /// Whether the CPU invalidated the pages while the fault was serviced.
    was_lost: bool,
}

/// Writes the pages of `vma` to the page table, for an access if one is expected.
///
/// Fails with `EAGAIN` if the pages are not valid, and with `EINTR` for a killed caller.
fn write(
    vm: &Context,
    staged: &mut Staged,
    vma: &Vma,
    locked: &mut LockedUserptr<'_, ByAddress>,
    offset: u64,
    expected: Option<Expected>,
) -> Result<Serviced> {
    let userptr = locked.userptr();
    let span = memory_of(vma, userptr, offset);
    let mut writer = Writer::new(vm, vma);
    let done = locked.commit(|view| {
        sched::check_killed()?;
        let is_last = view.span().end == userptr.span().end;
        svm::bind_userptr(&mut writer, staged, &span, view)?;
        if let Some(expected) = expected.as_ref().filter(|_| is_last) {
            let wait = &userptr.data().access_wait;
            wait.begin(&vm.aspace, expected.fault.addr, expected.was_lost);
        }
        Ok(())
    });
    let access = writer.flush();
    done?;
    Ok(Serviced {
        span: vma.span.clone(),
        access,
    })
}

/// Returns the process's addresses of `vma`.
fn memory_of(vma: &Vma, userptr: &VmUserptr, offset: u64) -> Range<usize> {
    // Does not overflow: the VMA is a part of the userptr, whose end is an address.
    // CAST: `usize` has 64 bits on all architectures of this driver.
    let start = userptr.span().start + offset as usize;
    start..start + (vma.span.end - vma.span.start) as usize
}

/// Maps the userptrs that `map` has in `spans`, whose pages VM_BIND has got. What fails, or is left
/// when the caller is killed, is left to faults. The SVM lock is held, so that the map does not
/// change.
pub(super) fn write_all(
    vm: &Context,
    staged: &mut Staged,
    map: &LockedVmaMap,
    spans: &SortedSpans,
) {
    let mut at = 0;
    for span in spans.iter() {
        at = span.start.max(at);
        loop {
            // The mutex of a userptr is taken without the map's lock.
            let next = map.lock().first_from(at).cloned();
            let Some(vma) = next.filter(|vma| vma.span.start < span.end) else {
                break;
            };
            at = vma.span.end;
            let Backing::Userptr { userptr, offset } = &vma.backing else {
                continue;
            };
            let done = userptr
                .lock_killable()
                .and_then(|mut locked| write(vm, staged, &vma, &mut locked, *offset, None));
            if done.is_err_and(|e| e == EINTR) {
                return;
            }
        }
    }
}
