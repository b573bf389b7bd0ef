// SPDX-License-Identifier: GPL-2.0

//! VM_BIND: changes the bindings of a VM.
//!
//! The operations of a call are carried out in order, either all of them or none:
//!
//! 1. Each operation is checked by itself. Its buffer is looked up, or the pages of its userptr are
//!    mapped for the device, so that the call fails if there are none.
//! 2. With the SVM lock held, each operation is made in the map of VMAs, as a change that is undone
//!    if a later one fails. Everything that the commit needs is allocated ([`Plan`]). Ranges whose
//!    attributes change are removed last, as faults map them again even if the call fails.
//! 3. The change is committed, and the GPU's page table is updated. This step cannot fail.
//! 4. Without locks, memory is prefetched. Prefetches are hints: what cannot be prefetched is left
//!    to faults. Only a call with nothing but prefetches reports errors of this step.
//! 5. The fence is signalled.
//!
//! All steps are done when the call returns. So bind queues have nothing to order; the driver has
//! them because programs create them.
//!
//! Arrays are charged to the memory cgroup of the caller and grow as operations are read, since
//! userspace chooses their number. Each step takes time linear in the number of operations and of
//! VMAs that they change, and ends when the caller is killed. After the commit, what is left to map
//! is left to faults.
//!
//! For the locks see [`vm`](super).

use super::{
    account,
    attributes::Attributes,
    buffer::{
        self,
        Removals, //
    },
    map::{
        Changes,
        Retired, //
    },
    op::{
        ByNumber,
        ByReference,
        MapParams,
        Op, //
    },
    spans::Spans,
    userptr,
    vma::{
        Backing,
        Span,
        Vma, //
    },
    Mode,
    Vm, //
};
use crate::{
    check::ensure,
    ioctl::Ioctl,
    memory::Policy,
    svm::{
        self,
        migrate::Destination,
        to_cpu,
        Mirror, //
    },
    sync,
    uapi, //
};
use gpusvm::Guard;
use kernel::{
    prelude::*,
    sync::Arc, //
};
use kernel_ext::sched;

/// VM_BIND.
///
/// Fails as xe does: with `EINVAL` for no such VM and for invalid operations, such as a prefetch of
/// a buffer to its advised location, `ENOENT` for no such queue or buffer, or a closed VM, `EBUSY`
/// for an unmap of a mirror where ranges have mapped pages, and for a buffer that may be purged
/// (`EINVAL` if it was), `ENOBUFS` if there is no memory for the operations, `EINTR` for a killed
/// process, `ENOMEM`, `EFAULT`.
pub(crate) fn ioctl(ioctl: &mut Ioctl<'_>, args: &mut uapi::drm_xe_vm_bind) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    let vm = file.inner().vm(args.vm_id).map_err(|_| EINVAL)?;
    ensure!(dev, args.extensions == 0, EINVAL);
    ensure!(dev, args.pad == 0 && args.pad2 == 0, EINVAL);
    ensure!(dev, args.reserved == [0; 2], EINVAL);
    ensure!(dev, args.num_syncs <= uapi::DRM_XE_MAX_SYNCS, EINVAL);

    let ops = operations(ioctl, args, vm.mode)?;
    if args.exec_queue_id != 0 {
        let queue = file.inner().queue(args.exec_queue_id)?;
        ensure!(dev, queue.is_bind(), EINVAL);
        ensure!(dev, Arc::ptr_eq(queue.vm(), &vm), EINVAL);
    }
    let resolved = resolve(ioctl, &vm, ops)?;
    let fence = sync::bind_fence(ioctl, args.syncs, args.num_syncs)?;
    ensure!(dev, fence.is_none() || args.num_binds != 0, EOPNOTSUPP);

    vm.bind(&resolved)?;
    // May drop the last reference to a buffer; no lock is held.
    drop(resolved);
    if let Some(fence) = fence {
        fence.signal(ioctl);
    }
    Ok(0)
}

