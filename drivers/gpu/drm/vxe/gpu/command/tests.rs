// SPDX-License-Identifier: GPL-2.0

//! KUnit suite of the decoder. Headers are written out as xe and programs for it write them.

use kernel::prelude::*;

#[kunit_tests(vxe_gpu_command)]
mod suite {
    use super::super::*;

    const LOW: u32 = 0x789a_bc00;
    const HIGH: u32 = 0x7f12_3456;
    const ADDR: u64 = 0x7f12_3456_789a_bc00;

    /// Decodes a header, followed by dwords that are all different.
    fn header(header: u32) -> Result<Command, DecodeError> {
        let mut dwords = [0; MAX_DWORDS];
        for (dword, value) in dwords.iter_mut().zip((0x1_0000..).step_by(256)) {
            *dword = value;
        }
        dwords[0] = header;
        decode(&dwords)
    }

    fn mem_copy(header: u32, width: u32, height: u32) -> [u32; 10] {
        [header, width, height, 4095, 8191, LOW, HIGH, 0x1000, 2, 3]
    }

    fn condition(compare: Compare) -> Condition {
        Condition {
            addr: ADDR,
            compare,
            value: 7,
        }
    }

    #[test]
    fn commands_of_one_dword() {
        assert_eq!(decode(&[0]), Ok(Command::Noop));
        assert_eq!(decode(&[0x0500_0000, 1, 2]), Ok(Command::End));
        assert_eq!(decode(&[0x0100_0000]), Ok(Command::Interrupt));
        // MI_ARB_CHECK, without and with control of the prefetch; MI_MEM_FENCE of three types.
        for noop in [
            0x0280_0000,
            0x0280_0101,
            0x0480_0000,
            0x0480_0001,
            0x0480_0003,
        ] {
            assert_eq!(decode(&[noop]), Ok(Command::Noop));
            assert_eq!(length(noop), Ok(1));
        }
    }

    #[test]
    fn stores() {
        let store = |count, qwords| {
            Ok(Command::Store(Store {
                addr: ADDR,
                count,
                qwords,
            }))
        };
        assert_eq!(decode(&[0x1000_0002, LOW, HIGH]), store(1, false));
        assert_eq!(decode(&[0x1000_0009, LOW, HIGH]), store(8, false));
        assert_eq!(decode(&[0x1000_03ff, LOW, HIGH]), store(1022, false));
        assert_eq!(decode(&[0x1020_0003, LOW, HIGH]), store(1, true));
        assert_eq!(decode(&[0x1020_0009, LOW, HIGH]), store(4, true));
        // The data is not decoded.
        assert_eq!(length(0x1000_03ff), Ok(3));
    }

    #[test]
    fn atomics_add_and_subtract_one() {
        let add = |delta| Ok(Command::Add { addr: ADDR, delta });
        assert_eq!(decode(&[0x1780_0501, LOW, HIGH]), add(1));
        assert_eq!(decode(&[0x1780_0601, LOW, HIGH]), add(u32::MAX));
    }

    #[test]
    fn batch_starts() {
        let start = |second_level| {
            Ok(Command::Start {
                addr: ADDR,
                second_level,
            })
        };
        assert_eq!(decode(&[0x1880_0001, LOW, HIGH]), start(false));
        assert_eq!(decode(&[0x1880_0101, LOW, HIGH]), start(false));
        assert_eq!(decode(&[0x18c0_0101, LOW, HIGH]), start(true));
    }

