// SPDX-License-Identifier: GPL-2.0

//! KUnit suite of the address space: page table, TLB and bus together.

use kernel::prelude::*;

#[kunit_tests(vxe_gpu_address_space)]
mod suite {
    use super::super::{
        super::{address_space::AccessError, *},
        bench::*,
    };
    use kernel::{
        prelude::*,
        sync::{
            atomic::{Atomic, Full, Relaxed},
            Arc, //
        },
        time::{delay::fsleep, Delta},
    };
    use kernel_ext::workqueue::OwnedQueue;

    #[test]
    fn accesses_reach_memory() -> Result {
        let bench = Bench::new(48, 2)?;
        bench.map_all(DATA)?;
        let aspace = &bench.aspace;

        check!(aspace.write(DATA + 4092, &[1, 2, 3, 4]).is_ok());
        check!(bench.peek(0, 4092)? == 0x0403_0201);
        check!(bench.read_u32(DATA + 4092) == Ok(0x0403_0201));

        check!(aspace.store_u32(DATA + PAGE_SIZE, 7).is_ok());
        check!(aspace
            .store_u64(DATA + PAGE_SIZE + 8, 0x1234_5678_9abc_def0)
            .is_ok());
        check!(aspace.add_u32(DATA + PAGE_SIZE, 5).is_ok());
        check!(aspace.add_u32(DATA + PAGE_SIZE + 16, u32::MAX).is_ok());
        check!(bench.peek(1, 0)? == 12);
        check!(bench.peek(1, 8)? == 0x9abc_def0);
        check!(bench.peek(1, 12)? == 0x1234_5678);
        check!(bench.peek(1, 16)? == u32::MAX);
        Ok(())
    }

    #[test]
    fn a_stale_translation_is_used_until_it_is_invalidated() -> Result {
        let bench = Bench::new(48, 2)?;
        let flags = || PteFlag::Writable.into();
        bench.map(DATA, 0, flags())?;
        check!(bench.read_u32(DATA) == Ok(0));

        // The page is unmapped in the page table, but still in the TLB, so the GPU writes to it.
        check!(bench.aspace.zap(DATA, PAGE_SIZE) == Some(DATA..DATA + PAGE_SIZE));
        check!(bench.aspace.store_u32(DATA, 1).is_ok());
        check!(bench.peek(0, 0)? == 1);

        // Another page is mapped there; the GPU still writes to the first one.
        bench.map(DATA, 1, flags())?;
        check!(bench.aspace.store_u32(DATA, 2).is_ok());
        check!(bench.peek(0, 0)? == 2 && bench.peek(1, 0)? == 0);

        // An invalidation of other pages has no effect.
        bench.aspace.invalidate_tlb(DATA + PAGE_SIZE, PAGE_SIZE);
        bench.aspace.invalidate_tlb(DATA, 0);
        check!(bench.read_u32(DATA) == Ok(2));

        bench.aspace.invalidate_tlb(DATA + 1, 1);
        check!(bench.read_u32(DATA) == Ok(0));
        check!(bench.aspace.zap(DATA, PAGE_SIZE).is_some());
        bench.aspace.invalidate_tlb(0, u64::MAX);
        check!(bench.read_u32(DATA) == Err(AccessError::Fault));

        let counters = bench.aspace.counters();
        check!(counters.tlb_hits == 3 && counters.tlb_misses == 3);
        check!(counters.tlb_invalidations == 3 && counters.faults == 1);
        Ok(())
    }

    #[test]
    fn rights_are_enforced() -> Result {
        let bench = Bench::new(48, 1)?;
        bench.map(DATA, 0, PteFlags::empty())?;
        check!(bench.read_u32(DATA) == Ok(0));
        check!(bench.aspace.store_u32(DATA, 1) == Err(AccessError::Fault));
        check!(bench.aspace.write(DATA, &[1]) == Err(AccessError::Fault));
        check!(bench.aspace.add_u32(DATA, 1) == Err(AccessError::Fault));
        bench.map(DATA, 0, PteFlag::Writable.into())?;
        check!(bench.aspace.store_u32(DATA, 1).is_ok());
        check!(bench.aspace.add_u32(DATA, 1) == Err(AccessError::Fault));
        check!(bench.peek(0, 0)? == 1);
        Ok(())
    }

