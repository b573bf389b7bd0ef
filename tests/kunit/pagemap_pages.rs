// SPDX-License-Identifier: GPL-2.0

//! Tests of mapping ranges with pages in device memory.

use crate::fixture::{
    dma,
    driver::{ctx_with, fault, fault_with, Mirror, SegmentCopy},
    migration::{check, is_unmapped, moved, run, to_device, with_vram},
    mm::{self, Prot},
    pages,
    vram::{self, vram_of, Settings, Vram, HUGE},
    with_devices,
    with_iommu_device,
    Env,
    BASE,
    LARGE,
    MIDDLE, //
};
use core::{ops::Range, ptr::NonNull};
use gpusvm::{
    pagemap::{provider::DeviceMemory, OwnerId, Pagemap},
    Access,
    Ctx,
    Retry,
    ScanResult,
    Stale,
    Svm, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::{Atomic, Relaxed}, //
};
use kernel_ext::mm::hmm;

const ALL: Range<usize> = 0..usize::MAX;

/// Returns an owner that several memories share.
fn owner() -> Option<OwnerId> {
    static OWNER: u64 = 0;
    // SAFETY: No other code makes an owner of this static.
    Some(unsafe { OwnerId::from_raw(NonNull::from(&OWNER).cast()) })
}

/// Returns a context that accepts pages of `pagemap` in a range with system memory.
fn ctx(access: Access, pagemap: &DeviceMemory<Vram>) -> Ctx {
    ctx_with(access, |ctx| ctx.allow_mixed = true).with_owner(pagemap.pagemap().owner())
}

/// Returns the segments of the range at [`BASE`] for the device with the index `device`.
fn segments(svm: &Svm<Mirror>, device: usize) -> Result<KVec<SegmentCopy>> {
    let mut segments = KVec::with_capacity(HUGE, GFP_KERNEL)?;
    let mut guard = svm.lock();
    let mut found = guard.find(BASE).ok_or(EINVAL)?;
    let noted = found.commit(|view, _| {
        view.of(device)
            .try_for_each(|segment| segments.push_within_capacity(segment.into()))
    });
    noted.map_err(|Stale| EAGAIN)??;
    Ok(segments)
}

/// Maps the range at [`BASE`], which is created if there is none, without retries.
fn get(svm: &Svm<Mirror>, ctx: &Ctx) -> Result {
    let mut guard = svm.lock();
    let mut retry = Retry::bounded();
    let attempt = retry.next().ok_or(EINVAL)?;
    let mut found = guard.find_or_insert(BASE, ALL, ctx, &attempt)?;
    found.get(ctx, &attempt)
}

/// Returns whether the range at [`BASE`] has pages in device memory.
fn has_device_memory(svm: &Svm<Mirror>) -> bool {
    svm.lock()
        .ranges(BASE..BASE + 1)
        .any(|range| range.has_device_memory())
}

/// Scans the range at [`BASE`].
fn scan(svm: &Svm<Mirror>, pagemap: Option<&Pagemap>) -> Result<ScanResult> {
    let mut guard = svm.lock();
    let mut retry = Retry::bounded();
    let attempt = retry.next().ok_or(EINVAL)?;
    let mut found = guard.find(BASE).ok_or(EINVAL)?;
    Ok(match pagemap {
        Some(pagemap) => found.scan_for(pagemap, &attempt),
        None => found.scan(&attempt),
    })
}

/// Returns the number of references to a pagemap.
fn references(pagemap: &Pagemap) -> i32 {
    // SAFETY: The reference keeps the pagemap; its refcount is an `atomic_t`.
    let count = unsafe { &*(&raw const (*pagemap.as_raw()).ref_).cast::<Atomic<i32>>() };
    count.load(Relaxed)
}

/// Maps and fills a span, and migrates each of the parts `there` separately.
fn place(
    env: &Env,
    pagemap: &DeviceMemory<Vram>,
    span: &Range<usize>,
    there: &[Range<usize>],
) -> Result {
    mm::map(span, Prot::Write)?;
    mm::fill(span)?;
    for part in there {
        let moved = to_device(env, pagemap, part)?;
        ensure_eq!(moved.moved, part.len());
    }
    pagemap.provider().take_done();
    Ok(())
}

/// Checks that no mapping is left after a failure.
fn is_undone(pagemap: &DeviceMemory<Vram>) -> Result {
    ensure_eq!(dma::mapped(), 0);
    is_unmapped(pagemap)
}

