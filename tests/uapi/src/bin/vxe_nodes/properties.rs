// SPDX-License-Identifier: GPL-2.0

//! The files of the scheduling properties, and the limits of the time slices of queues.

use crate::{file, read, set, write, Restored, CLASS, DEFAULTS, PROPERTIES};
use libc::{EACCES, EINVAL, ERANGE};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};
use vxe_client::{request, sys, Commands, Device, Error, ExecQueue, Vm};
use vxe_uapi::{
    gpu::{copy_engine, device},
    process::fork,
    sysfs::Slot,
    time::expect_prompt,
    Map, Program, PAGE,
};

/// The user who may nothing.
const NOBODY: libc::uid_t = 65534;

/// Gives up the rights of root, for good.
fn become_nobody() {
    // SAFETY: the calls take no pointers.
    assert_eq!(unsafe { libc::setresgid(NOBODY, NOBODY, NOBODY) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) }, 0);
}

#[track_caller]
fn names(directory: &Path) -> BTreeSet<String> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    entries.map(|e| e.expect("an entry").file_name().into_string().expect("a name")).collect()
}

/// All files are there, and no other; they are root's, and have the defaults.
fn files() {
    let _bound = Slot::first();
    let files = PROPERTIES.iter().flat_map(|property| property.files());
    let expected: BTreeSet<_> = files.clone().map(|(name, _)| name.to_owned()).collect();
    let defaults = Path::new(CLASS).join(DEFAULTS);
    assert_eq!(names(&defaults), expected);
    let mut with_defaults = expected;
    with_defaults.insert(DEFAULTS.to_owned());
    assert_eq!(names(Path::new(CLASS)), with_defaults);
    for (name, value) in files {
        for (path, mode) in [(file(name), 0o644), (defaults.join(name), 0o444)] {
            let metadata = fs::metadata(&path).expect("a file");
            let (mode_is, owner) = (metadata.mode() & 0o7777, (metadata.uid(), metadata.gid()));
            assert_eq!((mode_is, owner), (mode, (0, 0)), "{}", path.display());
            let text = fs::read_to_string(&path).expect("its contents");
            assert_eq!(text, format!("{value}\n"), "{}", path.display());
        }
        // Nobody writes a default, not even root, whom modes do not concern.
        assert!(write(&format!("{DEFAULTS}/{name}"), "1").is_err(), "a default was written");
    }
}

/// Each property takes what is within its limits, and each limit what is within those of the hardware.
fn values() {
    let _bound = Slot::first();
    let _restored = Restored;
    for property in &PROPERTIES {
        let refuse = |name: &str, text: &str, errno: i32| {
            let before = read(name);
            assert_eq!(write(name, text), Err(errno), "{name} = {text:?}");
            assert_eq!(read(name), before, "{name} after {text:?}");
        };
        let (name, min, max) = (property.name, property.min, property.max);
        let above = (property.highest + 1).to_string();
        for name in [name, min, max] {
            refuse(name, "0", EINVAL);
            refuse(name, &above, EINVAL);
            for garbage in ["", " ", "x", "-1", "1 2", "7seconds"] {
                // Nothing is nothing to write.
                if !garbage.is_empty() {
                    refuse(name, garbage, EINVAL);
                }
            }
            refuse(name, "4294967296", ERANGE);
            refuse(name, &"9".repeat(4000), ERANGE);
        }
        for value in [1, 2, property.highest] {
            set(name, value);
        }
        // Octal and hexadecimal numbers, with and without the end of the line.
        for (text, value) in [("0x10\n", 16), ("010", 8), ("12\n", 12)] {
            assert_eq!(write(name, text), Ok(()), "{text:?}");
            assert_eq!(read(name), value, "{text:?}");
        }
        // Narrower limits, which do not cross, and leave the value.
        set(min, 100);
        set(max, 200);
        assert_eq!(read(name), 12);
        refuse(name, "99", EINVAL);
        refuse(name, "201", EINVAL);
        refuse(min, "201", EINVAL);
        refuse(max, "99", EINVAL);
        for value in [100, 200] {
            set(name, value);
        }
        set(min, 200);
        refuse(max, "199", EINVAL);
        set(min, 1);
        set(max, property.highest);
    }
}

/// Each property has its own limits; the defaults stay.
fn apart() {
    let _bound = Slot::first();
    let _restored = Restored;
    for (i, property) in PROPERTIES.iter().enumerate() {
        set(property.min, 10 + i as u32);
        set(property.max, 2_000 + i as u32);
        set(property.name, 1_000 + i as u32);
    }
    for (i, property) in PROPERTIES.iter().enumerate() {
        let i = i as u32;
        let found = [property.name, property.min, property.max].map(read);
        assert_eq!(found, [1_000 + i, 10 + i, 2_000 + i], "{}", property.name);
        for (name, value) in property.files() {
            assert_eq!(read(&format!("{DEFAULTS}/{name}")), value, "the default of {name}");
        }
    }
}

/// All may read them, and only root may write them.
fn nobody() {
    let _bound = Slot::first();
    fork(|_| {
        become_nobody();
        for (name, value) in PROPERTIES.iter().flat_map(|property| property.files()) {
            assert_eq!(read(name), value, "{name}");
            assert_eq!(write(name, "1000"), Err(EACCES), "{name}");
        }
    })
    .expect_success();
}

