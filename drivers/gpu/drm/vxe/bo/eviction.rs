// SPDX-License-Identifier: GPL-2.0

//! Moves of buffers between device memory and system memory.
//!
//! When device memory is short, a buffer is *evicted*: its contents are copied to system memory, which
//! is charged to the memory cgroup of the process that created the buffer. Without that memory the
//! buffer stays. The next use by the GPU *brings* it back, and evicts others for that. As in xe, a
//! buffer that may be in system memory comes back only if there is free device memory, and is mapped
//! in system memory otherwise. A use by the CPU maps it where it is.
//!
//! Before the contents are copied, all mappings of the GPU and the CPU are removed, and none is made
//! until the copy is complete. A copy that fails leaves the contents where they were.
//!
//! For the locks see [`residence`](super::residence).

use super::{
    residence::{
        Located,
        Place,
        Residence,
        VramMemory, //
    },
    segments::Segments,
    Bo,
    BoData,
    BoKind, //
};
use crate::{
    driver::Device,
    gpu::{
        CopyRun,
        Target, //
    },
    memory::Policy,
    region::{
        Region,
        Reservation,
        System, //
    },
    stats::Stat,
    vm::Vm, //
};
use gpusvm::pagemap::dmem;
use kernel::{
    device::Bound,
    drm::gem::BaseObject,
    mm::Mm,
    page::{
        Page,
        PAGE_SIZE, //
    },
    platform,
    prelude::*,
    sizes::SZ_2M,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};
use kernel_ext::{
    cgroup::dmem::Charge,
    sched,
    time::jiffies, //
};
use vxe_sim::{
    gem::{
        self,
        Listing, //
    },
    system_pages::SystemPages, //
};

/// How often a buffer is brought to device memory for one use. Others may evict it at once.
const MAX_TRIES: u32 = 64;

/// The system memory of a buffer that may be in device memory, too.
pub(super) struct SystemMemory {
    pub(super) segments: Segments,
    pages: SystemPages,
    #[expect(dead_code, reason = "only dropped")]
    reservation: Reservation,
}

impl SystemMemory {
    /// Allocates memory for `bo`, zeroed if that is asked for, charged to the memory cgroup of the
    /// process that created the buffer, and maps it for the device. Never invokes the OOM killer.
    ///
    /// Fails with `ENOMEM`, also if the region is full, `ENODEV` if the device is gone, and `EINTR`
    /// if the caller is killed. Sleeps.
    fn new(bo: &Bo, is_zeroed: bool) -> Result<Self> {
        let memcg = bo.memcg.as_ref().ok_or(EINVAL)?;
        memcg.charge(|| Self::new_charged(bo, is_zeroed))
    }

    fn new_charged(bo: &Bo, is_zeroed: bool) -> Result<Self> {
        let mut reservation = Reservation::new(system(bo.dev()).ok_or(ENOMEM)?);
        // CAST: Widens.
        reservation.grow(bo.size() as u64)?;
        // The device may be unbound while nothing but the allocation is waited for.
        let memory = SystemPages::allocate(bo.size(), is_zeroed)?;
        sched::check_killed()?;
        let mapped = gem::while_registered(bo, |dev| -> Result<_> {
            let parent: &platform::Device<Bound> = dev.as_ref();
            memory.map(parent.as_ref())
        });
        let pages = mapped.ok_or(ENODEV)??;
        let mut segments = Segments::new();
        pages.for_each(|addr, len| segments.add(Target::System(addr), len))?;
        Ok(Self {
            segments,
            pages,
            reservation,
        })
    }

    /// Calls `f` with the page at `index`, if there is one.
    pub(super) fn with_page<R>(&self, index: usize, f: impl FnOnce(&Page) -> R) -> Option<R> {
        self.pages.with_page(index, f)
    }
}

/// Returns the region of system memory.
fn system(dev: &Device) -> Option<&Arc<System>> {
    dev.regions.iter().find_map(|region| match region {
        Region::System(system) => Some(system),
        Region::Vram(_) => None,
    })
}

