// SPDX-License-Identifier: GPL-2.0

//! The files go with the device, whoever reads or writes them, or has them open.

use crate::{debugfs, file, CLASS, DEFAULTS, PROPERTIES};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};
use vxe_uapi::{
    env::{enough, iterations},
    gpu::{device, works},
    sysfs::Slot,
    vram::soon,
    Program,
};

/// How long to unbind and bind on a slow machine.
const ENOUGH: Duration = Duration::from_secs(15);

/// What a file of a device that is gone says when it is opened, read or written: sysfs has no such device,
/// debugfs an I/O error. The device may not be gone yet, or be there again.
const GONE: [i32; 3] = [libc::ENOENT, libc::ENODEV, libc::EIO];

fn errno(result: io::Result<usize>) -> Result<usize, i32> {
    result.map_err(|e| e.raw_os_error().unwrap_or(0))
}

/// All files of the properties.
fn properties() -> Vec<PathBuf> {
    let names = PROPERTIES.iter().flat_map(|property| property.files()).map(|(name, _)| name);
    names.flat_map(|name| [file(name), Path::new(CLASS).join(DEFAULTS).join(name)]).collect()
}

/// A file that is open stays open, and has nothing to say any more, not even when the device is back.
fn open_files() {
    let slot = Slot::first();
    let directory = debugfs::directory(&device());
    let mut of_sysfs: Vec<File> =
        properties().iter().map(|path| File::open(path).expect("a file")).collect();
    let mut written: Vec<File> = PROPERTIES
        .iter()
        .map(|property| OpenOptions::new().write(true).open(file(property.name)).expect("a file"))
        .collect();
    let of_debugfs: Vec<File> = debugfs::FILES
        .iter()
        .map(|name| File::open(directory.join(name)).expect("a file"))
        .collect();
    // Some have read already.
    let mut text = String::new();
    of_sysfs[0].read_to_string(&mut text).expect("its contents");
    let held = File::open(CLASS).expect("the directory");
    for is_bound in [false, true] {
        if is_bound {
            slot.bind();
        } else {
            slot.unbind();
            assert!(!Path::new(CLASS).exists(), "the files are still there");
        }
        for file in &of_sysfs {
            assert_eq!(errno(file.read_at(&mut [0; 16], 0)), Err(libc::ENODEV), "to read");
        }
        for file in &mut written {
            assert_eq!(errno(file.write(b"1000")), Err(libc::ENODEV), "to write");
        }
        for file in &of_debugfs {
            assert_eq!(errno(file.read_at(&mut [0; 16], 0)), Err(libc::EIO), "to read");
        }
    }
    drop(held);
    assert_eq!(crate::read("timeslice_duration_us"), 4_000);
}

/// Opens and reads a file to its end.
fn read(path: &Path) -> io::Result<usize> {
    Ok(fs::read(path)?.len())
}

/// Threads read and write all files while the device goes and comes.
fn at_any_time() {
    let slot = Slot::first();
    let directory = debugfs::directory(&device());
    let debugfs: Vec<_> = debugfs::FILES.iter().map(|name| directory.join(name)).collect();
    let properties = properties();
    let stop = AtomicBool::new(false);
    let (done, gone) = (AtomicU32::new(0), AtomicU32::new(0));
    let count = |what: &Path, result: io::Result<usize>| match errno(result) {
        Ok(_) => _ = done.fetch_add(1, Relaxed),
        Err(errno) if GONE.contains(&errno) => _ = gone.fetch_add(1, Relaxed),
        Err(errno) => panic!("{}: errno {errno}", what.display()),
    };
    std::thread::scope(|scope| {
        for paths in [&properties, &debugfs, &properties] {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    paths.iter().for_each(|path| count(path, read(path)));
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                for property in &PROPERTIES {
                    let path = file(property.name);
                    let file = OpenOptions::new().write(true).open(&path);
                    count(&path, file.and_then(|mut file| file.write(b"1000")));
                }
            }
        });
        let (start, enough) = (Instant::now(), enough(ENOUGH));
        for round in 0..iterations(60) {
            if start.elapsed() > enough {
                println!("{round} rounds are enough for a slow machine");
                break;
            }
            std::thread::sleep(Duration::from_millis(u64::from(round % 5)));
            slot.unbind();
            slot.bind();
        }
        let before = done.load(Relaxed);
        soon("files are read", || done.load(Relaxed) > before + 100);
        stop.store(true, Relaxed);
    });
    let (done, gone) = (done.into_inner(), gone.into_inner());
    println!("{done} reads and writes, and {gone} of what was gone");
    works(&device(), "counted");
}

pub fn subtests(p: &mut Program) {
    p.subtest("open-files", "files that are open when the device goes", open_files);
    p.subtest("at-any-time", "all files are read and written while it does", at_any_time);
}