/// A new binding has the defaults.
fn bound_again() {
    let slot = Slot::first();
    for property in &PROPERTIES {
        set(property.name, 77);
        set(property.max, 99);
        set(property.min, 55);
    }
    slot.unbind();
    slot.bind();
    files();
}

/// Creates a queue, perhaps with a time slice of its own, in microseconds. It goes with its file.
pub fn create_queue(vm: &Vm, us: Option<u64>) -> Result<u32, Error> {
    let engine = copy_engine(vm.device());
    let mut timeslice = sys::drm_xe_ext_set_property {
        property: sys::DRM_XE_EXEC_QUEUE_SET_PROPERTY_TIMESLICE,
        ..Default::default()
    };
    timeslice.__bindgen_anon_1.value = us.unwrap_or(0);
    let mut create = sys::drm_xe_exec_queue_create {
        width: 1,
        num_placements: 1,
        vm_id: vm.id(),
        instances: &raw const engine as u64,
        extensions: us.map_or(0, |_| &raw const timeslice as u64),
        ..Default::default()
    };
    // SAFETY: what the argument points to lives through the call.
    unsafe { vm.device().call(&request::EXEC_QUEUE_CREATE, &mut create) }?;
    Ok(create.exec_queue_id)
}

/// The time slice of a queue is within the limits, for root within those of the hardware.
fn of_queues() {
    let _bound = Slot::first();
    let _restored = Restored;
    let vm = Vm::mirrored(&device()).expect("a VM");
    let errno = |vm: &Vm, us| create_queue(vm, Some(us)).map(|_| ()).map_err(|e| e.errno());
    let beyond = [0, 10_000_001, 1 << 32, (1 << 32) + 4000, u64::MAX];
    for (min, max) in [(1, 10_000_000), (3_000, 5_000)] {
        set("timeslice_duration_min", min);
        set("timeslice_duration_max", max);
        for us in [1, 2_999, 5_001, 10_000_000] {
            assert_eq!(errno(&vm, us), Ok(()), "{us} us by root, of {min} to {max}");
        }
        for us in beyond {
            assert_eq!(errno(&vm, us), Err(EINVAL), "{us} us by root, of {min} to {max}");
        }
        fork(|_| {
            // Root's process has a file that another user may use, as those have who were passed it.
            let vm = Vm::mirrored(&device()).expect("a VM");
            become_nobody();
            let (min, max) = (u64::from(min), u64::from(max));
            for us in [min, max] {
                assert_eq!(errno(&vm, us), Ok(()), "{us} us, of {min} to {max}");
            }
            for us in beyond.into_iter().chain([min - 1, max + 1]) {
                assert_eq!(errno(&vm, us), Err(EINVAL), "{us} us, of {min} to {max}");
            }
        })
        .expect_success();
    }
}

/// Has a queue run a batch that counts without end.
///
/// # Safety
///
/// The counter must be shared memory that stays.
pub unsafe fn count(device: &Device, queue: u32, counter: u64) {
    let batch = Map::shared(PAGE);
    let at = batch.at(0);
    let mut commands = Commands::new();
    // It jumps to its own start.
    commands.increment(counter).raw(&[0x1880_0101, at as u32, (at >> 32) as u32]);
    batch.write_words(0, commands.dwords());
    // SAFETY: the batch stays, and the caller answers for the counter.
    unsafe { submit(device, queue, at) };
}

/// Submits the batch at a GPU address to a queue.
///
/// # Safety
///
/// What the batch writes must be shared memory that stays, and so must the batch.
pub unsafe fn submit(device: &Device, queue: u32, batch: u64) {
    let mut exec = sys::drm_xe_exec {
        exec_queue_id: queue,
        address: batch,
        num_batch_buffer: 1,
        ..Default::default()
    };
    // SAFETY: the caller answers for what the GPU does.
    unsafe { device.call(&request::EXEC, &mut exec) }.expect("a job");
}

/// No job of a long-running VM takes too long, as with xe, and each stops soon.
fn timeouts() {
    const PROMPT: Duration = Duration::from_secs(1);
    let _bound = Slot::first();
    let _restored = Restored;
    set("job_timeout_ms", 1);
    set("preempt_timeout_us", 1);
    let vm = Vm::mirrored(&device()).expect("a VM");
    let queue = ExecQueue::new(&vm).expect("a queue");
    let counter = Map::shared(PAGE);
    // SAFETY: the page is shared, and stays.
    unsafe { count(vm.device(), queue.id(), counter.at(0)) };
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(queue.is_banned(), Ok(false), "a job of a long-running VM was stopped");
    let before = counter.read(0);
    std::thread::sleep(Duration::from_millis(500));
    assert_ne!(counter.read(0), before, "the job does not run");
    let start = Instant::now();
    drop(queue);
    expect_prompt("to stop the job", start.elapsed(), PROMPT);
    let stopped = counter.read(0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(counter.read(0), stopped, "the job runs on");
}

pub fn subtests(p: &mut Program) {
    p.subtest("files", "the files of the properties, their owner and their contents", files);
    p.subtest("values", "values and limits, within and out of range", values);
    p.subtest("apart", "one property does not change another", apart);
    p.subtest("nobody", "only root may write", nobody);
    p.subtest("bound-again", "a new binding has the defaults", bound_again);
    p.subtest("of-queues", "the time slices that queues may have", of_queues);
    p.subtest("timeouts", "the time-outs stop no long-running job", timeouts);
}
