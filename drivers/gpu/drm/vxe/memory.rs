// SPDX-License-Identifier: GPL-2.0

//! The device's memory as a place where pages of processes live.
//!
//! A [`DeviceMemory`] describes it to the kernel. It is made when a VM needs it first, and waits in a cache
//! when no VM has it. What one migration brings is a block; blocks are kept in the order in which they
//! came ([`residents`]), and the oldest go back to system memory when room is wanted.
//!
//! It is charged to the dmem cgroup of the process whose pages are there, or which makes a buffer
//! ([`charge`]). A cgroup that is at its limit has its own blocks make way.
//!
//! Before the device is unbound all blocks go, and no new one comes: processes lose nothing.
//!
//! # Locking
//!
//! The locks here are taken by migrations and CPU faults, under the mmap lock of some process. Under
//! them nothing sleeps, and no memory is allocated but under that of the cache's lookup.
//!
//! A migration that finds no room at once lets its pages and that lock go, and has room made then
//! ([`Provider::allocate`](provider::Provider::allocate)).

mod advance;
mod charge;
mod local;
mod residents;

use crate::{
    driver::Device,
    region,
    stats::Stat,
    vram::Vram, //
};
pub(crate) use advance::Advance;
use advance::Advances;
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
        Chooser,
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
use residents::Residents;
use vxe_sim::port::Port;

/// The device's memory, as the kernel knows it. A counted reference.
pub(crate) type DeviceMemory = provider::DeviceMemory<Local>;

/// Addresses in the memory of the device that uses them.
pub(crate) const OWN: Protocol = Protocol::driver(0);

/// Addresses on the fabric, in the memory of another device.
pub(crate) const PEER: Protocol = Protocol::driver(1);

/// How long an unbinding waits for blocks that somebody works on, in milliseconds.
const CLOSE_MS: u32 = 10_000;

/// Why something cannot be had.
enum Short<W> {
    /// There is not enough left of something.
    Of(W),
    /// Another reason.
    Not(Error),
}

/// Has something by `attempt`, and what it is short of made room for by `evict`, which has one block after
/// the other go, and returns none when there is no more.
///
/// A block that cannot go, whatever has become of its owner, is passed by for the next. Only system memory
/// is what they all need: without it this fails with `ENOMEM`. It fails with `ENOSPC` when nothing is left
/// that could go, and with `EINTR` for a caller who is killed.
fn make_room<T, W>(
    mut attempt: impl FnMut() -> Result<T, Short<W>>,
    mut evict: impl FnMut(W) -> Option<Result<u64>>,
) -> Result<T> {
    loop {
        sched::check_killed()?;
        let short = match attempt() {
            Ok(done) => return Ok(done),
            Err(Short::Not(e)) => return Err(e),
            Err(Short::Of(what)) => what,
        };
        match evict(short) {
            None => return Err(ENOSPC),
            Some(Err(e)) if e == ENOMEM => return Err(e),
            Some(_) => {}
        }
    }
}

/// A device's memory; there may be none.
#[pin_data]
pub(crate) struct LocalMemory {
    vram: Option<Arc<Vram>>,
    port: Arc<Port>,
    /// From when the device is made until it is unbound.
    #[pin]
    cache: Mutex<Option<DeviceMemoryCache<Local>>>,
    /// What it is charged to; as long.
    #[pin]
    region: Mutex<Option<Registration<Limits>>>,
    /// What others find it by; as long.
    #[pin]
    in_registry: Mutex<Option<registry::Registration>>,
    #[pin]
    residents: Residents,
    #[pin]
    advances: Advances,
}

