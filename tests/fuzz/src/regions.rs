// SPDX-License-Identifier: GPL-2.0

//! The memory of a program: regions at addresses that are always the same, so that a program that is
//! run again means the same.

use vxe_uapi::{Rng, MIDDLE, PAGE, SZ_2M};

/// What a region is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anonymous memory of the process.
    Anon,
    /// The same, which the GPU's memory holds when a call is made with arguments in it.
    Device,
    /// Anonymous memory that is shared.
    Shmem,
    /// A file, shared.
    File,
    /// A file, copied on write.
    Private,
    /// A file that can only be read.
    ReadOnly,
    /// Pages that come after a while, by a userfaultfd.
    Faults,
    /// A buffer in system memory.
    Gem,
    /// A buffer in the device's memory.
    Vram,
    /// Nothing.
    Nothing,
}

/// A span of addresses.
#[derive(Debug)]
pub struct Region {
    pub name: &'static str,
    pub kind: Kind,
    pub start: u64,
    pub length: u64,
}

impl Region {
    /// The address behind it.
    pub const fn end(&self) -> u64 {
        self.start + self.length
    }

    /// Whether calls leave it mapped as it is, so that others can rely on it.
    pub fn stays(&self) -> bool {
        [&ARGUMENTS, &FENCES, &DATA].iter().any(|region| region.start == self.start)
    }
}

const BASE: u64 = 0x1000_0000_0000;
const SPACING: u64 = 1 << 32;

const fn region(name: &'static str, number: u64, kind: Kind, length: usize) -> Region {
    Region { name, kind, start: BASE + number * SPACING, length: length as u64 }
}

const MB: usize = 1 << 20;

/// Where the arguments of calls and batches are, usually.
pub static ARGUMENTS: Region = region("arguments", 0, Kind::Anon, 2 * MB);
/// The words that fences are written to.
pub static FENCES: Region = region("fences", 1, Kind::Anon, MIDDLE);
/// Memory that stays what it is; only its contents change, and where they live.
pub static DATA: Region = region("data", 2, Kind::Anon, 2 * SZ_2M);
pub static ANON: Region = region("anon", 3, Kind::Anon, 4 * SZ_2M);
pub static HUGE: Region = region("huge", 4, Kind::Anon, 4 * SZ_2M);
pub static SHMEM: Region = region("shmem", 5, Kind::Shmem, SZ_2M);
pub static FILE: Region = region("file", 6, Kind::File, SZ_2M);
pub static PRIVATE: Region = region("private", 7, Kind::Private, SZ_2M);
pub static READ_ONLY: Region = region("read-only", 8, Kind::ReadOnly, 4 * MIDDLE);
pub static FAULTS: Region = region("faults", 9, Kind::Faults, 8 * MIDDLE);
pub static GEM: Region = region("gem", 10, Kind::Gem, MIDDLE);
pub static VRAM: Region = region("vram", 11, Kind::Vram, MIDDLE);
pub static DEVICE: Region = region("device", 12, Kind::Device, SZ_2M);
/// Where buffers are bound for the GPU; the CPU has nothing there.
pub static GPU: Region = region("gpu", 13, Kind::Nothing, 64 * MB);
/// Where nobody has anything.
pub static HOLE: Region = region("hole", 14, Kind::Nothing, 16 * MB);

/// All of them.
pub static ALL: [&Region; 15] = [
    &ARGUMENTS, &FENCES, &DATA, &ANON, &HUGE, &SHMEM, &FILE, &PRIVATE, &READ_ONLY, &FAULTS, &GEM,
    &VRAM, &DEVICE, &GPU, &HOLE,
];

/// The region that an address is in.
pub fn of(address: u64) -> Option<&'static Region> {
    ALL.iter().copied().find(|r| (r.start..r.end()).contains(&address))
}

/// A choice of regions, each with a weight.
pub type Pool = &'static [(&'static Region, u32)];

static PLAY: [(&Region, u32); 6] =
    [(&ANON, 6), (&HUGE, 3), (&SHMEM, 1), (&FILE, 1), (&PRIVATE, 2), (&DEVICE, 1)];
