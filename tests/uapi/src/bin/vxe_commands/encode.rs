// SPDX-License-Identifier: GPL-2.0

//! Commands as IGT's libraries and xe write them for Xe2.

use vxe_client::Commands;

/// A register's offset in those of its engine.
pub const RING_TIMESTAMP: u32 = 0x358;
pub const CTX_TIMESTAMP: u32 = 0x3a8;

/// The offset of a general purpose register.
pub const fn gpr(n: u32) -> u32 {
    0x600 + 8 * n
}

/// How a condition compares memory with a value.
#[derive(Clone, Copy)]
pub enum Op {
    Greater = 0,
    GreaterOrEqual = 1,
    Equal = 4,
    NotEqual = 5,
}

const fn low(address: u64) -> u32 {
    address as u32
}

const fn high(address: u64) -> u32 {
    (address >> 32) as u32
}

/// More commands than [`Commands`] has.
pub trait Encode {
    fn add(&mut self, dwords: &[u32]) -> &mut Self;

    /// MI_BATCH_BUFFER_START: goes on elsewhere.
    fn jump(&mut self, to: u64) -> &mut Self {
        self.add(&[0x1880_0101, low(to), high(to)])
    }

    /// MI_BATCH_BUFFER_START of a second level, which returns.
    fn call(&mut self, to: u64) -> &mut Self {
        self.add(&[0x18c0_0101, low(to), high(to)])
    }

    /// MI_CONDITIONAL_BATCH_BUFFER_END: ends the batch unless the condition holds.
    fn end_unless(&mut self, address: u64, op: Op, value: u32) -> &mut Self {
        self.add(&[0x1b20_0002 | ((op as u32) << 12), value, low(address), high(address)])
    }

    /// MI_SEMAPHORE_WAIT, polling.
    fn wait(&mut self, address: u64, op: Op, value: u32) -> &mut Self {
        self.add(&[0x0e00_8003 | ((op as u32) << 12), value, low(address), high(address), 0])
    }

    /// MI_USER_INTERRUPT.
    fn interrupt(&mut self) -> &mut Self {
        self.add(&[0x0100_0000])
    }

    /// MI_ARB_CHECK.
    fn arb_check(&mut self) -> &mut Self {
        self.add(&[0x0280_0000])
    }

    /// MI_MEM_FENCE, as IGT writes it.
    fn mem_fence(&mut self) -> &mut Self {
        self.add(&[0x0480_0003])
    }

    /// MI_FLUSH_DW that stores a dword.
    fn flush_dword(&mut self, address: u64, value: u32) -> &mut Self {
        self.add(&[0x1300_4002, low(address), high(address), value])
    }

    /// MI_FLUSH_DW that stores a qword.
    fn flush_qword(&mut self, address: u64, value: u64) -> &mut Self {
        self.add(&[0x1300_4003, low(address), high(address), low(value), high(value)])
    }

    /// MI_FLUSH_DW that stores the time-stamp.
    fn flush_timestamp(&mut self, address: u64) -> &mut Self {
        self.add(&[0x1300_c003, low(address), high(address), 0, 0])
    }

    /// MI_LOAD_REGISTER_IMM of one register.
    fn load_immediate(&mut self, register: u32, value: u32) -> &mut Self {
        self.add(&[0x1108_0001, register, value])
    }

    /// MI_LOAD_REGISTER_REG.
    fn load_register(&mut self, to: u32, from: u32) -> &mut Self {
        self.add(&[0x150c_0001, from, to])
    }

    /// MI_LOAD_REGISTER_MEM.
    fn load_memory(&mut self, register: u32, address: u64) -> &mut Self {
        self.add(&[0x1488_0002, register, low(address), high(address)])
    }

    /// MI_STORE_REGISTER_MEM.
    fn store_register(&mut self, address: u64, register: u32) -> &mut Self {
        self.add(&[0x1208_0002, register, low(address), high(address)])
    }

