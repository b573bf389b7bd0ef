// SPDX-License-Identifier: GPL-2.0

//! Tests with a failure of each step of a migration, in both directions: no page is lost, no
//! contents change, and nothing is left behind.

use crate::fixture::{
    dma,
    driver::{ctx_with, Mirror},
    failure::{each_allocation, each_later_allocation, with_failures, without_memory},
    migration::{
        check, check_zero, evict, is_unmapped, moved, place, run, to_device, used, with_vram,
    },
    mm::{self, Held, Pinned, Prot},
    pages,
    vram::{vram_of, Settings, Vram, HUGE},
    Env,
    BASE,
    MIDDLE, //
};
use core::{ops::Range, ptr::NonNull};
use gpusvm::{
    pagemap::{provider::DeviceMemory, to_device::Moved, OwnerId},
    Access,
    Retry,
    Svm, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};
use kernel_ext::mm::hmm;

/// Runs a test like [`with_vram`]; skips it on a kernel without `CONFIG_FAILSLAB`.
fn with_failing_vram(
    size: usize,
    test: impl FnOnce(&Env, &DeviceMemory<Vram>) -> Result,
) -> Result {
    with_failures(1, |env| run(env, size, test))
}

/// Maps a huge page, single pages, and pages that are never written.
fn prepare() -> Result<Range<usize>> {
    let span = pages(0, HUGE + 16);
    mm::map_huge(&pages(0, HUGE))?;
    mm::map(&pages(HUGE, 16), Prot::Write)?;
    mm::fill(&pages(0, HUGE + 8))?;
    Ok(span)
}

/// Checks the contents of the memory of [`prepare`], which migrates it back.
fn is_intact() -> Result {
    check(&pages(0, HUGE + 8))?;
    check_zero(&pages(HUGE + 8, 8))
}

/// Returns the device page with the given index of the first block.
fn device_page(
    pagemap: &DeviceMemory<Vram>,
    index: usize,
) -> Result<NonNull<kernel::bindings::page>> {
    let handles = pagemap.provider().handles()?;
    let page = *handles[0].memory().pages().get(index).ok_or(EINVAL)?;
    Vram::folio_page(pagemap, page)
}

/// Handles a fault of the device like a driver that migrates before it maps. Returns how many bytes
/// of the range are on the device, and the number of page-table walks.
fn migrating_fault(
    env: &Env,
    pagemap: &DeviceMemory<Vram>,
    svm: &Svm<Mirror>,
) -> Result<(usize, u64)> {
    let before = hmm::walks();
    let mut guard = svm.lock();
    let mut retry = Retry::bounded();
    let attempt = retry.next().ok_or(EINVAL)?;
    let ctx = ctx_with(Access::Write, |ctx| {
        ctx.devmem_possible = true;
        ctx.allow_mixed = true;
    });
    let ctx = ctx.with_owner(pagemap.pagemap().owner());
    let mut found = guard.find_or_insert(BASE, 0..usize::MAX, &ctx, &attempt)?;
    to_device(env, pagemap, &found.span())?;
    found.get(&ctx, &attempt)?;
    let seen = crate::fixture::driver::bind(&mut found).map_err(|_| EAGAIN)??;
    Ok((seen.device, hmm::walks() - before))
}

#[kunit_tests(gpusvm_pagemap_failures)]
mod tests {
    use super::*;

    #[test]
    fn of_memory_when_moving_to_a_device() -> Result {
        with_failing_vram(4 * HUGE, |env, pagemap| {
            let span = prepare()?;
            let sites = each_allocation(
                || to_device(env, pagemap, &span),
                |result| {
                    match result {
                        // The slab allocator's own allocations may fail without effect.
                        Ok(moved) => ensure_eq!(moved.moved + moved.left, span.len()),
                        Err(e) => {
                            ensure_eq!(e, ENOMEM);
                            ensure_eq!(used(pagemap), 0);
                        }
                    }
                    is_unmapped(pagemap)?;
                    ensure_eq!(dma::mapped(), 0);
                    is_intact()?;
                    ensure_eq!(used(pagemap), 0);
                    // Restore the pages that were never written.
                    mm::drop_pages(&pages(HUGE + 8, 8))
                },
            )?;
            ensure!(sites >= 1);
            is_intact()
        })
    }