    #[test]
    fn conditions() {
        let end = |compare, all_levels| {
            Ok(Command::EndUnless {
                condition: condition(compare),
                all_levels,
            })
        };
        assert_eq!(
            decode(&[0x1b20_0002, 7, LOW, HIGH]),
            end(Compare::Greater, true)
        );
        assert_eq!(
            decode(&[0x1b24_0002, 7, LOW, HIGH]),
            end(Compare::Greater, false)
        );
        assert_eq!(
            decode(&[0x1b20_5002, 7, LOW, HIGH]),
            end(Compare::NotEqual, true)
        );

        let wait = |compare| Ok(Command::Wait(condition(compare)));
        assert_eq!(decode(&[0x0e00_8002, 7, LOW, HIGH]), wait(Compare::Greater));
        assert_eq!(
            decode(&[0x0e00_c003, 7, LOW, HIGH, 0]),
            wait(Compare::Equal)
        );

        for (compare, expected) in [
            (Compare::Greater, [false, false, true]),
            (Compare::GreaterOrEqual, [false, true, true]),
            (Compare::Less, [true, false, false]),
            (Compare::LessOrEqual, [true, true, false]),
            (Compare::Equal, [false, true, false]),
            (Compare::NotEqual, [true, false, true]),
        ] {
            let condition = condition(compare);
            // The values are unsigned.
            let memory = [0, 7, u32::MAX];
            assert_eq!(memory.map(|memory| condition.holds(memory)), expected);
        }
    }

    #[test]
    fn flushes() {
        let flush = |write, interrupt| Ok(Command::Flush { write, interrupt });
        assert_eq!(decode(&[0x1300_0001, 5, 6]), flush(None, false));
        assert_eq!(decode(&[0x1305_0302, 5, 6, 7]), flush(None, true));
        assert_eq!(
            decode(&[0x1300_4002, LOW, HIGH, 7]),
            flush(Some((ADDR, PostSync::Dword(7))), false)
        );
        assert_eq!(
            decode(&[0x1300_4103, LOW, HIGH, 7, 8]),
            flush(Some((ADDR, PostSync::Qword(8 << 32 | 7))), true)
        );
        for stamp in [0x1300_c002, 0x1300_c003] {
            assert_eq!(
                decode(&[stamp, LOW, HIGH, 7, 8]),
                flush(Some((ADDR, PostSync::Timestamp)), false)
            );
        }
        // Without the data; of the global GTT; misaligned; an undefined write.
        let reject = |dwords: &[u32], error| assert_eq!(decode(dwords), Err(error));
        reject(&[0x1300_4001, LOW, HIGH], DecodeError::Length);
        reject(&[0x1300_4002, LOW | 4, HIGH, 7], DecodeError::GlobalGtt);
        reject(&[0x1300_4002, LOW | 1, HIGH, 7], DecodeError::Misaligned);
        reject(&[0x1300_8002, LOW, HIGH, 7], DecodeError::Reserved);
    }

    #[test]
    fn registers() {
        let Ok(gpr) = RegisterSpace::Engine.register(0x600) else {
            return assert!(false);
        };
        let Ok(stamp) = RegisterSpace::Engine.register(0x3a8) else {
            return assert!(false);
        };
        let store = |register| {
            Ok(Command::StoreRegister {
                register,
                addr: ADDR,
            })
        };
        assert_eq!(decode(&[0x1208_0002, 0x3a8, LOW, HIGH]), store(stamp));
        assert_eq!(decode(&[0x1200_0002, 0x223a8, LOW, HIGH]), store(stamp));
        assert_eq!(
            decode(&[0x1488_0002, 0x600, LOW, HIGH]),
            Ok(Command::LoadRegister {
                register: gpr,
                addr: ADDR
            })
        );
        // The source and the destination have a bit each for what the offset is relative to.
        for (header, from, to) in [
            (0x150c_0001, 0x3a8, 0x600),
            (0x1508_0001, 0x223a8, 0x600),
            (0x1504_0001, 0x3a8, 0x22600),
        ] {
            assert_eq!(
                decode(&[header, from, to]),
                Ok(Command::MoveRegister {
                    from: stamp,
                    to: gpr
                })
            );
        }
        assert_eq!(
            decode(&[0x1108_0003]),
            Ok(Command::LoadImmediates {
                count: 2,
                space: RegisterSpace::Engine
            })
        );
        assert_eq!(decode(&[0x1108_0002]), Err(DecodeError::Length));
        assert_eq!(decode(&[0x0d00_0003]), Ok(Command::Math { count: 4 }));

        let read_only = Err(DecodeError::ReadOnly);
        assert_eq!(decode(&[0x150c_0001, 0x600, 0x3a8]), read_only);
        assert_eq!(decode(&[0x1488_0002, 0x358, LOW, HIGH]), read_only);
        let none = Err(DecodeError::Register);
        assert_eq!(decode(&[0x1208_0002, 0x223a8, LOW, HIGH]), none);
        assert_eq!(decode(&[0x1200_0002, 0x3a8, LOW, HIGH]), none);
    }

