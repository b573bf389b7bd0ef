// SPDX-License-Identifier: GPL-2.0

//! KUnit suite of the whole GPU: batches that run in real memory.

use kernel::prelude::*;

#[kunit_tests(vxe_gpu)]
mod tests {
    use super::super::{address_space::AccessError, *};
    use core::cell::Cell;
    use kernel::{
        faux,
        page::Page,
        prelude::*,
        sync::{
            atomic::{Atomic, AtomicFlag, Full, Relaxed},
            Arc, //
        },
        time::{delay::fsleep, Delta},
    };
    use kernel_ext::{phys::page_to_phys, sched::cond_resched, workqueue::OwnedQueue};

    /// Where batches are, and what they work on.
    const BATCH: u64 = 0x10_0000;
    const DATA: u64 = 0x7fff_ffe0_0000;

    const END: u32 = 0x0500_0000;
    const STORE: u32 = 0x1000_0002;
    const INC: u32 = 0x1780_0501;
    const DEC: u32 = 0x1780_0601;
    const COPY_BYTES: u32 = 0x5680_0008;
    const COPY_MATRIX: u32 = 0x5682_0008;
    const COPY_PAGES: u32 = 0x5688_0008;

    /// Fails the test, and lets it clean up: a failed assertion would not.
    macro_rules! check {
        ($condition:expr) => {
            if !$condition {
                pr_err!("line {}: not {}\n", line!(), stringify!($condition));
                return Err(EIO);
            }
        };
    }

    /// An address space on a device of its own, and some zeroed pages.
    struct Bench {
        aspace: Arc<AddressSpace>,
        bus: Arc<Bus>,
        pages: KVec<Page>,
        device: faux::Registration,
        run: AtomicFlag,
    }

    impl Bench {
        fn new(va_bits: u32, count: usize) -> Result<Self> {
            let device = faux::Registration::new(c"vxe-gpu-kunit", None)?;
            let faux: &faux::Device<kernel::device::Bound> = device.as_ref();
            let bus = Bus::new(faux.as_ref())?;
            let mut pages = KVec::with_capacity(count, GFP_KERNEL)?;
            for _ in 0..count {
                pages.push(Page::alloc_page(GFP_KERNEL | __GFP_ZERO)?, GFP_KERNEL)?;
            }
            Ok(Self {
                aspace: AddressSpace::new(bus.clone(), va_bits)?,
                bus,
                pages,
                device,
                run: AtomicFlag::new(false),
            })
        }

        /// Where a page is for the device, which has no IOMMU.
        fn target(&self, page: usize) -> Result<Target> {
            Ok(Target::System(page_to_phys(self.pages.get(page).ok_or(EINVAL)?)))
        }

        fn map(&self, va: u64, page: usize, flags: PteFlags) -> Result {
            let mut staged = self.aspace.stage(va, PAGE_SIZE)?;
            let target = self.target(page)?;
            self.aspace
                .map(&mut staged, va, PAGE_SIZE, target, flags)
                .map(|_| ())
        }

        /// Maps all pages, the first at `va`, for all kinds of access.
        fn map_all(&self, va: u64) -> Result {
            for page in 0..self.pages.len() {
                let va = va + page as u64 * PAGE_SIZE;
                self.map(va, page, PteFlag::Writable | PteFlag::Atomic)?;
            }
            Ok(())
        }

        fn peek(&self, page: usize, offset: u64) -> Result<u32> {
            let mut word = [0; 4];
            self.bus.read(self.target(page)?.offset(offset), &mut word)?;
            Ok(u32::from_le_bytes(word))
        }

        fn poke(&self, page: usize, offset: u64, data: &[u8]) -> Result {
            self.bus.write(self.target(page)?.offset(offset), data)
        }

        fn read_u32(&self, va: u64) -> Result<u32, AccessError> {
            let mut word = [0; 4];
            self.aspace.read(va, &mut word)?;
            Ok(u32::from_le_bytes(word))
        }

        /// Writes a batch to the beginning of a page.
        fn load(&self, page: usize, batch: &[u32]) -> Result {
            for (i, dword) in (0u64..).zip(batch) {
                self.poke(page, i * 4, &dword.to_le_bytes())?;
            }
            Ok(())
        }

        /// Runs the batch at `va`.
        fn run(&self, faults: &dyn FaultHandler, va: u64) -> Result<(), EngineError> {
            run(&self.aspace, faults, va, &self.run)
        }
    }

    /// Services no fault.
    struct NoFaults;

    impl FaultHandler for NoFaults {
        fn fault(&self, _addr: u64, _access: Access) -> Result {
            Err(EFAULT)
        }
    }

