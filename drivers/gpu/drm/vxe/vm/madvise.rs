// SPDX-License-Identifier: GPL-2.0

//! MADVISE: memory attributes of a range of addresses.
//!
//! Attributes belong to VMAs, which are split at the ends of the advised range. Ranges whose
//! attributes change are invalidated, as the attributes may change how the next fault maps them.
//! Advice for addresses where nothing is bound is ignored, as in xe.
//!
//! For the locks see [`vm`](super).

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
        LockedVmaMap, //
        MapGuard,
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
    bo::Hold,
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

/// An advice.
enum Advice {
    /// The preferred location.
    Preferred(Location, MigrationPolicy),
    /// Which processors may do atomics.
    Atomics(Atomics),
    /// The caching.
    Pat(PatIndex),
    /// Whether the contents of buffers are needed.
    Purgeable {
        needed: bool,
        /// The user address where to store whether all contents are there, or 0.
        retained: u64,
    },
}

impl Advice {
    /// Checks the arguments. Fails with `EINVAL` as xe does.
    fn new(dev: &Device, args: &uapi::drm_xe_madvise) -> Result<Self> {
        match args.type_ {
            uapi::DRM_XE_MEM_RANGE_ATTR_PREFERRED_LOC => {
                let (fd, policy, region, reserved) = args.preferred_mem_loc();
                ensure!(dev, reserved == 0, EINVAL);
                let policy = MigrationPolicy::new(dev, policy.into())?;
                // CAST: The uAPI stores the signed descriptor in an unsigned field.
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
                Ok(Self::Purgeable {
                    needed: state == uapi::DRM_XE_VMA_PURGEABLE_STATE_WILLNEED,
                    retained,
                })
            }
            _ => {
                ensure!(dev, false, EINVAL);
                Err(EINVAL)
            }
        }
    }

    /// Returns the attributes of `vma` after the advice. Fails with `EINVAL` if the VMA cannot have
    /// them.
    fn apply(&self, dev: &Device, vma: &Vma) -> Result<Attributes> {
        let mut attributes = vma.attributes.clone();
        match self {
            // The placement of a buffer was chosen at its creation.
            Self::Preferred(location, policy) if vma.is_mirror() => {
                (attributes.location, attributes.policy) = (location.clone(), *policy);
            }
            Self::Preferred(..) => {}
            Self::Purgeable { needed, .. } => {
                if matches!(vma.backing, Backing::Bo { .. }) {
                    attributes.needed = *needed;
                }
            }
            // As in xe: the memory does not migrate to the device, whatever the atomics.
            Self::Atomics(Atomics::Undefined | Atomics::Global | Atomics::Cpu)
                if vma.is_userptr() => {}
            Self::Atomics(atomics) => {
                if let Backing::Bo { bo, .. } = &vma.backing {
                    check_atomics(*atomics, bo.placement())?;
                }
                attributes.atomics = *atomics;
            }
            Self::Pat(pat) => {
                if let Backing::Bo { bo, .. } = &vma.backing {
                    // Checked at VM_BIND as well: a GPU that does not snoop could read the previous
                    // contents of the memory while the CPU's caches are not written back.
                    ensure!(dev, pat.is_coherent() || !bo.is_cpu_cached(), EINVAL);
                } else if vma.is_userptr() {
                    ensure!(dev, pat.is_coherent(), EINVAL);
                }
                attributes.pat = *pat;
            }
        }
        Ok(attributes)
    }
}

/// Checks whether a buffer of this placement supports such atomics. In system memory the CPU does,
/// and the GPU, which is coherent. Atomics of both need a buffer that can migrate. Fails with
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
/// Fails as xe does: with `EINVAL`, `ENOENT` for a closed VM and for a device that does not exist,
/// `ENODEV` for one that is unbound, `ENOLINK` for one without a fast interconnect, `EINTR` for a
/// killed process, `EFAULT`, `ENOMEM`.
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
    // Addresses may be in canonical form, sign-extended as the CPU has them.
    let start = args.start & (SPAN.end - 1);
    let end = start.checked_add(args.range).ok_or(EINVAL)?;
    ensure!(dev, end <= SPAN.end, EINVAL);

    let retained = match advice {
        Advice::Purgeable { retained, .. } if retained != 0 => {
            let before: u32 = ioctl.read(retained)?;
            ensure!(dev, before == 0, EINVAL);
            Some(retained)
        }
        _ => None,
    };
    let is_retained = vm.advise(start..end, advice)?;
    if let Some(addr) = retained {
        ioctl.write(addr, &u32::from(is_retained))?;
    }
    Ok(0)
}