static SHARED: [(&Region, u32); 7] =
    [(&DATA, 4), (&ANON, 4), (&HUGE, 3), (&SHMEM, 1), (&FILE, 1), (&PRIVATE, 2), (&DEVICE, 1)];
/// What the GPU is to use, where it need not be what stays.
static TARGET: [(&Region, u32); 9] = [
    (&DATA, 20),
    (&ANON, 16),
    (&HUGE, 16),
    (&SHMEM, 3),
    (&FILE, 3),
    (&PRIVATE, 5),
    (&DEVICE, 6),
    (&FAULTS, 2),
    (&GEM, 1),
];
static ANY: [(&Region, u32); 15] = [
    (&ARGUMENTS, 1),
    (&FENCES, 1),
    (&DATA, 3),
    (&ANON, 3),
    (&HUGE, 3),
    (&SHMEM, 2),
    (&FILE, 2),
    (&PRIVATE, 2),
    (&READ_ONLY, 2),
    (&FAULTS, 2),
    (&GEM, 2),
    (&VRAM, 2),
    (&DEVICE, 2),
    (&GPU, 2),
    (&HOLE, 2),
];
static ONLY_GPU: [(&Region, u32); 1] = [(&GPU, 1)];
static ONLY_FENCES: [(&Region, u32); 1] = [(&FENCES, 1)];
static ONLY_DATA: [(&Region, u32); 1] = [(&DATA, 1)];
static ONLY_ANON: [(&Region, u32); 1] = [(&ANON, 1)];
static ONLY_HUGE: [(&Region, u32); 1] = [(&HUGE, 1)];

/// Where anything may be.
pub fn any() -> Pool {
    &ANY
}

/// What programs may change as they like.
pub fn play() -> Pool {
    &PLAY
}

/// Whether a pool is that of what the GPU is to use.
pub fn is_target(pool: Pool) -> bool {
    std::ptr::eq(pool, &TARGET)
}

/// The pool of a name.
pub fn pool(name: &str) -> Option<Pool> {
    Some(match name {
        "gpu" => &ONLY_GPU,
        "fence" => &ONLY_FENCES,
        "data" => &ONLY_DATA,
        "anon" => &ONLY_ANON,
        "huge" => &ONLY_HUGE,
        "play" => &PLAY,
        "shared" => &SHARED,
        "target" => &TARGET,
        "any" => &ANY,
        _ => return None,
    })
}

/// One region of a pool.
pub fn choose(pool: Pool, rng: &mut Rng) -> &'static Region {
    let total: u32 = pool.iter().map(|(_, weight)| weight).sum();
    let mut at = rng.below(total as usize) as u32;
    for (region, weight) in pool {
        if at < *weight {
            return region;
        }
        at -= weight;
    }
    unreachable!("the weights add up to more than any number below their sum")
}

/// So many pages somewhere in a region; fewer if it is smaller. Starts at a multiple of 64 KiB or
/// 2 MiB often.
pub fn pages(region: &Region, count: u64, rng: &mut Rng) -> (u64, u64) {
    let all = region.length / PAGE as u64;
    let count = count.min(all);
    let align = [1, 1, 16, 512][rng.below(4)].min(all);
    let first = rng.below((all - count) as usize + 1) as u64 / align * align;
    (region.start + first * PAGE as u64, count * PAGE as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_overlap() {
        for pair in ALL.windows(2) {
            assert!(pair[0].end() <= pair[1].start);
        }
        assert_eq!(of(DATA.start).unwrap().name, "data");
        assert_eq!(of(DATA.end() - 1).unwrap().name, "data");
        assert!(of(DATA.end()).is_none() && of(0).is_none());
    }

    #[test]
    fn pages_are_inside() {
        let mut rng = Rng::new(1);
        for _ in 0..10_000 {
            let region = choose(any(), &mut rng);
            let (start, length) = pages(region, 1 + rng.below(600) as u64, &mut rng);
            assert!(start >= region.start && start + length <= region.end(), "{}", region.name);
            assert!(length > 0 && start % PAGE as u64 == 0);
        }
    }
}