    #[test]
    fn copies_in_page_mode_count_256_bytes() {
        assert_eq!(
            decode(&mem_copy(0x5688_0008, 15, 7)),
            Ok(Command::Copy(Copy2d {
                src: ADDR,
                dst: 0x2_0000_1000,
                width: 4096,
                rows: 1,
                src_pitch: 4096,
                dst_pitch: 8192,
            }))
        );
    }

    #[test]
    fn copies_in_byte_mode_count_bytes_and_rows() {
        let Ok(Command::Copy(linear)) = decode(&mem_copy(0x5680_0008, 15, 7)) else {
            return assert!(false);
        };
        assert_eq!((linear.width, linear.rows), (16, 1));

        let Ok(Command::Copy(matrix)) = decode(&mem_copy(0x5682_0008, 15, 7)) else {
            return assert!(false);
        };
        assert_eq!((matrix.width, matrix.rows), (16, 8));
    }

    #[test]
    fn sizes_of_copies_do_not_overflow() {
        let Ok(Command::Copy(copy)) = decode(&mem_copy(0x5688_0008, u32::MAX, u32::MAX)) else {
            return assert!(false);
        };
        assert_eq!(copy.width, 1 << 40);
    }

    #[test]
    fn sets() {
        let set = |rows| {
            Ok(Command::Fill(Fill2d {
                dst: ADDR,
                width: 16,
                rows,
                pitch: 64,
                pattern: [0x8b; 16],
                period: 1,
            }))
        };
        assert_eq!(
            decode(&[0x56c0_0005, 15, 7, 63, LOW, HIGH, 0x8b00_0018]),
            set(1)
        );
        assert_eq!(
            decode(&[0x56c2_0005, 15, 7, 63, LOW, HIGH, 0x8b00_0018]),
            set(8)
        );
    }

    /// XY_FAST_COPY_BLT of 32-bit pixels, with a raster operation as IGT sets it, which Xe2 ignores.
    const FAST_COPY: [u32; 10] = [
        0x5080_0008,
        0x03cc_0000 | 256,
        2 << 16 | 1,
        5 << 16 | 11,
        LOW,
        HIGH,
        3 << 16 | 4,
        512,
        0x1000,
        2,
    ];

    #[test]
    fn fast_copies() {
        let expected = Copy2d {
            src: 0x2_0000_1000 + 3 * 512 + 4 * 4,
            dst: ADDR + 2 * 256 + 4,
            width: 40,
            rows: 3,
            src_pitch: 512,
            dst_pitch: 256,
        };
        assert_eq!(decode(&FAST_COPY), Ok(Command::Copy(expected)));
        let with = |index: usize, value| {
            let mut dwords = FAST_COPY;
            dwords[index] = value;
            decode(&dwords)
        };
        // One byte a pixel.
        let Ok(Command::Copy(bytes)) = with(1, 256) else {
            return assert!(false);
        };
        assert_eq!((bytes.width, bytes.src), (10, 0x2_0000_1000 + 3 * 512 + 4));
        // Empty rectangles.
        assert_eq!(with(3, 2 << 16 | 11), Ok(Command::Noop));
        assert_eq!(with(3, 5 << 16), Ok(Command::Noop));
        for tiled in [
            with(0, 0x5090_0008),
            with(0, 0x5080_2008),
            with(1, 0xc300_0100),
        ] {
            assert_eq!(tiled, Err(DecodeError::Tiling));
        }
        assert_eq!(with(1, 0x0200_0100), Err(DecodeError::Depth));
        assert_eq!(with(1, 0x0302_0100), Err(DecodeError::Encryption));
        // Negative coordinates; no pitch, a negative pitch; an address that wraps around.
        let bad = Err(DecodeError::Rectangle);
        assert_eq!(with(2, 0x8000), bad);
        assert_eq!(with(3, 0x8000_0001), bad);
        assert_eq!(with(6, 0xffff), bad);
        assert_eq!((with(7, 0), with(7, 0x8000)), (bad, bad));
        let mut wraps = FAST_COPY;
        wraps[8..].copy_from_slice(&[u32::MAX; 2]);
        assert_eq!(decode(&wraps), bad);
    }

