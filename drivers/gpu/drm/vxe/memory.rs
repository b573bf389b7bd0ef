// SPDX-License-Identifier: GPL-2.0

//! Placement of process pages in the device's memory.
//!
//! A [`DeviceMemory`] describes the memory to the gpusvm core. The first VM that needs it creates
//! it; without users it waits in a cache. Each migration to the device allocates a block. An
//! allocation that finds no room evicts others to system memory ([`victims`]).
//!
//! The memory is charged to the dmem cgroup of the process whose pages are migrated, or which
//! creates a buffer ([`charge`]). An allocation of a cgroup at its limit evicts what is charged to
//! that cgroup.
//!
//! Unbind evicts all blocks and refuses new ones, so that processes lose no data.
//!
//! # Locking
//!
//! Migrations and CPU faults take the locks of this module under the mmap lock of a process. Their
//! holders do not sleep, and allocate no memory, except for the cache's lookup under the cache's
//! lock.
//!
//! A migration that finds no room at once unlocks its pages and the mmap lock before it makes room
//! ([`Provider::allocate`](provider::Provider::allocate)).

mod charge;
mod local;
mod precharge;
mod residents;
mod victims;

use crate::{
    driver::Device,
    region,
    vram::Vram, //
};
use charge::Limits;
#[cfg(CONFIG_KUNIT = "y")]
use core::cell::Cell;
use gpusvm::{
    pagemap::{
        dmem,
        provider,
        registry::{
            self,
            Regions, //
        },
        DeviceMemoryCache,
        OwnerId,
        PagemapRef,
        Shrinker, //
    },
    DrmDevice,
    Protocol, //
};
use kernel::{
    device::{
        self,
        Bound, //
    },
    mm::Mm,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::Atomic,
        new_mutex,
        Arc,
        Mutex, //
    },
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta, //
    }, //
};
use kernel_ext::{
    cgroup::dmem::{
        Charge,
        Refused,
        Region,
        Registration,
        Want, //
    },
    sched,
    time::jiffies, //
};
pub(crate) use local::target;
use local::Local;
pub(crate) use precharge::Precharge;
use precharge::Precharges;
use residents::Residents;
use victims::Victims;
pub(crate) use victims::{
    InMotion,
    Policy, //
};
use vxe_sim::port::Port;

/// The pagemap of the device's memory, refcounted.
pub(crate) type DeviceMemory = provider::DeviceMemory<Local>;

/// Protocol of addresses in the mapping device's own memory.
pub(crate) const OWN: Protocol = Protocol::driver(0);

/// Protocol of addresses on the fabric, in the memory of another device.
pub(crate) const PEER: Protocol = Protocol::driver(1);

/// How long unbind waits for blocks that other threads are using, in milliseconds.
const CLOSE_MS: u32 = 10_000;

/// Why an attempt to allocate failed.
enum Shortage<W> {
    /// There is not enough left of this resource.
    OutOf(W),
    /// Any other error.
    Failed(Error),
}

/// Calls `attempt` until it succeeds, with a call to `evict` after each shortage. `evict` evicts
/// one block, and returns `None` if there is no further candidate.
///
/// A block that cannot be evicted is skipped, whatever the error, except `ENOMEM`: every eviction
/// needs system memory, so `make_room()` fails with it. Fails also with `ENOSPC` without a further
/// candidate, and with `EINTR` if the caller is killed.
fn make_room<T, W>(
    mut attempt: impl FnMut() -> Result<T, Shortage<W>>,
    mut evict: impl FnMut(W) -> Option<Result<u64>>,
) -> Result<T> {
    loop {
        sched::check_killed()?;
        let short = match attempt() {
            Ok(done) => return Ok(done),
            Err(Shortage::Failed(e)) => return Err(e),
            Err(Shortage::OutOf(what)) => what,
        };
        match evict(short) {
            None => return Err(ENOSPC),
            Some(Err(e)) if e == ENOMEM => return Err(e),
            Some(_) => {}
        }
    }
}

/// A device's own memory, if the device has any.
#[pin_data]
pub(crate) struct LocalMemory {
    vram: Option<Arc<Vram>>,
    port: Arc<Port>,
    /// Set from the creation of the device until its unbind.
    #[pin]
    cache: Mutex<Option<DeviceMemoryCache<Local>>>,
    /// The dmem region that the memory is charged to. Set as long as the cache is.
    #[pin]
    region: Mutex<Option<Registration<Limits>>>,
    /// The entry by which other devices find the memory. Set as long as the cache is.
    #[pin]
    in_registry: Mutex<Option<registry::Registration>>,
    #[pin]
    residents: Residents,
    /// How many pieces of memory are allocated, and may be evicted later.
    in_motion: Arc<Atomic<usize>>,
    #[pin]
    precharges: Precharges,
}