    #[test]
    fn no_memory_behind_the_bus() -> Result {
        let _refusals = ExpectRefusals::new();
        let bench = Bench::new(48, 1)?;
        let nowhere = Target::System(1 << 51);
        let mut staged = bench.aspace.stage(DATA, PAGE_SIZE)?;
        let flags = PteFlag::Writable | PteFlag::Atomic;
        bench
            .aspace
            .map(&mut staged, DATA, PAGE_SIZE, nowhere, flags)?;

        let refused = Err(AccessError::Bus(ENXIO));
        check!(bench.read_u32(DATA) == Err(AccessError::Bus(ENXIO)));
        check!(bench.aspace.store_u64(DATA, 1) == refused);
        check!(bench.aspace.add_u32(DATA, 1) == refused);
        check!(
            bench.run(&NoFaults, DATA)
                == Err(EngineError::Bus {
                    addr: DATA,
                    error: ENXIO
                })
        );
        // Accesses that an engine never makes.
        let at = bench.target(0)?;
        check!(bench.bus.read(at.offset(1), &mut [0; 4096]) == Err(EINVAL));
        check!(bench.bus.store_u32(at.offset(2), 1) == Err(EINVAL));
        check!(bench.bus.store_u64(at.offset(4), 1) == Err(EINVAL));
        Ok(())
    }

    #[test]
    fn a_device_that_is_gone() -> Result {
        let Bench {
            aspace,
            device,
            pages: _pages,
            ..
        } = {
            let bench = Bench::new(48, 1)?;
            bench.map_all(DATA)?;
            bench
        };
        let mut word = [0; 4];
        check!(aspace.read(DATA, &mut word).is_ok());
        drop(device);
        check!(aspace.read(DATA, &mut word) == Err(AccessError::Bus(ENODEV)));
        Ok(())
    }

    #[test]
    fn addresses_may_be_canonical() -> Result {
        let bench = Bench::new(48, 0)?;
        let span = |addr, len| bench.aspace.span(addr, len);
        check!(span(DATA, 8) == Some(DATA..DATA + 8));
        check!(span(0xffff_8000_0000_1000, 8) == Some(0x8000_0000_1000..0x8000_0000_1008));
        check!(span(0x8000_0000_1000, 8) == Some(0x8000_0000_1000..0x8000_0000_1008));
        check!(span(0x1_0000_0000_0000, 8).is_none());
        check!(span(0xffff_0000_0000_1000, 8).is_none());
        check!(span(0xffff_ffff_ffff_fff8, 8).is_some());
        check!(span(0xffff_ffff_ffff_fff9, 8).is_none());
        check!(span(0, 1 << 48).is_some() && span(0, u64::MAX).is_none());
        Ok(())
    }

    /// Waits for a page that is unmapped for a moment only.
    struct Wait;

    impl FaultHandler for Wait {
        fn fault(&self, _addr: u64, _access: Access) -> Result {
            // Long enough for the page to be mapped again on a busy machine.
            fsleep(Delta::from_micros(200));
            Ok(())
        }
    }

    /// Engines add to a word while its page is unmapped and mapped again.
    #[test]
    fn invalidation_waits_for_accesses() -> Result {
        const ENGINES: u32 = 3;
        const BATCHES: u32 = 30;
        const ADDS: u32 = 300;

        let bench = Arc::new(Bench::new(48, 2)?, GFP_KERNEL)?;
        let mut batch = KVec::new();
        for _ in 0..ADDS {
            batch.extend_from_slice(&[INC, low(DATA), high(DATA)], GFP_KERNEL)?;
        }
        batch.push(END, GFP_KERNEL)?;
        bench.load(0, &batch)?;
        bench.map(BATCH, 0, PteFlags::empty())?;
        let flags = || PteFlag::Writable | PteFlag::Atomic;
        bench.map(DATA, 1, flags())?;

        let running = Arc::new(Atomic::new(ENGINES), GFP_KERNEL)?;
        // Dropping the work queue waits for its work.
        let engines = OwnedQueue::new_unbound(c"vxe-gpu-kunit")?;
        for _ in 0..ENGINES {
            let (bench, running) = (bench.clone(), running.clone());
            engines.try_spawn(GFP_KERNEL, move || {
                for _ in 0..BATCHES {
                    if let Err(error) = bench.run(&Wait, BATCH) {
                        pr_err!("{error}\n");
                    }
                }
                running.fetch_sub(1, Full);
            })?;
        }

        let (mut rounds, mut moved) = (0, 0);
        while running.load(Relaxed) != 0 {
            if let Some(stale) = bench.aspace.zap(DATA, PAGE_SIZE) {
                bench
                    .aspace
                    .invalidate_tlb(stale.start, stale.end - stale.start);
            }
            let before = bench.peek(1, 0)?;
            for _ in 0..50 {
                moved += u32::from(bench.peek(1, 0)? != before);
            }
            bench.map(DATA, 1, flags())?;
            fsleep(Delta::from_micros(200));
            rounds += 1;
        }
        drop(engines);
        let faults = bench.aspace.counters().faults;
        pr_info!("{rounds} invalidations, {faults} faults\n");
        check!(moved == 0);
        check!(bench.peek(1, 0)? == ENGINES * BATCHES * ADDS);
        Ok(())
    }
}