    #[test]
    fn of_memory_when_the_page_tables_are_changed() -> Result {
        with_failing_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            each_later_allocation(
                || {
                    // This is new memory, for which the kernel must allocate page tables.
                    mm::map(&span, Prot::Write)?;
                    to_device(env, pagemap, &span)
                },
                |result| {
                    let moved = result?;
                    ensure_eq!(moved.moved + moved.raced, span.len());
                    ensure_eq!(moved.left, moved.raced);
                    check_zero(&span)?;
                    ensure_eq!(used(pagemap), 0);
                    mm::unmap(&span)
                },
            )?;
            check_zero(&span)
        })
    }

    #[test]
    fn of_memory_when_moving_between_devices() -> Result {
        with_failures(2, |env| {
            static OWNER: u64 = 0;
            // SAFETY: No other code makes an owner of this static.
            let owner = Some(unsafe { OwnerId::from_raw(NonNull::from(&OWNER).cast()) });
            {
                let one = vram_of(&env.devices[0], 64, owner)?;
                let two = vram_of(&env.devices[1], 64, owner)?;
                let peers = Settings {
                    peers: true,
                    ..Settings::NONE
                };
                two.provider().set(peers);
                let span = pages(0, 16);
                mm::map(&span, Prot::Write)?;
                mm::fill(&span)?;
                to_device(env, &one, &span)?;
                let sites = each_allocation(
                    || to_device(env, &two, &span),
                    |result| {
                        if result.is_err() {
                            ensure_eq!(result, Err(ENOMEM));
                            ensure_eq!((used(&one), used(&two)), (16, 0));
                        }
                        is_unmapped(&two)?;
                        check(&span)?;
                        // Let the worker free the memory of the earlier blocks.
                        gpusvm::pagemap::flush();
                        to_device(env, &one, &span)?;
                        Ok(())
                    },
                )?;
                ensure!(sites >= 1);
                check(&span)?;
            }
            gpusvm::pagemap::flush();
            Ok(())
        })
    }

    #[test]
    fn of_memory_when_evicting() -> Result {
        with_failing_vram(2 * HUGE, |env, pagemap| {
            let span = prepare()?;
            to_device(env, pagemap, &span)?;
            let all = pagemap.provider().used();
            each_allocation(
                || evict(pagemap),
                |result| {
                    // The eviction is retried, so that it may succeed.
                    match result {
                        Ok(()) => ensure_eq!(used(pagemap), 0),
                        Err(e) => {
                            ensure_eq!(e, ENOMEM);
                            ensure_eq!(used(pagemap), all);
                        }
                    }
                    ensure_eq!(dma::mapped(), 0);
                    is_intact()?;
                    gpusvm::pagemap::flush();
                    to_device(env, pagemap, &span)?;
                    Ok(())
                },
            )?;
            ensure_eq!(used(pagemap), 0);
            to_device(env, pagemap, &span)?;
            ensure_eq!(without_memory(|| evict(pagemap))?, Err(ENOMEM));
            ensure_eq!(used(pagemap), all);
            is_intact()
        })
    }

    #[test]
    fn of_memory_when_a_cpu_touches() -> Result {
        with_failing_vram(2 * HUGE, |env, pagemap| {
            let span = prepare()?;
            for at in [pages(5, 1), pages(HUGE + 3, 1)] {
                to_device(env, pagemap, &span)?;
                let all = pagemap.provider().used();
                let none = without_memory(|| mm::fault(at.start, false))?;
                ensure_eq!(none, Err(ENOMEM));
                ensure_eq!((dma::mapped(), used(pagemap)), (0, all));
                each_allocation(
                    || mm::fault(at.start, false),
                    |result| {
                        if result.is_err() {
                            ensure_eq!(result, Err(ENOMEM));
                            ensure_eq!(pagemap.provider().used(), all);
                        }
                        ensure_eq!(dma::mapped(), 0);
                        check(&at)?;
                        gpusvm::pagemap::flush();
                        to_device(env, pagemap, &span)?;
                        Ok(())
                    },
                )?;
                ensure_eq!(dma::mapped(), 0);
                is_intact()?;
                ensure_eq!(used(pagemap), 0);
            }
            Ok(())
        })
    }

    #[test]
    fn of_addresses_for_the_copy() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 8);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            for nth in 0..8 {
                let (result, failed) = dma::failing(nth, || to_device(env, pagemap, &span));
                ensure_eq!((result, failed), (Err(EFAULT), true));
                ensure_eq!((dma::mapped(), used(pagemap)), (0, 0));
                check(&span)?;
            }
            to_device(env, pagemap, &span)?;
            for nth in 0..8 {
                // Each of the three attempts of an eviction maps the pages again, and fails.
                let see = |call| match call {
                    kernel_ext::dma::Call::Map => Err(EFAULT),
                    _ => Ok(()),
                };
                ensure_eq!(dma::watched(&see, || evict(pagemap)), Err(EFAULT));
                let (result, failed) = dma::failing(nth, || mm::fault(span.start, false));
                ensure_eq!((result, failed), (Err(EFAULT), true));
                ensure_eq!((dma::mapped(), used(pagemap)), (0, 8));
            }
            check(&span)
        })
    }

    #[test]
    fn of_the_copy_itself() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let span = prepare()?;
            let vram = pagemap.provider();
            let broken = Settings {
                broken: true,
                ..Settings::NONE
            };
            vram.set(broken);
            ensure_eq!(to_device(env, pagemap, &span), Err(EIO));
            ensure_eq!((dma::mapped(), used(pagemap)), (0, 0));
            is_intact()?;
            vram.set(Settings::NONE);
            to_device(env, pagemap, &span)?;
            let all = vram.used();
            vram.set(broken);
            ensure_eq!(evict(pagemap), Err(EIO));
            ensure_eq!(mm::fault(BASE, false), Err(EFAULT));
            ensure_eq!((dma::mapped(), used(pagemap)), (0, all));
            vram.set(Settings::NONE);
            is_intact()
        })
    }

    #[test]
    fn of_device_memory() -> Result {
        with_vram(8, |env, pagemap| {
            // More pages than the device has.
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            ensure_eq!(to_device(env, pagemap, &span), Err(ENOSPC));
            ensure_eq!(used(pagemap), 0);
            check(&span)
        })
    }

    #[test]
    fn a_page_that_is_held_while_it_is_copied() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let page = Pinned::new(pages(3, 1).start)?.page()?;
            let vram = pagemap.provider();
            let grab = |page: NonNull<kernel::bindings::page>| {
                vram.set(Settings {
                    grab: page.as_ptr().expose_provenance(),
                    ..Settings::NONE
                })
            };
            grab(page);
            let expected = Moved {
                raced: PAGE_SIZE,
                ..moved(15, 16, 16)
            };
            ensure_eq!(to_device(env, pagemap, &span)?, expected);
            ensure_eq!(mm::read(pages(3, 1).start)?, mm::pattern(pages(3, 1).start));
            // SAFETY: The provider's copy took the reference.
            drop(unsafe { Held::from_page(page) });
            // The next attempt succeeds.
            ensure_eq!(to_device(env, pagemap, &span)?.left, 0);
            // The page's place in the first block is not reused.
            ensure_eq!(vram.used(), 17);
            evict(pagemap)?;
            check(&span)?;

            // The same in the other direction.
            to_device(env, pagemap, &span)?;
            let page = device_page(pagemap, 3)?;
            grab(page);
            ensure_eq!(evict(pagemap), Err(EBUSY));
            ensure_eq!(used(pagemap), 16);
            mm::fault(pages(3, 1).start, false)?;
            // SAFETY: The provider's copy took the reference, in the eviction.
            drop(unsafe { Held::from_page(page) });
            check(&span)?;
            ensure_eq!(used(pagemap), 0);
            Ok(())
        })
    }

    #[test]
    fn a_device_page_that_somebody_holds() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            place(env, pagemap, &span, false)?;
            let vram = pagemap.provider();
            // SAFETY: The page is in use.
            let held = unsafe { Held::new(device_page(pagemap, 5)?) };
            // The page with the extra reference does not migrate, in any of three attempts; all
            // others do.
            ensure_eq!(evict(pagemap), Err(EBUSY));
            ensure_eq!(vram.take_done().to_ram, 15 + 3);
            check(&pages(0, 5))?;
            check(&pages(6, 10))?;
            ensure_eq!(vram.take_done().to_ram, 0);
            // A fault of the process cannot migrate it either.
            mm::fault(pages(5, 1).start, false)?;
            ensure_eq!(used(pagemap), 16);
            vram.take_done();
            drop(held);
            check(&span)?;
            ensure_eq!(vram.take_done().to_ram, 1);
            ensure_eq!(used(pagemap), 0);

            // A page that the process has unmapped is freed when the last reference is dropped.
            to_device(env, pagemap, &pages(0, 1))?;
            // SAFETY: The page is in use.
            let held = unsafe { Held::new(device_page(pagemap, 0)?) };
            mm::unmap(&pages(0, 1))?;
            ensure_eq!(used(pagemap), 1);
            drop(held);
            ensure_eq!(used(pagemap), 0);
            Ok(())
        })
    }

    #[test]
    fn a_migrating_fault_walks_twice() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            for (span, is_huge) in [(pages(0, 16), false), (pages(0, HUGE), true)] {
                if is_huge {
                    mm::map_huge(&span)?;
                } else {
                    mm::map(&span, Prot::Write)?;
                }
                mm::fill(&span)?;
                let svm = env.svm()?;
                ensure_eq!(migrating_fault(env, pagemap, &svm)?, (span.len(), 2));
                drop(svm);
                check(&span)?;
                mm::unmap(&span)?;
            }
            // The same on memory that was never touched.
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            ensure_eq!(migrating_fault(env, pagemap, &svm)?, (MIDDLE, 2));
            Ok(())
        })
    }
}
