// SPDX-License-Identifier: GPL-2.0

//! Tests of the migration of pages between devices, and within a device.

use crate::fixture::{
    gate::GATE,
    migration::{check, check_zero, evict, is_unmapped, moved, to_device, used},
    mm::{self, Pinned, Prot},
    pages,
    vram::{alive, vram_of, Settings, Vram, HUGE},
    with_devices,
    Env, //
};
use core::ptr::NonNull;
use gpusvm::pagemap::{
    provider::DeviceMemory,
    to_device::{Moved, Sources},
    OwnerId, //
};
use kernel::{page::PAGE_SIZE, prelude::*};

/// Settings that allow other devices to access the memory.
const OPEN: Settings = Settings {
    peers: true,
    ..Settings::NONE
};

/// Runs a test with two devices that have memory, with a common owner or with two.
fn with_two(
    is_shared: bool,
    size: usize,
    test: impl FnOnce(&Env, &DeviceMemory<Vram>, &DeviceMemory<Vram>) -> Result,
) -> Result {
    with_devices(2, |env| {
        static OWNER: u64 = 0;
        // SAFETY: No other code makes an owner of this static.
        let owner = is_shared.then(|| unsafe { OwnerId::from_raw(NonNull::from(&OWNER).cast()) });
        let result = {
            let one = vram_of(&env.devices[0], size, owner)?;
            let two = vram_of(&env.devices[1], size, owner)?;
            one.provider().set(OPEN);
            two.provider().set(OPEN);
            test(env, &one, &two)
                .and_then(|()| is_unmapped(&one))
                .and_then(|()| is_unmapped(&two))
        };
        mm::unmap(&pages(0, 1 << 20))?;
        gpusvm::pagemap::flush();
        result?;
        ensure_eq!(alive(), (0, 0));
        Ok(())
    })
}

#[kunit_tests(gpusvm_pagemap_peers)]
mod tests {
    use super::*;

    #[test]
    fn an_eviction_waits_for_no_other_provider() -> Result {
        with_two(true, 64, |env, one, two| {
            for (pagemap, first) in [(one, 0), (two, 16)] {
                let span = pages(first, 16);
                mm::map(&span, Prot::Write)?;
                mm::fill(&span)?;
                ensure_eq!(to_device(env, pagemap, &span)?, moved(16, 16, 16));
            }
            GATE.close();
            one.provider().set(Settings {
                stuck: true,
                ..OPEN
            });
            mm::unmap(&pages(0, 16))?;
            // The provider's `detached()` callback is blocked.
            let is_stuck = GATE.is_reached();
            let evicted = evict(two);
            let in_time = GATE.is_waiting();
            GATE.open();
            one.provider().set(OPEN);
            ensure!(is_stuck && in_time);
            evicted?;
            check(&pages(16, 16))
        })
    }

