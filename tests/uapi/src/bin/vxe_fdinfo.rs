// SPDX-License-Identifier: GPL-2.0

//! What `/proc/<pid>/fdinfo` says of an open file of the device, as monitors read it.

use std::{
    collections::BTreeMap,
    os::fd::AsRawFd,
    process::ExitCode,
    time::{Duration, Instant},
};
use vxe_client::{Bo, Commands, Device, ExecQueue, Vm};
use vxe_uapi::{gpu::device, skip, sysfs::Slot, Gpu, Map, Program, Stop, PAGE};

const SIZE: usize = 1 << 20;
/// The memory regions as buffers name them.
const SYSTEM: u32 = 1 << 0;
const VRAM: u32 = 1 << 1;

/// The keys that begin with `drm-`, and their values.
struct FdInfo(BTreeMap<String, String>);

impl FdInfo {
    #[track_caller]
    fn of(device: &Device) -> Self {
        let path = format!("/proc/self/fdinfo/{}", device.as_raw_fd());
        let text = std::fs::read_to_string(&path).expect("fdinfo");
        let mut keys = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("drm-")) {
            let (key, value) = line.split_once(":\t").expect("a key and a value");
            let before = keys.insert(key.to_string(), value.trim().to_string());
            assert_eq!(before, None, "{key} twice");
        }
        Self(keys)
    }

    #[track_caller]
    fn text(&self, key: &str) -> &str {
        self.0.get(key).unwrap_or_else(|| panic!("{key} is missing from {:?}", self.0))
    }

    #[track_caller]
    fn number(&self, key: &str) -> u64 {
        self.text(key).parse().unwrap_or_else(|e| panic!("{key}: {e}"))
    }

    /// A size in bytes.
    #[track_caller]
    fn size(&self, key: &str) -> u64 {
        let text = self.text(key);
        let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
        let unit = match unit {
            "" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            unit => panic!("{key} in {unit}"),
        };
        number.parse::<u64>().unwrap_or_else(|e| panic!("{key}: {e}")) * unit
    }

    /// The sizes of a memory region: total, shared, resident.
    #[track_caller]
    fn region(&self, region: &str) -> [u64; 3] {
        assert_eq!(self.size(&format!("drm-active-{region}")), 0);
        assert_eq!(self.size(&format!("drm-purgeable-{region}")), 0);
        ["total", "shared", "resident"].map(|what| self.size(&format!("drm-{what}-{region}")))
    }

    #[track_caller]
    fn cycles(&self) -> (u64, u64) {
        (self.number("drm-cycles-bcs"), self.number("drm-total-cycles-bcs"))
    }
}

/// The keys of xe; each file is a client of its own.
fn keys() {
    let (first, second) = (device(), device());
    let (a, b) = (FdInfo::of(&first), FdInfo::of(&second));
    assert_eq!(a.text("drm-driver"), "xe");
    assert!(a.number("drm-client-id") > 0);
    assert_ne!(a.number("drm-client-id"), b.number("drm-client-id"));
    assert_eq!(a.0.get("drm-pdev"), None, "it is no PCI device");
    for region in ["system", "gtt"] {
        assert_eq!(a.region(region), [0; 3], "{region}");
    }
    let cpus = std::thread::available_parallelism().expect("the CPUs").get() as u64;
    if cpus > 1 {
        assert_eq!(a.number("drm-engine-capacity-bcs"), cpus);
    }
    assert_eq!(a.cycles().0, 0);
    assert!(b.cycles().1 > a.cycles().1, "time goes on");
}