    /// XY_BLOCK_COPY_BLT of 16-bit pixels, in its longer form.
    const BLOCK_COPY: [u32; 22] = [
        0x5048_0014,
        0x0300_0000 | 255,
        2 << 16 | 1,
        5 << 16 | 11,
        LOW,
        HIGH,
        0x8000_0000 | 1 << 16 | 2,
        3 << 16 | 4,
        511,
        0x1000,
        2,
        0,
        0,
        0,
        0,
        0,
        0x2000_0000,
        0,
        0xf00,
        0x2000_0000,
        0,
        0xf00,
    ];

    #[test]
    fn block_copies() {
        let expected = Command::Copy(Copy2d {
            src: 0x2_0000_1000 + 3 * 512 + 4 * 2,
            dst: ADDR + 3 * 256 + 3 * 2,
            width: 20,
            rows: 3,
            src_pitch: 512,
            dst_pitch: 256,
        });
        assert_eq!(decode(&BLOCK_COPY), Ok(expected));
        let with = |index: usize, value| {
            let mut dwords = BLOCK_COPY;
            dwords[index] = value;
            decode(&dwords)
        };
        // The shorter form.
        assert_eq!(with(0, 0x5048_000a), Ok(expected));
        for (index, value, error) in [
            (1, 0x4000_00ff, DecodeError::Tiling),
            (8, 0xc000_01ff, DecodeError::Tiling),
            (1, 0x2000_00ff, DecodeError::Compression),
            (8, 0x0004_01ff, DecodeError::Compression),
            (8, 0x0020_01ff, DecodeError::Encryption),
            (12, 1, DecodeError::Compression),
            (14, 0x20, DecodeError::Compression),
            (17, 1, DecodeError::Surface),
            (21, 0x0020_0f00, DecodeError::Surface),
            (0, 0x5060_0014, DecodeError::Depth),
            (0, 0x5048_1014, DecodeError::Reserved),
            (0, 0x5048_0013, DecodeError::Length),
        ] {
            assert_eq!(with(index, value), Err(error));
        }
    }

    #[test]
    fn fast_colors() {
        let mut dwords = [0; 16];
        // As xe clears memory, but with a colour.
        dwords[..11].copy_from_slice(&[
            0x5110_000e,
            0x0300_0000 | 4095,
            0,
            2 << 16 | 1024,
            LOW,
            HIGH,
            1 << 31,
            0x0403_0201,
            0x0807_0605,
            0x0c0b_0a09,
            0x100f_0e0d,
        ]);
        let mut expected = Fill2d {
            dst: ADDR,
            width: 4096,
            rows: 2,
            pitch: 4096,
            pattern: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
            period: 4,
        };
        assert_eq!(decode(&dwords), Ok(Command::Fill(expected)));
        dwords[0] = 0x5128_000e;
        (expected.width, expected.period) = (16384, 16);
        assert_eq!(decode(&dwords), Ok(Command::Fill(expected)));
        dwords[0] = 0x5120_000e;
        assert_eq!(decode(&dwords), Err(DecodeError::Depth));
        dwords[0] = 0x5110_000e;
        dwords[11] = 1;
        assert_eq!(decode(&dwords), Err(DecodeError::Compression));
    }