/// The memory as other devices open it. Holds a reference to the device until it is unregistered.
struct Shared(ARef<Device>);

impl Regions for Shared {
    fn open(&self, region: u32) -> Result<PagemapRef> {
        if usize::try_from(region)? != region::VRAM {
            return Err(ENOENT);
        }
        let pagemap = self.0.memory.pagemap(&self.0)?.ok_or(ENOENT)?;
        Ok(pagemap.pagemap().into())
    }
}

impl LocalMemory {
    /// Creates the memory of a device at `port` of the fabric.
    pub(crate) fn new(vram: Option<Arc<Vram>>, port: Arc<Port>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            vram,
            port,
            cache <- new_mutex!(None, "LocalMemory::cache"),
            region <- new_mutex!(None, "LocalMemory::region"),
            in_registry <- new_mutex!(None, "LocalMemory::in_registry"),
            residents <- Residents::new(),
            in_motion: Arc::new(Atomic::new(0), GFP_KERNEL)?,
            precharges <- Precharges::new(),
        })
    }

    /// Makes the memory available to VMs and to other devices. The caller calls this once, before
    /// it creates a VM, and [`close`](Self::close) later if this succeeded. Fails with `ENOMEM`.
    pub(crate) fn open(&self, parent: &device::Device<Bound>, dev: &Device) -> Result {
        if let Some(vram) = &self.vram {
            let drm = DrmDevice::of(dev);
            let shrinker = Shrinker::new_devm(parent, drm)?;
            let cache = DeviceMemoryCache::new_devm(parent, drm, &shrinker)?;
            let shared = KBox::new(Shared(dev.into()), GFP_KERNEL)?;
            let in_registry = registry::Registration::new_devm(parent, drm, shared)?;
            let region = charge::register(parent, dev, vram)?;
            // These two hold references to the device until `close()`.
            *self.in_registry.lock() = Some(in_registry);
            *self.region.lock() = Some(region);
            *self.cache.lock() = Some(cache);
        }
        Ok(())
    }

    /// Returns the owner of all pages that this device can access in place.
    pub(crate) fn owner(&self) -> OwnerId {
        self.port.owner()
    }

    /// Returns the device's pagemap, which stays in use while the caller holds the result; `None`
    /// for a device without memory.
    ///
    /// Fails with `ENODEV` after unbind, `EINTR` if a signal is pending, `ENOMEM`. Sleeps.
    pub(crate) fn pagemap(&self, dev: &Device) -> Result<Option<DeviceMemory>> {
        let Some(vram) = &self.vram else {
            return Ok(None);
        };
        let cache = self.cache.lock().clone().ok_or(ENODEV)?;
        let pagemap = cache.get_or_create(|| {
            let size = usize::try_from(vram.size())?;
            let provider = Local::new(dev, vram, &self.port);
            DeviceMemory::new(DrmDevice::of(dev), size, Some(self.owner()), provider)
        })?;
        Ok(Some(pagemap))
    }

    /// Charges memory with `attempt`. At a limit, evicts what is charged below that limit by
    /// `policy`, one at a time, until the charge fits.
    ///
    /// Fails with `ENOSPC` if nothing is left to evict, `ENODEV` after unbind, `ENOMEM` without
    /// system memory for an eviction, `EINTR` if the caller is killed, and as `attempt` does.
    /// Sleeps.
    pub(crate) fn charge(
        &self,
        dev: &Device,
        policy: &Policy<'_>,
        mut attempt: impl FnMut(&Arc<Region>) -> Result<Charge, Refused>,
    ) -> Result<Charge> {
        let region = {
            let registered = self.region.lock();
            registered.as_ref().ok_or(ENODEV)?.region().clone()
        };
        let mut victims = Victims::new(dev, policy);
        make_room(
            || {
                attempt(&region).map_err(|refused| match refused {
                    Refused::Limit(limit) => Shortage::OutOf(limit),
                    Refused::Failed(e) => Shortage::Failed(e),
                })
            },
            |limit| victims.free_next(Want::Limit(&limit)),
        )
    }

    /// Charges the process of `mm` for `bytes` before the calling thread migrates pages of that
    /// process. Migrations by this thread take their charge from the result until it is dropped.
    /// Returns `None` if the migration has to charge by itself: when the caller is a thread of the
    /// process, and when the limit does not allow all of `bytes`.
    ///
    /// Fails as [`charge`](Self::charge) and [`dmem::charge`] do. Sleeps; the caller must hold no
    /// pages or locks of the process.
    pub(crate) fn precharge(
        &self,
        dev: &Device,
        mm: &Mm,
        bytes: usize,
    ) -> Result<Option<Precharge<'_>>> {
        if sched::is_thread_of(mm) {
            return Ok(None);
        }
        let pages = u32::try_from(bytes / PAGE_SIZE)?;
        match self.charge(dev, &Policy::PAGES, |region| {
            dmem::charge(mm, region, pages)
        }) {
            Ok(charge) => self.precharges.put(charge).map(Some),
            Err(ENOSPC) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Charges the process of `mm` if the caller is a thread of it and the limits allow that.
    fn try_charge_own(&self, mm: &Mm, pages: u32) -> Option<Charge> {
        if !sched::is_thread_of(mm) {
            return None;
        }
        let region = self.region.lock().as_ref()?.region().clone();
        region.try_charge_pages(pages).ok()
    }

    /// Allocates memory that is charged as `charge` with `attempt`, which fails with `ENOSPC` if
    /// there is no room. In this case evicts others by `policy`, one at a time, until `attempt`
    /// succeeds.
    ///
    /// Fails with `ENOSPC` if nothing is left to evict, `ENOMEM` without system memory for an
    /// eviction, `EINTR` if the caller is killed, and as `attempt` does. Sleeps.
    pub(crate) fn make_room<T>(
        &self,
        dev: &Device,
        policy: &Policy<'_>,
        charge: &Charge,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let mut victims = Victims::new(dev, policy);
        make_room(
            || {
                attempt().map_err(|e| match e {
                    ENOSPC => Shortage::OutOf(()),
                    e => Shortage::Failed(e),
                })
            },
            |()| victims.free_next(Want::Room(charge)),
        )
    }

    /// Returns a number for a use of memory: later uses get larger ones.
    pub(crate) fn tick(&self) -> u64 {
        self.residents.tick()
    }

    /// Counts memory that is allocated and cannot be evicted yet, until the result is dropped.
    pub(crate) fn in_motion(&self) -> InMotion {
        InMotion::new(&self.in_motion)
    }

    /// Evicts all blocks to system memory and refuses new ones. Waits for migrations that are under
    /// way. The device must still be bound.
    pub(crate) fn close(&self, dev: &Device) {
        let in_registry = self.in_registry.lock().take();
        drop(in_registry);
        self.residents.close();
        let started = jiffies::now();
        while self.residents.count() != 0 {
            let mut victims = Victims::new(dev, &Policy::RECLAIM);
            while victims.evict_next(Want::All).is_some() {}
            if self.residents.count() != 0 {
                fsleep(Delta::from_millis(1));
            }
            if jiffies::since(started) > msecs_to_jiffies(CLOSE_MS) {
                pr_err!("vxe: a device goes with pages of processes in its memory\n");
                break;
            }
        }
        let region = self.region.lock().take();
        drop(region);
        let cache = self.cache.lock().take();
        drop(cache);
    }
}