#[kunit_tests(gpusvm_pagemap_pages)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_page_is_mapped_by_its_pagemap() -> Result {
        with_vram(4 * HUGE, |env, pagemap| {
            // Device page 0 is used, as another test covers the device address 0.
            mm::map(&pages(4 * HUGE, 1), Prot::Write)?;
            to_device(env, pagemap, &pages(4 * HUGE, 1))?;
            let span = pages(0, HUGE);
            mm::map_huge(&span)?;
            mm::fill(&span)?;
            ensure_eq!(to_device(env, pagemap, &span)?, moved(HUGE, HUGE, HUGE));
            let vram = pagemap.provider();
            vram.take_done();
            let page = vram.handles()?[1].memory().pages()[0];
            ensure!(page != 0);

            let svm = env.svm()?;
            let (walks, maps) = (hmm::walks(), dma::maps());
            let served = fault_with(&svm, BASE + 5, &ctx(Access::Write, pagemap))?;
            ensure_eq!(hmm::walks() - walks, 1);
            ensure_eq!((served.span, served.retries), (span.clone(), 0));
            let all = segments(&svm, 0)?;
            ensure_eq!(all.len(), 1);
            let whole = SegmentCopy {
                va: BASE,
                // CAST: An address.
                addr: (page * PAGE_SIZE) as u64,
                len: LARGE,
                writable: true,
                proto: vram::PROTOCOL,
            };
            ensure_eq!(all[0], whole);
            ensure!(has_device_memory(&svm));
            // No page migrated, and no system memory was mapped.
            ensure_eq!(dma::maps(), maps);
            let done = vram.take_done();
            ensure_eq!((done.mapped, done.unmapped, done.to_ram), (HUGE, 0, 0));
            // The second fault finds the range mapped.
            let walks = hmm::walks();
            fault_with(&svm, BASE, &ctx(Access::Write, pagemap))?;
            ensure_eq!(hmm::walks(), walks);

            svm.lock().invalidate(ALL);
            ensure!(!has_device_memory(&svm));
            ensure_eq!(vram.take_done().unmapped, HUGE);
            is_unmapped(pagemap)?;
            check(&span)
        })
    }

    #[test]
    fn a_part_of_a_huge_page_at_address_0() -> Result {
        with_vram(HUGE, |env, pagemap| {
            let span = pages(0, HUGE);
            mm::map_huge(&span)?;
            mm::fill(&span)?;
            to_device(env, pagemap, &span)?;
            let svm = env.svm()?;
            for first in [0, 48] {
                let mut guard = svm.lock();
                let mut retry = Retry::bounded();
                let attempt = retry.next().ok_or(EINVAL)?;
                let window = pages(first, 16);
                let ctx = ctx(Access::Write, pagemap);
                let mut found =
                    guard.find_or_insert(window.start, window.clone(), &ctx, &attempt)?;
                ensure_eq!(found.span(), window);
                found.get(&ctx, &attempt)?;
                let only = found.commit(|view, _| {
                    let first = view.segments().next();
                    (view.segments().count(), first.map(SegmentCopy::from))
                });
                let (count, segment) = only.map_err(|Stale| EAGAIN)?;
                let segment = segment.ok_or(EINVAL)?;
                ensure_eq!((count, segment.len), (1, MIDDLE));
                // CAST: An address.
                ensure_eq!(segment.addr, (first * PAGE_SIZE) as u64);
                found.remove();
                is_unmapped(pagemap)?;
            }
            Ok(())
        })
    }

    #[test]
    fn pages_that_are_scattered() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let vram = pagemap.provider();
            vram.set(Settings {
                scattered: true,
                ..Settings::default()
            });
            let span = pages(0, HUGE);
            place(env, pagemap, &span, &[span.clone()])?;
            let handles = vram.handles()?;
            let there = handles[0].memory().pages();
            // Mapping takes more than one hold of the notifier lock.
            let svm = env.svm()?;
            fault_with(&svm, BASE, &ctx(Access::Write, pagemap))?;
            let all = segments(&svm, 0)?;
            ensure_eq!(all.len(), HUGE);
            for (segment, page) in all.iter().zip(there) {
                // CAST: An address.
                ensure_eq!(segment.addr, (page * PAGE_SIZE) as u64);
            }
            ensure_eq!(vram.take_done().mapped, HUGE);
            drop(handles);
            svm.lock().remove_all(ALL);
            ensure_eq!(vram.take_done().unmapped, HUGE);
            check(&span)
        })
    }

    #[test]
    fn others_pages_come_back() -> Result {
        with_devices(2, |env| {
            run(env, 64, |env, pagemap| {
                let other = vram_of(&env.devices[1], 64, None)?;
                let span = pages(0, 16);
                place(env, pagemap, &span, &[pages(4, 4)])?;
                let svm = env.svm()?;
                for ctx in [Ctx::new(Access::Read), ctx(Access::Write, &other)] {
                    let served = fault_with(&svm, BASE, &ctx)?;
                    ensure_eq!((served.seen.bytes, served.seen.device), (MIDDLE, 0));
                    ensure!(!has_device_memory(&svm));
                    let done = pagemap.provider().take_done();
                    ensure_eq!((done.mapped, done.to_ram), (0, 4));
                    svm.lock().remove_all(ALL);
                    // Restore the initial state.
                    to_device(env, pagemap, &pages(4, 4))?;
                    pagemap.provider().take_done();
                }
                Ok(())
            })
        })
    }

    #[test]
    fn both_kinds_together() -> Result {
        // System memory first, then last.
        for there in [pages(8, 8), pages(0, 8)] {
            with_vram(64, |env, pagemap| {
                let span = pages(0, 16);
                place(env, pagemap, &span, &[there.clone()])?;
                let svm = env.svm()?;
                let refs = references(pagemap.pagemap());
                let served = fault_with(&svm, BASE, &ctx(Access::Write, pagemap))?;
                ensure_eq!(
                    (served.seen.bytes, served.seen.device),
                    (MIDDLE, MIDDLE / 2)
                );
                ensure_eq!(served.seen.writable, 16);
                ensure!(has_device_memory(&svm));
                ensure_eq!(dma::mapped(), MIDDLE as i64 / 2);
                ensure_eq!(pagemap.provider().open().pieces, 8);
                for segment in segments(&svm, 0)? {
                    let is_there = segment.proto == vram::PROTOCOL;
                    ensure_eq!(is_there, there.contains(&segment.va));
                }
                // The range holds one reference, for all of its pages.
                ensure_eq!(references(pagemap.pagemap()), refs + 1);
                svm.lock().invalidate(ALL);
                ensure_eq!(references(pagemap.pagemap()), refs);
                ensure!(!has_device_memory(&svm));
                is_undone(pagemap)?;

                // The context may forbid system memory beside device memory.
                svm.lock().remove_all(ALL);
                let strict = Ctx::new(Access::Write).with_owner(pagemap.pagemap().owner());
                ensure_eq!(get(&svm, &strict), Err(EOPNOTSUPP));
                is_undone(pagemap)?;
                let mut only = ctx(Access::Write, pagemap);
                only.devmem_only = true;
                ensure_eq!(get(&svm, &only), Err(EFAULT));
                is_undone(pagemap)?;
                ensure_eq!(references(pagemap.pagemap()), refs);
                check(&span)
            })?;
        }
        Ok(())
    }

    #[test]
    fn device_memory_only() -> Result {
        with_vram(64, |env, pagemap| {
            // The pages are in two blocks.
            let span = pages(0, 16);
            place(env, pagemap, &span, &[pages(0, 8), pages(8, 8)])?;
            let svm = env.svm()?;
            let mut only = ctx(Access::Write, pagemap);
            only.devmem_only = true;
            only.allow_mixed = false;
            let served = fault_with(&svm, BASE, &only)?;
            ensure_eq!((served.seen.bytes, served.seen.device), (MIDDLE, MIDDLE));
            Ok(())
        })
    }

    #[test]
    fn each_piece_may_fail() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            place(env, pagemap, &span, &[pages(2, 5), pages(9, 4)])?;
            let svm = env.svm()?;
            let vram = pagemap.provider();
            let refs = references(pagemap.pagemap());
            let ctx = ctx(Access::Write, pagemap);
            for nth in 0..=9 {
                let mut guard = svm.lock();
                let mut retry = Retry::bounded();
                let attempt = retry.next().ok_or(EINVAL)?;
                let mut found = guard.find_or_insert(BASE, ALL, &ctx, &attempt)?;
                vram.set(Settings {
                    maps: Some(nth),
                    ..Settings::default()
                });
                let result = found.get(&ctx, &attempt);
                if nth == 9 {
                    result?;
                    ensure_eq!(references(pagemap.pagemap()), refs + 1);
                    ensure_eq!(vram.open().pieces, 9);
                } else {
                    ensure_eq!(result, Err(EFAULT));
                    is_undone(pagemap)?;
                    ensure_eq!(references(pagemap.pagemap()), refs);
                    ensure_eq!(found.commit(|_, _| ()), Err(Stale));
                }
            }
            // Mapping the pages in system memory may fail, too.
            svm.lock().invalidate(ALL);
            vram.set(Settings::default());
            for nth in 0..7 {
                let mut guard = svm.lock();
                let mut retry = Retry::bounded();
                let attempt = retry.next().ok_or(EINVAL)?;
                let mut found = guard.find(BASE).ok_or(EINVAL)?;
                let (result, failed) = dma::failing(nth, || found.get(&ctx, &attempt));
                ensure_eq!((result, failed), (Err(EFAULT), true));
                is_undone(pagemap)?;
            }
            check(&span)
        })
    }

    #[test]
    fn memory_of_two_providers_in_a_range() -> Result {
        with_devices(2, |env| {
            let (one, two) = (
                vram_of(&env.devices[0], 64, owner())?,
                vram_of(&env.devices[1], 64, owner())?,
            );
            let peers = Settings {
                peers: true,
                ..Settings::default()
            };
            one.provider().set(peers);
            two.provider().set(peers);
            let span = pages(0, 16);
            place(env, &one, &span, &[pages(0, 8)])?;
            to_device(env, &two, &pages(8, 8))?;
            {
                let svm = env.svm()?;
                let ctx = ctx(Access::Write, &one);
                ensure_eq!(get(&svm, &ctx), Err(EOPNOTSUPP));
                is_undone(&one)?;
                is_undone(&two)?;
                ensure_eq!(scan(&svm, Some(one.pagemap()))?, ScanResult::MixedDevice);

                // With memory of one of them left, the range is mapped for both devices.
                check(&pages(8, 8))?;
                fault_with(&svm, BASE, &ctx)?;
                for (device, proto) in [(0, vram::PROTOCOL), (1, vram::PEER)] {
                    let there = segments(&svm, device)?;
                    ensure!(there[..8].iter().all(|segment| segment.proto == proto));
                }
                ensure_eq!(one.provider().open().pieces, 16);
                svm.lock().remove_all(ALL);
                is_undone(&one)?;

                // If the other device cannot access the memory, the range is mapped for no device.
                one.provider().set(Settings::default());
                ensure_eq!(get(&svm, &ctx), Err(EFAULT));
                is_undone(&one)?;
            }
            check(&span)?;
            gpusvm::pagemap::flush();
            Ok(())
        })
    }

    #[test]
    fn what_moves_is_let_go_of() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let svm = env.svm()?;
            let ctx = ctx(Access::Write, pagemap);
            let vram = pagemap.provider();
            let expect = |invalidations: usize, device: usize| -> Result {
                let before = svm.vm().invalidations();
                ensure_eq!(before, invalidations);
                ensure_eq!(fault_with(&svm, BASE, &ctx)?.seen.device, device);
                Ok(())
            };
            expect(0, 0)?;
            // Migrate to the device: one invalidation.
            to_device(env, pagemap, &pages(0, 4))?;
            ensure_eq!(dma::mapped(), 0);
            ensure!(!svm.vm().last().is_unmap && svm.vm().last().locked);
            expect(1, 4 * PAGE_SIZE)?;
            // Migrate back by a CPU fault.
            mm::read(BASE)?;
            ensure_eq!(vram.open().pieces, 0);
            expect(2, 0)?;
            // Evict: all mapped pages are invalidated, one by one.
            to_device(env, pagemap, &span)?;
            expect(3, MIDDLE)?;
            for handle in vram.handles()? {
                handle.evict()?;
            }
            ensure_eq!((vram.open().pieces, vram.used()), (0, 0));
            expect(4, 0)?;
            // Unmap a page while it is on the device.
            to_device(env, pagemap, &span)?;
            expect(5, MIDDLE)?;
            mm::unmap(&pages(3, 1))?;
            ensure_eq!(vram.open().pieces, 0);
            ensure!(svm.vm().last().is_unmap);
            svm.lock().collect_garbage();
            check(&pages(4, 12))
        })
    }

    #[test]
    fn a_write_to_what_may_only_be_read() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            place(env, pagemap, &span, &[span.clone()])?;
            // The pages on the device may be written again, but only after a fault.
            mm::protect(&span, Prot::Read)?;
            mm::protect(&span, Prot::Write)?;
            let svm = env.svm()?;
            let vram = pagemap.provider();
            let served = fault_with(&svm, BASE, &ctx(Access::Read, pagemap))?;
            ensure_eq!((served.seen.device, served.seen.writable), (MIDDLE, 0));
            ensure_eq!(vram.take_done().to_ram, 0);
            // The CPU's fault that allows the write migrates the pages back.
            let served = fault_with(&svm, BASE, &ctx(Access::Write, pagemap))?;
            ensure_eq!((served.seen.device, served.seen.writable), (0, 16));
            // A slow machine may not migrate all of them in the time of one attempt.
            ensure!(served.retries <= 1);
            ensure_eq!(vram.take_done().to_ram, 16);
            check(&span)
        })
    }

    #[test]
    fn a_scan_tells_where_pages_are() -> Result {
        with_devices(2, |env| {
            run(env, 64, |env, pagemap| {
                let other = vram_of(&env.devices[1], 64, pagemap.pagemap().owner())?;
                let (one, two) = (Some(pagemap.pagemap()), Some(other.pagemap()));
                let span = pages(0, 16);
                mm::map(&span, Prot::Write)?;
                mm::fill(&span)?;
                let svm = env.svm()?;
                fault(&svm, BASE, Access::Read)?;
                ensure_eq!(scan(&svm, one)?, ScanResult::System);
                to_device(env, pagemap, &pages(0, 8))?;
                ensure_eq!(scan(&svm, one)?, ScanResult::Mixed);
                ensure_eq!(scan(&svm, two)?, ScanResult::Mixed);
                to_device(env, pagemap, &pages(8, 8))?;
                ensure_eq!(scan(&svm, one)?, ScanResult::Equal);
                ensure_eq!(scan(&svm, two)?, ScanResult::Other);
                // A scan without a pagemap does not see device pages, and does not migrate them.
                ensure_eq!(scan(&svm, None)?, ScanResult::Unpopulated);
                check(&pages(8, 8))?;
                to_device(env, &other, &pages(8, 8))?;
                ensure_eq!(scan(&svm, one)?, ScanResult::MixedDevice);
                ensure_eq!(scan(&svm, two)?, ScanResult::MixedDevice);
                mm::drop_pages(&pages(15, 1))?;
                ensure_eq!(scan(&svm, one)?, ScanResult::Unpopulated);
                mm::unmap(&span)
            })
        })
    }

    #[test]
    fn what_a_scan_saw_is_mapped_without_another_walk() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            place(env, pagemap, &span, &[span.clone()])?;
            let svm = env.svm()?;
            let ctx = ctx(Access::Write, pagemap);
            let mut guard = svm.lock();
            let mut retry = Retry::bounded();
            let attempt = retry.next().ok_or(EINVAL)?;
            let mut found = guard.find_or_insert(BASE, ALL, &ctx, &attempt)?;
            let walks = hmm::walks();
            let seen = found.scan_for(pagemap.pagemap(), &attempt);
            ensure_eq!(seen, ScanResult::Equal);
            found.get(&ctx, &attempt)?;
            ensure_eq!(hmm::walks() - walks, 1);
            ensure_eq!(pagemap.provider().open().pieces, 16);
            Ok(())
        })
    }

    #[test]
    fn behind_an_iommu() -> Result {
        with_iommu_device(|env| {
            // The memory belongs to another device.
            let device = crate::fixture::device::Device::new(7)?;
            let pagemap = vram_of(&device, 64, None)?;
            let peers = Settings {
                peers: true,
                ..Settings::default()
            };
            pagemap.provider().set(peers);
            // A range that begins with system memory gets a reservation of IOVA space.
            for (there, runs) in [
                ([pages(3, 4), pages(9, 2)], 1),
                ([pages(0, 4), pages(9, 2)], 0),
            ] {
                let span = pages(0, 16);
                place(env, &pagemap, &span, &there)?;
                let svm = env.svm()?;
                let served = fault_with(&svm, BASE, &ctx(Access::Write, &pagemap))?;
                ensure_eq!(
                    (served.seen.bytes, served.seen.device),
                    (MIDDLE, 6 * PAGE_SIZE)
                );
                ensure_eq!(dma::mapped(), (10 * PAGE_SIZE) as i64);
                // The system memory is contiguous in IOVA space, without gaps for the device
                // memory.
                let all = segments(&svm, 0)?;
                let mut system = all.iter().filter(|segment| segment.proto != vram::PEER);
                if runs == 1 {
                    let first = system.next().ok_or(EINVAL)?;
                    let mut next = first.addr + first.len as u64;
                    for segment in system {
                        ensure_eq!(segment.addr, next);
                        next += segment.len as u64;
                    }
                }
                drop(svm);
                is_undone(&pagemap)?;
                // Mapping the device memory may fail.
                let svm = env.svm()?;
                for nth in 0..6 {
                    pagemap.provider().set(Settings {
                        maps: Some(nth),
                        ..peers
                    });
                    let ctx = ctx(Access::Write, &pagemap);
                    ensure_eq!(get(&svm, &ctx), Err(EFAULT));
                    is_undone(&pagemap)?;
                }
                pagemap.provider().set(peers);
                check(&span)?;
            }
            gpusvm::pagemap::flush();
            Ok(())
        })
    }
}
