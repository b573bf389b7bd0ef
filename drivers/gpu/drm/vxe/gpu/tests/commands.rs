// SPDX-License-Identifier: GPL-2.0

//! KUnit suite of the engine: what each command does.

use kernel::prelude::*;

#[kunit_tests(vxe_gpu_commands)]
mod suite {
    use super::super::{
        super::{command::DecodeError, *},
        bench::*,
    };
    use core::cell::Cell;
    use kernel::{prelude::*, sync::atomic::Relaxed};

    const JUMP: u32 = 0x1880_0101;
    const CALL: u32 = 0x18c0_0101;
    /// MI_CONDITIONAL_BATCH_BUFFER_END: of all levels, and of the current one.
    const END_UNLESS_GREATER: u32 = 0x1b20_0002;
    const END_LEVEL_UNLESS_GREATER: u32 = 0x1b24_0002;
    const WAIT_EQUAL: u32 = 0x0e00_c003;
    const LRI: u32 = 0x1108_0001;
    const LRR: u32 = 0x150c_0001;
    const LRM: u32 = 0x1488_0002;
    const SRM: u32 = 0x1208_0002;
    const CTX_TIMESTAMP: u32 = 0x3a8;
    const RING_TIMESTAMP: u32 = 0x358;
    const GPR: u32 = 0x600;

    /// Three pages, mapped at `DATA` for all kinds of access: batches are in the first.
    fn bench() -> Result<Bench> {
        let bench = Bench::new(48, 3)?;
        bench.map_all(DATA)?;
        Ok(bench)
    }

    /// Writes commands one after the other, at an offset in the first page.
    fn load(bench: &Bench, offset: u64, commands: &[&[u32]]) -> Result {
        let dwords = commands.iter().flat_map(|command| command.iter());
        for (i, dword) in (0u64..).zip(dwords) {
            bench.poke(0, offset + i * 4, &dword.to_le_bytes())?;
        }
        Ok(())
    }