/// Copies contents; zeros if `from` is none. Fails with `EINTR` for a killed caller, `EINVAL` for
/// places of different sizes, and as the copy engine does.
pub(super) fn copy(dev: &Device, from: Option<&Segments>, to: &Segments) -> Result {
    let mut done = 0;
    while done < to.size() {
        sched::check_killed()?;
        let (target, mut len) = to.target(done).ok_or(EINVAL)?;
        let source = match from {
            Some(from) => {
                let (source, contiguous) = from.target(done).ok_or(EINVAL)?;
                len = len.min(contiguous);
                Some(source)
            }
            None => None,
        };
        len = len.min(SZ_2M as u64);
        dev.copies.run([CopyRun {
            from: source,
            to: target,
            len,
        }])?;
        done += len;
    }
    Ok(())
}

/// Moves the contents of `bo` to `to`. The caller has begun the move: `taken` is the buffer's memory.
///
/// On failure the contents stay where they are. Fails as [`copy`] does.
fn relocate(bo: &Bo, taken: Place, to: Place) -> Result {
    let (dev, started) = (bo.dev(), jiffies::now());
    // Nobody maps the memory any more, as the buffer is moving.
    if taken.segments().is_some() {
        // What has no VMA is in no page table. A VMA that is new waits for the end of the move.
        if bo.retention.is_mapped() {
            dev.vms.for_each(bo.vm, |vm| vm.zap_buffer(bo));
        }
        BoKind::unmap_cpu(bo);
    }
    let done = match to.segments() {
        Some(segments) => copy(dev, taken.segments(), segments),
        None => Err(EINVAL),
    };
    let (place, rest) = match done {
        Ok(()) => (to, taken),
        Err(_) => (taken, to),
    };
    bo.residence.moved(jiffies::since(started));
    bo.residence.lock().end_move(bo, place);
    drop(rest);
    done
}

/// Who is charged for device memory.
#[derive(Clone, Copy)]
pub(crate) enum Payer<'a> {
    /// The calling thread's cgroup.
    Caller,
    /// The process with this address space.
    Process(&'a Mm),
}

/// How the GPU may map a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// In a region that the buffer may be in.
    Placement,
    /// Wherever it is. The device memory could not be charged to the process.
    Anywhere,
}

impl BoData {
    /// Returns the first buffer in the order of use, up to number `last`, that `policy` and
    /// `may_take` allow to evict, and its number. Sets `later` if there is one that may be evicted
    /// later.
    pub(crate) fn next_victim(
        dev: &Device,
        last: u64,
        policy: &Policy<'_>,
        mut may_take: impl FnMut(&Bo, &Charge) -> bool,
        later: &mut bool,
    ) -> Option<(u64, ARef<Bo>)> {
        let kind = dev.bo_kind.as_ref()?;
        let mut next = 0;
        loop {
            sched::check_killed().ok()?;
            let (number, bo) = kind
                .first_listed(Listing::Evictable, next)
                .filter(|(number, _)| *number <= last)?;
            let is_allowed = match &bo.residence.lock().place {
                Place::Vram(memory) => may_take(&bo, &memory.charge),
                _ => false,
            };
            if is_allowed && !policy.spares.is_some_and(|vm| Self::is_used_by(&bo, vm)) {
                if policy.any || bo.residence.is_ripe() {
                    return Some((number, bo));
                }
                *later = true;
            }
            next = number.wrapping_add(1);
        }
    }

    /// Returns whether the buffer belongs to `vm`, or is bound there.
    fn is_used_by(bo: &Bo, vm: &Vm) -> bool {
        bo.vm == Some(vm.identity()) || vm.maps(bo)
    }

