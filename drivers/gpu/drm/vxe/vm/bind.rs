// SPDX-License-Identifier: GPL-2.0

//! VM_BIND: what programs put at the addresses of a VM.
//!
//! All operations of a call happen, in order, or none does:
//!
//! 1. they are checked by themselves, and their buffers looked up;
//! 2. under the SVM lock, each is made in the map of VMAs, as a change that is undone if one fails,
//!    and everything that it will need is allocated ([`Plan`]). Ranges that will be mapped otherwise are
//!    removed last, as faults bring them back in any case;
//! 3. the change is committed, and the GPU's page table follows. Nothing here can fail;
//! 4. without locks, prefetches are done, which are advice: what cannot be had is left to faults. A call
//!    that does nothing else tells of what is worth telling;
//! 5. the fence is signalled.
//!
//! All of this is done when the call returns. So bind queues have nothing to order, and exist for
//! programs' sake.
//!
//! Arrays are charged to the memory cgroup of the caller, and no longer than what was read: the number of
//! operations is userspace's. Each step is linear in the number of operations and of VMAs that they
//! change, and ends when the caller is killed; what is committed then is left to faults.
//!
//! Locks as in [`vm`](super).

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
        Handle,
        Op, //
    },
    spans::Spans,
    vma::{
        Backing,
        Span,
        Vma, //
    },
    Mode,
    Vm, //
};
use crate::{
    bo::Bo,
    check::ensure,
    ioctl::Ioctl,
    svm::{
        self,
        migrate::To,
        to_cpu,
        Mirror, //
    },
    sync,
    uapi, //
};
use gpusvm::Guard;
use kernel::{
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};
use kernel_ext::sched;

/// VM_BIND.
///
/// Fails as xe does: with `EINVAL` for no such VM and for operations that make no sense, such as to prefetch
/// a buffer to where it was advised to be, `ENOENT` for no such
/// queue or buffer, or a VM that is closed, `EBUSY` for an unmap of a mirror where ranges are mapped,
/// `ENOBUFS` for more operations than there is memory for, `EINTR` for a process that is killed,
/// `ENOMEM`, `EFAULT`.
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
    // The last reference to a buffer may go here: no lock is held.
    drop(resolved);
    if let Some(fence) = fence {
        fence.signal(ioctl);
    }
    Ok(0)
}

/// The operations of a call, each checked by itself.
fn operations(
    ioctl: &mut Ioctl<'_>,
    args: &uapi::drm_xe_vm_bind,
    mode: Mode,
) -> Result<KVVec<Op<Handle>>> {
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
    // The array grows with what was read: the number alone, or a vector that never comes, takes nothing.
    for _ in 0..count {
        sched::check_killed()?;
        let op = Op::new(dev, &reader.read()?, mode)?;
        ops.push(op, account()).map_err(|_| ENOBUFS)?;
    }
    Ok(ops)
}

/// Looks the buffers of operations up, and gets their memory, charged to the memory cgroup of the caller.
/// What takes long is done before the device must be there to map it for: whoever unplugs the device
/// waits only for the rest.
fn resolve(
    ioctl: &mut Ioctl<'_>,
    vm: &Arc<Vm>,
    ops: KVVec<Op<Handle>>,
) -> Result<KVVec<Op<ARef<Bo>>>> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    let mut resolved = KVVec::with_capacity(ops.len(), account())?;
    for op in ops {
        sched::check_killed()?;
        resolved.push(op.resolve(dev, file, vm)?, account())?;
    }
    let registered = ioctl.registered()?;
    for op in &resolved {
        sched::check_killed()?;
        op.pin(&registered)?;
    }
    Ok(resolved)
}

/// What committing a change of the map takes besides.
struct Plan {
    /// Where mappings of buffers are to be removed.
    removals: Spans,
    /// Mirrors to let go of: their ranges are mapped anew by faults.
    resets: Spans,
    /// Where buffers are to be mapped now.
    at_once: Spans,
    /// Where pages are to be mapped before they are needed.
    prefetches: KVVec<(Span, To)>,
    /// Of these, where that is to be as was advised.
    advised: Spans,
}

impl Vm {
    /// Makes all of `ops`, or none.
    fn bind(self: &Arc<Self>, ops: &[Op<ARef<Bo>>]) -> Result {
        let (retired, prefetches) = {
            let mut svm = self.lock_svm_killable()?;
            if self.is_closed() {
                return Err(ENOENT);
            }
            // The CPU's unmaps come first: what it unmapped is not in the way.
            self.collect_garbage(&mut svm)?;
            self.bind_locked(&mut svm, ops)?
        };
        self.retire(retired);
        let is_advice = ops.iter().all(|op| matches!(op, Op::Prefetch { .. }));
        for (span, to) in prefetches {
            let done = self.prefetch(span, to);
            // What is bound stays bound, and so the call has succeeded.
            if is_advice {
                done?;
            }
        }
        Ok(())
    }

