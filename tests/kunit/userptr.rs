// SPDX-License-Identifier: GPL-2.0

//! Tests of userptrs: of the pages, of invalidations in two passes, and of what keeps what.

use crate::fixture::{
    device::Device,
    dma,
    driver::look,
    gate::GATE,
    mm::{self, Prot},
    pages,
    thread::Thread,
    with_device, with_devices, with_iommu_device, Env, BASE,
};
use core::ops::Range;
use gpusvm::{
    get_pages::BATCH,
    Access,
    Ctx,
    DmaDevice,
    Retry,
    Userptr,
    UserptrDriver,
    Userptrs,
    WouldBlock, //
};
use kernel::{
    bindings,
    mm::Mm,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, //
    }, //
};
use kernel_ext::mm::hmm;

/// The driver.
struct ByAddress;

/// The numbers of calls of the driver's callbacks, and how they behave.
struct Counts {
    revoked: Atomic<usize>,
    finished: Atomic<usize>,
    tried: Atomic<usize>,
    /// Revocations that the driver may delay.
    deferrable: Atomic<usize>,
    /// The largest number of revocations that were begun and not finished.
    overlap: Atomic<usize>,
    /// One pass only.
    one_pass: Atomic<bool>,
    /// `try_revoke()` fails.
    waits: Atomic<bool>,
    /// `finish()` waits at the gate.
    gated: Atomic<bool>,
}

impl Counts {
    fn new() -> Self {
        Self {
            revoked: Atomic::new(0),
            finished: Atomic::new(0),
            tried: Atomic::new(0),
            deferrable: Atomic::new(0),
            overlap: Atomic::new(0),
            one_pass: Atomic::new(false),
            waits: Atomic::new(false),
            gated: Atomic::new(false),
        }
    }

    fn get(&self) -> (usize, usize) {
        (self.revoked.load(Relaxed), self.finished.load(Relaxed))
    }
}

/// A revocation that was begun.
struct Begun;

/// A change of the CPU's mappings.
type Change = fn(&Range<usize>) -> Result;

/// What is in the driver's page table: bytes.
struct Entry(Atomic<i64>);

impl Entry {
    fn new() -> Self {
        Self(Atomic::new(0))
    }

    fn set(&self, bytes: i64) {
        dma::bind(bytes - self.0.xchg(bytes, Relaxed));
    }
}

#[vtable]
impl UserptrDriver for ByAddress {
    const NAME: &'static CStr = c"gpusvm_kunit";
    type Vm = Counts;
    type Userptr = Entry;
    type Pending = Begun;

    fn revoke(vm: &Counts, userptr: &Userptr<Self>, can_wait: bool) -> Option<Begun> {
        if can_wait {
            vm.deferrable.fetch_add(1, Relaxed);
        }
        vm.revoked.fetch_add(1, Relaxed);
        if vm.one_pass.load(Relaxed) {
            userptr.data().set(0);
            return None;
        }
        // The device uses the pages until `finish()`.
        Some(Begun)
    }

    fn finish(vm: &Counts, userptr: &Userptr<Self>, _begun: Begun) {
        if vm.gated.load(Relaxed) {
            GATE.pass();
        }
        let (revoked, finished) = vm.get();
        let overlap = vm.overlap.load(Relaxed).max(revoked - finished);
        vm.overlap.store(overlap, Relaxed);
        vm.finished.fetch_add(1, Relaxed);
        userptr.data().set(0);
    }

    fn try_revoke(vm: &Counts, userptr: &Userptr<Self>) -> Result<(), WouldBlock> {
        vm.tried.fetch_add(1, Relaxed);
        if vm.waits.load(Relaxed) {
            return Err(WouldBlock);
        }
        userptr.data().set(0);
        Ok(())
    }
}

fn space(env: &Env) -> Result<Arc<Userptrs<ByAddress>>> {
    let mut all: KVec<Arc<DmaDevice>> = KVec::new();
    for device in &env.devices {
        all.push(device.dma().clone(), GFP_KERNEL)?;
    }
    Userptrs::new(&all, Counts::new())
}

fn userptr(
    space: &Arc<Userptrs<ByAddress>>,
    mm: &Mm,
    span: Range<usize>,
) -> Result<Arc<Userptr<ByAddress>>> {
    Userptr::new(space, mm, span, Entry::new())
}

