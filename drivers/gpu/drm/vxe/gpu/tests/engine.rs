// SPDX-License-Identifier: GPL-2.0

//! KUnit suite of the engine: batches that run.

use kernel::prelude::*;

#[kunit_tests(vxe_gpu_engine)]
mod suite {
    use super::super::{
        super::{command::DecodeError, *},
        bench::*,
    };
    use core::cell::Cell;
    use kernel::{prelude::*, sync::atomic::Relaxed};

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
        // The two pages are MI_NOOPs, except for these dwords.
        check!(bench.run(&NoFaults, DATA) == Ok(()));
        check!(bench.peek(2, 0)? == 5);
        Ok(())
    }

    #[test]
    fn copies_of_all_alignments() -> Result {
        const LEN: usize = 5000;
        // A page for the batch, three source pages, three destination pages.
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
        for (src, dst) in [
            (0, 0),
            (1, 0),
            (0, 4095),
            (4095, 4095),
            (2000, 3000),
            (3001, 2),
        ] {
            for page in 4..7 {
                bench.poke(page, 0, &[0; 2048])?;
                bench.poke(page, 2048, &[0; 2048])?;
            }
            let (from, to) = (DATA + PAGE_SIZE + src, DATA + 4 * PAGE_SIZE + dst);
            bench.load(0, &copy(COPY_BYTES, from, to, LEN as u32, 1, [1, 1]))?;
            bench.poke(0, 40, &END.to_le_bytes())?;
            check!(bench.run(&NoFaults, DATA) == Ok(()));
            for i in [
                0,
                1,
                95,
                96,
                1095,
                1096,
                4000,
                4095,
                4096,
                4097,
                LEN as u64 - 1,
            ] {
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
        // Faults of the batch, a store, the atomic which needs more rights, and both pages of the
        // copy.
        check!(faults.count.get() == 5);
        check!(bench.aspace.counters().faults == 5);

        check!(bench.store(&faults, DATA + 8, 9) == Ok(()) && bench.peek(0, 8)? == 9);
        let misaligned = bench.store(&faults, DATA + 4, 9);
        check!(misaligned == Err(EngineError::Misaligned { addr: DATA + 4 }));
        Ok(())
    }

    /// Maps the faulting page, and unmaps all others.
    struct OneAtATime<'a> {
        bench: &'a Bench,
        count: Cell<u32>,
    }

    impl FaultHandler for OneAtATime<'_> {
        fn fault(&self, addr: u64, _access: Access) -> Result {
            self.count.set(self.count.get() + 1);
            let bench = self.bench;
            if let Some(stale) = bench.aspace.zap(0, 1 << 48) {
                let len = stale.end - stale.start;
                bench.aspace.invalidate_tlb(stale.start, len);
            }
            let page = addr.checked_sub(DATA).ok_or(EFAULT)? / PAGE_SIZE;
            let va = DATA + page * PAGE_SIZE;
            bench.map(va, page as usize, PteFlag::Writable | PteFlag::Atomic)
        }
    }

    /// A batch that faults at each access continues as if it had not.
    #[test]
    fn a_batch_that_faults_at_each_access() -> Result {
        let bench = Bench::new(48, 6)?;
        let faults = OneAtATime {
            bench: &bench,
            count: Cell::new(0),
        };
        let place = |page: u64| DATA + page * PAGE_SIZE;
        let (a, b, c) = (place(2), place(4), place(5));
        bench.poke(2, 4090, &[1, 2, 3, 4, 5, 6])?;
        bench.poke(3, 0, &[7, 8, 9, 10])?;
        // The first command crosses a page boundary.
        let start = PAGE_SIZE - 8;
        bench.poke(0, start, &STORE.to_le_bytes())?;
        bench.poke(0, start + 4, &low(a).to_le_bytes())?;
        let mut rest = KVec::new();
        for command in [
            [high(a), 41].as_slice(),
            &[INC, low(a), high(a)],
            // Ten bytes from two pages to two pages, in three pieces.
            &copy(COPY_BYTES, a + 4090, b + 4093, 10, 1, [1, 1]),
            // Two rows.
            &copy(COPY_MATRIX, a, c, 4, 2, [4090, 8]),
            &[DEC, low(c), high(c)],
            &[END],
        ] {
            rest.extend_from_slice(command, GFP_KERNEL)?;
        }
        bench.load(1, &rest)?;
        check!(bench.run(&faults, DATA + start) == Ok(()));
        check!(bench.store(&faults, a + 8, 7) == Ok(()) && bench.peek(2, 8)? == 7);

        check!(bench.peek(2, 0)? == 42);
        check!(bench.peek(4, 4092)?.to_le_bytes() == [0, 1, 2, 3]);
        check!(bench.peek(5, 0)? == 41);
        check!(bench.peek(5, 8)?.to_le_bytes() == [1, 2, 3, 4]);
        // Written by the first copy, before the rows.
        check!(bench.peek(5, 4)?.to_le_bytes() == [8, 9, 10, 0]);
        // Both pages of the first command, and the page it stores to; five pages of the first copy,
        // except the one that is mapped by then; the next line of the batch; four pages of two
        // rows; the fence.
        check!(faults.count.get() == 14);
        check!(bench.aspace.counters().faults == u64::from(faults.count.get()));
        Ok(())
    }

    /// A copy writes the data it has read, even if its source changes meanwhile.
    #[test]
    fn what_was_read_is_written() -> Result {
        struct Changes<'a>(&'a Bench);
        impl FaultHandler for Changes<'_> {
            fn fault(&self, addr: u64, access: Access) -> Result {
                if access != Access::Write || addr != DATA + 2 * PAGE_SIZE {
                    return Err(EFAULT);
                }
                self.0.poke(1, 0, &[2; 16])?;
                self.0.map(addr, 2, PteFlag::Writable.into())
            }
        }
        let bench = Bench::new(48, 3)?;
        let (from, to) = (DATA + PAGE_SIZE, DATA + 2 * PAGE_SIZE);
        bench.map(DATA, 0, PteFlags::empty())?;
        bench.map(from, 1, PteFlags::empty())?;
        bench.poke(1, 0, &[1; 16])?;
        bench.load(0, &copy(COPY_BYTES, from, to, 16, 1, [1, 1]))?;
        bench.poke(0, 40, &END.to_le_bytes())?;
        check!(bench.run(&Changes(&bench), DATA) == Ok(()));
        check!(bench.peek(2, 0)?.to_le_bytes() == [1; 4]);
        Ok(())
    }

    /// A context runs until `is_over` returns true, and `start()` drops the previous batch.
    #[test]
    fn steps_are_as_many_as_wanted() -> Result {
        let bench = Bench::new(48, 2)?;
        bench.map_all(DATA)?;
        let word = DATA + PAGE_SIZE;
        let mut batch = KVec::new();
        for _ in 0..8 {
            batch.extend_from_slice(&[INC, low(word), high(word)], GFP_KERNEL)?;
        }
        batch.push(END, GFP_KERNEL)?;
        bench.load(0, &batch)?;

        let mut context = EngineContext::new()?;
        check!(context.run(&bench.aspace, &bench.run, || true) == Outcome::Done);
        context.start(DATA);
        let mut left = 7;
        let done = context.run(&bench.aspace, &bench.run, || {
            left -= 1;
            left == 0
        });
        // Steps: start the batch, then fetch and execute three commands.
        check!(done == Outcome::Yielded && bench.peek(1, 0)? == 3);
        context.start(DATA);
        check!(context.run(&bench.aspace, &bench.run, || false) == Outcome::Done);
        check!(bench.peek(1, 0)? == 11);
        check!(context.run(&bench.aspace, &bench.run, || false) == Outcome::Done);
        check!(bench.peek(1, 0)? == 11);
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
        // The error names the address of the piece that faults.
        bench.load(0, &copy(COPY_BYTES, BATCH + 4000, DATA, 200, 1, [1, 1]))?;
        check!(bench.run(&NoFaults, BATCH) == fault(DATA, Access::Write));
        bench.load(0, &copy(COPY_BYTES, DATA + 4000, BATCH, 200, 1, [1, 1]))?;
        check!(bench.run(&NoFaults, BATCH) == fault(DATA + 4000, Access::Read));

        let fence = bench.store(&NoFaults, DATA, 1);
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
        // The access that faulted is not repeated, although it is mapped now.
        bench.run.store(false, Relaxed);
        let too_late = Claims(|| {
            bench.run.store(true, Relaxed);
            // An error makes the batch fault again, which is harmless.
            let _ = bench.map(DATA, 0, PteFlag::Writable.into());
        });
        let fence = bench.store(&too_late, DATA, 1);
        check!(fence == Err(EngineError::Stopped) && bench.peek(0, 0)? == 0);
        // Before it starts.
        bench.map(BATCH, 0, PteFlags::empty())?;
        check!(bench.run(&NoFaults, BATCH) == Err(EngineError::Stopped));
        bench.run.store(false, Relaxed);

        // A batch without an end: each page of the address space contains the same MI_NOOPs.
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
        // A small address space; a batch without an end reaches its end.
        let bench = Bench::new(21, 1)?;
        let last = (1 << 21) - PAGE_SIZE;
        bench.map(last, 0, PteFlag::Writable.into())?;
        let no_address = |addr| Err(EngineError::Address { addr });
        check!(bench.run(&NoFaults, last) == no_address(1 << 21));
        check!(bench.run(&NoFaults, 1 << 21) == Err(EngineError::Address { addr: 1 << 21 }));
        check!(bench.run(&NoFaults, last + 2) == Err(EngineError::Misaligned { addr: last + 2 }));

        bench.load(0, &[0, 0, 0x7234_5678])?;
        check!(
            bench.run(&NoFaults, last)
                == Err(EngineError::Command {
                    at: last + 8,
                    header: 0x7234_5678,
                    error: DecodeError::Unknown,
                })
        );
        bench.load(0, &[STORE, 0, 1, 0])?;
        check!(bench.run(&NoFaults, last) == no_address(1 << 32));
        // Copies that exceed the address space: at once, in the last row, by wrapping around.
        bench.load(0, &copy(COPY_PAGES, last, last, 17, 1, [1, 1]))?;
        check!(bench.run(&NoFaults, last) == no_address(last));
        bench.load(0, &copy(COPY_MATRIX, last, last, 4, 3, [2048, 4]))?;
        check!(bench.run(&NoFaults, last) == no_address(1 << 21));
        bench.load(0, &[COPY_PAGES, u32::MAX, 0, 0, 0, 0, 0, 0, 0, 0])?;
        check!(bench.run(&NoFaults, last) == no_address(0));
        Ok(())
    }
}