/// The memory, for other devices. It keeps the device, until the offer ends.
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
    /// The memory of a device that is on the fabric at `port`.
    pub(crate) fn new(vram: Option<Arc<Vram>>, port: Arc<Port>) -> impl PinInit<Self> {
        pin_init!(Self {
            vram,
            port,
            cache <- new_mutex!(None, "LocalMemory::cache"),
            region <- new_mutex!(None, "LocalMemory::region"),
            in_registry <- new_mutex!(None, "LocalMemory::in_registry"),
            residents <- Residents::new(),
            advances <- Advances::new(),
        })
    }

    /// Makes it ready for VMs, and for other devices. To be called once, before there are any; then,
    /// unless it fails, [`close`](Self::close) has to be. Fails with `ENOMEM`.
    pub(crate) fn open(&self, parent: &device::Device<Bound>, dev: &Device) -> Result {
        if let Some(vram) = &self.vram {
            let drm = DrmDevice::of(dev);
            let shrinker = Shrinker::new_devm(parent, drm)?;
            let cache = DeviceMemoryCache::new_devm(parent, drm, &shrinker)?;
            let shared = KBox::new(Shared(dev.into()), GFP_KERNEL)?;
            let in_registry = registry::Registration::new(drm, shared)?;
            let region = charge::register(parent, dev, vram)?;
            // Both of these keep the device, until `close()`.
            *self.in_registry.lock() = Some(in_registry);
            *self.region.lock() = Some(region);
            *self.cache.lock() = Some(cache);
        }
        Ok(())
    }

    /// The owner that pages have which this device reaches where they are.
    pub(crate) fn owner(&self) -> OwnerId {
        self.port.owner()
    }

    /// The memory, in use as long as the result is kept; none if there is none.
    ///
    /// Fails with `ENODEV` if the device is gone, `EINTR` if a signal comes first, `ENOMEM`. Sleeps.
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

    /// Charges by `attempt`. When a limit is hit, old blocks of those below it go to system memory, one
    /// after the other, until there is room. With `any`, also those that came just now.
    ///
    /// Fails with `ENOSPC` when nothing more can go, with `ENODEV` when the device is gone, `ENOMEM` when
    /// there is no system memory for what goes, `EINTR` for a caller who is killed, and as `attempt` does.
    /// Sleeps.
    pub(crate) fn charge(
        &self,
        dev: &Device,
        any: bool,
        mut attempt: impl FnMut(&Arc<Region>) -> Result<Charge, Refused>,
    ) -> Result<Charge> {
        let region = {
            let registered = self.region.lock();
            registered.as_ref().ok_or(ENODEV)?.region().clone()
        };
        let newest = self.residents.newest();
        make_room(
            || {
                attempt(&region).map_err(|refused| match refused {
                    Refused::Limit(limit) => Short::Of(limit),
                    Refused::Failed(e) => Short::Not(e),
                })
            },
            |limit| self.evict_next(dev, newest, any, Want::Limit(&limit)),
        )
    }

    /// Charges the process that `mm` is of for `bytes`, of which what the calling thread moves until the
    /// result is dropped takes what it needs. None if that is left to the time when it is known: to a thread
    /// of the process itself, or where not all of it can be had.
    ///
    /// Fails as [`charge`](Self::charge) and [`dmem::charge`] do. Sleeps; to be called before pages or
    /// locks of the process are taken.
    pub(crate) fn advance(
        &self,
        dev: &Device,
        mm: &Mm,
        bytes: usize,
    ) -> Result<Option<Advance<'_>>> {
        if sched::is_thread_of(mm) {
            return Ok(None);
        }
        let pages = u32::try_from(bytes / PAGE_SIZE)?;
        match self.charge(dev, false, |region| dmem::charge(mm, region, pages)) {
            Ok(charge) => self.advances.put(charge).map(Some),
            Err(ENOSPC) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Charges a process that the calling thread is one of, if it is, and if its limits allow that.
    fn try_charge_own(&self, mm: &Mm, pages: u32) -> Option<Charge> {
        if !sched::is_thread_of(mm) {
            return None;
        }
        let region = self.region.lock().as_ref()?.region().clone();
        region.try_charge_pages(pages).ok()
    }

    /// Allocates what is charged as `charge` by `attempt`, which fails with `ENOSPC` when there is no
    /// room: then old blocks go to system memory, one after the other, until there is. With `any`, also
    /// those that came just now.
    ///
    /// Fails with `ENOSPC` when nothing more can go, `ENOMEM` when there is no system memory for it
    /// either, `EINTR` for a caller who is killed, and as `attempt` does. Sleeps.
    pub(crate) fn make_room<T>(
        &self,
        dev: &Device,
        any: bool,
        charge: &Charge,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let newest = self.residents.newest();
        make_room(
            || {
                attempt().map_err(|e| match e {
                    ENOSPC => Short::Of(()),
                    e => Short::Not(e),
                })
            },
            |()| self.evict_next(dev, newest, any, Want::Room(charge)),
        )
    }

    /// Has the oldest block that is not newer than `newest` go to system memory, of those that have to
    /// give way to who wants it; none if there is no such block. Returns how many bytes are free for that.
    /// Fails as [`Block::evict`](provider::Block::evict) does.
    fn evict_next(
        &self,
        dev: &Device,
        newest: u64,
        any: bool,
        want: Want<'_>,
    ) -> Option<Result<u64>> {
        let mut chooser = Chooser::new(want);
        let block = loop {
            match self.residents.next_victim(newest, any, &mut chooser) {
                None if chooser.try_harder() => {}
                found => break found?,
            }
        };
        let kib = block.pages() as u64 * 4;
        let why = match want {
            Want::Limit(_) => "the limit of a cgroup",
            Want::Room(_) => "room",
            Want::All => "the device goes",
        };
        let done = block.evict();
        match done {
            Ok(()) => {
                vxe_sim::drm_dbg!(dev, "evicted {} ({why})", block.memory());
                dev.stats.inc(Stat::SvmEvictCount);
                dev.stats.add(Stat::SvmEvictKb, kib);
            }
            Err(e) => {
                vxe_sim::drm_dbg!(dev, "cannot evict {} ({why}): {e:?}", block.memory());
            }
        }
        Some(done.map(|()| kib * 1024))
    }

    /// Brings all that is there back to system memory, for good: nothing comes there any more. Waits
    /// for what is on its way. The device must be bound still.
    pub(crate) fn close(&self, dev: &Device) {
        let in_registry = self.in_registry.lock().take();
        drop(in_registry);
        self.residents.close();
        let started = jiffies::now();
        while self.residents.count() != 0 {
            let newest = self.residents.newest();
            while self.evict_next(dev, newest, true, Want::All).is_some() {}
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

    /// Allocates where there is room for `first` more, or when one of the blocks has gone. Returns what
    /// comes of it, and how many blocks are left.
    fn allocate(first: bool, blocks: &[Result]) -> (Result, usize) {
        let room = Cell::new(first);
        let mut blocks = blocks.iter();
        let result = make_room(
            || match room.get() {
                true => Ok(()),
                false => Err(Short::Of("room")),
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

    /// A dying owner, say.
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
            || Err::<(), Short<()>>(Short::Not(ENODEV)),
            |()| Some(Err(EINVAL)),
        );
        assert_eq!(result, Err(ENODEV));
    }
}