    #[test]
    fn from_device_to_device() -> Result {
        with_two(true, 64, |env, one, two| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            to_device(env, one, &span)?;
            one.provider().take_done();
            ensure_eq!(to_device(env, two, &span)?, moved(16, 16, 16));
            // The source device copies directly, without system memory.
            let done = one.provider().take_done();
            ensure_eq!((done.to_peer, done.to_ram, done.mapped), (16, 0, 0));
            let done = two.provider().take_done();
            ensure_eq!((done.to_device, done.cleared), (0, 0));
            ensure_eq!((done.mapped, done.unmapped), (16, 16));
            ensure_eq!((used(one), used(two)), (0, 16));
            // A part migrates back to the first device.
            ensure_eq!(to_device(env, one, &pages(4, 4))?, moved(4, 4, 4));
            ensure_eq!(used(one), 4);
            check(&span)?;
            ensure_eq!((used(one), used(two)), (0, 0));
            Ok(())
        })
    }

    #[test]
    fn a_huge_page() -> Result {
        with_two(true, 2 * HUGE, |env, one, two| {
            let span = pages(0, HUGE);
            mm::map_huge(&span)?;
            mm::fill(&span)?;
            to_device(env, one, &span)?;
            one.provider().take_done();
            ensure_eq!(to_device(env, two, &span)?, moved(HUGE, HUGE, HUGE));
            let done = one.provider().take_done();
            ensure_eq!((done.to_peer, done.pieces), (HUGE, 1));
            ensure_eq!((used(one), used(two)), (0, HUGE));
            // Without contiguous memory the huge page is copied page by page.
            one.provider().set(Settings {
                scattered: true,
                ..OPEN
            });
            ensure_eq!(to_device(env, one, &span)?, moved(HUGE, HUGE, HUGE));
            let done = two.provider().take_done();
            ensure_eq!((done.to_peer, done.pieces), (HUGE, HUGE));
            ensure_eq!((used(one), used(two)), (HUGE, 0));
            check(&span)
        })
    }

    #[test]
    fn a_part_of_a_huge_page() -> Result {
        with_two(true, 2 * HUGE, |env, one, two| {
            let span = pages(0, HUGE);
            mm::map_huge(&span)?;
            mm::fill(&span)?;
            to_device(env, one, &span)?;
            ensure_eq!(to_device(env, two, &pages(100, 50))?, moved(50, 50, 50));
            check(&span)
        })
    }

    #[test]
    fn from_everywhere_at_once() -> Result {
        with_two(true, 64, |env, one, two| {
            // The sources are RAM, one device, holes, the other device and a pinned page.
            let span = pages(0, 32);
            mm::map(&span, Prot::Write)?;
            for part in [pages(0, 12), pages(16, 16)] {
                mm::fill(&part)?;
            }
            to_device(env, one, &pages(4, 8))?;
            to_device(env, two, &pages(16, 8))?;
            to_device(env, one, &pages(25, 1))?;
            let pinned = Pinned::new(pages(30, 1).start)?;
            one.provider().take_done();
            two.provider().take_done();
            let expected = Moved {
                local: 8 * PAGE_SIZE,
                ..moved(23, 19, 24)
            };
            ensure_eq!(to_device(env, two, &span)?, expected);
            ensure_eq!(one.provider().take_done().to_peer, 9);
            let done = two.provider().take_done();
            ensure_eq!((done.to_device, done.cleared), (10, 4));
            ensure_eq!((used(one), used(two)), (0, 31));
            drop(pinned);
            check(&pages(0, 12))?;
            check_zero(&pages(12, 4))?;
            check(&pages(16, 16))
        })
    }

    #[test]
    fn from_the_system_only() -> Result {
        with_two(true, 64, |env, one, two| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            to_device(env, one, &pages(0, 8))?;
            one.provider().take_done();
            let system = || two.populate_from(Sources::System, &env.mm, span.clone(), 0);
            ensure_eq!(system()?, moved(8, 8, 16));
            // Pages on any device are left out.
            ensure_eq!(system()?, moved(0, 0, 16));
            ensure_eq!(one.provider().take_done().to_peer, 0);
            ensure_eq!((used(one), used(two)), (8, 8));
            check(&span)
        })
    }

    #[test]
    fn what_the_other_does_not_reach_stays() -> Result {
        with_two(true, 64, |env, one, two| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            to_device(env, one, &pages(0, 8))?;
            for reached in [0, 3] {
                two.provider().set(Settings {
                    maps: Some(reached),
                    ..OPEN
                });
                let expected = Moved {
                    unreachable: (8 - reached) * PAGE_SIZE,
                    ..moved(8 + reached, 8 + reached, 16)
                };
                ensure_eq!(to_device(env, two, &span)?, expected);
                check(&pages(0, 16))?;
                to_device(env, one, &pages(0, 8))?;
            }
            // No page can be accessed, so none migrates.
            two.provider().set(Settings::NONE);
            let expected = Moved {
                unreachable: 8 * PAGE_SIZE,
                ..moved(0, 0, 8)
            };
            ensure_eq!(to_device(env, two, &pages(0, 8))?, expected);
            ensure_eq!((used(one), used(two)), (8, 0));
            check(&span)
        })
    }

    #[test]
    fn a_huge_page_that_the_other_reaches_in_part() -> Result {
        with_two(true, 2 * HUGE, |env, one, two| {
            let span = pages(0, HUGE);
            mm::map_huge(&span)?;
            mm::fill(&span)?;
            to_device(env, one, &span)?;
            two.provider().set(Settings {
                scattered: true,
                maps: Some(100),
                ..OPEN
            });
            let expected = Moved {
                unreachable: (HUGE - 100) * PAGE_SIZE,
                ..moved(100, 100, HUGE)
            };
            ensure_eq!(to_device(env, two, &span)?, expected);
            ensure_eq!(one.provider().used(), HUGE);
            check(&span)?;
            ensure_eq!((used(one), used(two)), (0, 0));
            Ok(())
        })
    }

    #[test]
    fn memory_of_another_owner_stays() -> Result {
        with_two(false, 64, |env, one, two| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            to_device(env, one, &pages(0, 8))?;
            ensure_eq!(to_device(env, two, &span)?, moved(8, 8, 16));
            ensure_eq!((used(one), used(two)), (8, 8));
            check(&span)
        })
    }

    #[test]
    fn a_copy_that_fails() -> Result {
        with_two(true, 64, |env, one, two| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            to_device(env, one, &pages(0, 8))?;
            for broken in [one, two] {
                broken.provider().set(Settings {
                    broken: true,
                    ..OPEN
                });
                ensure_eq!(to_device(env, two, &span), Err(EIO));
                broken.provider().set(OPEN);
                ensure_eq!((used(one), used(two)), (8, 0));
                is_unmapped(two)?;
            }
            check(&span)
        })
    }

    #[test]
    fn gathers_what_is_scattered() -> Result {
        with_two(true, 64, |env, one, two| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            for part in [pages(8, 8), pages(0, 4), pages(6, 2)] {
                to_device(env, one, &part)?;
            }
            to_device(env, two, &pages(5, 1))?;
            one.provider().take_done();
            // One page is in RAM, and one is on the other device.
            let gathered = one.populate_from(Sources::All, &env.mm, span.clone(), 0)?;
            ensure_eq!(gathered, moved(16, 16, 16));
            let done = one.provider().take_done();
            ensure_eq!((done.to_peer, done.to_device), (14, 1));
            ensure_eq!(two.provider().take_done().to_peer, 1);
            ensure_eq!((used(one), used(two)), (16, 0));
            ensure_eq!(one.provider().handles()?.len(), 1);
            check(&span)
        })
    }
}