#[cfg(CONFIG_KUNIT = "y")]
#[kunit_tests(vxe_memory)]
mod tests {
    use super::*;

    /// Allocates where there is room at the `first` attempt, or after one of `blocks` could be
    /// evicted. Returns the result, and how many blocks are left.
    fn allocate(first: bool, blocks: &[Result]) -> (Result, usize) {
        let room = Cell::new(first);
        let mut blocks = blocks.iter();
        let result = make_room(
            || match room.get() {
                true => Ok(()),
                false => Err(Shortage::OutOf("room")),
            },
            |what| {
                assert_eq!(what, "room");
                let gone = *blocks.next()?;
                room.set(gone.is_ok());
                Some(gone.map(|()| 4096))
            },
        );
        (result, blocks.len())
    }

    #[test]
    fn blocks_go_until_there_is_room() {
        assert_eq!(allocate(true, &[Ok(())]), (Ok(()), 1));
        assert_eq!(allocate(false, &[Ok(()), Ok(())]), (Ok(()), 1));
        assert_eq!(allocate(false, &[]), (Err(ENOSPC), 0));
    }

    /// A block of a dying process, for example.
    #[test]
    fn a_block_that_cannot_go_is_passed_by() {
        for error in [EBUSY, EFAULT, EIO, EAGAIN, ENODEV, EINVAL] {
            assert_eq!(allocate(false, &[Err(error), Ok(())]), (Ok(()), 0));
            assert_eq!(allocate(false, &[Err(error); 3]), (Err(ENOSPC), 0));
        }
    }

    #[test]
    fn no_block_goes_without_system_memory() {
        let blocks = [Err(EBUSY), Err(ENOMEM), Ok(())];
        assert_eq!(allocate(false, &blocks), (Err(ENOMEM), 1));
    }

    #[test]
    fn other_errors_of_the_allocation_evict_nothing() {
        let result = make_room(
            || Err::<(), Shortage<()>>(Shortage::Failed(ENODEV)),
            |()| Some(Err(EINVAL)),
        );
        assert_eq!(result, Err(ENODEV));
    }
}