    fn bind_locked(
        &self,
        svm: &mut Guard<'_, Mirror>,
        ops: &[Op<ARef<Bo>>],
    ) -> Result<(Retired, KVVec<(Span, To)>)> {
        let context = self.svm.context();
        let mut changes = self.map.lock_killable()?.change();
        let mut plan = Plan {
            removals: Spans::new(),
            resets: Spans::new(),
            at_once: Spans::new(),
            prefetches: KVVec::new(),
            advised: Spans::new(),
        };
        for op in ops {
            sched::check_killed()?;
            if self.is_closed() {
                return Err(ENOENT);
            }
            plan.add(self, &mut changes, svm, op)?;
        }
        // Prefetches are done when all is bound, and so it is what is bound in the end that counts. Each
        // VMA is looked at once, however many prefetches name it.
        let mut seen = 0;
        for span in plan.advised.sorted()?.iter() {
            for vma in changes.map().overlapping(span.start.max(seen)..span.end) {
                sched::check_killed()?;
                // Where a buffer lives was decided when it was made: nobody advised anything.
                ensure!(self.dev(), vma.is_mirror(), EINVAL);
            }
            seen = seen.max(span.end);
        }
        let removals = Removals::stage(&context.aspace, plan.removals)?;
        let at_once = plan.at_once.sorted()?;
        let staged = buffer::stage_all(&context.aspace, changes.map(), &at_once)?;
        // Faults bring back what goes here, should the caller be killed before the change is committed.
        for span in plan.resets.sorted()?.iter() {
            svm.remove_all_while(to_cpu(&span), || self.go_on())?;
            sched::check_killed()?;
        }

        // From here on nothing fails.
        let retired = changes.commit();
        removals.carry_out(context);
        buffer::write_all(context, staged, &self.map.lock(), &at_once);
        Ok((retired, plan.prefetches))
    }

    /// Maps what there is in `span` before the GPU needs it, as far as that is possible: what cannot
    /// move, or may not be read, is left to faults.
    ///
    /// The SVM lock is taken for one range at a time, so that faults get their turn. Ends early
    /// for a caller that has a signal pending.
    ///
    /// Fails, and leaves the rest, where xe does: with `EIO` at the memory of some device, `EBUSY` when
    /// the CPU keeps changing its mappings, and `ENOMEM`.
    fn prefetch(self: &Arc<Self>, span: Span, to: To) -> Result {
        let mut at = span.start;
        while at < span.end && !kernel::current!().signal_pending() {
            match self.prefetch_one(at, span.end, to)? {
                Some(next) => at = next,
                None => break,
            }
        }
        Ok(())
    }

    /// Maps the first range or buffer from `at` on and before `end`, if that is possible; returns
    /// the address after it. None if nothing is left. Fails as [`prefetch`](Self::prefetch).
    fn prefetch_one(self: &Arc<Self>, at: u64, end: u64, to: To) -> Result<Option<u64>> {
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
                let _ = buffer::populate(self.svm.context(), &vma, bo, *offset);
                vma.span.end
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
                    // Closed meanwhile: its page table may have been emptied under the change.
                    Err(_) if self.is_closed() => return Ok(None),
                    Err(e) if [EIO, EBUSY, ENOMEM].contains(&e) => return Err(e),
                    // Where a chunk has pages that cannot be had, the rest of it is left to faults.
                    Err(_) => svm::end_of_chunk(start),
                }
            }
        };
        Ok(Some(next))
    }
}

impl Plan {
    /// Makes an operation in the map, and adds what it takes besides.
    fn add(
        &mut self,
        vm: &Vm,
        changes: &mut Changes<'_>,
        svm: &Guard<'_, Mirror>,
        op: &Op<ARef<Bo>>,
    ) -> Result {
        match op {
            Op::Mirror {
                span,
                with,
                autoreset,
            } => {
                let mut vma = Vma {
                    span: span.clone(),
                    backing: Backing::Mirror,
                    attributes: Attributes::new(with.pat),
                    read_only: with.read_only,
                    autoreset: *autoreset,
                };
                self.cut(changes, svm, span, Some(&vma))?;
                vma.span = changes.merged(&vma);
                let whole = vma.span.clone();
                self.cut(changes, svm, &whole, Some(&vma))?;
                changes.insert(vma)
            }
            Op::Buffer {
                span,
                with,
                bo,
                offset,
                immediate,
            } => {
                self.cut(changes, svm, span, None)?;
                changes.insert(Vma {
                    span: span.clone(),
                    backing: Backing::Bo {
                        bo: bo.clone(),
                        offset: *offset,
                    },
                    attributes: Attributes::new(with.pat),
                    read_only: with.read_only,
                    autoreset: false,
                })?;
                if *immediate || vm.mode == Mode::AtOnce {
                    self.at_once.add(span.clone())?;
                }
                Ok(())
            }
            Op::Unmap { span } => self.cut(changes, svm, span, None),
            Op::UnmapAll { bo, .. } => {
                while let Some(span) = changes.map().first_of(bo) {
                    self.cut(changes, svm, &span, None)?;
                }
                Ok(())
            }
            Op::Prefetch { span, to } => {
                if *to == To::Advised {
                    self.advised.add(span.clone())?;
                }
                Ok(self.prefetches.push((span.clone(), *to), account())?)
            }
        }
    }

    /// Removes what is in `span`, to make room for `mirror` or for something else.
    ///
    /// Fails with `EBUSY` if ranges of a mirror are in the way of something else.
    fn cut(
        &mut self,
        changes: &mut Changes<'_>,
        svm: &Guard<'_, Mirror>,
        span: &Span,
        mirror: Option<&Vma>,
    ) -> Result {
        // Where buffers go and no mirror is kept, nothing is mapped between them: it is one removal.
        let mut buffers: Option<Span> = None;
        changes.cut(span, |piece| match (&piece.backing, mirror) {
            (Backing::Bo { .. }, None) => {
                buffers.get_or_insert(piece.span.clone()).end = piece.span.end;
                Ok(())
            }
            (Backing::Bo { .. }, Some(_)) => self.removals.add(piece.span.clone()),
            // What is mapped stays right.
            (Backing::Mirror, Some(new)) if piece.is_like(new) => Ok(()),
            (Backing::Mirror, Some(_)) => self.resets.add(piece.span.clone()),
            (Backing::Mirror, None) if svm.has_mapping(to_cpu(&piece.span)) => Err(EBUSY),
            (Backing::Mirror, None) => Ok(()),
        })?;
        buffers.map_or(Ok(()), |span| self.removals.add(span))
    }
}
