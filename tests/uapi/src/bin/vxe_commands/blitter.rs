// SPDX-License-Identifier: GPL-2.0

//! The commands of the blitter: copies and fills of bytes, rows and rectangles.

use crate::encode::{Encode, Rectangle};
use vxe_client::Commands;
use vxe_uapi::{Gpu, Map, PAGE};

/// The sizes that IGT's xe_copy_basic uses.
const SIZES: [u32; 5] = [0xfd, 0x369, 0x3fff, 0xfffe, 0x8fffe];

fn byte(map: Map, offset: usize) -> u8 {
    map.read(offset & !3).to_le_bytes()[offset & 3]
}

/// Pages for `length` bytes, and one more.
fn pages(length: usize) -> Map {
    Map::anon(length.next_multiple_of(PAGE) + PAGE)
}

/// Fills of bytes, from an odd address, in memory that nothing has touched.
pub fn set() {
    let gpu = Gpu::new();
    for size in SIZES {
        let memory = pages(size as usize);
        gpu.run(|c| _ = c.set(memory.at(3), 0x8b, (size, 1), size));
        for offset in 0..memory.len() {
            let inside = (3..3 + size as usize).contains(&offset);
            assert_eq!(byte(memory, offset), if inside { 0x8b } else { 0 }, "{size:#x}: {offset}");
        }
        memory.unmap();
    }
    // Rows.
    let memory = Map::anon(2 * PAGE);
    gpu.run(|c| _ = c.set(memory.at(0), 0x11, (100, 40), 200));
    for offset in 0..memory.len() {
        let inside = offset / 200 < 40 && offset % 200 < 100;
        assert_eq!(byte(memory, offset), if inside { 0x11 } else { 0 }, "row {}", offset / 200);
    }
}

/// Copies of bytes in a row, in several commands as IGT does it.
pub fn copy_linear() {
    const MOST: u32 = 1 << 18;
    let gpu = Gpu::new();
    for size in SIZES {
        let (from, to) = (pages(size as usize), pages(size as usize));
        from.fill(|offset| (offset as u32).wrapping_mul(0x9e37_79b9));
        gpu.run(|c| {
            let mut done = 0;
            while done < size {
                let part = (size - done).min(MOST);
                let (source, target) = (from.at(done as usize), to.at(done as usize + 1));
                c.copy_bytes(false, (source, part), (target, part), (part, 1));
                done += part;
            }
        });
        for offset in 0..to.len() {
            let inside = (1..=size as usize).contains(&offset);
            let expected = if inside { byte(from, offset - 1) } else { 0 };
            assert_eq!(byte(to, offset), expected, "{size:#x}: {offset}");
        }
        from.unmap();
        to.unmap();
    }
}

/// Copies of rows, of the sizes that IGT uses.
pub fn copy_matrix() {
    let gpu = Gpu::new();
    for (pitch, width, rows) in [(4usize, 2u32, 2u32), (256, 200, 127)] {
        let (from, to) = (pages(pitch * rows as usize), pages(pitch * rows as usize));
        from.fill(|offset| (offset as u32).wrapping_mul(0x9e37_79b9));
        gpu.run(|c| {
            let pitch = pitch as u32;
            c.copy_bytes(true, (from.at(0), pitch), (to.at(0), pitch), (width, rows));
        });
        for offset in 0..to.len() {
            let inside = offset / pitch < rows as usize && offset % pitch < width as usize;
            let expected = if inside { byte(from, offset) } else { 0 };
            assert_eq!(byte(to, offset), expected, "{width}x{rows}: {offset}");
        }
        from.unmap();
        to.unmap();
    }
}

/// The width and height of surfaces, and of the rectangle that is copied, in pixels.
const SURFACE: (u32, u32) = (128, 64);
const PART: (u32, u32) = (50, 30);

type Blit = fn(&mut Commands, &Rectangle, &Rectangle);

/// Copies a rectangle between surfaces of different pitch.
fn rectangles(blit: Blit) {
    let gpu = Gpu::new();
    let size = (SURFACE.0 * SURFACE.1 * 4) as usize;
    let (from, to) = (Map::anon(size), Map::anon(2 * size));
    from.fill(|offset| offset as u32 ^ 0x55aa_0000);
    let source = Rectangle { base: from.at(0), pitch: SURFACE.0 * 4, x: 7, y: 20 };
    let target = Rectangle { base: to.at(0), pitch: SURFACE.0 * 8, x: 100, y: 3 };
    gpu.run(|c| blit(c, &source, &target));
    to.expect("the rectangle", |offset| {
        let (x, y) = (offset as u32 / 4 % (SURFACE.0 * 2), offset as u32 / 4 / (SURFACE.0 * 2));
        let inside = (100..100 + PART.0).contains(&x) && (3..3 + PART.1).contains(&y);
        match inside {
            true => ((y - 3 + 20) * SURFACE.0 * 4 + (x - 100 + 7) * 4) ^ 0x55aa_0000,
            false => 0,
        }
    });
}

pub fn fast_copy() {
    rectangles(|c, from, to| _ = c.fast_copy(from, to, PART));
}

pub fn block_copy() {
    rectangles(|c, from, to| _ = c.block_copy(from, to, PART));
}

/// Fills a rectangle.
pub fn fast_color() {
    let gpu = Gpu::new();
    let memory = Map::anon((SURFACE.0 * SURFACE.1 * 4) as usize);
    let target = Rectangle { base: memory.at(0), pitch: SURFACE.0 * 4, x: 3, y: 9 };
    gpu.run(|c| _ = c.fast_color(&target, PART, 0xdead_beef));
    memory.expect("the rectangle", |offset| {
        let (x, y) = (offset as u32 / 4 % SURFACE.0, offset as u32 / 4 / SURFACE.0);
        let inside = (3..3 + PART.0).contains(&x) && (9..9 + PART.1).contains(&y);
        if inside {
            0xdead_beef
        } else {
            0
        }
    });
}
