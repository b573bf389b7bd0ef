// SPDX-License-Identifier: GPL-2.0

//! A disk reads and writes memory that is on the device: `O_DIRECT` has the pages themselves, and holds
//! them meanwhile.

use super::{
    memory::{there, Pipe},
    pattern, Shape, SHAPES,
};
use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};
use vxe_uapi::{
    env::iterations,
    skip,
    vram::{in_device, prefetch, region},
    Gpu, Map, Program, PAGE, RO, RW,
};

/// What a disk reads and writes at least.
const SECTOR: usize = 512;

/// A disk in RAM.
struct Disk(File);

impl Disk {
    /// Skips the subtest if there is none.
    #[track_caller]
    fn open() -> Self {
        const PATH: &str = "/dev/ram0";
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(PATH);
        Self(file.unwrap_or_else(|e| skip!("{PATH}: {e}")))
    }

    /// Writes what is in memory to the start of the disk.
    #[track_caller]
    fn write(&self, map: Map) {
        // SAFETY: the memory is the test's own.
        let done =
            unsafe { libc::pwrite(self.0.as_raw_fd(), map.start() as *const _, map.len(), 0) };
        assert_eq!(done, map.len() as isize, "pwrite: {}", io::Error::last_os_error());
    }

    fn try_read(&self, map: Map) -> io::Result<usize> {
        // SAFETY: as above.
        let done = unsafe { libc::pread(self.0.as_raw_fd(), map.start() as *mut _, map.len(), 0) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Reads what is at the start of the disk to memory.
    #[track_caller]
    fn read(&self, map: Map) {
        assert_eq!(self.try_read(map).expect("pread"), map.len(), "bytes read");
    }

    /// What is at the start of the disk must be so, word by word.
    #[track_caller]
    fn expect(&self, length: usize, value: impl Fn(usize) -> u32) {
        let seen = Map::shared(length);
        self.read(seen);
        seen.expect("on the disk", value);
        seen.unmap();
    }
}

/// What the GPU sees in memory must be so, word by word.
#[track_caller]
fn expect_for_gpu(gpu: &Gpu, map: Map, value: impl Fn(usize) -> u32) {
    let seen = Map::shared(map.len());
    gpu.copy(map, seen);
    seen.expect("what the GPU sees", value);
    seen.unmap();
}

/// Brings all of it to the device.
#[track_caller]
fn place_all(gpu: &Gpu, map: Map) {
    assert!(prefetch(gpu, map), "others keep changing it");
    assert_eq!(in_device(gpu, map), map.len(), "bytes in the device's memory");
}

/// Has the GPU increment a word of each page.
#[track_caller]
fn increment(gpu: &Gpu, map: Map) {
    gpu.run(|c| {
        for page in (0..map.len()).step_by(PAGE) {
            c.increment(map.at(page + 8));
        }
    });
}

/// The pattern, after so many increments.
fn incremented(count: u32) -> impl Fn(usize) -> u32 + Copy {
    move |o| pattern(o).wrapping_add(if o % PAGE == 8 { count } else { 0 })
}

/// What is only on the device gets to the disk; what is on the disk gets to where the GPU sees it. Over
/// and over.
fn whole(shape: Shape) {
    let disk = Disk::open();
    let gpu = Gpu::new();
    let map = there(&gpu, shape);
    let rounds = iterations(2);
    for round in 1..=rounds {
        increment(&gpu, map);
        place_all(&gpu, map);
        disk.write(map);
        assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory, though a disk had them");
        disk.expect(map.len(), incremented(round));
        map.fill(|_| round);
        place_all(&gpu, map);
        disk.read(map);
        assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory, though a disk had them");
        expect_for_gpu(&gpu, map, incremented(round));
    }
    map.expect("in the end", incremented(rounds));
}

/// A part that begins and ends within pages is written and read; all around it stays as it was.
fn part(shape: Shape) {
    let disk = Disk::open();
    let gpu = Gpu::new();
    let map = there(&gpu, shape);
    let (at, length) = (map.len() / 2 - 3 * PAGE + SECTOR, 5 * PAGE + 2 * SECTOR);
    let part = map.part(at, length);
    increment(&gpu, map);
    disk.write(part);
    disk.expect(length, |o| incremented(1)(at + o));
    place_all(&gpu, map);
    increment(&gpu, map);
    disk.read(part);
    let is_read = |o| (at..at + length).contains(&o);
    let value = |o| incremented(if is_read(o) { 1 } else { 2 })(o);
    expect_for_gpu(&gpu, map, value);
    map.expect("in the end", value);
}

/// Some of it is on the device, and some is not, as somebody holds it.
fn mixed(shape: Shape) {
    let disk = Disk::open();
    let gpu = Gpu::new();
    region(gpu.device());
    let map = shape.make();
    let pipe = Pipe::new();
    let held = [3, 4, 9];
    held.iter().for_each(|page| pipe.lend(map.part(page * PAGE, PAGE)));
    let place_rest = || {
        assert!(prefetch(&gpu, map), "others keep changing it");
        let rest = map.len() - held.len() * PAGE;
        assert_eq!(in_device(&gpu, map), rest, "bytes in the device's memory");
        increment(&gpu, map);
    };
    place_rest();
    disk.write(map);
    disk.expect(map.len(), incremented(1));
    place_rest();
    disk.read(map);
    expect_for_gpu(&gpu, map, incremented(1));
    held.iter().for_each(|page| pipe.expect(|o| incremented(1)(page * PAGE + o)));
    map.expect("in the end", incremented(1));
}

/// What may only be read is written to a disk, and not from there.
fn read_only(shape: Shape) {
    let disk = Disk::open();
    let gpu = Gpu::new();
    let map = there(&gpu, shape);
    increment(&gpu, map);
    map.protect(RO);
    place_all(&gpu, map);
    disk.write(map);
    disk.expect(map.len(), incremented(1));
    place_all(&gpu, map);
    let error = disk.try_read(map).expect_err("it may only be read");
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "{error}");
    expect_for_gpu(&gpu, map, incremented(1));
    map.protect(RW);
    increment(&gpu, map);
    map.expect("in the end", incremented(2));
}

/// Meanwhile the GPU works on the pages next to these, and has all of it brought back.
fn at_work(shape: Shape) {
    let disk = Disk::open();
    let gpu = Gpu::new();
    let map = there(&gpu, shape);
    let least = iterations(10);
    let (from, to) = (map.part(2 * PAGE, 3 * PAGE), map.part(6 * PAGE, 3 * PAGE));
    let (before, behind) = (map.part(0, 2 * PAGE), map.part(9 * PAGE, map.len() - 9 * PAGE));
    let mut last = 0;
    let rounds = std::thread::scope(|scope| {
        let work = scope.spawn(move || {
            let (mut rounds, mut there) = (0, false);
            // On a busy machine all of it may have been brought back each time before it is looked.
            while rounds < least || (!there && rounds < 20 * least) {
                _ = prefetch(&gpu, map);
                there |= in_device(&gpu, map) > 0;
                increment(&gpu, before);
                increment(&gpu, behind);
                rounds += 1;
            }
            assert!(there, "nothing was on the device");
            rounds
        });
        for round in 1.. {
            disk.write(from);
            disk.read(to);
            to.expect("what was on the disk", |o| pattern(2 * PAGE + o) ^ last);
            if work.is_finished() {
                break;
            }
            last = round;
            from.fill(|o| pattern(2 * PAGE + o) ^ last);
        }
        work.join().expect("the GPU's work")
    });
    before.expect("the GPU's count", incremented(rounds));
    behind.expect("the GPU's count", |o| incremented(rounds)(9 * PAGE + o));
    from.expect("what was written", |o| pattern(2 * PAGE + o) ^ last);
    to.expect("what was read", |o| pattern(2 * PAGE + o) ^ last);
}

pub fn subtests(p: &mut Program) {
    type Sub = (&'static str, &'static str, fn(Shape), &'static [&'static str]);
    let subs: [Sub; 5] = [
        ("direct", "is written to a disk and read", whole, &["16-pages", "thp"]),
        ("direct-part", "is written to a disk and read in part", part, &["thp"]),
        ("direct-mixed", "is written to a disk and read, partly there", mixed, &["16-pages"]),
        ("direct-readonly", "is written to a disk, and not read", read_only, &["16-pages"]),
        ("direct-at-work", "is written and read while the GPU works", at_work, &["16-pages"]),
    ];
    for (sub, what, test, shapes) in subs {
        for (shape, name, about) in SHAPES.iter().filter(|(_, name, _)| shapes.contains(name)) {
            let shape = *shape;
            p.subtest(format!("{sub}-{name}"), format!("{about} {what}"), move || test(shape));
        }
    }
}
