// SPDX-License-Identifier: GPL-2.0

//! Tests of the migration of pages to a device and back.

use crate::fixture::{
    gate::GATE,
    migration::{check, check_zero, moved, place, to_device, used, with_vram},
    mm::{self, Held, Pinned, Prot},
    pages,
    thread::Thread,
    vram::{Done, Settings, Vram, HUGE}, //
};
use gpusvm::pagemap::to_device::{allow_huge_pages, Moved, Sources};
use kernel::{page::PAGE_SIZE, prelude::*};

#[kunit_tests(gpusvm_pagemap_migrate)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_page_there_and_back() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let span = pages(0, HUGE);
            mm::map_huge(&span)?;
            mm::fill(&span)?;
            ensure_eq!(to_device(env, pagemap, &span)?, moved(HUGE, HUGE, HUGE));
            let vram = pagemap.provider();
            let done = Done {
                to_device: HUGE,
                pieces: 1,
                ..Done::default()
            };
            ensure_eq!(vram.take_done(), done);
            ensure_eq!(vram.used(), HUGE);
            {
                let handles = vram.handles()?;
                ensure_eq!(handles.len(), 1);
                let pages = handles[0].memory().pages();
                for (page, addr) in pages.iter().zip(span.clone().step_by(PAGE_SIZE)) {
                    ensure_eq!(vram.read(*page)?, mm::pattern(addr));
                }
            }
            check(&span)?;
            let done = Done {
                to_ram: HUGE,
                pieces: 1,
                ..Done::default()
            };
            ensure_eq!(vram.take_done(), done);
            gpusvm::pagemap::flush();
            ensure_eq!(vram.used(), 0);
            Ok(())
        })
    }

    #[test]
    fn single_pages_there_and_back() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(3, 20);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            ensure_eq!(to_device(env, pagemap, &span)?, moved(20, 20, 20));
            check(&span)?;
            ensure_eq!(pagemap.provider().take_done().to_ram, 20);
            Ok(())
        })
    }

    #[test]
    fn huge_and_single_pages_together() -> Result {
        with_vram(4 * HUGE, |env, pagemap| {
            let span = pages(0, 2 * HUGE + 8);
            mm::map(&pages(0, 2 * HUGE), Prot::Write)?;
            mm::map_huge(&pages(HUGE, HUGE))?;
            mm::map(&pages(2 * HUGE, 8), Prot::Write)?;
            mm::fill(&span)?;
            let all = 2 * HUGE + 8;
            ensure_eq!(to_device(env, pagemap, &span)?, moved(all, all, all));
            check(&span)?;
            ensure_eq!(pagemap.provider().take_done().to_ram, all);
            Ok(())
        })
    }

    #[test]
    fn a_huge_page_that_becomes_small_ones() -> Result {
        with_vram(4 * HUGE, |env, pagemap| {
            let span = pages(0, HUGE);
            mm::map_huge(&span)?;
            mm::fill(&span)?;
            // SAFETY: Not allowing has no requirements.
            unsafe { allow_huge_pages(false) };
            let moves = to_device(env, pagemap, &span);
            // SAFETY: As the fixture says, which allowed it before.
            unsafe { allow_huge_pages(true) };
            ensure_eq!(moves?, moved(HUGE, HUGE, HUGE));
            let vram = pagemap.provider();
            ensure_eq!(vram.take_done().pieces, HUGE);
            // The device pages are folios of order 0: a page with an extra reference affects no
            // other.
            let handles = vram.handles()?;
            ensure_eq!(handles.len(), 1);
            let first = handles[0].memory().pages()[0];
            // SAFETY: The page is in use, and a folio of order 0.
            let held = unsafe { Held::new(Vram::folio_page(pagemap, first)?) };
            ensure_eq!(handles[0].evict(), Err(EBUSY));
            drop(handles);
            // The held page is copied in each of three attempts.
            ensure_eq!(vram.take_done().to_ram, HUGE - 1 + 3);
            drop(held);
            check(&span)?;
            ensure_eq!(vram.take_done().to_ram, 1);
            Ok(())
        })
    }

    #[test]
    fn a_hole_of_several_huge_pages() -> Result {
        with_vram(4 * HUGE, |env, pagemap| {
            // No page table exists for this span.
            let span = pages(0, 3 * HUGE);
            mm::map_huge(&span)?;
            ensure_eq!(
                to_device(env, pagemap, &span)?,
                moved(3 * HUGE, 0, 3 * HUGE)
            );
            let done = pagemap.provider().take_done();
            ensure_eq!((done.cleared, done.pieces), (3 * HUGE, 3));
            check_zero(&span)?;
            // The same from the middle of one huge page to the middle of another.
            ensure_eq!(used(pagemap), 0);
            mm::map_huge(&span)?;
            let part = pages(HUGE / 2, 2 * HUGE);
            ensure_eq!(to_device(env, pagemap, &part)?.moved, part.len());
            check_zero(&span)
        })
    }

    #[test]
    fn who_touches_what_waits_for_room_is_not_held_up() -> Result {
        with_vram(4 * HUGE, |env, pagemap| {
            for is_huge in [false, true] {
                let span = pages(0, if is_huge { HUGE } else { 32 });
                let other = pages(2 * HUGE, 1);
                if is_huge {
                    mm::map_huge(&span)?;
                } else {
                    mm::map(&span, Prot::Write)?;
                }
                mm::fill(&span)?;
                GATE.close();
                let (touched, place) = (span.start, other.clone());
                let cpu = Thread::spawn(&env.mm, move || {
                    ensure!(GATE.is_reached());
                    // Access a page of the span, and change the mappings of the process.
                    let seen = mm::read(touched)?;
                    mm::write(touched, seen)?;
                    mm::map(&place, Prot::Write)?;
                    let in_time = GATE.is_waiting();
                    GATE.open();
                    ensure!(in_time);
                    Ok(())
                })?;
                pagemap.provider().set(Settings {
                    slow: true,
                    ..Settings::NONE
                });
                let moves = to_device(env, pagemap, &span);
                pagemap.provider().set(Settings::NONE);
                cpu.join()?;
                let all = span.len() / PAGE_SIZE;
                ensure_eq!(moves?, moved(all, all, all));
                check(&span)?;
                mm::unmap(&span)?;
            }
            Ok(())
        })
    }

    /// The changes happen while the provider allocates memory, without a lock.
    #[test]
    fn what_changes_while_room_is_made() -> Result {
        type Change = fn() -> Result;
        // Pages that were dropped do not migrate, and new pages have no device memory.
        let changes: [(Change, usize); 4] = [
            (|| mm::unmap(&pages(0, 8)), 0),
            (|| mm::drop_pages(&pages(0, 8)), 8),
            (|| mm::protect(&pages(0, 8), Prot::Read), 0),
            (|| mm::write(pages(20, 1).start, 1), 16),
        ];
        with_vram(64, |env, pagemap| {
            for (change, expected) in changes {
                let span = pages(0, 32);
                mm::map(&span, Prot::Write)?;
                mm::fill(&pages(0, 16))?;
                GATE.close();
                let cpu = Thread::spawn(&env.mm, move || {
                    ensure!(GATE.is_reached());
                    let changed = change();
                    GATE.open();
                    changed
                })?;
                pagemap.provider().set(Settings {
                    slow: true,
                    ..Settings::NONE
                });
                let result = pagemap.populate_from(Sources::Populated, &env.mm, span.clone(), 0);
                pagemap.provider().set(Settings::NONE);
                cpu.join()?;
                let result = result?;
                ensure_eq!(
                    (result.moved, result.copied),
                    (expected * PAGE_SIZE, expected * PAGE_SIZE)
                );
                if expected == 0 {
                    ensure_eq!(result.raced, span.len());
                }
                check(&pages(8, 8))?;
                mm::unmap(&span)?;
                ensure_eq!(used(pagemap), 0);
            }
            Ok(())
        })
    }

    #[test]
    fn an_error_of_the_provider_comes_out() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let cases = [
                (
                    EBUSY,
                    Settings {
                        busy: true,
                        ..Settings::NONE
                    },
                ),
                (
                    ENOSPC,
                    Settings {
                        full: true,
                        ..Settings::NONE
                    },
                ),
                (
                    EIO,
                    Settings {
                        broken: true,
                        ..Settings::NONE
                    },
                ),
            ];
            for (error, settings) in cases {
                pagemap.provider().set(settings);
                let result = to_device(env, pagemap, &span);
                pagemap.provider().set(Settings::NONE);
                ensure_eq!(result, Err(error));
                check(&span)?;
            }
            Ok(())
        })
    }

    #[test]
    fn scattered_device_memory() -> Result {
        with_vram(4 * HUGE, |env, pagemap| {
            let span = pages(0, HUGE);
            mm::map_huge(&span)?;
            mm::fill(&span)?;
            let vram = pagemap.provider();
            vram.set(Settings {
                scattered: true,
                ..Settings::default()
            });
            ensure_eq!(to_device(env, pagemap, &span)?, moved(HUGE, HUGE, HUGE));
            ensure_eq!(vram.take_done().pieces, HUGE);
            check(&span)
        })
    }

    #[test]
    fn what_was_never_written_need_not_come() -> Result {
        with_vram(4 * HUGE, |env, pagemap| {
            mm::map(&pages(0, 12), Prot::Write)?;
            mm::fill(&pages(4, 2))?;
            mm::read(pages(8, 1).start)?;
            let span = pages(0, 12);
            let populated = || pagemap.populate_from(Sources::Populated, &env.mm, span.clone(), 0);
            let expected = Moved {
                moved: 2 * PAGE_SIZE,
                copied: 2 * PAGE_SIZE,
                holes: 10 * PAGE_SIZE,
                ..Moved::default()
            };
            ensure_eq!(populated()?, expected);
            let done = pagemap.provider().take_done();
            ensure_eq!((done.to_device, done.cleared), (2, 0));
            ensure_eq!(pagemap.provider().used(), 2);
            // Pages that are on the device already are left out.
            let left = 2 * PAGE_SIZE;
            let nothing = Moved {
                left,
                holes: 10 * PAGE_SIZE,
                ..Moved::default()
            };
            ensure_eq!(populated()?, nothing);
            check(&pages(4, 2))?;
            check_zero(&pages(0, 4))?;
            check_zero(&pages(6, 6))
        })
    }

    #[test]
    fn what_was_never_written_is_cleared() -> Result {
        with_vram(4 * HUGE, |env, pagemap| {
            // Some pages were written, one was read, and the others were never touched.
            mm::map(&pages(0, 12), Prot::Write)?;
            mm::fill(&pages(4, 2))?;
            mm::read(pages(8, 1).start)?;
            let span = pages(0, 12);
            ensure_eq!(to_device(env, pagemap, &span)?, moved(12, 2, 12));
            let done = pagemap.provider().take_done();
            ensure_eq!((done.to_device, done.cleared), (2, 10));
            check(&pages(4, 2))?;
            check_zero(&pages(0, 4))?;
            check_zero(&pages(6, 6))
        })
    }

    #[test]
    fn a_huge_page_that_was_never_written() -> Result {
        with_vram(4 * HUGE, |env, pagemap| {
            for touched in [false, true] {
                let span = pages(0, HUGE);
                mm::map_huge(&span)?;
                if touched {
                    // Maps the huge zero page.
                    mm::read(span.start)?;
                }
                ensure_eq!(to_device(env, pagemap, &span)?, moved(HUGE, 0, HUGE));
                let done = Done {
                    cleared: HUGE,
                    pieces: 1,
                    ..Done::default()
                };
                ensure_eq!(pagemap.provider().take_done(), done);
                check_zero(&span)?;
                pagemap.provider().take_done();
                mm::unmap(&span)?;
            }
            // The same if the device has no contiguous memory.
            let span = pages(0, HUGE);
            mm::map_huge(&span)?;
            pagemap.provider().set(Settings {
                scattered: true,
                ..Settings::default()
            });
            ensure_eq!(to_device(env, pagemap, &span)?, moved(HUGE, 0, HUGE));
            ensure_eq!(pagemap.provider().take_done().cleared, HUGE);
            check_zero(&span)
        })
    }

    #[test]
    fn a_pinned_page_costs_itself() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let pinned = Pinned::new(pages(5, 1).start)?;
            ensure_eq!(to_device(env, pagemap, &span)?, moved(15, 15, 16));
            ensure_eq!(pagemap.provider().used(), 15);
            drop(pinned);
            check(&span)?;
            ensure_eq!(pagemap.provider().take_done().to_ram, 15);
            Ok(())
        })
    }

    #[test]
    fn what_is_there_already_costs_nothing() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            to_device(env, pagemap, &pages(4, 4))?;
            let vram = pagemap.provider();
            ensure_eq!(vram.take_done().to_device, 4);
            let local = |pages| Moved {
                local: pages * PAGE_SIZE,
                ..moved(16 - pages, 16 - pages, 16 - pages)
            };
            ensure_eq!(to_device(env, pagemap, &span)?, local(4));
            ensure_eq!(vram.take_done().to_device, 12);
            ensure_eq!(vram.used(), 16);
            ensure_eq!(to_device(env, pagemap, &span)?, local(16));
            ensure_eq!(vram.take_done(), Done::default());
            check(&span)
        })
    }

    #[test]
    fn places_without_memory_and_files_stay() -> Result {
        with_vram(64, |env, pagemap| {
            mm::map(&pages(0, 4), Prot::Write)?;
            mm::fill(&pages(0, 4))?;
            let file = mm::File::new(4)?;
            file.map_shared(&pages(4, 4), Prot::Write)?;
            mm::map(&pages(12, 4), Prot::Write)?;
            mm::fill(&pages(12, 4))?;
            // There is no VMA for the hole of 4 pages.
            ensure_eq!(to_device(env, pagemap, &pages(0, 16))?, moved(8, 8, 12));
            check(&pages(0, 4))?;
            check(&pages(12, 4))?;
            ensure_eq!(mm::read(pages(5, 1).start)?, 1);
            Ok(())
        })
    }

    /// The span ends with a hole, or with pages that were never written.
    #[test]
    fn a_span_with_a_hole_at_its_end() -> Result {
        with_vram(64, |env, pagemap| {
            for hole in [1, 4, 15] {
                let (span, there) = (pages(0, 16), pages(0, 16 - hole));
                mm::map(&there, Prot::Write)?;
                mm::fill(&there)?;
                let had = 16 - hole;
                ensure_eq!(to_device(env, pagemap, &span)?, moved(had, had, had));
                check(&there)?;
                mm::unmap(&there)?;
                // Now all of the span is mapped, but the pages at the end were never touched.
                mm::map(&span, Prot::Write)?;
                mm::fill(&there)?;
                ensure_eq!(to_device(env, pagemap, &span)?, moved(16, had, 16));
                check(&there)?;
                check_zero(&pages(had, hole))?;
                mm::unmap(&span)?;
            }
            Ok(())
        })
    }

    #[test]
    fn a_page_that_is_given_away_twice_is_refused() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 4);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let vram = pagemap.provider();
            vram.set(Settings {
                duplicate: true,
                ..Settings::default()
            });
            ensure_eq!(to_device(env, pagemap, &span), Err(EINVAL));
            ensure_eq!(vram.used(), 0);
            // A page is refused only if it is in use.
            ensure_eq!(to_device(env, pagemap, &pages(0, 1))?, moved(1, 1, 1));
            vram.set(Settings::default());
            check(&span)
        })
    }

    #[test]
    fn what_is_unmapped_on_the_device_is_free() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let span = pages(0, HUGE);
            place(env, pagemap, &span, true)?;
            let vram = pagemap.provider();
            // After a partial unmap the huge page stays in use; the rest of it migrates back.
            mm::unmap(&pages(0, 100))?;
            check(&pages(100, HUGE - 100))?;
            gpusvm::pagemap::flush();
            ensure_eq!(vram.used(), 0);

            mm::map_huge(&span)?;
            to_device(env, pagemap, &span)?;
            ensure_eq!(vram.used(), HUGE);
            mm::unmap(&span)?;
            gpusvm::pagemap::flush();
            ensure_eq!(vram.used(), 0);
            Ok(())
        })
    }
}
