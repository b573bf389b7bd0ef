// SPDX-License-Identifier: GPL-2.0

//! Pages move to a device and back, with what is in them.

use crate::fixture::{
    mm::{self, Prot},
    pages,
    vram::{alive, vram, Done, Mood, Vram, HUGE},
    with_device,
    Env, //
};
use core::ops::Range;
use gpusvm::pagemap::{hold, provider::Pagemap, to_device::Moved};
use kernel::{page::PAGE_SIZE, prelude::*};

/// Runs a test with a device that has memory of its own, and checks that it is all given back.
pub(crate) fn with_vram(pages: usize, test: impl FnOnce(&Env, &Pagemap<Vram>) -> Result) -> Result {
    with_device(|env| {
        let result = {
            let pagemap = vram(env.device(), pages)?;
            test(env, &pagemap)
        };
        // What the test mapped goes, and with it what is on the device.
        mm::unmap(&crate::fixture::pages(0, 1 << 20))?;
        hold::flush();
        result?;
        ensure_eq!(alive(), (0, 0));
        Ok(())
    })
}

/// Moves a span to the device.
pub(crate) fn to_device(env: &Env, pagemap: &Pagemap<Vram>, span: &Range<usize>) -> Result<Moved> {
    pagemap.populate(&env.mm, span.clone(), 0)
}

/// Checks what [`mm::fill`] wrote.
pub(crate) fn check(span: &Range<usize>) -> Result {
    for addr in span.clone().step_by(PAGE_SIZE) {
        ensure_eq!(mm::read(addr)?, mm::pattern(addr));
    }
    Ok(())
}

#[kunit_tests(gpusvm_pagemap_migrate)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_page_there_and_back() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let span = pages(0, HUGE);
            mm::map_huge(&span)?;
            mm::fill(&span)?;
            let moved = to_device(env, pagemap, &span)?;
            let all = span.len();
            ensure_eq!(
                moved,
                Moved {
                    moved: all,
                    copied: all,
                    left: 0
                }
            );
            let vram = pagemap.provider();
            ensure_eq!(
                vram.take_done(),
                Done {
                    to_device: HUGE,
                    pieces: 1,
                    ..Done::default()
                }
            );
            ensure_eq!(vram.used(), HUGE);
            let handles = vram.handles()?;
            ensure_eq!(handles.len(), 1);
            for (index, page) in handles[0].memory().pages().iter().enumerate() {
                ensure_eq!(
                    vram.read(*page)?,
                    mm::pattern(span.start + index * PAGE_SIZE)
                );
            }
            drop(handles);
            check(&span)?;
            ensure_eq!(
                vram.take_done(),
                Done {
                    to_ram: HUGE,
                    pieces: 1,
                    ..Done::default()
                }
            );
            Ok(())
        })
    }

    #[test]
    fn single_pages_there_and_back() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(3, 20);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let moved = to_device(env, pagemap, &span)?;
            ensure_eq!((moved.moved, moved.left), (span.len(), 0));
            check(&span)?;
            Ok(())
        })
    }

    #[test]
    fn eviction_brings_all_back() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let span = pages(0, HUGE);
            mm::map_huge(&span)?;
            mm::fill(&span)?;
            to_device(env, pagemap, &span)?;
            let vram = pagemap.provider();
            vram.take_done();
            for handle in vram.handles()? {
                handle.evict()?;
                ensure!(handle.is_detached());
            }
            ensure_eq!(vram.take_done().to_ram, HUGE);
            ensure_eq!(vram.used(), 0);
            check(&span)?;
            ensure_eq!(vram.take_done(), Done::default());
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
            vram.set_mood(Mood {
                scattered: true,
                ..Mood::default()
            });
            let moved = to_device(env, pagemap, &span)?;
            ensure_eq!((moved.moved, moved.left), (span.len(), 0));
            ensure_eq!(vram.take_done().pieces, HUGE);
            check(&span)
        })
    }
}
