// SPDX-License-Identifier: GPL-2.0

//! KUnit suite of the device's own memory: accesses by address spaces and by the copy engine.

use kernel::prelude::*;

#[kunit_tests(vxe_gpu_vram)]
mod suite {
    use super::super::{
        super::{
            address_space::AccessError,
            copy::{CopyCounters, CopyEngine, CopyRun},
            *,
        },
        bench::*,
    };
    use kernel::{
        prelude::*,
        sync::{
            atomic::{Atomic, Full, Relaxed},
            Arc, //
        },
    };
    use kernel_ext::workqueue::OwnedQueue;

    const FULL: fn() -> PteFlags = || PteFlag::Writable | PteFlag::Atomic;

    fn map(bench: &Bench, va: u64, target: Target) -> Result {
        let mut staged = bench.aspace.stage(va, PAGE_SIZE)?;
        let stale = bench
            .aspace
            .map(&mut staged, va, PAGE_SIZE, target, FULL())?;
        if let Some(stale) = stale {
            bench
                .aspace
                .invalidate_tlb(stale.start, stale.end - stale.start);
        }
        Ok(())
    }

    fn peek(bench: &Bench, addr: u64) -> Result<u32> {
        let mut word = [0; 4];
        bench.vram.read(addr, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    #[test]
    fn accesses_reach_the_devices_memory() -> Result {
        let bench = Bench::new(48, 1)?;
        bench.vram.grant(FRAME..3 * FRAME, GFP_KERNEL)?;
        map(&bench, DATA, Target::Vram(FRAME))?;
        map(&bench, DATA + FRAME, bench.target(0)?)?;
        check!(bench.aspace.store_u32(DATA + 8, 5).is_ok());
        check!(bench.aspace.add_u32(DATA + 8, 2).is_ok());
        check!(bench.aspace.store_u64(DATA + 16, 3 << 32).is_ok());
        check!(bench.aspace.write(DATA + 4092, &[1, 0, 0, 0]).is_ok());
        check!(bench.read_u32(DATA + 8) == Ok(7));
        check!(peek(&bench, FRAME + 8) == Ok(7) && peek(&bench, FRAME + 20) == Ok(3));
        check!(peek(&bench, FRAME + 4092) == Ok(1));
        // The same address in system memory is another page.
        check!(bench.peek(0, 8)? == 0);
        Ok(())
    }

    #[test]
    fn what_nobody_has_is_not_reached() -> Result {
        let _refusals = ExpectRefusals::new();
        let bench = Bench::new(48, 1)?;
        bench.vram.grant(0..FRAME, GFP_KERNEL)?;
        let refused = |error| Err(AccessError::Bus(error));
        map(&bench, DATA, Target::Vram(FRAME))?;
        check!(bench.read_u32(DATA) == Err(AccessError::Bus(ESTALE)));
        check!(bench.aspace.store_u32(DATA, 1) == refused(ESTALE));
        map(&bench, DATA, Target::Vram(VRAM))?;
        check!(bench.aspace.store_u64(DATA, 1) == refused(ENXIO));
        map(&bench, DATA, Target::Vram(0))?;
        check!(bench.aspace.add_u32(DATA, 1).is_ok());
        // Revoked while the translation is in use.
        bench.vram.revoke(0..FRAME);
        check!(bench.aspace.add_u32(DATA, 1) == refused(ESTALE));
        Ok(())
    }

    #[test]
    fn runs_are_moved() -> Result {
        let bench = Bench::new(48, 3)?;
        bench.vram.grant(0..4 * FRAME, GFP_KERNEL)?;
        let copies = CopyEngine::new(bench.bus.clone());
        for page in 0..3u32 {
            // CAST: Small.
            map(&bench, DATA, bench.target(page as usize)?)?;
            check!(bench.aspace.store_u32(DATA + 4088, page + 1).is_ok());
        }
        let run = |from, to, len| CopyRun { from, to, len };
        // Two pages, each copied into halves of two others.
        let half = FRAME / 2;
        copies.run([
            run(None, Target::Vram(0), 4 * FRAME),
            run(Some(bench.target(0)?), Target::Vram(half), FRAME),
            run(Some(bench.target(1)?), Target::Vram(half + FRAME), FRAME),
        ])?;
        check!(peek(&bench, half + 4088) == Ok(1));
        check!(peek(&bench, half + FRAME + 4088) == Ok(2));
        copies.run([
            run(Some(Target::Vram(half)), Target::Vram(3 * FRAME), FRAME),
            run(Some(Target::Vram(3 * FRAME)), bench.target(2)?, FRAME),
            run(Some(Target::Vram(0)), bench.target(1)?, 0),
        ])?;
        check!(bench.peek(2, 4088)? == 1 && bench.peek(1, 4088)? == 2);
        check!(
            copies.counters()
                == CopyCounters {
                    to_vram: 2 * FRAME,
                    to_system: FRAME,
                    within: FRAME,
                    cleared: 4 * FRAME,
                }
        );
        Ok(())
    }

    #[test]
    fn what_cannot_be_moved() -> Result {
        let _refusals = ExpectRefusals::new();
        let bench = Bench::new(48, 2)?;
        bench.vram.grant(0..2 * FRAME, GFP_KERNEL)?;
        let copies = CopyEngine::new(bench.bus.clone());
        let (a, b) = (bench.target(0)?, bench.target(1)?);
        let run = |from, to| {
            copies.run([CopyRun {
                from,
                to,
                len: FRAME,
            }])
        };
        check!(run(Some(a), b) == Err(EOPNOTSUPP));
        check!(run(None, a) == Err(EOPNOTSUPP));
        check!(run(Some(a), Target::Vram(2 * FRAME)) == Err(ESTALE));
        check!(run(Some(Target::Vram(VRAM)), b) == Err(ENXIO));
        check!(run(Some(Target::System(1 << 51)), Target::Vram(0)) == Err(ENXIO));
        check!(run(None, Target::Vram(u64::MAX - 8)) == Err(EINVAL));
        // The second half of it is not granted.
        check!(run(None, Target::Vram(FRAME + 8)) == Err(ESTALE));
        Ok(())
    }

    /// Several threads copy pages back and forth while an engine uses another page.
    #[test]
    fn copies_run_in_parallel() -> Result {
        const THREADS: u32 = 3;
        const ROUNDS: u32 = 200;

        let bench = Arc::new(Bench::new(48, 4)?, GFP_KERNEL)?;
        bench.vram.grant(0..VRAM, GFP_KERNEL)?;
        let copies = Arc::new(CopyEngine::new(bench.bus.clone()), GFP_KERNEL)?;
        let (running, wrong) = (Atomic::new(THREADS), Atomic::new(0u32));
        let state = Arc::new((running, wrong), GFP_KERNEL)?;
        for page in 0..THREADS {
            // CAST: Small.
            map(&bench, DATA, bench.target(page as usize)?)?;
            check!(bench.aspace.store_u32(DATA + 64, 100 + page).is_ok());
        }
        map(&bench, DATA, Target::Vram(7 * FRAME))?;
        // Dropping the work queue waits for its work.
        let queue = OwnedQueue::new_unbound(c"vxe-copy-kunit")?;
        for page in 0..THREADS {
            let (bench, copies, state) = (bench.clone(), copies.clone(), state.clone());
            let at = Target::Vram(u64::from(page) * 2 * FRAME);
            let next = at.offset(FRAME);
            queue.try_spawn(GFP_KERNEL, move || {
                for _ in 0..ROUNDS {
                    // CAST: Small.
                    let done = bench.target(page as usize).and_then(|system| {
                        let run = |from, to| CopyRun {
                            from: Some(from),
                            to,
                            len: FRAME,
                        };
                        copies.run([run(system, at), run(at, next), run(next, system)])
                    });
                    if done.is_err() {
                        state.1.fetch_add(1, Relaxed);
                    }
                }
                state.0.fetch_sub(1, Full);
            })?;
        }
        let mut adds = 0u32;
        while state.0.load(Relaxed) != 0 {
            check!(bench.aspace.add_u32(DATA, 1).is_ok());
            adds += 1;
            kernel_ext::sched::cond_resched();
        }
        drop(queue);
        check!(state.1.load(Relaxed) == 0);
        check!(peek(&bench, 7 * FRAME) == Ok(adds));
        for page in 0..THREADS {
            check!(bench.peek(page as usize, 64)? == 100 + page);
        }
        let bytes = u64::from(THREADS * ROUNDS) * FRAME;
        let copied = copies.counters();
        check!((copied.to_vram, copied.within, copied.to_system) == (bytes, bytes, bytes));
        Ok(())
    }
}
