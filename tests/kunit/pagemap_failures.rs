// SPDX-License-Identifier: GPL-2.0

//! Each step of a migration fails once, in either direction: no page is lost, nothing of its contents
//! changes, and nothing is left behind.

use crate::fixture::{
    dma,
    driver::{ctx_with, Mirror},
    failure::{each_allocation, each_later_allocation, with_failures, without_memory},
    migration::{
        check, check_zero, evict, is_unmapped, moved, place, run, to_device, used, with_vram,
    },
    mm::{self, Held, Pinned, Prot},
    pages,
    vram::{vram_of, Mood, Vram, HUGE},
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

/// Runs a test as [`with_vram`] does; skips it on a kernel that fails no allocations.
fn with_failing_vram(
    size: usize,
    test: impl FnOnce(&Env, &DeviceMemory<Vram>) -> Result,
) -> Result {
    with_failures(1, |env| run(env, size, test))
}

/// Some memory of each kind: huge pages, single pages, places that were never written.
fn prepare() -> Result<Range<usize>> {
    let span = pages(0, HUGE + 16);
    mm::map_huge(&pages(0, HUGE))?;
    mm::map(&pages(HUGE, 16), Prot::Write)?;
    mm::fill(&pages(0, HUGE + 8))?;
    Ok(span)
}

/// Checks that memory of each kind is as it was, wherever it is, and brings it back.
fn is_intact() -> Result {
    check(&pages(0, HUGE + 8))?;
    check_zero(&pages(HUGE + 8, 8))
}

/// The page that the device has at place 0 of the process's memory, and those behind it.
fn device_page(
    pagemap: &DeviceMemory<Vram>,
    index: usize,
) -> Result<NonNull<kernel::bindings::page>> {
    let handles = pagemap.provider().handles()?;
    let page = *handles[0].memory().pages().get(index).ok_or(EINVAL)?;
    Vram::folio_page(pagemap, page)
}

/// Serves a fault of a device as a driver does that moves what it touches first. Returns how much of
/// the range is on the device, and how many walks of page tables that took.
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
                        // The first pages of an allocation are not needed by a fixture.
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
                    // Places that were never written are so again.
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
                    // Nothing was ever written here: the kernel needs memory of its own.
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
            // SAFETY: Nobody else makes an owner of it.
            let owner = Some(unsafe { OwnerId::from_raw(NonNull::from(&OWNER).cast()) });
            {
                let one = vram_of(&env.devices[0], 64, owner)?;
                let two = vram_of(&env.devices[1], 64, owner)?;
                let peers = Mood {
                    peers: true,
                    ..Mood::NONE
                };
                two.provider().set_mood(peers);
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
                    // It is tried more than once.
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
                // Three attempts, each of which maps anew, and fails as the first does.
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
            let broken = Mood {
                broken: true,
                ..Mood::NONE
            };
            vram.set_mood(broken);
            ensure_eq!(to_device(env, pagemap, &span), Err(EIO));
            ensure_eq!((dma::mapped(), used(pagemap)), (0, 0));
            is_intact()?;
            vram.set_mood(Mood::NONE);
            to_device(env, pagemap, &span)?;
            let all = vram.used();
            vram.set_mood(broken);
            ensure_eq!(evict(pagemap), Err(EIO));
            ensure_eq!(mm::fault(BASE, false), Err(EFAULT));
            ensure_eq!((dma::mapped(), used(pagemap)), (0, all));
            vram.set_mood(Mood::NONE);
            is_intact()
        })
    }

    #[test]
    fn of_device_memory() -> Result {
        with_vram(8, |env, pagemap| {
            // More than there is.
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
                vram.set_mood(Mood {
                    grab: page.as_ptr().expose_provenance(),
                    ..Mood::NONE
                })
            };
            grab(page);
            let expected = Moved {
                raced: PAGE_SIZE,
                ..moved(15, 16, 16)
            };
            ensure_eq!(to_device(env, pagemap, &span)?, expected);
            ensure_eq!(mm::read(pages(3, 1).start)?, mm::pattern(pages(3, 1).start));
            // SAFETY: The provider took a reference.
            drop(unsafe { Held::from_page(page) });
            // Trying again helps.
            ensure_eq!(to_device(env, pagemap, &span)?.left, 0);
            // Its place in the first allocation is not used again.
            ensure_eq!(vram.used(), 17);
            evict(pagemap)?;
            check(&span)?;

            // The other way round.
            to_device(env, pagemap, &span)?;
            let page = device_page(pagemap, 3)?;
            grab(page);
            ensure_eq!(evict(pagemap), Err(EBUSY));
            ensure_eq!(used(pagemap), 16);
            mm::fault(pages(3, 1).start, false)?;
            // SAFETY: The provider took a reference, when it evicted.
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
            // It costs itself, and no other: in each of three attempts.
            ensure_eq!(evict(pagemap), Err(EBUSY));
            ensure_eq!(vram.take_done().to_ram, 15 + 3);
            check(&pages(0, 5))?;
            check(&pages(6, 10))?;
            ensure_eq!(vram.take_done().to_ram, 0);
            // Nor can the process have it.
            mm::fault(pages(5, 1).start, false)?;
            ensure_eq!(used(pagemap), 16);
            vram.take_done();
            drop(held);
            check(&span)?;
            ensure_eq!(vram.take_done().to_ram, 1);
            ensure_eq!(used(pagemap), 0);

            // One that its process gave up is free when the last has let go.
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
            // So it does on memory that nobody touched.
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            ensure_eq!(migrating_fault(env, pagemap, &svm)?, (MIDDLE, 2));
            Ok(())
        })
    }
}
