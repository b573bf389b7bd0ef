// SPDX-License-Identifier: GPL-2.0

//! The device's memory as a place where pages of processes live.
//!
//! A [`Pagemap`] describes it to the kernel. It is made when a VM needs it first, and waits in a cache
//! when no VM has it. What one migration brings is a block; blocks are kept in the order in which they
//! came ([`residents`]), and the oldest go back to system memory when room is wanted.
//!
//! Before the device is unbound all blocks go, and no new one comes: processes lose nothing.
//!
//! # Locking
//!
//! The locks here are taken by migrations and CPU faults, under the mmap lock of some process. Under
//! them nothing sleeps, and no memory is allocated but under that of the cache's lookup.

mod local;
mod residents;

use crate::{
    driver::Device,
    region,
    stats::Stat,
    vram::Vram, //
};
#[cfg(CONFIG_KUNIT = "y")]
use core::cell::Cell;
use core::ptr::NonNull;
use gpusvm::{
    pagemap::{
        fabric::Port,
        offer::{
            Offer,
            Offered, //
        },
        provider,
        PageMapRef,
        PagemapCache,
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
use kernel_ext::jiffies;
pub(crate) use local::target;
use local::Local;
use residents::Residents;

/// The device's memory, as the kernel knows it. A counted reference.
pub(crate) type Pagemap = provider::Pagemap<Local>;

/// Addresses in the memory of the device that uses them.
pub(crate) const OWN: Protocol = Protocol::driver(0);

/// Addresses on the fabric, in the memory of another device.
pub(crate) const PEER: Protocol = Protocol::driver(1);

/// How long an unbinding waits for blocks that somebody works on, in milliseconds.
const CLOSE_MS: u32 = 10_000;

/// Allocates by `attempt`, which fails with `ENOSPC` when there is no room, and has one block after the
/// other go by `evict`, which returns none when there is no more, until there is.
///
/// A block that cannot go, whatever has become of its owner, is passed by for the next. Only system memory
/// is what they all need: without it this fails with `ENOMEM`.
fn make_room<T>(
    mut attempt: impl FnMut() -> Result<T>,
    mut evict: impl FnMut() -> Option<Result>,
) -> Result<T> {
    loop {
        match attempt() {
            Err(e) if e == ENOSPC => {}
            done => return done,
        }
        match evict() {
            None => return Err(ENOSPC),
            Some(Err(e)) if e == ENOMEM => return Err(e),
            Some(_) => {}
        }
    }
}

/// A device's memory; there may be none.
#[pin_data]
pub(crate) struct DeviceMemory {
    vram: Option<Arc<Vram>>,
    port: Arc<Port>,
    /// From when the device is made until it is unbound.
    #[pin]
    cache: Mutex<Option<PagemapCache<Local>>>,
    /// What others find it by; as long.
    #[pin]
    offered: Mutex<Option<Offered>>,
    #[pin]
    residents: Residents,
}

/// The memory, for other devices. It keeps the device, until the offer ends.
struct Shared(ARef<Device>);

impl Offer for Shared {
    fn open(&self, region: u32) -> Result<PageMapRef> {
        if usize::try_from(region)? != region::VRAM {
            return Err(ENOENT);
        }
        let pagemap = self.0.memory.pagemap(&self.0)?.ok_or(ENOENT)?;
        Ok(pagemap.page_map().into())
    }
}

impl DeviceMemory {
    /// The memory of a device that is on the fabric at `port`.
    pub(crate) fn new(vram: Option<Arc<Vram>>, port: Arc<Port>) -> impl PinInit<Self> {
        pin_init!(Self {
            vram,
            port,
            cache <- new_mutex!(None, "DeviceMemory::cache"),
            offered <- new_mutex!(None, "DeviceMemory::offered"),
            residents <- Residents::new(),
        })
    }

    /// Makes it ready for VMs, and for other devices. To be called once, before there are any; then,
    /// unless it fails, [`close`](Self::close) has to be. Fails with `ENOMEM`.
    pub(crate) fn open(&self, parent: &device::Device<Bound>, dev: &Device) -> Result {
        if self.vram.is_some() {
            let drm = DrmDevice::of(dev);
            let shrinker = Shrinker::new_devm(parent, drm)?;
            *self.cache.lock() = Some(PagemapCache::new_devm(parent, drm, &shrinker)?);
            let shared = KBox::new(Shared(dev.into()), GFP_KERNEL)?;
            *self.offered.lock() = Some(Offered::new(drm, shared)?);
        }
        Ok(())
    }

    /// The owner that pages have which this device reaches where they are. Only compared.
    pub(crate) fn owner(&self) -> *mut core::ffi::c_void {
        self.port.owner()
    }

    /// The memory, in use as long as the result is kept; none if there is none.
    ///
    /// Fails with `ENODEV` if the device is gone, `EINTR` if a signal comes first, `ENOMEM`. Sleeps.
    pub(crate) fn pagemap(&self, dev: &Device) -> Result<Option<Pagemap>> {
        let Some(vram) = &self.vram else {
            return Ok(None);
        };
        let cache = self.cache.lock().clone().ok_or(ENODEV)?;
        let pagemap = cache.get_or_create(|| {
            let size = usize::try_from(vram.size())?;
            let provider = Local::new(dev, vram, &self.port);
            Pagemap::new(
                DrmDevice::of(dev),
                size,
                NonNull::new(self.owner()),
                provider,
            )
        })?;
        Ok(Some(pagemap))
    }

    /// Allocates by `attempt`, which fails with `ENOSPC` when there is no room: then old blocks go to
    /// system memory, one after the other, until there is. With `any`, also those that came just now.
    ///
    /// Fails with `ENOSPC` when nothing more can go, `ENOMEM` when there is no system memory for it
    /// either, and as `attempt` does. Sleeps.
    pub(crate) fn make_room<T>(
        &self,
        dev: &Device,
        any: bool,
        attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let newest = self.residents.newest();
        make_room(attempt, || self.evict_next(dev, newest, any, "room"))
    }

    /// Has the oldest block that is not newer than `newest` go to system memory; none if there is no
    /// such block. Messages say `why`. Fails as [`Handle::evict`](provider::Handle::evict) does.
    fn evict_next(&self, dev: &Device, newest: u64, any: bool, why: &str) -> Option<Result> {
        let block = self.residents.next_victim(newest, any)?;
        let kib = block.pages() as u64 * 4;
        let done = block.evict();
        match done {
            Ok(()) => {
                kernel_ext::drm_dbg!(dev, "evicted {} ({why})", block.memory());
                dev.stats.inc(Stat::SvmEvictCount);
                dev.stats.add(Stat::SvmEvictKb, kib);
            }
            Err(e) => {
                kernel_ext::drm_dbg!(dev, "cannot evict {} ({why}): {e:?}", block.memory());
            }
        }
        Some(done)
    }

    /// Brings all that is there back to system memory, for good: nothing comes there any more. Waits
    /// for what is on its way. The device must be bound still.
    pub(crate) fn close(&self, dev: &Device) {
        let offered = self.offered.lock().take();
        drop(offered);
        self.residents.close();
        let started = jiffies::now();
        while self.residents.count() != 0 {
            let newest = self.residents.newest();
            while self.evict_next(dev, newest, true, "unbound").is_some() {}
            if self.residents.count() != 0 {
                fsleep(Delta::from_millis(1));
            }
            if jiffies::since(started) > msecs_to_jiffies(CLOSE_MS) {
                pr_err!("vxe: a device goes with pages of processes in its memory\n");
                break;
            }
        }
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
            || if room.get() { Ok(()) } else { Err(ENOSPC) },
            || {
                let gone = *blocks.next()?;
                room.set(gone.is_ok());
                Some(gone)
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
        let result = make_room(|| Err::<(), _>(ENODEV), || Some(Err(EINVAL)));
        assert_eq!(result, Err(ENODEV));
    }
}
