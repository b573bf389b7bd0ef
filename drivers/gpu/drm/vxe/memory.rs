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
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let newest = self.residents.newest();
        loop {
            match attempt() {
                Err(e) if e == ENOSPC => {}
                done => return done,
            }
            self.evict_next(dev, newest, any, "room").ok_or(ENOSPC)??;
        }
    }

    /// Has the oldest block that is not newer than `newest` go to system memory; none if there is no
    /// such block. A block that somebody works on is passed by. Messages say `why`.
    ///
    /// Fails with `ENOMEM`.
    fn evict_next(&self, dev: &Device, newest: u64, any: bool, why: &str) -> Option<Result> {
        let block = self.residents.next_victim(newest, any)?;
        let kib = block.pages() as u64 * 4;
        Some(match block.evict() {
            Ok(()) => {
                kernel_ext::drm_dbg!(dev, "evicted {} ({why})", block.memory());
                dev.stats.inc(Stat::SvmEvictCount);
                dev.stats.add(Stat::SvmEvictKb, kib);
                Ok(())
            }
            Err(e) => {
                kernel_ext::drm_dbg!(dev, "cannot evict {} ({why}): {e:?}", block.memory());
                match e {
                    ENOMEM => Err(e),
                    _ => Ok(()),
                }
            }
        })
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