/// Gets the pages as a driver does, and writes them to its page table. Returns the number of bytes
/// and of segments, and the number of calls of the closure.
fn bind(userptr: &Userptr<ByAddress>, access: Access) -> Result<(usize, usize, usize)> {
    let mut locked = userptr.lock_killable()?;
    let mut retry = Retry::bounded();
    while let Some(attempt) = retry.next() {
        match locked.get(&Ctx::new(access), &attempt) {
            Ok(()) => {}
            Err(EAGAIN) => continue,
            Err(e) => return Err(e),
        }
        let (mut bytes, mut segments, mut calls, mut devices) = (0, 0, 0, 0);
        let mut next = userptr.span().start;
        let done = locked.commit(|view| {
            ensure_eq!(view.span().start, next);
            next = view.span().end;
            for device in 0..view.devices() {
                let seen = look(&view, device)?;
                devices += seen.bytes;
                if device == 0 {
                    bytes += seen.bytes;
                    segments += seen.segments;
                }
            }
            calls += 1;
            // CAST: A size.
            userptr.data().set(devices as i64);
            Ok(())
        });
        match done {
            Ok(()) => {
                ensure_eq!(next, userptr.span().end);
                return Ok((bytes, segments, calls));
            }
            Err(EAGAIN) => continue,
            Err(e) => return Err(e),
        }
    }
    Err(EBUSY)
}

/// Returns the device's addresses of the pages.
fn addresses(userptr: &Userptr<ByAddress>) -> Result<KVVec<u64>> {
    let mut all = KVVec::new();
    userptr.lock_killable()?.commit(|view| {
        for segment in view.segments() {
            for offset in (0..segment.len).step_by(PAGE_SIZE) {
                all.push(segment.addr + offset as u64, GFP_ATOMIC)?;
            }
        }
        Ok(())
    })?;
    Ok(all)
}

#[kunit_tests(gpusvm_userptr)]
mod tests {
    use super::*;

    #[test]
    fn the_device_and_the_cpu_see_the_same() -> Result {
        with_device(|env| {
            let span = pages(3, 21);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let space = space(env)?;
            let userptr = userptr(&space, &env.mm, span.clone())?;
            ensure!(!userptr.is_mapped());
            ensure_eq!(bind(&userptr, Access::Write)?.0, span.len());
            ensure!(userptr.is_mapped());
            ensure_eq!(dma::mapped(), span.len() as i64);
            for (addr, dma) in span.clone().step_by(PAGE_SIZE).zip(&addresses(&userptr)?) {
                ensure_eq!(env.device().read(*dma)?, mm::pattern(addr));
                env.device().write(*dma, 1)?;
                ensure_eq!(mm::read(addr)?, 1);
            }
            // What is mapped is not mapped again.
            let (walks, maps) = (hmm::walks(), dma::maps());
            bind(&userptr, Access::Read)?;
            ensure_eq!((hmm::walks(), dma::maps()), (walks, maps));
            ensure_eq!(space.vm().get(), (0, 0));
            drop(userptr);
            ensure_eq!(space.vm().get(), (1, 1));
            ensure_eq!(dma::mapped(), 0);
            Ok(())
        })
    }