impl Vm {
    /// Applies `advice` to all of `span`, or to none of it. Returns false if a buffer there was
    /// purged; on such a buffer, advice on its contents has no effect.
    fn advise(self: &Arc<Self>, span: Span, advice: Advice) -> Result<bool> {
        let mut svm = self.lock_svm_killable()?;
        if self.is_closed() {
            return Err(ENOENT);
        }
        self.collect_garbage(&mut svm)?;
        let mut changes = self.map.lock_killable()?.change();
        split(&mut changes, span.start)?;
        split(&mut changes, span.end)?;
        let (mut changed, mut removals) = (Spans::new(), Spans::new());
        let mut is_retained = true;
        let mut at = span.start;
        while let Some(vma) = next_in(&changes, at..span.end) {
            sched::check_killed()?;
            at = vma.span.end;
            // Held until the VMA is replaced, so that the contents are needed from here on.
            let mut revived = None;
            match (&advice, &vma.backing) {
                (Advice::Purgeable { needed: true, .. }, Backing::Bo { bo, .. }) => {
                    revived = Hold::revive(bo);
                    if revived.is_none() {
                        is_retained = false;
                        continue;
                    }
                }
                (Advice::Purgeable { needed: false, .. }, Backing::Bo { bo, .. })
                    if !bo.prepare_unneeded()? =>
                {
                    is_retained = false;
                    continue;
                }
                _ => {}
            }
            let attributes = advice.apply(&self.dev, vma)?;
            if attributes == vma.attributes {
                continue;
            }
            let mut vma = vma.clone();
            vma.attributes = attributes;
            match advice {
                // What is mapped stays so until it is purged.
                Advice::Purgeable { .. } => {}
                _ if vma.is_mirror() => changed.add(vma.span.clone())?,
                _ => removals.add(vma.span.clone())?,
            }
            changes.replace(vma)?;
            drop(revived);
        }
        let removals = Removals::stage(self.aspace(), removals)?;

        // Invalidate what was mapped with the old attributes before the commit. If the caller is
        // killed meanwhile, nothing has changed: faults map the ranges again, and none is serviced
        // while the SVM lock is held.
        for edge in [span.start, span.end] {
            // A range must lie in one VMA.
            remove_across(&mut svm, edge);
        }
        for span in changed.sorted()?.iter() {
            svm.invalidate_while(to_cpu(&span), || self.check_continue())?;
            sched::check_killed()?;
        }

        // No error from here on.
        removals.apply(self.svm.context());
        let retired = changes.commit();
        drop(svm);
        // From here on, buffers whose contents are not needed may be purged.
        self.retire(retired);
        Ok(is_retained)
    }
}

/// Returns the first VMA that overlaps `span`.
fn next_in<'a>(changes: &'a Changes<'_>, span: Span) -> Option<&'a Vma> {
    changes.map().overlapping(span).next()
}

/// Splits a mirror at `addr`. The attributes of a buffer are set as a whole, as in xe.
fn split(changes: &mut Changes<'_>, addr: u64) -> Result {
    match changes.map().find(addr) {
        Some(vma) if vma.is_mirror() => changes.split(addr),
        _ => Ok(()),
    }
}

/// Removes the range that crosses `addr`, if there is one. A range that the CPU unmapped stays:
/// garbage collection removes it and resets its attributes.
fn remove_across(svm: &mut Guard<'_, Mirror>, addr: u64) {
    // CAST: Addresses have at most 64 bits.
    let addr = addr as usize;
    if let Some(range) = svm
        .find(addr)
        .filter(|range| range.span().start < addr && !range.has(RangeFlag::Unmapped))
    {
        range.remove();
    }
}

/// Resets the attributes of the mirrors in `span`, the addresses of a range, to their defaults, if
/// they were bound with autoreset.
///
/// Called for each range that the CPU unmapped, before the range is removed, so that no range
/// unmapped meanwhile is missed. Without memory the attributes stay as they are: they are hints.
/// Fails with `EINTR` for a killed caller.
pub(super) fn reset_unmapped(dev: &Device, maps: &LockedVmaMap, span: &Span) -> Result {
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

/// Resets the attributes of `part` of a mirror.
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