/// A job that runs counts for its file, up to all of one engine, and for no other.
fn cycles() {
    let gpu = Gpu::new();
    let other = device();
    let batch = Map::shared(PAGE);
    let at = batch.at(0);
    batch
        .write_words(0, Commands::new().raw(&[0x1880_0101, at as u32, (at >> 32) as u32]).dwords());
    let queue = ExecQueue::new(gpu.vm()).expect("a queue");
    // SAFETY: the batch, which jumps to itself, is the test's memory.
    unsafe { queue.submit(at, None) }.expect("a loop");
    let end = Instant::now() + Duration::from_secs(20);
    while FdInfo::of(gpu.device()).cycles().0 == 0 {
        assert!(Instant::now() < end, "no job counts");
        std::thread::sleep(Duration::from_millis(1));
    }
    let before = FdInfo::of(gpu.device()).cycles();
    std::thread::sleep(Duration::from_millis(500));
    let after = FdInfo::of(gpu.device()).cycles();
    let (used, all) = (after.0 - before.0, after.1 - before.1);
    println!("{used} of {all} cycles");
    // The slice that runs at the first moment counts as a whole at its end.
    assert!(used <= all + all / 10, "{used} of {all} cycles");
    assert!(used >= all / 20, "{used} of {all} cycles");
    assert_eq!(FdInfo::of(&other).cycles().0, 0, "of another file");
    // Destroyed queues still count.
    drop(queue);
    let end = FdInfo::of(gpu.device()).cycles().0;
    assert!(end >= after.0, "{end} after {}", after.0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(FdInfo::of(gpu.device()).cycles().0, end, "nothing runs");
}

/// A job that waits takes no time.
fn waits_are_idle() {
    let gpu = Gpu::new();
    let memory = Map::shared(PAGE);
    let word = memory.at(0);
    let wait = [0x0e00_c003, 1, word as u32, (word >> 32) as u32, 0];
    let job = gpu.start(|c| _ = c.raw(&wait)).expect("a job");
    std::thread::sleep(Duration::from_millis(50));
    let before = FdInfo::of(gpu.device()).cycles();
    std::thread::sleep(Duration::from_millis(500));
    let after = FdInfo::of(gpu.device()).cycles();
    let (used, all) = (after.0 - before.0, after.1 - before.1);
    println!("{used} of {all} cycles");
    assert!(used < all / 10, "{used} of {all} cycles");
    memory.write(0, 1);
    job.wait().expect("the job");
}

/// Buffers in system memory are resident as far as they have pages.
fn system_buffers() {
    let device = device();
    let size = SIZE as u64;
    let bo = Bo::create(&device, SIZE, SYSTEM, None).expect("a buffer");
    assert_eq!(FdInfo::of(&device).region("gtt"), [size, 0, 0]);
    let memory = bo.map().expect("a mapping");
    let [_, _, resident] = FdInfo::of(&device).region("gtt");
    assert!(resident <= size, "{resident} bytes");
    Map::existing(memory.as_ptr() as usize, SIZE).fill(|_| 1);
    assert_eq!(FdInfo::of(&device).region("gtt"), [size, 0, size]);
    let other = Bo::create(&device, SIZE, SYSTEM, None).expect("a buffer");
    assert_eq!(FdInfo::of(&device).region("gtt"), [2 * size, 0, size]);
    drop((bo, other));
    assert_eq!(FdInfo::of(&device).region("gtt"), [0; 3]);
}

/// Buffers in device memory are resident.
fn device_buffers() {
    let device = device();
    if device.memory_regions().expect("the regions").len() < 2 {
        skip!("the device has no memory");
    }
    let size = SIZE as u64;
    let vm = Vm::mirrored(&device).expect("a VM");
    let public = Bo::create(&device, SIZE, VRAM, None).expect("a buffer");
    let private = Bo::create(&device, SIZE, VRAM, Some(&vm)).expect("a private buffer");
    assert_eq!(FdInfo::of(&device).region("vram0"), [2 * size, 0, 2 * size]);
    assert_eq!(FdInfo::of(&device).region("gtt"), [0; 3]);
    drop((public, private));
    assert_eq!(FdInfo::of(&device).region("vram0"), [0; 3]);
}

/// Exported buffers are shared, for all that have them.
fn shared_buffers() {
    let (device, other) = (device(), device());
    let size = SIZE as u64;
    let bo = Bo::create(&device, SIZE, SYSTEM, None).expect("a buffer");
    let buffer = bo.export().expect("a dma-buf");
    let [total, shared, _] = FdInfo::of(&device).region("gtt");
    assert_eq!((total, shared), (size, size));
    let import = Bo::import(&other, std::os::fd::AsFd::as_fd(&buffer), SIZE).expect("an import");
    let [total, shared, _] = FdInfo::of(&other).region("gtt");
    assert_eq!((total, shared), (size, size));
    drop(import);
    assert_eq!(FdInfo::of(&other).region("gtt"), [0; 3]);
}

/// The file of a device that is unbound uses nothing of it.
fn unbound() {
    let slot = Slot::first();
    let device = device();
    let bo = Bo::create(&device, SIZE, SYSTEM, None).expect("a buffer");
    slot.unbind();
    let info = FdInfo::of(&device);
    slot.bind();
    assert!(info.0.is_empty(), "{:?}", info.0);
    drop((bo, device));
    keys();
}

/// It is read while jobs, queues and buffers come and go.
fn at_any_time() {
    let gpu = Gpu::new();
    let device = gpu.device().clone();
    let memory = Map::anon(PAGE);
    let stop = Stop::new();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut last, mut reads) = ((0, 0), 0u32);
            while !stop.is_set() {
                let info = FdInfo::of(&device);
                let (used, all) = info.cycles();
                assert!(used >= last.0 && all >= last.1, "{used}, {all} after {last:?}");
                let [total, shared, resident] = info.region("gtt");
                assert!(resident <= total && shared <= total);
                last = (used, all);
                reads += 1;
            }
            reads
        });
        let guard = stop.on_drop();
        for _ in 0..100 {
            let another = gpu.another();
            let bo = Bo::create(gpu.device(), SIZE, SYSTEM, None).expect("a buffer");
            another.increment(memory.at(0));
            drop((another, bo));
        }
        drop(guard);
        println!("{} reads", reader.join().expect("the reader"));
    });
    memory.expect_word("jobs", 0, 100);
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_fdinfo", "The fdinfo of the device's files.");
    p.subtest("keys", "the keys of xe", keys);
    p.subtest("cycles", "the time of jobs", cycles);
    p.subtest("waits-are-idle", "a job that waits takes no time", waits_are_idle);
    p.subtest("system-buffers", "buffers in system memory", system_buffers);
    p.subtest("device-buffers", "buffers in device memory", device_buffers);
    p.subtest("shared-buffers", "exported buffers", shared_buffers);
    p.subtest("unbound", "the device is unbound", unbound);
    p.subtest("at-any-time", "reads while all changes", at_any_time);
    p.main()
}