    /// Copies the contents of `bo` to system memory, and frees its device memory. Returns the number
    /// of bytes freed.
    ///
    /// Fails with `EBUSY` for a buffer that is not in device memory any more, is moving, pinned, or
    /// whose contents are not needed, with `ENOMEM`, `ENODEV` if the device is gone, and with `EINTR`
    /// if the caller is killed. Sleeps. The caller holds no lock of a buffer or of a map of VMAs.
    pub(crate) fn evict(bo: &Bo) -> Result<u64> {
        fn check(located: &Located) -> Result {
            match located.place {
                Place::Vram(_) if located.pins == 0 => Ok(()),
                _ => Err(EBUSY),
            }
        }
        // Checked before the memory is allocated, and again when it is there.
        bo.check_needed().map_err(|_| EBUSY)?;
        check(&bo.residence.lock())?;
        let memory = SystemMemory::new(bo, false)?;
        let taken = bo.retention.while_needed(|| -> Result<Place> {
            let mut located = bo.residence.lock();
            check(&located)?;
            Ok(located.begin_move(bo))
        });
        let taken = taken.map_err(|_| EBUSY)??;
        let _leaving = bo.dev().memory.in_motion();
        relocate(bo, taken, Place::System(memory))?;
        // CAST: Widens.
        let size = bo.size() as u64;
        bo.dev().stats.inc(Stat::BoEvictCount);
        bo.dev().stats.add(Stat::BoEvictKb, size / 1024);
        Ok(size)
    }

    /// Makes room for `bo` in device memory with `policy`, charged to `payer`.
    ///
    /// Fails with `ENOSPC` if there is no room, and as [`LocalMemory::charge`] and [`Vram::allocate`]
    /// do.
    ///
    /// [`LocalMemory::charge`]: crate::memory::LocalMemory::charge
    /// [`Vram::allocate`]: crate::vram::Vram::allocate
    pub(super) fn allocate_vram(
        dev: &Device,
        size: u64,
        payer: Payer<'_>,
        policy: &Policy<'_>,
    ) -> Result<VramMemory> {
        let memory = &dev.memory;
        let vram = dev.regions.iter().find_map(|region| match region {
            Region::Vram(vram) => Some(vram),
            Region::System(_) => None,
        });
        let vram = vram.ok_or(ENOMEM)?;
        if size > vram.size() {
            return Err(ENOMEM);
        }
        let pages = u32::try_from(size / PAGE_SIZE as u64).map_err(|_| ENOMEM)?;
        let charge = memory.charge(dev, policy, |region| match payer {
            Payer::Caller => region.try_charge(size),
            Payer::Process(mm) => dmem::charge(mm, region, pages),
        })?;
        let (allocation, arriving) = memory.make_room(dev, policy, &charge, || {
            let arriving = memory.in_motion();
            Ok((vram.allocate(size, GFP_KERNEL_ACCOUNT)?, arriving))
        })?;
        let segments = Segments::of(&allocation)?;
        Ok(VramMemory {
            allocation,
            segments,
            arriving: Some(arriving),
            charge,
        })
    }

    /// Gives `bo`, which may be in device memory, memory that the GPU may use, for a use by the GPU.
    /// Returns how the GPU may map it. Others may evict it at once.
    ///
    /// Fails with `EACCES` if the contents may be or were purged, `ENOMEM`, also without room in
    /// device memory, `ENODEV` if the device is gone, `EBUSY` if others keep evicting the buffer, and
    /// `EINTR` if the caller is killed. Sleeps. The caller holds no lock of a buffer or of a map of
    /// VMAs.
    pub(crate) fn make_resident(bo: &Bo, payer: Payer<'_>, policy: &Policy<'_>) -> Result<Allowed> {
        for _ in 0..MAX_TRIES {
            bo.check_needed().map_err(|_| EACCES)?;
            let located = bo.residence.lock_settled()?;
            let (is_pinned, state) = (located.pins != 0, located.place.segments().is_some());
            let is_in_vram = matches!(located.place, Place::Vram(_));
            drop(located);
            if is_in_vram {
                bo.residence.touch(bo);
                return Ok(Allowed::Placement);
            }
            if is_pinned {
                return Ok(Allowed::Placement);
            }
            // A buffer that may be in system memory evicts no other to leave it.
            let may_stay = bo.may_be_in_system();
            let policy = if may_stay && state {
                &Policy::FREE_ONLY
            } else {
                policy
            };
            let brought = Self::allocate_vram(bo.dev(), bo.size() as u64, payer, policy)
                .and_then(|memory| Self::bring(bo, memory));
            match brought {
                Ok(()) => {}
                Err(e) if e == EINTR || e == EACCES => return Err(e),
                Err(_) if may_stay => {
                    Self::populate_system(bo)?;
                    return Ok(Allowed::Placement);
                }
                // No thread of the process can be asked for the charge at the moment, or it exits.
                Err(e) if e == ETIMEDOUT || e == ESRCH => {
                    Self::populate_system(bo)?;
                    return Ok(Allowed::Anywhere);
                }
                Err(ENOSPC) => return Err(ENOMEM),
                Err(e) => return Err(e),
            }
        }
        Err(EBUSY)
    }