/// Reads the operations of a call, and checks each by itself.
fn operations(
    ioctl: &mut Ioctl<'_>,
    args: &uapi::drm_xe_vm_bind,
    mode: Mode,
) -> Result<KVVec<Op<ByNumber>>> {
    let dev = ioctl.dev();
    // CAST: Widens.
    let count = args.num_binds as usize;
    let mut ops = KVVec::new();
    if count == 1 {
        ops.push(Op::new(dev, &args.bind(), mode)?, account())?;
        return Ok(ops);
    }
    // Does not overflow: the number has 32 bits.
    let len = count * size_of::<uapi::drm_xe_vm_bind_op>();
    let mut reader = ioctl.reader(args.vector_of_binds(), len);
    // The array grows with each operation read: neither a large count nor a vector whose memory
    // never comes allocates memory by itself.
    for _ in 0..count {
        sched::check_killed()?;
        let op = Op::new(dev, &reader.read()?, mode)?;
        ops.push(op, account()).map_err(|_| ENOBUFS)?;
    }
    Ok(ops)
}

/// Looks up the buffers of the operations and allocates their pages, charged to the memory cgroup
/// of the caller. That may take long, and is done before the registration guard is taken:
/// `drm_dev_unplug()` waits only for the DMA mapping.
fn resolve(
    ioctl: &mut Ioctl<'_>,
    vm: &Arc<Vm>,
    ops: KVVec<Op<ByNumber>>,
) -> Result<KVVec<Op<ByReference>>> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    let mut resolved = KVVec::with_capacity(ops.len(), account())?;
    // As in xe, one of several operations evicts no buffer that another one may map.
    let policy = match vm.may_overcommit && ops.len() == 1 {
        true => Policy::USE,
        false => Policy::sparing(vm),
    };
    for op in ops {
        sched::check_killed()?;
        resolved.push(op.resolve(dev, file, vm, &policy)?, account())?;
    }
    let registered = ioctl.registered()?;
    for op in &resolved {
        sched::check_killed()?;
        op.pin(&registered)?;
    }
    Ok(resolved)
}

/// What committing a change of the map needs besides the map.
struct Plan {
    /// Where mappings of buffers and userptrs are removed from the page table.
    removals: Spans,
    /// Mirrors whose ranges are removed, so that faults map them again.
    resets: Spans,
    /// Where buffers and userptrs are mapped by this call.
    at_once: Spans,
    /// Where pages are mapped before the GPU accesses them.
    prefetches: KVVec<(Span, Destination)>,
    /// What is prefetched.
    prefetched: Spans,
    /// What is prefetched to the advised location.
    advised: Spans,
}

impl Vm {
    /// Carries out all operations, or none.
    fn bind(self: &Arc<Self>, ops: &[Op<ByReference>]) -> Result {
        let (retired, prefetches) = {
            let mut svm = self.lock_svm_killable()?;
            if self.is_closed() {
                return Err(ENOENT);
            }
            // Ranges that the CPU unmapped must not make an unmap fail with `EBUSY`.
            self.collect_garbage(&mut svm)?;
            self.bind_locked(&mut svm, ops)?
        };
        self.retire(retired);
        let is_advice = ops.iter().all(|op| matches!(op, Op::Prefetch { .. }));
        for (span, to) in prefetches {
            let done = self.prefetch(span, to);
            // The bindings are committed, so a call that bound something has succeeded.
            if is_advice {
                done?;
            }
        }
        Ok(())
    }

    fn bind_locked(
        &self,
        svm: &mut Guard<'_, Mirror>,
        ops: &[Op<ByReference>],
    ) -> Result<(Retired, KVVec<(Span, Destination)>)> {
        let context = self.svm.context();
        let mut changes = self.map.lock_killable()?.change();
        let mut plan = Plan {
            removals: Spans::new(),
            resets: Spans::new(),
            at_once: Spans::new(),
            prefetches: KVVec::new(),
            prefetched: Spans::new(),
            advised: Spans::new(),
        };
        for op in ops {
            sched::check_killed()?;
            if self.is_closed() {
                return Err(ENOENT);
            }
            plan.add(self, &mut changes, svm, op)?;
        }
        // Prefetches run after all operations, so they are checked against the final map.
        self.check_each(&changes, plan.prefetched, |vma| match &vma.backing {
            Backing::Bo { bo, .. } => bo.check_needed(),
            _ => Ok(()),
        })?;
        self.check_each(&changes, plan.advised, |vma| {
            // The placement of a buffer was chosen at its creation: it has no advised location.
            let is_buffer = matches!(vma.backing, Backing::Bo { .. });
            ensure!(self.dev(), !is_buffer, EINVAL);
            Ok(())
        })?;
        let removals = Removals::stage(&context.aspace, plan.removals)?;
        let at_once = plan.at_once.sorted()?;
        let spans = changes.map().overlapping_any(&at_once);
        let mut staged = context
            .aspace
            .stage_all(spans.map(|vma| vma.span.clone()))?;
        // If the caller is killed before the commit, faults map the removed ranges again.
        for span in plan.resets.sorted()?.iter() {
            svm.remove_all_while(to_cpu(&span), || self.check_continue())?;
            sched::check_killed()?;
        }

        // No error from here on.
        removals.apply(context);
        let retired = changes.commit();
        buffer::write_all(context, &mut staged, &self.map.lock(), &at_once);
        userptr::write_all(context, &mut staged, &self.map, &at_once);
        Ok((retired, plan.prefetches))
    }

