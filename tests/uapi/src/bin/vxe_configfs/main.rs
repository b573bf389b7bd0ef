// SPDX-License-Identifier: GPL-2.0

//! Devices that are made and removed at run time, through configfs.

mod races;

use std::{
    fs, io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    process::ExitCode,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use vxe_client::{Bind, Bo, Device, Error, ExecQueue, Timeout, Vm, Wait};
use vxe_uapi::{
    configfs::{subsystem, Configuration},
    env::{enough, iterations},
    gpu::{device, works, FAR},
    memory::meminfo,
    process::fork,
    skip,
    sysfs::{is_end, Expedited, Provider, Slot},
    vram::{self, soon},
    Gpu, Map, Program, CHUNK, PAGE, SZ_2M,
};

/// The memory of a device, in MiB.
const VRAM_MB: usize = 16;

/// As many configurations as a module has, at most.
const CONFIGURATIONS: usize = 64;

/// As many devices as a module has, at most, with those that are gone and in use.
const DEVICES: usize = 32;

/// How long devices come and go at most: the rest of the rounds are for a faster machine.
const ENOUGH: Duration = Duration::from_secs(15);

/// Has all of `map` come to the device's memory, and be counted in there, once in each chunk.
#[track_caller]
fn bring_and_count(gpu: &Gpu, map: Map) {
    vram::bring(gpu, map);
    for chunks in 0..map.len() / SZ_2M {
        gpu.run(|c| {
            let part = map.part(chunks * SZ_2M, SZ_2M);
            (0..SZ_2M).step_by(CHUNK).for_each(|at| _ = c.increment(part.at(at)));
        });
    }
}

/// A new configuration is that of the devices that the module made, and has no device.
fn defaults() {
    let first = device();
    let config = Configuration::make("defaults");
    let size = first.memory_regions().expect("the regions").get(1).map_or(0, |r| r.total_size);
    assert_eq!(config.get("vram_mb"), (size >> 20).to_string());
    let id = first.config().expect("the configuration").device_id;
    assert_eq!(config.get("device_id"), format!("{id:#06x}"));
    assert_eq!((config.get("enabled").as_str(), config.get("device").as_str()), ("0", ""));
    let names = fs::read_dir(config.path())
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    assert_eq!(names, ["device", "device_id", "enabled", "vram_mb"]);
    // It is the only one of its name.
    let error = Configuration::try_make_of("vxe", "defaults").err().expect("another");
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    config.remove();
}

/// A device is made, used and removed.
fn device_works() {
    let others = Slot::all().len();
    let config = Configuration::make("device");
    config.set("vram_mb", VRAM_MB);
    config.enable();
    // Once more changes nothing.
    config.enable();
    assert!(config.is_enabled());
    assert_eq!(Slot::all().len(), others + 1, "devices");
    let device = config.open();
    works(&device, "the new device");
    let gpu = Gpu::on_device(&device);
    let map = Map::aligned(SZ_2M, SZ_2M);
    map.fill(|offset| offset as u32);
    bring_and_count(&gpu, map);
    assert_eq!(vram::region(&device).total_size, (VRAM_MB as u64) << 20);
    let slot = config.slot();
    drop((gpu, device));
    config.disable();
    config.disable();
    assert!(!config.is_enabled() && config.get("device").is_empty());
    assert!(!slot.exists() && Slot::all().len() == others, "the device is left");
    map.expect("what was in the device's memory", |offset| {
        offset as u32 + u32::from(offset % CHUNK == 0)
    });
    // It may be another one after that.
    config.set("vram_mb", 0);
    config.enable();
    works(&config.open(), "a device without memory");
    let slot = config.slot();
    config.remove();
    assert!(!slot.exists(), "rmdir leaves the device");
}

/// What nobody can have is refused, and changes nothing.
fn bad_values() {
    let config = Configuration::make("bad");
    let before = || ["vram_mb", "device_id", "enabled"].map(|name| config.get(name));
    let values = before();
    let huge = "1".repeat(4000);
    let bad: [(&str, &[&str]); 3] = [
        ("vram_mb", &["", "\n", "3", "-2", "2x", "0x", "two", "65538", "4294967298", " 2", &huge]),
        ("device_id", &["\n", "0", "0x10000", "-1", "e20b", "0xe20g", "65536", &huge]),
        ("enabled", &["\n", "2", "x", "-1", &huge[..0]]),
    ];
    for (attribute, list) in bad {
        for value in list {
            // A write of nothing never comes to the driver.
            if !value.is_empty() {
                assert_eq!(config.refusal(attribute, value), libc::EINVAL, "{attribute}={value:?}");
            }
            assert_eq!(before(), values, "after {attribute}={value:?}");
        }
    }
    for (attribute, value, reads) in [
        ("vram_mb", "0x20\n", "32"),
        ("vram_mb", "64", "64"),
        ("device_id", "57867", "0xe20b"),
        ("device_id", "0x0bd5\n", "0x0bd5"),
        ("enabled", "y", "1"),
        ("enabled", "off\n", "0"),
    ] {
        config.set(attribute, value);
        assert_eq!(config.get(attribute), reads, "{attribute}={value:?}");
    }
    let refused = |path: &str, value: &str| {
        let error = fs::write(config.path().join(path), value).expect_err(path);
        assert!(
            matches!(error.raw_os_error(), Some(libc::EACCES | libc::EINVAL | libc::EIO)),
            "{path}: {error}"
        );
    };
    refused("device", "vxe.0");
    let error = fs::create_dir(config.path().join("child")).expect_err("a directory in it");
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
}

/// Nothing of a device can be changed while there is the device.
fn busy() {
    let config = Configuration::with_device("busy", VRAM_MB);
    let id = config.get("device_id");
    assert_eq!(config.refusal("vram_mb", "32"), libc::EBUSY);
    assert_eq!(config.refusal("vram_mb", &VRAM_MB.to_string()), libc::EBUSY);
    assert_eq!(config.refusal("device_id", "0x1234"), libc::EBUSY);
    // What nobody can have is refused as such.
    assert_eq!(config.refusal("vram_mb", "3"), libc::EINVAL);
    assert_eq!((config.get("vram_mb"), config.get("device_id")), (VRAM_MB.to_string(), id));
    // Unbound, it is still there.
    let slot = config.slot();
    slot.unbind();
    assert!(config.is_enabled());
    assert_eq!(config.refusal("vram_mb", "32"), libc::EBUSY);
    slot.bind();
    works(&config.open(), "bound again");
    slot.unbind();
    config.disable();
    assert!(!slot.exists());
    config.set("vram_mb", 32);
    config.set("device_id", "0x1234");
    config.enable();
    assert_eq!(config.open().config().expect("the configuration").device_id, 0x1234);
}

/// Two devices of different sizes and kinds, which work on one memory, and in each other's.
fn two() {
    let made = [("one", VRAM_MB, 0xe20b), ("other", 2 * VRAM_MB, 0x0bd5)].map(
        |(name, vram_mb, id): (&str, usize, u16)| {
            let config = Configuration::make(name);
            config.set("vram_mb", vram_mb);
            config.set("device_id", id);
            config.enable();
            let device = config.open();
            assert_eq!(vram::region(&device).total_size, (vram_mb as u64) << 20);
            assert_eq!(device.config().expect("the configuration").device_id, id);
            (config, device)
        },
    );
    let [one, other] = made.each_ref().map(|(_, device)| Gpu::on_device(device));
    let map = Map::aligned(4 * SZ_2M, SZ_2M);
    map.fill(|offset| offset as u32);
    for (owner, user) in [(&one, &other), (&other, &one), (&one, &other)] {
        assert!(vram::prefetch(owner, map), "a prefetch");
        assert_eq!(vram::in_device(owner, map), map.len(), "bytes in device memory");
        (0..map.len()).step_by(SZ_2M).for_each(|at| user.increment(map.at(at)));
    }
    // The memory of one goes while the other uses it.
    let (first, second) = (&made[0].0, &made[1].0);
    first.disable();
    (0..map.len()).step_by(SZ_2M).for_each(|at| other.increment(map.at(at)));
    map.expect("counted", |offset| offset as u32 + if offset % SZ_2M == 0 { 4 } else { 0 });
    first.enable();
    let one = Gpu::on_device(&first.open());
    (0..map.len()).step_by(SZ_2M).for_each(|at| one.increment(map.at(at)));
    second.disable();
    map.expect("counted", |offset| offset as u32 + if offset % SZ_2M == 0 { 5 } else { 0 });
}

/// All that a program can ask of a device that is gone.
#[track_caller]
fn expect_cut_off(gpu: &Gpu, bo: &Bo) {
    let gone = |what: &str, result: Result<(), Error>| {
        assert_eq!(result.map_err(|e| e.errno()), Err(libc::ENODEV), "{what}");
    };
    gone("a query", gpu.device().config().map(|_| ()));
    gone("a VM", Vm::new(gpu.device()).map(|_| ()));
    gone("a bind", gpu.vm().bind(&[Bind::bo(bo, 0, 1 << 40, PAGE as u64)]));
    gone("a job", gpu.try_run(|c| _ = c.noop()));
}

/// A device goes under programs that have it open, with jobs and who waits for them. What they had stays
/// until they close it; the next device of the same name is another one.
fn in_use() {
    let config = Configuration::with_device("in-use", VRAM_MB);
    for round in 0..iterations(6) {
        let gpu = Gpu::on_device(&config.open());
        let bo = Bo::create(gpu.device(), SZ_2M, 1 << 1, None).expect("a buffer in its memory");
        let mapping = bo.map().expect("its memory");
        gpu.vm().bind(&[Bind::bo(&bo, 0, FAR, SZ_2M as u64)]).expect("a bind");
        gpu.store(FAR + 8, round);
        let map = Map::aligned(SZ_2M, SZ_2M);
        map.fill(|offset| offset as u32);
        bring_and_count(&gpu, map);
        let queue = ExecQueue::new(gpu.vm()).expect("a queue");
        let fence = Map::shared(PAGE);
        let (from, to) = (Map::shared(SZ_2M), Map::shared(SZ_2M));
        std::thread::scope(|scope| {
            let waiter =
                scope.spawn(|| queue.wait(&Wait::equal(fence.at(0), 1, Timeout::ms(60_000))));
            let worker = Gpu::on_device(gpu.device());
            let jobs: Vec<_> = (0..8)
                .map(|_| {
                    let copies = |c: &mut vxe_client::Commands| {
                        (0..2048).for_each(|_| _ = c.copy(from.at(0), to.at(0), SZ_2M));
                    };
                    worker.start(copies).expect("a job")
                })
                .collect();
            std::thread::sleep(Duration::from_millis(20));
            if round % 2 == 0 {
                config.disable();
            } else {
                config.slot().unbind();
                config.disable();
            }
            let ends = jobs.into_iter().map(|job| job.wait()).collect::<Vec<_>>();
            assert!(
                ends.iter().any(Result::is_err),
                "all jobs of a device that is gone ended well"
            );
            for e in ends.into_iter().filter_map(Result::err) {
                assert!(is_end(&e), "{e}");
            }
            let e = waiter.join().expect("a thread").expect_err("a wait");
            assert!(is_end(&e), "{e}");
        });
        expect_cut_off(&gpu, &bo);
        map.expect("what was in the device's memory", |offset| {
            offset as u32 + u32::from(offset % CHUNK == 0)
        });
        assert_eq!(mapping.words()[2].load(Ordering::Relaxed), round, "memory that is mapped");
        // The next device, with the old file open.
        config.enable();
        works(&config.open(), "the next device");
        expect_cut_off(&gpu, &bo);
        drop((gpu, queue, bo));
        works(&config.open(), "the next device");
        assert_eq!(mapping.words()[2].load(Ordering::Relaxed), round, "memory that is mapped");
        drop(mapping);
        [from, to, fence, map].iter().for_each(Map::unmap);
    }
}

/// A device goes whose buffer another one uses, and one that uses the buffer of another.
fn sharing() {
    let [one, other] = ["one", "other"].map(|name| Configuration::with_device(name, VRAM_MB));
    let work = |gpu: &Gpu, round: u32| gpu.try_run(|c| _ = c.store(FAR + 8, round));
    for round in 0..iterations(6) {
        let [owner, user] = [&one, &other].map(|config| Gpu::on_device(&config.open()));
        // In the memory of the device, or in that of the system.
        let bo = Bo::create(owner.device(), SZ_2M, 1 << (round % 2), None).expect("a buffer");
        let mapping = bo.map().expect("its memory");
        let fd = bo.export().expect("a dma-buf");
        let import = Bo::import(user.device(), fd.as_fd(), SZ_2M).expect("an import");
        for (gpu, bo) in [(&owner, &bo), (&user, &import)] {
            gpu.vm().bind(&[Bind::bo(bo, 0, FAR, SZ_2M as u64)]).expect("a bind");
            work(gpu, round).expect("a job");
        }
        let (first, rest) = if round % 4 < 2 { (&one, &user) } else { (&other, &owner) };
        first.disable();
        match work(rest, round + 100) {
            Ok(()) => {
                let word = mapping.words()[2].load(Ordering::Relaxed);
                assert_eq!(word, round + 100, "what the other device wrote");
            }
            // The memory of a device that is gone may be out of reach.
            Err(e) => assert!(is_end(&e), "{e}"),
        }
        [&one, &other].into_iter().for_each(Configuration::disable);
        drop((import, fd, bo, mapping, owner, user));
        [&one, &other].into_iter().for_each(Configuration::enable);
    }
    [&one, &other].into_iter().for_each(|config| works(&config.open(), "a device that is back"));
}

/// There are only so many devices, and those count that are gone while a program has them open.
fn held_open() {
    let config = Configuration::make("held");
    config.set("vram_mb", 2);
    let most = DEVICES - Slot::all().iter().filter(|slot| slot.is_of("vxe")).count();
    let mut held = Vec::new();
    for _ in 0..most {
        // What earlier subtests left goes in its own time.
        soon("there is room", || config.try_set("enabled", "1").is_ok());
        held.push(Gpu::on_device(&config.open()));
        config.disable();
    }
    assert_eq!(config.refusal("enabled", "1"), libc::ENOSPC);
    assert!(!config.is_enabled());
    held.pop();
    // What is left of it goes in its own time.
    soon("there is room for one more", || config.try_set("enabled", "1").is_ok());
    works(&config.open(), "one more");
    config.disable();
    drop(held);
    soon("there is room again", || config.try_set("enabled", "1").is_ok());
}

/// There are only so many configurations, and devices do not have more memory than the machine.
fn limits() {
    let made: Vec<_> = (0..CONFIGURATIONS)
        .map(|i| Configuration::make(&format!("limit-{i}-with-a-name-that-is-long")))
        .collect();
    let error = Configuration::try_make_of("vxe", "limit").err().expect("one more");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    drop(made);
    let config = Configuration::make("limit");
    let ram_mb = meminfo("MemTotal") >> 20;
    let most = (ram_mb + 512).next_multiple_of(2);
    if most > 1 << 16 {
        skip!("the machine has {ram_mb} MiB, more than devices have");
    }
    config.set("vram_mb", most);
    assert_eq!(config.refusal("enabled", "1"), libc::ENOMEM);
    assert!(!config.is_enabled());
    // Two that fit alone, and not together.
    let half = (ram_mb / 4 * 3).next_multiple_of(2);
    config.set("vram_mb", half);
    config.enable();
    let other = Configuration::make("other");
    other.set("vram_mb", half);
    assert_eq!(other.refusal("enabled", "1"), libc::ENOMEM);
    config.disable();
    soon("there is memory again", || other.try_set("enabled", "1").is_ok());
    works(&other.open(), "a large device");
}

/// Many devices come and go, and leave nothing: not in the module, nor of the machine's memory.
fn rounds() {
    let _expedited = Expedited::now();
    let before = meminfo("MemAvailable");
    let (end, most) = (Instant::now() + enough(ENOUGH), iterations(80));
    let map = Map::aligned(SZ_2M, SZ_2M);
    map.fill(|offset| offset as u32);
    let mut done = 0;
    for round in 0..most {
        if Instant::now() > end {
            println!("{round} rounds are enough for a slow machine");
            break;
        }
        let config = Configuration::with_device("round", VRAM_MB);
        let device = config.open();
        let gpu = Gpu::on_device(&device);
        bring_and_count(&gpu, map);
        let bo = vram::buffer(&device, 2 * SZ_2M);
        match round % 3 {
            0 => config.remove(),
            1 => {
                drop((bo, gpu, device));
                config.disable();
            }
            _ => config.disable(),
        }
        done += 1;
    }
    map.expect("counted", |offset| offset as u32 + if offset % CHUNK == 0 { done } else { 0 });
    map.unmap();
    // What was held open may go later.
    let limit = (8 * VRAM_MB) << 20;
    soon("the memory is free again", || meminfo("MemAvailable") + limit > before);
    // All of it at once, as no device is left.
    let config = Configuration::make("all");
    for i in 0..4 {
        config.set("vram_mb", (meminfo("MemTotal") >> 21).next_multiple_of(2));
        soon(&format!("half of the memory, {i}"), || config.try_set("enabled", "1").is_ok());
        config.disable();
    }
}

/// Another user may look at configurations, and no more.
fn others() {
    let config = Configuration::with_device("others", VRAM_MB);
    let mode = |name: &str| fs::metadata(config.path().join(name)).expect(name).mode() & 0o7777;
    for (name, wanted) in [("enabled", 0o644), ("vram_mb", 0o644), ("device", 0o444)] {
        assert_eq!(mode(name), wanted, "{name}");
    }
    let root = subsystem("vxe");
    fork(|_| {
        // SAFETY: the calls take no pointers.
        let result = unsafe { libc::setgid(65534) | libc::setuid(65534) };
        assert_eq!(result, 0, "setuid: {}", io::Error::last_os_error());
        let refused = |what: &str, result: io::Result<()>| {
            let error = result.expect_err(what);
            assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{what}");
        };
        assert!(config.is_enabled());
        assert_eq!(config.get("vram_mb"), VRAM_MB.to_string());
        refused("enabled", config.try_set("enabled", "0"));
        refused("vram_mb", config.try_set("vram_mb", "2"));
        refused("device_id", config.try_set("device_id", "1"));
        refused("mkdir", fs::create_dir(root.join("more")));
        refused("rmdir", fs::remove_dir(config.path()));
    })
    .expect_success();
    works(&config.open(), "a device that others want gone");
}

/// A configuration keeps its module, whether it is enabled or not.
fn module() {
    let mut provider =
        Provider::try_load(0, VRAM_MB, "device_id=0x1234").unwrap_or_else(|e| panic!("{e}"));
    assert!(provider.slots().is_empty(), "devices=0 makes devices");
    let config = Configuration::make_of("vxe2", "module");
    let mut busy = |what: &str| {
        let error = provider.try_remove().expect_err(what);
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{what}");
    };
    busy("a configuration");
    assert_eq!(config.get("device_id"), "0x1234");
    assert_eq!(config.get("vram_mb"), VRAM_MB.to_string());
    config.enable();
    assert_eq!(config.get("device"), "vxe2.0");
    works(&config.open(), "the second module's device");
    busy("a device");
    // A file of an attribute keeps the module, too.
    let file = fs::File::open(config.path().join("enabled")).expect("an attribute");
    let open = config.open();
    config.remove();
    busy("an open file");
    let error = io::read_to_string(&file).expect_err("what is gone");
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    drop(open);
    busy("an attribute's file");
    drop(file);
    provider.remove();
}

/// The DRM driver is called as the module's parameter says.
fn names() {
    let provider = Provider::load_with(2, "drm_name=a-name-of-31-bytes-may-be-taken");
    let slot = &provider.slots()[0];
    let device: Device = slot.open_any();
    assert_eq!(device.driver_name().expect("a name"), "a-name-of-31-bytes-may-be-taken");
    works(&device, "a device with another name");
    let config = Configuration::make_of("vxe2", "names");
    config.enable();
    let other = config.slot().open_any();
    assert_eq!(other.driver_name().expect("a name"), "a-name-of-31-bytes-may-be-taken");
    drop((device, other));
    config.remove();
    provider.remove();
    for bad in
        ["drm_name=", "drm_name=x.e", "drm_name=a-name-of-32-bytes-is-too-long-1", "device_id=0"]
    {
        let error = Provider::try_load(1, 2, bad).err().expect(bad);
        assert!(error.contains("Invalid argument"), "{bad}: {error}");
    }
    let provider = Provider::load(2);
    assert_eq!(provider.slot().open().driver_name().expect("a name"), "xe");
    provider.remove();
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_configfs", "Devices are made and removed at run time.");
    p.subtest("defaults", "a new configuration", defaults);
    p.subtest("device", "a device is made, used and removed", device_works);
    p.subtest("bad-values", "what nobody can have", bad_values);
    p.subtest("busy", "changes while there is the device", busy);
    p.subtest("two", "two devices work on one memory", two);
    p.subtest("in-use", "devices go while they are in use", in_use);
    p.subtest("sharing", "devices go whose buffers others use", sharing);
    p.subtest("held-open", "devices that are gone are still open", held_open);
    p.subtest("limits", "too many configurations, and too much memory", limits);
    p.subtest("rounds", "many devices come and go", rounds);
    p.subtest("others", "another user", others);
    p.subtest("module", "the module goes", module);
    p.subtest("names", "the name of the DRM driver", names);
    races::subtests(&mut p);
    p.main()
}