    #[test]
    fn unknown_commands() {
        // Text; PIPE_CONTROL, of the render engine; MI_ARB_ON_OFF, MI_SET_APPID and
        // MI_PRT_BATCH_BUFFER_START; XY_COLOR_BLT, XY_SRC_COPY_BLT, of older hardware.
        for unknown in [
            0x6c6c_6548,
            0x7a00_0004,
            0x0400_0001,
            0x0700_0000,
            0x1c80_0000,
            0x5400_0005,
            0x54c0_0008,
            u32::MAX,
        ] {
            assert_eq!(length(unknown), Err(DecodeError::Unknown));
            assert_eq!(header(unknown), Err(DecodeError::Unknown));
        }
        // Other operations of MI_ATOMIC.
        assert_eq!(header(0x1780_0701), Err(DecodeError::Unknown));
        // XY_CTRL_SURF_COPY_BLT.
        assert_eq!(header(0x5200_0003), Err(DecodeError::Compression));
    }

    #[test]
    fn wrong_lengths() {
        for wrong in [
            0x1000_0000,
            0x1000_0001,
            0x1020_0002,
            0x1020_0004,
            0x1780_0502,
            0x1880_0000,
            0x1880_0002,
            0x1b20_0001,
            0x0e00_8004,
            0x1300_0000,
            0x1300_0004,
            0x1108_0000,
            0x1108_0002,
            0x150c_0002,
            0x1208_0001,
            0x5688_0007,
            0x5688_00ff,
            0x56c0_0006,
            0x5080_0009,
            0x5110_000d,
        ] {
            assert_eq!(header(wrong), Err(DecodeError::Length));
        }
        assert_eq!(decode(&[]), Err(DecodeError::Length));
        assert_eq!(decode(&[0x1000_0002, LOW]), Err(DecodeError::Length));
    }

    #[test]
    fn reserved_bits() {
        // A number that is not a header, MI_BATCH_BUFFER_END with a flag, 64-bit atomics, atomics
        // with a return value, MI_BATCH_BUFFER_START with a predicate, a comparison that is not
        // one, a wait for a signal, MI_FLUSH_DW that writes to the status page, two copy modes at
        // once, compression.
        for reserved in [
            0x0000_1234,
            0x0500_0001,
            0x1788_0501,
            0x1781_0501,
            0x1880_8001,
            0x1b00_0002,
            0x1b28_0002,
            0x1b20_6002,
            0x0e00_4002,
            0x1320_4002,
            0x568a_0008,
            0x5688_0108,
            0x0480_0002,
            0x0100_0001,
        ] {
            assert_eq!(header(reserved), Err(DecodeError::Reserved));
        }
        for gtt in [
            0x1040_0002,
            0x17c0_0501,
            0x0e40_8002,
            0x1b60_0002,
            0x1248_0002,
        ] {
            assert_eq!(header(gtt), Err(DecodeError::GlobalGtt));
        }
    }

    #[test]
    fn misaligned_addresses() {
        let reject = |dwords: &[u32]| assert_eq!(decode(dwords), Err(DecodeError::Misaligned));
        reject(&[0x1000_0002, LOW + 2, HIGH]);
        reject(&[0x1020_0003, LOW + 4, HIGH]);
        reject(&[0x1780_0501, LOW + 1, HIGH]);
        reject(&[0x1880_0101, LOW + 2, HIGH]);
        reject(&[0x0e00_8002, 7, LOW + 2, HIGH]);
        reject(&[0x1208_0002, 0x600, LOW + 2, HIGH]);

        let mut page = mem_copy(0x5688_0008, 0, 0);
        page[5] = LOW + 128;
        reject(&page);
        let mut bytes = mem_copy(0x5680_0008, 0, 0);
        bytes[5] = LOW + 1;
        assert!(decode(&bytes).is_ok());
    }

    /// No header makes the decoder need more dwords than the fetcher has room for.
    #[test]
    fn no_command_is_too_long() {
        for high in 0..=0xffff_u32 {
            for low in [0, 1, 2, 3, 5, 8, 10, 14, 20, 0xff] {
                let length = length(high << 16 | low);
                assert!(length.is_err() || length.is_ok_and(|n| (1..=MAX_DWORDS).contains(&n)));
            }
        }
    }
}