    /// Calls `check` with each VMA in `spans`, once. Fails as `check` does, and with `EINTR` for a
    /// killed caller.
    fn check_each(
        &self,
        changes: &Changes<'_>,
        spans: Spans,
        check: impl Fn(&Vma) -> Result,
    ) -> Result {
        for vma in changes.map().overlapping_any(&spans.sorted()?) {
            sched::check_killed()?;
            check(vma)?;
        }
        Ok(())
    }

    /// Maps what is bound in `span` before the GPU accesses it, as far as possible. What cannot
    /// migrate, or is not readable, is left to faults.
    ///
    /// Takes the SVM lock for one range at a time, so that faults are serviced in between. Ends
    /// early for a caller with a pending signal.
    ///
    /// Fails where xe does, and skips the rest: with `EIO` for I/O memory of a device, `EBUSY` when
    /// the CPU keeps changing its mappings, `ENOMEM`, and as [`userptr::populate`] does.
    fn prefetch(self: &Arc<Self>, span: Span, to: Destination) -> Result {
        let mut at = span.start;
        while at < span.end && !kernel::current!().signal_pending() {
            match self.prefetch_one(at, span.end, to)? {
                Some(next) => at = next,
                None => break,
            }
        }
        Ok(())
    }

    /// Maps the first range or buffer between `at` and `end`, if possible. Returns the address
    /// after it, or none if nothing is left. Fails as [`prefetch`](Self::prefetch) does.
    fn prefetch_one(self: &Arc<Self>, at: u64, end: u64, to: Destination) -> Result<Option<u64>> {
        let Ok(mut svm) = self.lock_svm_killable() else {
            return Ok(None);
        };
        if self.is_closed() {
            return Ok(None);
        }
        if self.collect_garbage(&mut svm).is_err() {
            return Ok(None);
        }
        let Ok(map) = self.map.lock_killable() else {
            return Ok(None);
        };
        let Some(vma) = map.first_from(at).cloned() else {
            return Ok(None);
        };
        drop(map);
        let at = at.max(vma.span.start);
        if at >= end {
            return Ok(None);
        }
        let next = match &vma.backing {
            Backing::Bo { bo, offset } => {
                let _ = buffer::populate(self.svm.context(), self.mm(), &vma, bo, *offset);
                vma.span.end
            }
            // There is nothing to wait for that a prefetch could take from a fault.
            Backing::Null => vma.span.end,
            Backing::Userptr { userptr, offset } => {
                let context = self.svm.context();
                match userptr::populate(context, &vma, userptr, *offset, !vma.read_only, None) {
                    Ok(served) => served.span.end,
                    Err(_) if self.is_closed() => return Ok(None),
                    Err(e) => return Err(e),
                }
            }
            Backing::Mirror => {
                let rest = at..end.min(vma.span.end);
                let Some(start) = self.svm.find_vma_start(to_cpu(&rest)) else {
                    return Ok(Some(vma.span.end));
                };
                // CAST: Addresses have 64 bits at most.
                let start = start as u64;
                match svm::prefetch(self.svm.context(), &mut svm, &vma, start, to) {
                    Ok(served) => served.span.end,
                    // The VM was closed meanwhile, and its page table may have been cleared during
                    // the update.
                    Err(_) if self.is_closed() => return Ok(None),
                    Err(e) if [EIO, EBUSY, ENOMEM].contains(&e) => return Err(e),
                    // Some pages of the chunk cannot be had: leave the rest of the chunk to faults.
                    Err(_) => svm::end_of_chunk(start),
                }
            }
        };
        Ok(Some(next))
    }
}