    /// Moves the contents of `bo` to this memory, unless it is in device memory already, or pinned.
    ///
    /// Fails with `EACCES` if the contents may be or were purged, and as [`relocate`] does.
    fn bring(bo: &Bo, memory: VramMemory) -> Result {
        loop {
            drop(bo.residence.lock_settled()?);
            let taken = bo.retention.while_needed(|| {
                let mut located = bo.residence.lock();
                if located.is_moving() {
                    return Err(EAGAIN);
                }
                let stays = located.pins != 0 || matches!(located.place, Place::Vram(_));
                Ok((!stays).then(|| located.begin_move(bo)))
            });
            match taken.map_err(|_| EACCES)? {
                Ok(Some(taken)) => return relocate(bo, taken, Place::Vram(memory)),
                Ok(None) => return Ok(()),
                // Another thread moves it again.
                Err(_) => {}
            }
        }
    }

    /// Gives `bo` zeroed system memory, unless it has memory.
    ///
    /// Fails with `EACCES` if the contents may be or were purged, `ENOMEM`, `ENODEV` if the device is
    /// gone, and `EINTR` for a killed caller. Sleeps.
    pub(super) fn populate_system(bo: &Bo) -> Result {
        if bo.residence.lock_settled()?.place.segments().is_some() {
            return Ok(());
        }
        let memory = SystemMemory::new(bo, true)?;
        let done = bo.retention.while_needed(|| {
            let mut located = bo.residence.lock();
            match located.place {
                Place::Nowhere if !located.is_moving() => {
                    located.put(bo, Place::System(memory));
                    None
                }
                // Another thread was first.
                _ => Some(memory),
            }
        });
        done.map(drop).map_err(|_| EACCES)
    }

    /// Calls `f` with the page at `index` of `bo`, which is not purged, for a mapping by the CPU. The
    /// buffer gets system memory if it has none.
    pub(super) fn with_movable_page<R>(
        bo: &Bo,
        index: usize,
        f: impl FnOnce(&Page) -> R,
    ) -> Option<R> {
        loop {
            bo.retention.check().ok()?;
            let located = bo.residence.lock_settled().ok()?;
            if located.place.segments().is_some() {
                return Residence::with_page(&located, index, f);
            }
            drop(located);
            Self::populate_system(bo).ok()?;
        }
    }

    /// Keeps the memory of `bo` where it is until [`unpin`](Self::unpin). It gets system memory if it
    /// has none. Fails as [`populate_system`](Self::populate_system) does.
    pub(super) fn pin_movable(bo: &Bo) -> Result {
        loop {
            let mut located = bo.residence.lock_settled()?;
            if located.place.segments().is_some() {
                located.pins += 1;
                located.update(bo);
                return Ok(());
            }
            drop(located);
            Self::populate_system(bo)?;
        }
    }

    /// Ends a [`pin_movable`](Self::pin_movable).
    pub(super) fn unpin_movable(bo: &Bo) {
        let mut located = bo.residence.lock();
        located.pins = located.pins.saturating_sub(1);
        located.update(bo);
    }
}
