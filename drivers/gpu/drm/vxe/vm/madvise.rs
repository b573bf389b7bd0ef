// SPDX-License-Identifier: GPL-2.0

//! MADVISE: memory attributes of a range of addresses.
//!
//! Attributes are those of VMAs, which are split where advice begins and ends. Memory whose
//! attributes change is mapped anew by the next fault, as they may decide how. Advice on addresses
//! where nothing is bound is lost, as with xe.
//!
//! Locks as in [`vm`](super).

use super::{
    attributes::{
        Atomics,
        Attributes,
        Location,
        MigrationPolicy,
        PatIndex, //
    },
    buffer::Removals,
    map::{
        Changes,
        MapGuard,
        VmaMaps, //
    },
    spans::Spans,
    vma::{
        Backing,
        Span,
        Vma, //
    },
    Vm,
    SPAN, //
};
use crate::{
    check::ensure,
    driver::Device,
    ioctl::Ioctl,
    region,
    svm::{
        to_cpu,
        Mirror, //
    },
    uapi, //
};
use gpusvm::{
    Guard,
    RangeFlag, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc, //
};
use kernel_ext::sched;

/// A piece of advice.
enum Advice {
    /// Where memory should live.
    Preferred(Location, MigrationPolicy),
    /// Who may do atomics.
    Atomics(Atomics),
    /// Caching.
    Pat(PatIndex),
    /// Whether buffers are needed. vxe takes no buffer's memory away, so that this changes nothing,
    /// and it is always retained. What is told so goes to the user address, if it is not 0.
    Purgeable(u64),
}

impl Advice {
    /// Checks what userspace says. Fails with `EINVAL` as xe does.
    fn new(dev: &Device, args: &uapi::drm_xe_madvise) -> Result<Self> {
        match args.type_ {
            uapi::DRM_XE_MEM_RANGE_ATTR_PREFERRED_LOC => {
                let (fd, policy, region, reserved) = args.preferred_mem_loc();
                ensure!(dev, reserved == 0, EINVAL);
                let policy = MigrationPolicy::new(dev, policy.into())?;
                // CAST: Descriptors are signed, but not in the uAPI.
                Ok(Self::Preferred(
                    Location::new(dev, fd as i32, region)?,
                    policy,
                ))
            }
            uapi::DRM_XE_MEM_RANGE_ATTR_ATOMIC => {
                let (value, pad, reserved) = args.value();
                ensure!(dev, pad == 0 && reserved == 0, EINVAL);
                Ok(Self::Atomics(Atomics::new(dev, value)?))
            }
            uapi::DRM_XE_MEM_RANGE_ATTR_PAT => {
                let (value, pad, reserved) = args.value();
                ensure!(dev, pad == 0 && reserved == 0, EINVAL);
                Ok(Self::Pat(PatIndex::new(dev, value)?))
            }
            uapi::DRM_XE_VMA_ATTR_PURGEABLE_STATE => {
                let (state, pad, retained) = args.purge_state();
                ensure!(dev, pad == 0, EINVAL);
                ensure!(
                    dev,
                    state == uapi::DRM_XE_VMA_PURGEABLE_STATE_WILLNEED
                        || state == uapi::DRM_XE_VMA_PURGEABLE_STATE_DONTNEED,
                    EINVAL
                );
                Ok(Self::Purgeable(retained))
            }
            _ => {
                ensure!(dev, false, EINVAL);
                Err(EINVAL)
            }
        }
    }

    /// The attributes of `vma` when it is followed. Fails with `EINVAL` if that cannot be.
    fn apply(&self, dev: &Device, vma: &Vma) -> Result<Attributes> {
        let mut attributes = vma.attributes.clone();
        match self {
            // Where a buffer lives was decided when it was made.
            Self::Preferred(location, policy) if vma.is_mirror() => {
                (attributes.location, attributes.policy) = (location.clone(), *policy);
            }
            Self::Preferred(..) | Self::Purgeable(_) => {}
            Self::Atomics(atomics) => {
                if let Backing::Bo { bo, .. } = &vma.backing {
                    check_atomics(*atomics, bo.placement())?;
                }
                attributes.atomics = *atomics;
            }
            Self::Pat(pat) => {
                if let Backing::Bo { bo, .. } = &vma.backing {
                    // As when it is bound: a GPU that does not snoop would see what the memory had in it
                    // before the CPU's caches are written back.
                    ensure!(dev, pat.is_coherent() || !bo.is_cpu_cached(), EINVAL);
                }
                attributes.pat = *pat;
            }
        }
        Ok(attributes)
    }
}

/// Whether a buffer of this placement bears such atomics: a system buffer those of the CPU and, as
/// the GPU is coherent, of the device; for both at once it must be able to move. Fails with
/// `EINVAL`.
fn check_atomics(atomics: Atomics, placement: u32) -> Result {
    let system = placement & 1 << region::SYSTEM != 0;
    let elsewhere = placement & !(1 << region::SYSTEM) != 0;
    let good = match atomics {
        Atomics::Undefined | Atomics::Device => true,
        Atomics::Cpu => system,
        Atomics::Global => system && elsewhere,
    };
    good.then_some(()).ok_or(EINVAL)
}