    #[test]
    fn changes_of_the_cpu_revoke_all_of_it() -> Result {
        with_devices(2, |env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            let space = space(env)?;
            let userptr = userptr(&space, &env.mm, span.clone())?;
            let changes: [(Change, usize); 3] = [
                (mm::drop_pages, 1),
                (
                    |span| {
                        mm::protect(span, Prot::Read).and_then(|()| mm::protect(span, Prot::Write))
                    },
                    2,
                ),
                // The addresses that are unmapped do not remain: this cannot be delayed.
                (
                    |span| mm::unmap(span).and_then(|()| mm::map(span, Prot::Write)),
                    2,
                ),
            ];
            for (count, (change, deferrable)) in changes.iter().enumerate() {
                bind(&userptr, Access::Write)?;
                ensure_eq!(dma::mapped(), 2 * span.len() as i64);
                change(&pages(7, 1))?;
                ensure!(!userptr.is_mapped());
                ensure_eq!(dma::mapped(), 0);
                ensure_eq!(space.vm().get(), (count + 1, count + 1));
                ensure_eq!(space.vm().deferrable.load(Relaxed), *deferrable);
                ensure_eq!(userptr.lock_killable()?.commit(|_| Ok(())), Err(EAGAIN));
                // A change of what is not mapped revokes nothing.
                change(&pages(7, 1))?;
                ensure_eq!(space.vm().get(), (count + 1, count + 1));
            }
            // Neighbours do not matter.
            bind(&userptr, Access::Write)?;
            mm::map(&pages(16, 1), Prot::Write)?;
            mm::unmap(&pages(16, 1))?;
            ensure!(userptr.is_mapped());
            Ok(())
        })
    }

    #[test]
    fn a_change_between_get_and_commit() -> Result {
        with_device(|env| {
            const ROUNDS: usize = 4;
            let span = pages(0, 8);
            mm::map(&span, Prot::Write)?;
            let space = space(env)?;
            let userptr = userptr(&space, &env.mm, span.clone())?;
            let mut locked = userptr.lock_killable()?;
            let mut retry = Retry::bounded();
            for round in 0..ROUNDS {
                let attempt = retry.next().ok_or(EBUSY)?;
                locked.get(&Ctx::new(Access::Write), &attempt)?;
                if round % 2 == 0 {
                    locked.invalidate();
                } else {
                    mm::drop_pages(&pages(3, 1))?;
                }
                // Nobody gets the addresses, and the driver was told of the end of what it might have
                // had.
                let mut calls = 0;
                let done = locked.commit(|_| {
                    calls += 1;
                    Ok(())
                });
                ensure_eq!((done, calls), (Err(EAGAIN), 0));
                ensure_eq!(dma::mapped(), 0);
                ensure_eq!(space.vm().get(), (round + 1, round + 1));
            }
            drop(locked);
            ensure_eq!(bind(&userptr, Access::Write)?.0, span.len());
            Ok(())
        })
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() -> Result {
        with_device(|env| {
            let span = pages(0, 4);
            let space = space(env)?;
            let userptr = userptr(&space, &env.mm, span.clone())?;
            ensure_eq!(bind(&userptr, Access::Write).err(), Some(EFAULT));
            mm::map(&pages(0, 3), Prot::Write)?;
            ensure_eq!(bind(&userptr, Access::Write).err(), Some(EFAULT));
            ensure_eq!(dma::mapped(), 0);
            mm::map(&pages(3, 1), Prot::Read)?;
            ensure_eq!(bind(&userptr, Access::Write).err(), Some(EPERM));
            ensure_eq!(bind(&userptr, Access::Read)?.0, span.len());
            mm::protect(&span, Prot::Write)?;
            bind(&userptr, Access::Write)?;
            Ok(())
        })
    }

    #[test]
    fn more_access_revokes_first() -> Result {
        with_device(|env| {
            // A read leaves the pages clean, and so they are mapped for reading only, although the
            // CPU may write them. A write changes no mapping of the CPU.
            let file = mm::File::sparse(5)?;
            let span = pages(0, 4);
            file.map_shared(&span, Prot::Write)?;
            for addr in span.clone().step_by(PAGE_SIZE) {
                ensure_eq!(mm::read(addr)?, 0);
            }
            let space = space(env)?;
            let userptr = userptr(&space, &env.mm, span)?;
            bind(&userptr, Access::Read)?;
            let before = addresses(&userptr)?;
            ensure_eq!(space.vm().get(), (0, 0));
            bind(&userptr, Access::Write)?;
            ensure_eq!(space.vm().get(), (1, 1));
            ensure_eq!(addresses(&userptr)?.len(), before.len());
            for addr in &addresses(&userptr)? {
                env.device().write(*addr, 5)?;
            }
            ensure_eq!(mm::read(BASE)?, 5);
            Ok(())
        })
    }

    #[test]
    fn a_large_one_is_mapped_in_batches() -> Result {
        with_device(|env| {
            let count = 5 * BATCH + 7;
            let span = pages(1, count);
            mm::map(&span, Prot::Write)?;
            // Every other page is read only, so that no two pages are one segment.
            for page in (0..count).step_by(2) {
                mm::write(span.start + page * PAGE_SIZE, 1)?;
            }
            let space = space(env)?;
            let userptr = userptr(&space, &env.mm, span.clone())?;
            let (bytes, segments, calls) = bind(&userptr, Access::Read)?;
            ensure_eq!(bytes, span.len());
            ensure_eq!(calls, segments.div_ceil(BATCH));
            ensure!(calls > 1);

            // A change between two batches ends the commit.
            let mut batches = 0;
            let mut locked = userptr.lock_killable()?;
            let done = locked.commit(|_| {
                batches += 1;
                if batches == 2 {
                    return Err(ENOMEM);
                }
                Ok(())
            });
            ensure_eq!((done, batches), (Err(ENOMEM), 2));
            ensure!(userptr.is_mapped());
            Ok(())
        })
    }

    #[test]
    fn all_begin_before_one_is_finished() -> Result {
        with_devices(2, |env| {
            let (first, second) = (space(env)?, space(env)?);
            let span = pages(0, 12);
            mm::map(&span, Prot::Write)?;
            let mut all = KVec::new();
            for index in 0..3 {
                let part = pages(4 * index, 4);
                all.push(userptr(&first, &env.mm, part.clone())?, GFP_KERNEL)?;
                all.push(userptr(&second, &env.mm, part)?, GFP_KERNEL)?;
            }
            for userptr in &all {
                bind(userptr, Access::Write)?;
            }
            mm::drop_pages(&span)?;
            for space in [&first, &second] {
                ensure_eq!(space.vm().get(), (3, 3));
                ensure_eq!(space.vm().overlap.load(Relaxed), 3);
            }
            ensure_eq!(dma::mapped(), 0);

            first.vm().one_pass.store(true, Relaxed);
            for userptr in &all {
                bind(userptr, Access::Write)?;
            }
            mm::drop_pages(&span)?;
            ensure_eq!(first.vm().get(), (6, 3));
            ensure_eq!(second.vm().get(), (6, 6));
            ensure_eq!(dma::mapped(), 0);
            Ok(())
        })
    }

    #[test]
    fn stale_pages_are_given_to_nobody() -> Result {
        with_device(|env| {
            let span = pages(0, 8);
            mm::map(&span, Prot::Write)?;
            let space = space(env)?;
            let userptr = userptr(&space, &env.mm, span.clone())?;
            bind(&userptr, Access::Write)?;
            space.vm().gated.store(true, Relaxed);
            GATE.close();
            let part = pages(0, 1);
            let thread = Thread::spawn(&env.mm, move || mm::drop_pages(&part))?;
            let reached = GATE.is_reached();
            // The pages are mapped, and the device uses them, but nobody gets their addresses.
            let (mapped, valid) = (dma::mapped(), userptr.is_mapped());
            GATE.open();
            space.vm().gated.store(false, Relaxed);
            thread.join()?;
            ensure!(reached);
            ensure_eq!((mapped, valid), (span.len() as i64, false));
            ensure_eq!(dma::mapped(), 0);
            bind(&userptr, Access::Write)?;
            Ok(())
        })
    }

    #[test]
    fn changes_at_once() -> Result {
        with_devices(2, |env| {
            const THREADS: usize = 4;
            const ROUNDS: usize = 200;
            let span = pages(0, THREADS);
            mm::map(&span, Prot::Write)?;
            let space = space(env)?;
            let userptr = userptr(&space, &env.mm, span)?;
            let mut threads = KVec::new();
            for index in 0..THREADS {
                threads.push(
                    Thread::spawn(&env.mm, move || {
                        (0..ROUNDS).try_for_each(|_| mm::drop_pages(&pages(index, 1)))
                    })?,
                    GFP_KERNEL,
                )?;
            }
            while !threads.iter().all(Thread::is_done) {
                match bind(&userptr, Access::Write) {
                    Ok(_) | Err(EBUSY) => {}
                    Err(e) => return Err(e),
                }
            }
            for thread in threads {
                thread.join()?;
            }
            let (revoked, finished) = space.vm().get();
            ensure_eq!(revoked, finished);
            bind(&userptr, Access::Write)?;
            mm::drop_pages(&pages(0, 1))?;
            ensure_eq!(dma::mapped(), 0);
            Ok(())
        })
    }

    #[test]
    fn the_oom_reaper_does_not_wait() -> Result {
        with_device(|env| {
            let span = pages(0, 4);
            mm::map(&span, Prot::Write)?;
            let space = space(env)?;
            let userptr = userptr(&space, &env.mm, span.clone())?;
            let reap = || -> Result<bool> {
                let range = bindings::mmu_notifier_range {
                    start: span.start,
                    end: span.end,
                    event: bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR,
                    ..Default::default()
                };
                let mni = userptr.notifier().as_raw();
                let mut finish = core::ptr::null_mut();
                // SAFETY: The notifier is inserted, so that it has operations, which are called as
                // the kernel calls them. Its sequence number is restored for readers.
                let done = unsafe {
                    let before = (*mni).invalidate_seq;
                    let call = (*(*mni).ops).invalidate_start.ok_or(EINVAL)?;
                    let done = call(mni, &raw const range, before, &raw mut finish);
                    (*mni).invalidate_seq = before;
                    done
                };
                // There is one pass only.
                ensure!(finish.is_null());
                Ok(done)
            };
            bind(&userptr, Access::Write)?;
            space.vm().waits.store(true, Relaxed);
            ensure!(!reap()?);
            ensure!(userptr.is_mapped());
            space.vm().waits.store(false, Relaxed);
            ensure!(reap()?);
            ensure!(!userptr.is_mapped());
            ensure_eq!(space.vm().get(), (0, 0));
            ensure_eq!(space.vm().tried.load(Relaxed), 2);
            // Nothing is mapped: the driver is not asked.
            ensure!(reap()?);
            ensure_eq!(space.vm().tried.load(Relaxed), 2);
            Ok(())
        })
    }

    #[test]
    fn a_process_that_exits() -> Result {
        with_device(|env| {
            let process = mm::process()?;
            let span = pages(0, 8);
            let inside = span.clone();
            Thread::spawn(&process, move || mm::map(&inside, Prot::Write))?.join()?;
            let space = space(env)?;
            let userptr = userptr(&space, &process, span.clone())?;
            bind(&userptr, Access::Write)?;
            ensure_eq!(dma::mapped(), span.len() as i64);
            drop(process);
            ensure_eq!(dma::mapped(), 0);
            ensure_eq!(space.vm().get(), (1, 1));
            ensure_eq!(bind(&userptr, Access::Read).err(), Some(EFAULT));
            Ok(())
        })
    }

    #[test]
    fn unbinding_a_device_shuts_all() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 8), Prot::Write)?;
            let unbound = Device::new(1)?;
            let devices = [env.device().dma().clone(), unbound.dma().clone()];
            let space = Userptrs::<ByAddress>::new(&devices, Counts::new())?;
            let bound = userptr(&space, &env.mm, pages(0, 4))?;
            let other = userptr(&space, &env.mm, pages(2, 4))?;
            let unused = userptr(&space, &env.mm, pages(1, 1))?;
            bind(&bound, Access::Write)?;
            bind(&other, Access::Read)?;
            drop(unbound);
            ensure_eq!(dma::mapped(), 0);
            ensure_eq!(space.vm().get(), (2, 2));
            for userptr in [&bound, &other, &unused] {
                ensure_eq!(bind(userptr, Access::Read).err(), Some(EFAULT));
            }
            // One that is made later cannot be mapped either.
            let late = userptr(&space, &env.mm, pages(0, 1))?;
            ensure_eq!(bind(&late, Access::Read).err(), Some(EFAULT));
            drop((bound, late));
            // Further objects are refused.
            let again = Userptrs::<ByAddress>::new(&devices, Counts::new());
            ensure_eq!(again.err(), Some(ENODEV));
            Ok(())
        })
    }

    #[test]
    fn spans_that_are_refused() -> Result {
        with_device(|env| {
            let space = space(env)?;
            for span in [
                BASE..BASE,
                BASE + 1..BASE + PAGE_SIZE,
                BASE..BASE + PAGE_SIZE + 8,
            ] {
                ensure_eq!(userptr(&space, &env.mm, span).err(), Some(EINVAL));
            }
            // Addresses that no process has.
            let last = usize::MAX - PAGE_SIZE + 1;
            let kernel = userptr(&space, &env.mm, last - PAGE_SIZE..last)?;
            ensure_eq!(bind(&kernel, Access::Read).err(), Some(EFAULT));
            let devices: [Arc<DmaDevice>; 0] = [];
            let none = Userptrs::<ByAddress>::new(&devices, Counts::new());
            ensure_eq!(none.err(), Some(EINVAL));
            Ok(())
        })
    }

    #[test]
    fn behind_an_iommu() -> Result {
        with_iommu_device(|env| {
            let span = pages(1, 40);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let space = space(env)?;
            let userptr = userptr(&space, &env.mm, span.clone())?;
            bind(&userptr, Access::Write)?;
            // The device's addresses are contiguous.
            let all = addresses(&userptr)?;
            let first = *all.first().ok_or(EINVAL)?;
            for (page, addr) in all.iter().enumerate() {
                ensure_eq!(*addr, first + (page * PAGE_SIZE) as u64);
            }
            mm::drop_pages(&pages(20, 1))?;
            ensure_eq!(dma::mapped(), 0);
            Ok(())
        })
    }
}