    /// Maps pages as they are asked for.
    struct OnDemand<'a> {
        bench: &'a Bench,
        base: u64,
        count: Cell<u32>,
    }

    impl FaultHandler for OnDemand<'_> {
        fn fault(&self, addr: u64, access: Access) -> Result {
            self.count.set(self.count.get() + 1);
            let page = addr.checked_sub(self.base).ok_or(EFAULT)? / PAGE_SIZE;
            let flags = match access {
                Access::Read => PteFlags::empty(),
                Access::Write => PteFlag::Writable.into(),
                Access::Atomic => PteFlag::Writable | PteFlag::Atomic,
            };
            let va = self.base + page * PAGE_SIZE;
            self.bench.map(va, page as usize, flags)
        }
    }

    /// Claims to service each fault, and does something else.
    struct Claims<F: Fn()>(F);

    impl<F: Fn()> FaultHandler for Claims<F> {
        fn fault(&self, _addr: u64, _access: Access) -> Result {
            (self.0)();
            Ok(())
        }
    }

    fn low(addr: u64) -> u32 {
        addr as u32
    }

    fn high(addr: u64) -> u32 {
        (addr >> 32) as u32
    }

    fn copy(header: u32, src: u64, dst: u64, width: u32, height: u32, pitches: [u32; 2]) -> [u32; 10] {
        let [src_pitch, dst_pitch] = pitches;
        [
            header,
            width - 1,
            height - 1,
            src_pitch - 1,
            dst_pitch - 1,
            low(src),
            high(src),
            low(dst),
            high(dst),
            0,
        ]
    }

    #[test]
    fn accesses_reach_memory() -> Result {
        let bench = Bench::new(48, 2)?;
        bench.map_all(DATA)?;
        let aspace = &bench.aspace;

        check!(aspace.write(DATA + 4092, &[1, 2, 3, 4]).is_ok());
        check!(bench.peek(0, 4092)? == 0x0403_0201);
        check!(bench.read_u32(DATA + 4092) == Ok(0x0403_0201));

        check!(aspace.store_u32(DATA + PAGE_SIZE, 7).is_ok());
        check!(aspace.store_u64(DATA + PAGE_SIZE + 8, 0x1234_5678_9abc_def0).is_ok());
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

        // The page table has forgotten the page; the TLB has not, and the GPU writes to it.
        check!(bench.aspace.zap(DATA, PAGE_SIZE) == Some(DATA..DATA + PAGE_SIZE));
        check!(bench.aspace.store_u32(DATA, 1).is_ok());
        check!(bench.peek(0, 0)? == 1);

        // Another page is mapped; the first still gets what is meant for it.
        bench.map(DATA, 1, flags())?;
        check!(bench.aspace.store_u32(DATA, 2).is_ok());
        check!(bench.peek(0, 0)? == 2 && bench.peek(1, 0)? == 0);

        // An invalidation of something else does not help.
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
        let bench = Bench::new(48, 1)?;
        let nowhere = Target::System(1 << 51);
        let mut staged = bench.aspace.stage(DATA, PAGE_SIZE)?;
        let flags = PteFlag::Writable | PteFlag::Atomic;
        bench.aspace.map(&mut staged, DATA, PAGE_SIZE, nowhere, flags)?;

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

    #[test]
    fn a_batch_of_all_commands() -> Result {
        let bench = Bench::new(48, 3)?;
        bench.map_all(DATA)?;
        let (to, count) = (DATA + PAGE_SIZE, DATA + PAGE_SIZE + 8);
        let from = DATA + PAGE_SIZE;
        let mut batch = KVec::new();
        for command in [
            [0, 0].as_slice(),
            &[STORE, low(to), high(to), 0xdead_beef],
            &[INC, low(count), high(count), INC, low(count), high(count)],
            &[DEC, low(count), high(count)],
            &[DEC, low(count + 4), high(count + 4)],
            &copy(COPY_PAGES, from, from + PAGE_SIZE, 16, 1, [1, 1]),
            &[END, u32::MAX],
        ] {
            batch.extend_from_slice(command, GFP_KERNEL)?;
        }
        bench.load(0, &batch)?;
        check!(bench.run(&NoFaults, DATA) == Ok(()));
        for page in [1, 2] {
            check!(bench.peek(page, 0)? == 0xdead_beef);
            check!(bench.peek(page, 8)? == 1);
            check!(bench.peek(page, 12)? == u32::MAX);
        }
        Ok(())
    }

    #[test]
    fn a_command_across_pages() -> Result {
        let bench = Bench::new(48, 3)?;
        bench.map_all(DATA)?;
        let to = DATA + 2 * PAGE_SIZE;
        bench.poke(0, 4088, &STORE.to_le_bytes())?;
        bench.poke(0, 4092, &low(to).to_le_bytes())?;
        bench.load(1, &[high(to), 5, END])?;
        // Two pages of MI_NOOP come first, but for these.
        check!(bench.run(&NoFaults, DATA) == Ok(()));
        check!(bench.peek(2, 0)? == 5);
        Ok(())
    }

    #[test]
    fn copies_of_all_alignments() -> Result {
        const LEN: usize = 5000;
        // A page for the batch, three to copy from, three to copy to.
        let bench = Bench::new(48, 7)?;
        bench.map_all(DATA)?;
        for page in 1..4 {
            for word in 0..1024u32 {
                let pattern = word.wrapping_mul(0x9e37_79b9) ^ page as u32;
                bench.poke(page, u64::from(word) * 4, &pattern.to_le_bytes())?;
            }
        }
        let byte = |page: usize, at: u64| -> Result<u8> {
            let word = bench.peek(page + (at / PAGE_SIZE) as usize, at % PAGE_SIZE & !3)?;
            Ok(word.to_le_bytes()[at as usize % 4])
        };
        for (src, dst) in [(0, 0), (1, 0), (0, 4095), (4095, 4095), (2000, 3000), (3001, 2)] {
            for page in 4..7 {
                bench.poke(page, 0, &[0; 2048])?;
                bench.poke(page, 2048, &[0; 2048])?;
            }
            let (from, to) = (DATA + PAGE_SIZE + src, DATA + 4 * PAGE_SIZE + dst);
            bench.load(0, &copy(COPY_BYTES, from, to, LEN as u32, 1, [1, 1]))?;
            bench.poke(0, 40, &END.to_le_bytes())?;
            check!(bench.run(&NoFaults, DATA) == Ok(()));
            for i in [0, 1, 95, 96, 1095, 1096, 4000, 4095, 4096, 4097, LEN as u64 - 1] {
                check!(byte(4, dst + i)? == byte(1, src + i)?);
            }
            check!(byte(4, dst + LEN as u64)? == 0);
            check!(dst == 0 || byte(4, dst - 1)? == 0);
        }
        Ok(())
    }

    #[test]
    fn a_copy_of_rows() -> Result {
        let bench = Bench::new(48, 3)?;
        bench.map_all(DATA)?;
        for row in 0..3u64 {
            bench.poke(1, row * 100, &[row as u8 + 1; 100])?;
        }
        let (from, to) = (DATA + PAGE_SIZE, DATA + 2 * PAGE_SIZE);
        bench.load(0, &copy(COPY_MATRIX, from, to, 8, 3, [100, 16]))?;
        bench.poke(0, 40, &END.to_le_bytes())?;
        check!(bench.run(&NoFaults, DATA) == Ok(()));
        for row in 0..3u64 {
            let value = u32::from_le_bytes([row as u8 + 1; 4]);
            check!(bench.peek(2, row * 16 + 4)? == value);
            check!(bench.peek(2, row * 16 + 8)? == 0);
        }
        check!(bench.peek(2, 48)? == 0);
        Ok(())
    }

    #[test]
    fn faults_are_serviced() -> Result {
        let bench = Bench::new(48, 4)?;
        let faults = OnDemand {
            bench: &bench,
            base: DATA,
            count: Cell::new(0),
        };
        let (a, b) = (DATA + PAGE_SIZE, DATA + 2 * PAGE_SIZE);
        let mut batch = KVec::new();
        for command in [
            [STORE, low(a), high(a), 3].as_slice(),
            &[INC, low(a), high(a)],
            &copy(COPY_BYTES, a, b + 4090, 12, 1, [1, 1]),
            &[END],
        ] {
            batch.extend_from_slice(command, GFP_KERNEL)?;
        }
        bench.load(0, &batch)?;
        check!(bench.run(&faults, DATA) == Ok(()));
        check!(bench.peek(1, 0)? == 4);
        check!(bench.peek(2, 4088)? == 4 << 16);
        // The batch; a write and more rights for the atomic; both pages of the copy.
        check!(faults.count.get() == 5);
        check!(bench.aspace.counters().faults == 5);

        check!(
            store_qword(&bench.aspace, &faults, DATA + 8, 9, &bench.run) == Ok(())
                && bench.peek(0, 8)? == 9
        );
        let misaligned = store_qword(&bench.aspace, &faults, DATA + 4, 9, &bench.run);
        check!(misaligned == Err(EngineError::Misaligned { addr: DATA + 4 }));
        Ok(())
    }

    #[test]
    fn faults_that_fail() -> Result {
        let bench = Bench::new(48, 1)?;
        let fault = |addr, access| {
            Err(EngineError::Fault {
                addr,
                access,
                error: EFAULT,
            })
        };
        check!(bench.run(&NoFaults, BATCH) == fault(BATCH, Access::Read));
        bench.map(BATCH, 0, PteFlags::empty())?;
        bench.load(0, &[STORE, low(DATA), high(DATA), 1, END])?;
        check!(bench.run(&NoFaults, BATCH) == fault(DATA, Access::Write));
        bench.load(0, &[INC, low(DATA), high(DATA), END])?;
        check!(bench.run(&NoFaults, BATCH) == fault(DATA, Access::Atomic));
        // The piece that faults is named, not the copy.
        bench.load(0, &copy(COPY_BYTES, BATCH + 4000, DATA, 200, 1, [1, 1]))?;
        check!(bench.run(&NoFaults, BATCH) == fault(DATA, Access::Write));
        bench.load(0, &copy(COPY_BYTES, DATA + 4000, BATCH, 200, 1, [1, 1]))?;
        check!(bench.run(&NoFaults, BATCH) == fault(DATA + 4000, Access::Read));

        let fence = store_qword(&bench.aspace, &NoFaults, DATA, 1, &bench.run);
        check!(fence == fault(DATA, Access::Write));
        check!(Error::from(EngineError::Stopped) == ECANCELED);
        Ok(())
    }

    #[test]
    fn faults_that_are_never_serviced() -> Result {
        let bench = Bench::new(48, 1)?;
        let count = Cell::new(0u32);
        let claims = Claims(|| count.set(count.get() + 1));
        check!(
            bench.run(&claims, BATCH)
                == Err(EngineError::NoProgress {
                    addr: BATCH,
                    access: Access::Read
                })
        );
        check!(count.get() == 4096);
        Ok(())
    }

    #[test]
    fn a_batch_can_be_stopped() -> Result {
        let bench = Bench::new(48, 1)?;
        // While it waits for a fault.
        let stop = Claims(|| bench.run.store(true, Relaxed));
        check!(bench.run(&stop, BATCH) == Err(EngineError::Stopped));
        // Before it begins.
        bench.map(BATCH, 0, PteFlags::empty())?;
        check!(bench.run(&NoFaults, BATCH) == Err(EngineError::Stopped));
        bench.run.store(false, Relaxed);

        // Where it would never end: each page of the address space is the same MI_NOOPs.
        struct Endless<'a>(&'a Bench, Cell<u32>);
        impl FaultHandler for Endless<'_> {
            fn fault(&self, addr: u64, _access: Access) -> Result {
                self.1.set(self.1.get() + 1);
                if self.1.get() == 10 {
                    self.0.run.store(true, Relaxed);
                }
                self.0.map(addr & !(PAGE_SIZE - 1), 0, PteFlags::empty())
            }
        }
        let endless = Endless(&bench, Cell::new(0));
        check!(bench.run(&endless, BATCH) == Err(EngineError::Stopped));
        check!(endless.1.get() == 10);
        Ok(())
    }

    #[test]
    fn bad_batches() -> Result {
        // A small address space, at the end of which a batch without end ends.
        let bench = Bench::new(21, 1)?;
        let last = (1 << 21) - PAGE_SIZE;
        bench.map(last, 0, PteFlag::Writable.into())?;
        let no_address = |addr| Err(EngineError::Address { addr });
        check!(bench.run(&NoFaults, last) == no_address(1 << 21));
        check!(bench.run(&NoFaults, 1 << 21) == Err(EngineError::Address { addr: 1 << 21 }));
        check!(bench.run(&NoFaults, last + 2) == Err(EngineError::Misaligned { addr: last + 2 }));

        bench.load(0, &[0, 0, 0x1234_5678])?;
        check!(
            bench.run(&NoFaults, last)
                == Err(EngineError::Command {
                    at: last + 8,
                    header: 0x1234_5678,
                    reject: Reject::Unknown,
                })
        );
        bench.load(0, &[STORE, 0, 1, 0])?;
        check!(bench.run(&NoFaults, last) == no_address(1 << 32));
        // Copies that leave the address space: at once, in the last row, by wrapping around.
        bench.load(0, &copy(COPY_PAGES, last, last, 17, 1, [1, 1]))?;
        check!(bench.run(&NoFaults, last) == no_address(last));
        bench.load(0, &copy(COPY_MATRIX, last, last, 4, 3, [2048, 4]))?;
        check!(bench.run(&NoFaults, last) == no_address(1 << 21));
        bench.load(0, &[COPY_PAGES, u32::MAX, 0, 0, 0, 0, 0, 0, 0, 0])?;
        check!(bench.run(&NoFaults, last) == no_address(0));
        Ok(())
    }

    /// A page that is away for a moment only.
    struct Wait;

    impl FaultHandler for Wait {
        fn fault(&self, _addr: u64, _access: Access) -> Result {
            cond_resched();
            Ok(())
        }
    }

    /// Engines that add to one word, while its page is taken away and given back.
    #[test]
    fn invalidation_waits_for_accesses() -> Result {
        const ENGINES: u32 = 3;
        const BATCHES: u32 = 60;
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
        // Dropped, it waits.
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