/// MADVISE.
///
/// Fails as xe does: with `EINVAL`, `ENOENT` for a VM that is closed and for a device that there is
/// not, `ENODEV` for one that is gone, `ENOLINK` for one without a fast interconnect, `EINTR` for a process
/// that is killed, `EFAULT`, `ENOMEM`.
pub(crate) fn ioctl(ioctl: &mut Ioctl<'_>, args: &mut uapi::drm_xe_madvise) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    const PAGE: u64 = PAGE_SIZE as u64;

    let vm = file.inner().vm(args.vm_id).map_err(|_| EINVAL)?;
    ensure!(dev, args.extensions == 0, EINVAL);
    ensure!(
        dev,
        args.start % PAGE == 0 && args.range % PAGE == 0,
        EINVAL
    );
    ensure!(dev, args.range != 0, EINVAL);
    ensure!(dev, args.reserved == [0; 2], EINVAL);
    let advice = Advice::new(dev, args)?;
    // Addresses may be in canonical form: as the CPU has them, sign-extended.
    let start = args.start & (SPAN.end - 1);
    let end = start.checked_add(args.range).ok_or(EINVAL)?;
    ensure!(dev, end <= SPAN.end, EINVAL);

    let retained = match advice {
        Advice::Purgeable(addr) if addr != 0 => {
            let before: u32 = ioctl.read(addr)?;
            ensure!(dev, before == 0, EINVAL);
            Some(addr)
        }
        _ => None,
    };
    vm.advise(start..end, advice)?;
    if let Some(addr) = retained {
        ioctl.write(addr, &1u32)?;
    }
    Ok(0)
}

impl Vm {
    /// Follows `advice` on `span`: all of it, or nothing.
    fn advise(self: &Arc<Self>, span: Span, advice: Advice) -> Result {
        let mut svm = self.lock_svm_killable()?;
        if self.is_closed() {
            return Err(ENOENT);
        }
        self.collect_garbage(&mut svm)?;
        let mut changes = self.map.lock_killable()?.change();
        split(&mut changes, span.start)?;
        split(&mut changes, span.end)?;
        let (mut changed, mut removals) = (Spans::new(), Spans::new());
        let mut at = span.start;
        while let Some(vma) = next_in(&changes, at..span.end) {
            sched::check_killed()?;
            at = vma.span.end;
            let attributes = advice.apply(&self.dev, vma)?;
            if attributes == vma.attributes {
                continue;
            }
            let mut vma = vma.clone();
            vma.attributes = attributes;
            if vma.is_mirror() {
                changed.add(vma.span.clone())?;
            } else {
                removals.add(vma.span.clone())?;
            }
            changes.replace(vma)?;
        }
        let removals = Removals::stage(self.aspace(), removals)?;

        // What was mapped as was advised before goes first. A caller who is killed meanwhile has changed
        // nothing: faults bring back what is gone, and none is serviced while the SVM lock is held.
        for edge in [span.start, span.end] {
            // A range lies in one VMA.
            remove_across(&mut svm, edge);
        }
        for span in changed.sorted()?.iter() {
            svm.invalidate_while(to_cpu(&span), || self.go_on())?;
            sched::check_killed()?;
        }

        // From here on nothing fails.
        let retired = changes.commit();
        removals.carry_out(self.svm.context());
        drop(svm);
        self.retire(retired);
        Ok(())
    }
}

/// The first VMA that overlaps `span`.
fn next_in<'a>(changes: &'a Changes<'_>, span: Span) -> Option<&'a Vma> {
    changes.map().overlapping(span).next()
}

/// Splits a mirror at `addr`. A buffer's attributes are advised as a whole, as with xe.
fn split(changes: &mut Changes<'_>, addr: u64) -> Result {
    match changes.map().find(addr) {
        Some(vma) if vma.is_mirror() => changes.split(addr),
        _ => Ok(()),
    }
}

/// Removes the range that begins before `addr` and ends after it, if there is one. One that the CPU unmapped is
/// garbage, with which attributes go.
fn remove_across(svm: &mut Guard<'_, Mirror>, addr: u64) {
    // CAST: Addresses have 64 bits at most.
    let addr = addr as usize;
    if let Some(range) = svm
        .find(addr)
        .filter(|range| range.span().start < addr && !range.has(RangeFlag::Unmapped))
    {
        range.remove();
    }
}

/// Gives the mirrors at `span`, which is that of a range, their default attributes back, if they were
/// bound so.
///
/// To be called for each range that the CPU unmapped, before it goes: none is overlooked then that is
/// unmapped meanwhile. What there is no memory for keeps its attributes: they are advice. Fails with `EINTR` for a
/// caller who is killed.
pub(super) fn reset_unmapped(dev: &Device, maps: &VmaMaps, span: &Span) -> Result {
    let mut at = span.start;
    while at < span.end {
        let map = maps.lock_killable()?;
        let Some(vma) = map.first_from(at) else {
            return Ok(());
        };
        at = vma.span.end;
        if !vma.autoreset || vma.attributes.is_default() {
            continue;
        }
        let Some(part) = vma.part(span) else { continue };
        let span = part.span.clone();
        if let Err(e) = reset(map, part) {
            sched::check_killed()?;
            vxe_sim::drm_dbg!(dev, "attributes at {:#x?} not reset: {e:?}", span);
        }
    }
    Ok(())
}

/// Gives `part` of a mirror its default attributes.
fn reset(map: MapGuard<'_>, part: Vma) -> Result {
    let mut vma = part;
    vma.attributes = Attributes::new(vma.attributes.default_pat);
    let mut changes = map.change();
    changes.cut(&vma.span, |_| Ok(()))?;
    vma.span = changes.merged(&vma);
    let whole = vma.span.clone();
    changes.cut(&whole, |_| Ok(()))?;
    changes.insert(vma)?;
    drop(changes.commit());
    Ok(())
}
