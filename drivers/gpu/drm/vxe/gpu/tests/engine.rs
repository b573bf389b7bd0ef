// SPDX-License-Identifier: GPL-2.0

//! KUnit suite of the engine: batches that run.

use kernel::prelude::*;

#[kunit_tests(vxe_gpu_engine)]
mod suite {
    use super::super::{
        super::{command::Reject, *},
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
        // The access that it waited for does not happen, though it could now.
        bench.run.store(false, Relaxed);
        let too_late = Claims(|| {
            bench.run.store(true, Relaxed);
            // Failing, it would leave the batch to fault again.
            let _ = bench.map(DATA, 0, PteFlag::Writable.into());
        });
        let fence = store_qword(&bench.aspace, &too_late, DATA, 1, &bench.run);
        check!(fence == Err(EngineError::Stopped) && bench.peek(0, 0)? == 0);
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
}