    fn peek64(bench: &Bench, page: usize, offset: u64) -> Result<u64> {
        let (low, high) = (bench.peek(page, offset)?, bench.peek(page, offset + 4)?);
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    #[test]
    fn stores_of_lists() -> Result {
        let bench = bench()?;
        // The lists cross lines of the fetcher, the second store also a page.
        let (a, b) = (DATA + PAGE_SIZE, DATA + 2 * PAGE_SIZE - 8);
        let dwords: [u32; 20] = core::array::from_fn(|i| i as u32 + 1);
        load(
            &bench,
            0,
            &[
                &[0x1000_0015, low(a), high(a)],
                &dwords,
                &[0x1020_0005, low(b), high(b), 1, 2, 3, 4],
                &[END],
            ],
        )?;
        check!(bench.run(&NoFaults, DATA) == Ok(()));
        for (i, dword) in (0u64..).zip(dwords) {
            check!(bench.peek(1, i * 4)? == dword);
        }
        check!(bench.peek(1, 80)? == 0);
        check!(peek64(&bench, 1, 4088)? == 2 << 32 | 1);
        check!(peek64(&bench, 2, 0)? == 4 << 32 | 3);
        Ok(())
    }

    #[test]
    fn a_list_beyond_the_address_space() -> Result {
        let bench = Bench::new(21, 1)?;
        let last = (1 << 21) - PAGE_SIZE;
        bench.map(last, 0, PteFlag::Writable.into())?;
        bench.load(0, &[0x1000_0003, low(last + 4092), 0, 7, 8, END])?;
        check!(bench.run(&NoFaults, last) == Err(EngineError::Address { addr: 1 << 21 }));
        check!(bench.peek(0, 4092)? == 7);
        Ok(())
    }

    #[test]
    fn jumps_and_second_levels() -> Result {
        let bench = bench()?;
        let place = |offset| DATA + offset;
        let count = |offset| [INC, low(DATA + PAGE_SIZE + offset), high(DATA)];
        let start = |header, to| [header, low(place(to)), high(place(to))];
        // The first level calls the second, which jumps within itself and returns; then it jumps.
        load(
            &bench,
            0,
            &[&start(CALL, 256), &count(0), &start(JUMP, 1024)],
        )?;
        load(&bench, 256, &[&count(4), &start(CALL, 512), &count(8)])?;
        load(&bench, 512, &[&count(12), &[END]])?;
        load(&bench, 1024, &[&count(16), &[END]])?;
        check!(bench.run(&NoFaults, DATA) == Ok(()));
        for (offset, times) in [(0, 1), (4, 1), (8, 0), (12, 1), (16, 1)] {
            check!(bench.peek(1, offset)? == times);
        }
        // A jump without return leaves the second level.
        load(&bench, 256, &[&count(4), &start(JUMP, 512)])?;
        check!(bench.run(&NoFaults, DATA) == Ok(()));
        for (offset, times) in [(0, 1), (4, 2), (8, 0), (12, 2), (16, 1)] {
            check!(bench.peek(1, offset)? == times);
        }
        // A jump to no address.
        load(&bench, 0, &[&[JUMP, 0, 1 << 20]])?;
        let nowhere = EngineError::Address { addr: 1 << 52 };
        check!(bench.run(&NoFaults, DATA) == Err(nowhere));
        Ok(())
    }

    #[test]
    fn a_loop_sees_what_was_written() -> Result {
        let bench = bench()?;
        // The batch replaces its own first command by the end of the batch.
        let count = [INC, low(DATA + PAGE_SIZE), high(DATA)];
        let end = [STORE, low(DATA), high(DATA), END];
        load(
            &bench,
            0,
            &[&[0], &count, &end, &[JUMP, low(DATA), high(DATA)]],
        )?;
        check!(bench.run(&NoFaults, DATA) == Ok(()) && bench.peek(1, 0)? == 1);
        Ok(())
    }

    #[test]
    fn endless_loops_are_stopped() -> Result {
        let bench = bench()?;
        load(&bench, 0, &[&[JUMP, low(DATA), high(DATA)]])?;
        let mut context = EngineContext::new()?;
        context.start(DATA);
        let mut left = 1000;
        let outcome = context.run(&bench.aspace, &bench.run, || {
            left -= 1;
            left == 0
        });
        check!(outcome == Outcome::Yielded);
        let outcome = context.run(&bench.aspace, &bench.run, || {
            bench.run.store(true, Relaxed);
            false
        });
        check!(outcome == Outcome::Failed(EngineError::Stopped));
        Ok(())
    }

    #[test]
    fn conditional_ends() -> Result {
        let bench = bench()?;
        let word = DATA + PAGE_SIZE;
        let count = [INC, low(word + 8), high(word)];
        let condition = |header, value| [header, value, low(word), high(word)];
        // A loop that ends when the word has counted down to 3.
        bench.poke(1, 0, &[10, 0, 0, 0])?;
        load(
            &bench,
            0,
            &[
                &count,
                &[DEC, low(word), high(word)],
                &condition(END_UNLESS_GREATER, 3),
                &[JUMP, low(DATA), high(DATA)],
            ],
        )?;
        check!(bench.run(&NoFaults, DATA) == Ok(()));
        check!(bench.peek(1, 0)? == 3 && bench.peek(1, 8)? == 7);

        // In a second level: ends both levels, or one.
        let second = DATA + 512;
        load(
            &bench,
            0,
            &[&[CALL, low(second), high(second)], &count, &[END]],
        )?;
        for (header, times) in [(END_UNLESS_GREATER, 7), (END_LEVEL_UNLESS_GREATER, 8)] {
            load(&bench, 512, &[&condition(header, 3), &count, &[END]])?;
            check!(bench.run(&NoFaults, DATA) == Ok(()));
            check!(bench.peek(1, 8)? == times);
        }
        Ok(())
    }

    #[test]
    fn waits() -> Result {
        /// Lets the condition hold at the third check.
        struct Third<'a>(&'a Bench, Cell<u32>);
        impl FaultHandler for Third<'_> {
            fn fault(&self, _addr: u64, _access: Access) -> Result {
                Err(EFAULT)
            }

            fn waiting(&self) -> Result {
                self.1.set(self.1.get() + 1);
                if self.1.get() == 3 {
                    self.0.poke(1, 0, &[9, 0, 0, 0])?;
                }
                Ok(())
            }
        }
        let bench = bench()?;
        let word = DATA + PAGE_SIZE;
        let count = [INC, low(word + 4), high(word)];
        load(
            &bench,
            0,
            &[&[WAIT_EQUAL, 9, low(word), high(word), 0], &count, &[END]],
        )?;
        check!(bench.run(&NoFaults, DATA) == Err(EngineError::Stopped));
        let third = Third(&bench, Cell::new(0));
        check!(bench.run(&third, DATA) == Ok(()));
        check!(third.1.get() == 3 && bench.peek(1, 4)? == 1);
        // A condition that holds is no wait.
        check!(bench.run(&NoFaults, DATA) == Ok(()) && bench.peek(1, 4)? == 2);
        Ok(())
    }

    #[test]
    fn flushes_and_interrupts() -> Result {
        let bench = bench()?;
        let to = DATA + PAGE_SIZE;
        bench.poke(1, 0, &[0xff; 32])?;
        load(
            &bench,
            0,
            &[
                &[0x1300_4002, low(to), high(to), 5],
                &[0x1300_4103, low(to + 8), high(to), 6, 7],
                &[0x1300_c002, low(to + 16), high(to), 0],
                &[0x0100_0000],
                &[0x1300_0102, 0, 0, 0],
                &[0x1300_0001, 1, 1],
                &[END],
            ],
        )?;
        let before = timestamp();
        check!(bench.run(&NoFaults, DATA) == Ok(()));
        check!(bench.peek(1, 0)? == 5 && bench.peek(1, 4)? == u32::MAX);
        check!(peek64(&bench, 1, 8)? == 7 << 32 | 6);
        let stamp = peek64(&bench, 1, 16)?;
        check!((before..=timestamp()).contains(&stamp));
        check!(peek64(&bench, 1, 24)? == u64::MAX);
        check!(bench.interrupts.load(Relaxed) == 3);
        Ok(())
    }

    #[test]
    fn registers_and_the_alu() -> Result {
        let bench = bench()?;
        let at = DATA + PAGE_SIZE;
        bench.poke(1, 0, &[40, 0, 0, 0])?;
        load(
            &bench,
            0,
            &[
                // Two registers, and one from memory.
                &[0x1108_0003, GPR + 8, 2, GPR + 12, 0],
                &[LRM, GPR, low(at), high(at)],
                // R2 = R0 + R1.
                &[0x0d00_0003, 0x0800_8000, 0x0800_8401],
                &[0x1000_0000, 0x1800_0831],
                &[SRM, GPR + 16, low(at + 4), high(at)],
                &[LRR, GPR + 16, GPR + 24],
                &[SRM, GPR + 24, low(at + 8), high(at)],
                &[SRM, RING_TIMESTAMP, low(at + 16), high(at)],
                &[SRM, RING_TIMESTAMP + 4, low(at + 20), high(at)],
                &[SRM, CTX_TIMESTAMP, low(at + 24), high(at)],
                &[END],
            ],
        )?;
        let before = timestamp();
        check!(bench.run(&NoFaults, DATA) == Ok(()));
        check!(bench.peek(1, 4)? == 42 && bench.peek(1, 8)? == 42);
        let stamp = peek64(&bench, 1, 16)?;
        check!((before..=timestamp()).contains(&stamp));
        Ok(())
    }

    #[test]
    fn bad_lists() -> Result {
        let bench = bench()?;
        let error = |header, error| {
            Err(EngineError::Command {
                at: DATA + 4,
                header,
                error,
            })
        };
        // The error names the command, not the place in its list.
        load(&bench, 0, &[&[0], &[0x1108_0003, GPR, 1, CTX_TIMESTAMP, 1]])?;
        check!(bench.run(&NoFaults, DATA) == error(0x1108_0003, DecodeError::ReadOnly));
        load(&bench, 0, &[&[0], &[LRI, 0x200, 1]])?;
        check!(bench.run(&NoFaults, DATA) == error(LRI, DecodeError::Register));
        load(&bench, 0, &[&[0], &[0x0d00_0001, 0, u32::MAX]])?;
        check!(bench.run(&NoFaults, DATA) == error(0x0d00_0001, DecodeError::Alu));
        Ok(())
    }

    /// How long a spinner of IGT runs by its own clock.
    #[test]
    fn a_spinner_of_a_fixed_time() -> Result {
        const TICKS: u32 = 19_200;
        let bench = bench()?;
        let (start, delta) = (DATA + PAGE_SIZE, DATA + PAGE_SIZE + 8);
        let again = DATA + 40;
        load(
            &bench,
            0,
            &[
                &[LRI, GPR + 4, 0],
                &[LRR, CTX_TIMESTAMP, GPR],
                &[STORE, low(start), high(start), 0xc0_ffee],
                // The loop.
                &[LRI, GPR + 12, 0],
                &[LRR, CTX_TIMESTAMP, GPR + 8],
                &[
                    0x0d00_0003,
                    0x0800_8001,
                    0x0800_8400,
                    0x1010_0000,
                    0x5800_0431,
                ],
                &[SRM, GPR + 8, low(delta), high(delta)],
                &[END_UNLESS_GREATER, !TICKS, low(delta), high(delta)],
                &[JUMP, low(again), high(again)],
            ],
        )?;
        let before = timestamp();
        check!(bench.run(&NoFaults, DATA) == Ok(()));
        check!(bench.peek(1, 0)? == 0xc0_ffee);
        check!(timestamp() - before >= u64::from(TICKS));
        Ok(())
    }

    #[test]
    fn fills() -> Result {
        let bench = Bench::new(48, 4)?;
        bench.map_all(DATA)?;
        let byte = |offset: u64| -> Result<u8> {
            let (page, at) = (offset / PAGE_SIZE, offset % PAGE_SIZE);
            Ok(bench.peek(page as usize, at & !3)?.to_le_bytes()[at as usize % 4])
        };
        // A linear one, across two pages.
        let to = DATA + 2 * PAGE_SIZE - 3;
        load(
            &bench,
            0,
            &[
                &[0x56c0_0005, 4999, 0, 0, low(to), high(to), 0x8b00_0000],
                &[END],
            ],
        )?;
        check!(bench.run(&NoFaults, DATA) == Ok(()));
        let first = 2 * PAGE_SIZE - 3;
        for offset in [0, 1, 2, 3, 4, 4098, 4099, 4999] {
            check!(byte(first + offset)? == 0x8b);
        }
        check!(byte(first - 1)? == 0 && byte(first + 5000)? == 0);
        // Rows.
        let to = DATA + PAGE_SIZE;
        load(
            &bench,
            0,
            &[
                &[0x56c2_0005, 3, 2, 63, low(to), high(to), 0x1100_0000],
                &[END],
            ],
        )?;
        check!(bench.run(&NoFaults, DATA) == Ok(()));
        for row in 0..3 {
            check!(bench.peek(1, row * 64)? == 0x1111_1111);
            check!(bench.peek(1, row * 64 + 4)? == 0);
        }
        check!(bench.peek(1, 192)? == 0);
        Ok(())
    }

    /// The pattern of a pixel continues across pages.
    #[test]
    fn colors() -> Result {
        let bench = Bench::new(48, 4)?;
        bench.map_all(DATA)?;
        let to = DATA + PAGE_SIZE + 4;
        let mut fill = [0; 16];
        // 600 pixels of 16 bytes in a row, two rows.
        fill[..11].copy_from_slice(&[
            0x5128_000e,
            9999,
            0,
            1 << 16 | 600,
            low(to),
            high(to),
            0,
            1,
            2,
            3,
            4,
        ]);
        load(&bench, 0, &[&fill, &[END]])?;
        check!(bench.run(&NoFaults, DATA) == Ok(()));
        let word = |index: u64| {
            let offset = 4 + index * 4;
            bench.peek(1 + (offset / PAGE_SIZE) as usize, offset % PAGE_SIZE)
        };
        for index in 0..2400 {
            check!(word(index)? == index as u32 % 4 + 1);
        }
        check!(word(2400)? == 0 && bench.peek(1, 0)? == 0);
        Ok(())
    }

    #[test]
    fn rectangles_are_copied() -> Result {
        let bench = bench()?;
        // 64 bytes a row; each word has its row and column.
        for row in 0..8u64 {
            for column in 0..16u64 {
                let value = (row << 8 | column) as u32;
                bench.poke(1, row * 64 + column * 4, &value.to_le_bytes())?;
            }
        }
        let (from, to) = (DATA + PAGE_SIZE, DATA + 2 * PAGE_SIZE);
        // Pixels (2, 3) to (6, 5) of the source go to (1, 1).
        let fast = [
            0x5080_0008,
            0x0300_0000 | 32,
            1 << 16 | 1,
            3 << 16 | 5,
            low(to),
            high(to),
            3 << 16 | 2,
            64,
            low(from),
            high(from),
        ];
        let block = [
            0x5050_000a,
            31,
            1 << 16,
            3 << 16 | 4,
            low(to),
            high(to),
            1,
            2 << 16 | 2,
            63,
            low(from),
            high(from),
            1 << 16,
        ];
        for command in [&fast[..], &block[..]] {
            bench.poke(2, 0, &[0; 256])?;
            load(&bench, 0, &[command, &[END]])?;
            check!(bench.run(&NoFaults, DATA) == Ok(()));
            for row in 0..4u64 {
                for column in 0..8u64 {
                    let inside = (1..3).contains(&row) && (1..5).contains(&column);
                    let value = if inside {
                        (row + 2) << 8 | (column + 1)
                    } else {
                        0
                    };
                    check!(bench.peek(2, row * 32 + column * 4)? == value as u32);
                }
            }
        }
        Ok(())
    }
}
