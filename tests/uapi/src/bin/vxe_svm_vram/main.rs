// SPDX-License-Identifier: GPL-2.0

//! Memory of the process in the device's own: it goes there when the GPU works on it, comes back when
//! the CPU does or there is no room, and is never lost.

mod direct;
mod memory;
mod moves;
mod process;
mod returns;
mod room;

use std::process::ExitCode;
use vxe_uapi::{
    contents::pattern, memory::transparent_huge, Map, Program, CHUNK, HUGE, MIDDLE, SZ_2M,
};

/// What the memory of a test looks like.
#[derive(Clone, Copy)]
enum Shape {
    /// A few pages: a middle chunk, or several chunks of a page where that has 64 KiB.
    Middle,
    /// A large chunk of small pages.
    Small,
    /// A large chunk that is one huge page.
    Huge,
}

const SHAPES: [(Shape, &str, &str); 3] = [
    (Shape::Middle, "16-pages", "16 pages"),
    (Shape::Small, "2M", "2 MiB of small pages"),
    (Shape::Huge, "thp", "a huge page"),
];

impl Shape {
    /// A large chunk: one huge page where that has the size of one.
    const LARGE: Self = if HUGE == SZ_2M { Self::Huge } else { Self::Small };

    /// The size of its chunks.
    const fn chunk(self) -> usize {
        match self {
            Self::Middle => CHUNK,
            Self::Small | Self::Huge => SZ_2M,
        }
    }

    /// Skips the subtest where there is no such memory. A test calls this before it forks a child that makes some.
    fn require(self) {
        if matches!(self, Self::Huge) {
            transparent_huge(SZ_2M).unmap();
        }
    }

    /// Memory of this shape, filled.
    fn make(self) -> Map {
        let map = match self {
            Self::Middle => Map::aligned(MIDDLE, SZ_2M),
            Self::Small => {
                let map = Map::aligned(SZ_2M, SZ_2M);
                // Where there are no huge pages, all are small.
                let _ = map.try_madvise(libc::MADV_NOHUGEPAGE);
                map
            }
            Self::Huge => transparent_huge(SZ_2M),
        };
        map.fill(pattern);
        map
    }
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_svm_vram", "Memory of the process in the device's own.");
    moves::subtests(&mut p);
    memory::subtests(&mut p);
    direct::subtests(&mut p);
    process::subtests(&mut p);
    room::subtests(&mut p);
    returns::subtests(&mut p);
    p.main()
}