/// Returns the VMA of a new binding.
fn bound(span: &Span, params: &MapParams, backing: Backing) -> Vma {
    Vma {
        span: span.clone(),
        backing,
        attributes: Attributes::new(params.pat),
        read_only: params.read_only,
        autoreset: false,
    }
}

impl Plan {
    /// Makes an operation in the map, and adds what its commit needs.
    fn add(
        &mut self,
        vm: &Vm,
        changes: &mut Changes<'_>,
        svm: &Guard<'_, Mirror>,
        op: &Op<ByReference>,
    ) -> Result {
        match op {
            Op::Mirror {
                span,
                params,
                autoreset,
            } => {
                let mut vma = bound(span, params, Backing::Mirror);
                vma.autoreset = *autoreset;
                self.cut(changes, svm, span, Some(&vma))?;
                vma.span = changes.merged(&vma);
                let whole = vma.span.clone();
                self.cut(changes, svm, &whole, Some(&vma))?;
                changes.insert(vma)
            }
            Op::Buffer {
                span,
                params,
                bo,
                offset,
                immediate,
            } => {
                let backing = Backing::Bo {
                    bo: bo.clone(),
                    offset: *offset,
                };
                self.replace(changes, svm, bound(span, params, backing))?;
                self.map_at_once(vm, span, *immediate)
            }
            Op::Userptr {
                span,
                params,
                userptr,
                immediate,
            } => {
                let backing = Backing::Userptr {
                    userptr: userptr.clone(),
                    offset: 0,
                };
                self.replace(changes, svm, bound(span, params, backing))?;
                self.map_at_once(vm, span, *immediate)
            }
            // Faults map it piece by piece, in all VMs: it may be as large as the address space.
            Op::Null { span, params } => {
                self.replace(changes, svm, bound(span, params, Backing::Null))
            }
            Op::Unmap { span } => self.cut(changes, svm, span, None),
            Op::UnmapAll { bo, .. } => {
                while let Some(span) = changes.map().first_of(bo) {
                    self.cut(changes, svm, &span, None)?;
                }
                Ok(())
            }
            Op::Prefetch { span, to } => {
                self.prefetched.add(span.clone())?;
                if *to == Destination::Preferred {
                    self.advised.add(span.clone())?;
                }
                Ok(self.prefetches.push((span.clone(), *to), account())?)
            }
        }
    }

    /// Inserts `vma`, which is no mirror, in place of what is there. Fails as [`cut`](Self::cut).
    fn replace(&mut self, changes: &mut Changes<'_>, svm: &Guard<'_, Mirror>, vma: Vma) -> Result {
        self.cut(changes, svm, &vma.span, None)?;
        changes.insert(vma)
    }

    /// Has `span` mapped by this call if the VM has no faults, or the operation is `immediate`.
    fn map_at_once(&mut self, vm: &Vm, span: &Span, immediate: bool) -> Result {
        if immediate || vm.mode == Mode::Immediate {
            self.at_once.add(span.clone())?;
        }
        Ok(())
    }

    /// Removes the VMAs in `span`, to make room for `mirror` or for another binding.
    ///
    /// Fails with `EBUSY` if another binding replaces a mirror that has mapped pages there.
    fn cut(
        &mut self,
        changes: &mut Changes<'_>,
        svm: &Guard<'_, Mirror>,
        span: &Span,
        mirror: Option<&Vma>,
    ) -> Result {
        // If no mirror is kept, nothing is mapped between the removed bindings, so one removal
        // covers them all.
        let mut removed: Option<Span> = None;
        changes.cut(span, |piece| match (piece.is_mirror(), mirror) {
            (false, None) => {
                removed.get_or_insert(piece.span.clone()).end = piece.span.end;
                Ok(())
            }
            (false, Some(_)) => self.removals.add(piece.span.clone()),
            // The new mirror has the same attributes: existing ranges stay mapped.
            (true, Some(new)) if piece.is_like(new) => Ok(()),
            (true, Some(_)) => self.resets.add(piece.span.clone()),
            (true, None) if svm.has_mapping(to_cpu(&piece.span)) => Err(EBUSY),
            (true, None) => Ok(()),
        })?;
        removed.map_or(Ok(()), |span| self.removals.add(span))
    }
}