    /// MI_MATH: register `to` becomes the inverse of `a - b`, as IGT's spinners have it.
    fn subtract_inverted(&mut self, to: u32, a: u32, b: u32) -> &mut Self {
        self.add(&[
            0x0d00_0003,
            0x0800_8000 | a,
            0x0800_8400 | b,
            0x1010_0000,
            0x5800_0031 | (to << 10),
        ])
    }

    /// MI_STORE_DATA_IMM of several dwords.
    fn store_dwords(&mut self, address: u64, values: &[u32]) -> &mut Self {
        self.add(&[0x1000_0001 + values.len() as u32, low(address), high(address)]).add(values)
    }

    /// MI_STORE_DATA_IMM of a qword.
    fn store_qword(&mut self, address: u64, value: u64) -> &mut Self {
        self.add(&[0x1020_0003, low(address), high(address), low(value), high(value)])
    }

    /// MEM_COPY of bytes in rows, the first of which is all that a linear copy has.
    fn copy_bytes(
        &mut self,
        matrix: bool,
        (from, from_pitch): (u64, u32),
        (to, to_pitch): (u64, u32),
        (width, rows): (u32, u32),
    ) -> &mut Self {
        self.add(&[
            0x5680_0008 | (u32::from(matrix) << 17),
            width - 1,
            rows - 1,
            from_pitch - 1,
            to_pitch - 1,
            low(from),
            high(from),
            low(to),
            high(to),
            // Indices of MOCS, where IGT puts them.
            0x3000_0003,
        ])
    }

    /// MEM_SET of rows.
    fn set(&mut self, to: u64, value: u8, (width, rows): (u32, u32), pitch: u32) -> &mut Self {
        self.add(&[
            0x56c0_0005 | (u32::from(rows > 1) << 17),
            width - 1,
            rows - 1,
            pitch - 1,
            low(to),
            high(to),
            (u32::from(value) << 24) | 0x18,
        ])
    }

    /// XY_FAST_COPY_BLT of a rectangle of 32-bit pixels.
    fn fast_copy(&mut self, from: &Rectangle, to: &Rectangle, size: (u32, u32)) -> &mut Self {
        self.add(&[
            0x5080_0008,
            0x0330_0000 | to.pitch,
            to.corner((0, 0)),
            to.corner(size),
            low(to.base),
            high(to.base),
            from.corner((0, 0)),
            0x0030_0000 | from.pitch,
            low(from.base),
            high(from.base),
        ])
    }

    /// XY_BLOCK_COPY_BLT of a rectangle of 32-bit pixels, in its long form.
    fn block_copy(&mut self, from: &Rectangle, to: &Rectangle, size: (u32, u32)) -> &mut Self {
        let surface = [0x2000_0000, 0, 0xf00];
        self.add(&[
            0x5050_0014,
            0x0300_0000 | (to.pitch - 1),
            to.corner((0, 0)),
            to.corner(size),
            low(to.base),
            high(to.base),
            1 << 31,
            from.corner((0, 0)),
            0x0300_0000 | (from.pitch - 1),
            low(from.base),
            high(from.base),
            1 << 31,
            0,
            0,
            0,
            0,
        ])
        .add(&surface)
        .add(&surface)
    }

    /// XY_FAST_COLOR_BLT of a rectangle of 32-bit pixels.
    fn fast_color(&mut self, to: &Rectangle, size: (u32, u32), color: u32) -> &mut Self {
        self.add(&[
            0x5110_000e,
            0x0300_0000 | (to.pitch - 1),
            to.corner((0, 0)),
            to.corner(size),
            low(to.base),
            high(to.base),
            1 << 31,
            color,
        ])
        .add(&[0; 8])
    }
}

impl Encode for Commands {
    fn add(&mut self, dwords: &[u32]) -> &mut Self {
        self.raw(dwords)
    }
}

/// A place in a surface of 32-bit pixels.
pub struct Rectangle {
    /// The address of the surface, and its bytes in a row.
    pub base: u64,
    pub pitch: u32,
    /// The place, in pixels.
    pub x: u32,
    pub y: u32,
}

impl Rectangle {
    /// The pixel at an offset from the place.
    fn corner(&self, (x, y): (u32, u32)) -> u32 {
        ((self.y + y) << 16) | (self.x + x)
    }
}
