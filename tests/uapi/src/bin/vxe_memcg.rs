// SPDX-License-Identifier: GPL-2.0

//! All that a process makes grow is charged to its memory cgroup, and comes back.
//!
//! What a process makes is made by a child in a group of its own; how much that is charged is compared
//! before and after. The kernel charges in advance, by up to 64 pages a CPU, so that there are many of each.

use std::{
    cell::Cell,
    os::fd::AsRawFd,
    process::ExitCode,
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use vxe_client::{sys, Advice, AtomicAccess, Bind, Bo, Device, ExecQueue, Location, Migrate, Vm};
use vxe_uapi::{
    cgroup::Cgroup,
    contents::filled,
    gpu::device,
    process::{fork, Link},
    skip,
    time::is_debug_kernel,
    uffd::Uffd,
    vmas::backings_of,
    vram::soon,
    Gpu, Map, Program, CHUNK, MIDDLE, NONE, PAGE, RW, SZ_2M,
};

/// By how much the kernel may charge in advance, or late, in bytes.
const SLACK: u64 = 256 * PAGE as u64;

/// GPU addresses at which no process has anything.
const NOWHERE: u64 = 1 << 47;

/// A child in a group that makes `count` objects of at least `least` bytes each is charged for them, until
/// it gives them up. `prepare` makes what is there before.
#[track_caller]
fn expect_charged<P, T>(
    count: usize,
    least: usize,
    prepare: impl FnOnce() -> P,
    make: impl FnOnce(&P) -> T,
) {
    let group = Cgroup::of_memory("its");
    let step = |link: &Link| {
        link.send(0);
        link.receive();
    };
    let child = fork(|link| {
        link.receive();
        let before = prepare();
        step(link);
        let made = make(&before);
        step(link);
        drop(made);
        step(link);
    });
    group.add(child.pid());
    let next = || {
        child.link().send(0);
        child.link().receive();
        group.memory()
    };
    let before = next();
    let with = next();
    let (charged, least) = (with.saturating_sub(before), (count * least) as u64);
    println!("{charged} bytes for {count}: {} each", charged / count as u64);
    if PAGE > 4096 && least <= 2 * SLACK {
        skip!("the kernel charges {} MiB in advance", SLACK >> 20);
    }
    assert!(least > 2 * SLACK, "too few to tell");
    assert!(charged + SLACK > least, "only {charged} bytes are charged, of {least}");
    let after = next();
    println!("{} bytes are left", after.saturating_sub(before));
    soon("what was given up is charged no more", || group.memory() < before + SLACK);
    child.link().send(0);
    child.expect_success();
}

/// A VM: its TLB, mostly.
fn vms() {
    const COUNT: usize = 300;
    expect_charged(COUNT, 14_000, device, |device| -> Vec<Vm> {
        (0..COUNT).map(|_| Vm::new(device).expect("a VM")).collect()
    });
}

/// Pieces of a mirror that are not alike.
fn pieces(count: usize) -> Vec<Bind> {
    let at = |i: usize| NOWHERE + (i * PAGE) as u64;
    let piece = |i: usize| {
        let bind = Bind::mirror(at(i), PAGE as u64);
        if i % 2 == 0 {
            bind
        } else {
            bind.read_only()
        }
    };
    (0..count).map(piece).collect()
}

fn vmas() {
    const COUNT: usize = 24_000;
    expect_charged(
        COUNT,
        100,
        || (device(), pieces(COUNT)),
        |(device, pieces)| {
            let vm = Vm::new(device).expect("a VM");
            vm.bind(pieces).expect("many VMAs");
            vm
        },
    );
}

/// A page of a buffer in each large page: each needs a table of its own.
fn page_tables() {
    const COUNT: usize = 800;
    let at = |i: usize| NOWHERE + (i * SZ_2M) as u64;
    expect_charged(
        COUNT,
        4096,
        || {
            let device = device();
            let bo = Bo::system(&device, PAGE).expect("a buffer");
            let bind = |i| Bind::bo(&bo, 0, at(i), PAGE as u64).immediate();
            let binds: Vec<_> = (0..COUNT).map(bind).collect();
            (device, bo, binds)
        },
        |(device, _, binds)| {
            let vm = Vm::new(device).expect("a VM");
            vm.bind(binds).expect("mapped at once");
            vm
        },
    );
}

/// Buffers in system memory, when they are bound.
fn buffers() {
    const COUNT: usize = 16;
    const SIZE: usize = 256 * PAGE;
    expect_charged(COUNT, SIZE, device, |device| {
        let vm = Vm::new(device).expect("a VM");
        let bos: Vec<_> = (0..COUNT).map(|_| Bo::system(device, SIZE).expect("a buffer")).collect();
        let place = |i: usize| NOWHERE + (i * SIZE) as u64;
        let bind = |(i, bo): (usize, &Bo)| Bind::bo(bo, 0, place(i), SIZE as u64);
        vm.bind(&bos.iter().enumerate().map(bind).collect::<Vec<_>>()).expect("bound");
        (vm, bos)
    });
}

/// Exec queues: what their engine state takes.
fn queues() {
    const COUNT: usize = 520;
    expect_charged(
        COUNT,
        4096,
        || Vm::new(&device()).expect("a VM"),
        |vm| -> Vec<_> { (0..COUNT).map(|_| ExecQueue::new(vm).expect("a queue")).collect() },
    );
}

/// What removes many small mappings takes a table for each large page that it splits, and there are none: a
/// table or more for each mapping would be more than the group may have.
fn removals() {
    const COUNT: usize = 2000;
    const LIMIT: usize = 16 << 20;
    let group = Cgroup::with_memory("its", LIMIT);
    let child = fork(|link| {
        link.receive();
        let device = device();
        let vm = Vm::new(&device).expect("a VM");
        let bo = Bo::system(&device, PAGE).expect("a buffer");
        // Not side by side: that would be one removal.
        let at = |i: usize| NOWHERE + (2 * i * PAGE) as u64;
        let map = |i| Bind::bo(&bo, 0, at(i), PAGE as u64).immediate();
        let maps: Vec<_> = (0..COUNT).map(map).collect();
        let (start, length) = (NOWHERE, at(COUNT) - NOWHERE);
        let bind = |what: &str, binds: &[Bind]| vm.bind(binds).expect(what);
        bind("many mappings", &maps);
        let atomics = Advice::Atomic(AtomicAccess::Device);
        vm.madvise(start, length, atomics).expect("advice on them");
        bind("an UNMAP", &[Bind::unmap(start, length)]);
        bind("many mappings", &maps);
        bind("an UNMAP_ALL", &[Bind::unmap_all(&bo)]);
        bind("many mappings", &maps);
        bind("a mirror in their place", &[Bind::mirror(start, length)]);
    });
    group.add(child.pid());
    child.link().send(0);
    child.expect_success();
    println!("at most {} bytes for {COUNT} mappings", group.memory_peak());
}

/// What the driver knows of a process's memory: a range for each page that is on its own.
fn ranges() {
    const COUNT: usize = 8000;
    if is_debug_kernel() {
        skip!("with the checks of a debug kernel");
    }
    expect_charged(
        COUNT,
        300,
        || {
            let gpu = Gpu::new();
            let map = Map::aligned(2 * COUNT * PAGE, SZ_2M);
            for i in 0..COUNT {
                map.part(2 * i * PAGE, PAGE).protect(NONE);
                map.write((2 * i + 1) * PAGE, 1);
            }
            // The first fault makes what all later ones use.
            gpu.increment(map.at(PAGE));
            (gpu, map)
        },
        |(gpu, map)| {
            for first in (0..COUNT).step_by(500) {
                gpu.run(|c| {
                    for i in first..first + 500 {
                        c.increment(map.at((2 * i + 1) * PAGE));
                    }
                });
            }
            // They go with the memory.
            Unmapped(*map)
        },
    );
}

/// VMAs that a worker of the kernel's makes, when attributes are reset that go with memory: a range in each
/// 128 KiB is unmapped, of a mirror that was advised as a whole.
fn resets() {
    const COUNT: usize = 6000;
    const STEP: usize = 2 * MIDDLE;
    if is_debug_kernel() {
        skip!("with the checks of a debug kernel");
    }
    let device = device();
    let group = Cgroup::of_memory("its");
    let child = fork(|link| {
        link.receive();
        let vm = Vm::new(&vxe_uapi::gpu::device()).expect("a VM");
        let mirror = Bind::mirror(0, NOWHERE).flags(sys::DRM_XE_VM_BIND_FLAG_MADVISE_AUTORESET);
        vm.bind(&[mirror]).expect("a mirror");
        let gpu = Gpu::on_vm(&vm);
        let (map, to) = (Map::aligned(COUNT * STEP, SZ_2M), Map::shared(PAGE));
        let read = |step: usize| {
            let places: Vec<_> = (0..map.len()).step_by(step).collect();
            for places in places.chunks(500) {
                gpu.run(|c| {
                    for &place in places {
                        c.copy(map.at(place), to.at(0), 256);
                    }
                });
            }
        };
        // The GPU's page tables stay.
        read(SZ_2M);
        map.replace_anon(RW);
        link.send(0);
        link.receive();
        let advice = Advice::Preferred(Location::System, Migrate::AllPages);
        vm.madvise(map.at(0), map.len() as u64, advice).expect("advice");
        read(STEP);
        // From here on it does nothing that would collect ranges.
        map.unmap();
        link.send(0);
        link.receive();
    });
    group.add(child.pid());
    child.link().send(0);
    child.link().receive();
    // What else was given up is freed in the kernel's own time.
    let settled = || {
        let last = Cell::new(0);
        soon("nothing changes", || {
            std::thread::sleep(Duration::from_millis(300));
            last.replace(group.memory()) == last.get()
        });
        last.get()
    };
    let before = settled();
    child.link().send(0);
    child.link().receive();
    soon("the attributes are reset", || {
        backings_of(&device, child.pid() as u32).len() >= 2 * COUNT
    });
    let charged = settled().saturating_sub(before);
    println!("{charged} bytes for {} VMAs", 2 * COUNT);
    let least = (2 * COUNT * 100) as u64;
    assert!(charged >= least, "only {charged} bytes are charged, of {least}");
    child.link().send(0);
    child.expect_success();
    soon("all is charged no more", || group.memory() < SLACK);
}

/// Memory that is unmapped when this is dropped.
struct Unmapped(Map);

impl Drop for Unmapped {
    fn drop(&mut self) {
        self.0.unmap();
    }
}

/// Memory whose pages a GPU has mirrored one by one, with settings that differ.
struct Pages {
    count: usize,
    vm: Vm,
    map: Map,
    /// The region of the device's memory.
    vram: i32,
}

impl Pages {
    fn new(count: usize) -> Self {
        let device = device();
        let vram = i32::from(vxe_uapi::vram::region(&device).instance);
        let vm = Vm::new(&device).expect("a VM");
        let map = Map::aligned(count * PAGE, SZ_2M);
        map.madvise(libc::MADV_NOHUGEPAGE);
        let piece = |i: usize| {
            map.write(i * PAGE, 1);
            let bind = Bind::mirror(map.at(i * PAGE), PAGE as u64);
            if i % 2 == 0 {
                bind
            } else {
                bind.read_only()
            }
        };
        vm.bind(&(0..count).map(piece).collect::<Vec<_>>()).expect("many VMAs");
        Self { count, vm, map, vram }
    }

    /// Moves all of them.
    fn prefetch(&self, region: i32) {
        let all = Bind::prefetch(self.map.at(0), (self.count * PAGE) as u64, region);
        self.vm.bind(&[all]).expect("a prefetch");
    }
}

/// They are in device memory, until this is dropped.
struct InVram(Rc<Pages>);

impl Drop for InVram {
    fn drop(&mut self) {
        self.0.prefetch(0);
    }
}

/// What is kept of device memory as long as a process has it, of each piece that was moved by itself.
fn blocks() {
    const COUNT: usize = 6000;
    if is_debug_kernel() {
        skip!("with the checks of a debug kernel");
    }
    expect_charged(
        COUNT,
        500,
        || {
            let pages = Pages::new(COUNT);
            // Ranges and page tables are there from here on.
            pages.prefetch(0);
            Rc::new(pages)
        },
        |pages| {
            pages.prefetch(pages.vram);
            InVram(pages.clone())
        },
    );
}

/// An array of operations of which the last never comes: the VM_BIND that waits for it is charged for
/// what it has read.
fn waiting_array() {
    const COUNT: usize = if PAGE > 4096 { 1_000_000 } else { 100_000 };
    static KILLED: AtomicBool = AtomicBool::new(false);
    let length = (COUNT * size_of::<sys::drm_xe_vm_bind_op>()).next_multiple_of(PAGE);
    let group = Cgroup::of_memory("its");
    let child = fork(|link| {
        link.receive();
        let vm = Vm::new(&device()).expect("a VM");
        let map = Map::anon(length + PAGE);
        let piece = *pieces(1)[0].as_raw();
        for i in 0..length / size_of::<sys::drm_xe_vm_bind_op>() {
            let to = map.at(0) as *mut sys::drm_xe_vm_bind_op;
            // SAFETY: there is room for so many, in memory of this test.
            unsafe { to.add(i).write(piece) };
        }
        let uffd = Uffd::new(map.part(length, PAGE));
        link.send(0);
        link.receive();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                uffd.next_fault(Duration::from_secs(40)).expect("the vector is read");
                link.send(0);
                // Ends with the process.
                while !KILLED.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_secs(1));
                }
            });
            // It asks for many more than are there.
            let error = bind_vector(&vm, map.at(0), 20_000_000);
            panic!("a vector that ends nowhere: {error:?}");
        });
    });
    group.add(child.pid());
    child.link().send(0);
    child.link().receive();
    let before = group.memory();
    child.link().send(0);
    child.link().receive();
    let charged = group.memory().saturating_sub(before);
    println!("{charged} bytes for {COUNT} operations");
    let least = (COUNT * 40) as u64;
    assert!(charged + SLACK > least, "only {charged} bytes are charged for what was read");
    assert!(charged < 4 * least + SLACK, "{charged} bytes are taken for what was not read");
    child.kill();
    soon("all is charged no more", || group.memory() < SLACK);
}

/// A VM_BIND of `count` operations that are at `address`.
fn bind_vector(vm: &Vm, address: u64, count: u32) -> vxe_client::Result<()> {
    let mut args = sys::drm_xe_vm_bind { vm_id: vm.id(), num_binds: count, ..Default::default() };
    args.__bindgen_anon_1.vector_of_binds = address;
    // SAFETY: the memory is the test's, and stays.
    unsafe { vm.device().call(&vxe_client::request::VM_BIND, &mut args) }
}

/// A number of operations takes no memory, whatever it is, if there are none.
fn number_alone() {
    let vm = Vm::new(&device()).expect("a VM");
    for count in [2, 100_000, 20_000_000, u32::MAX] {
        let refused = bind_vector(&vm, Map::anon_prot(PAGE, NONE).at(0), count);
        assert_eq!(refused.map_err(|e| e.errno()), Err(libc::EFAULT), "{count} operations");
    }
    // Memory enough for many, all of them zeros: the first one is refused.
    let zeros = Map::anon_prot(64 << 20, RW);
    let refused = bind_vector(&vm, zeros.at(0), 700_000);
    assert_eq!(refused.map_err(|e| e.errno()), Err(libc::EINVAL), "no operations");
}

/// More operations than an array of `kmalloc()` has room for, which is 4 MiB, work as few do: of themselves
/// and of what undoes them, which takes 24 bytes of each.
fn large_array() {
    // With the checks of a debug kernel so many take minutes.
    let count = if is_debug_kernel() { 20_000 } else { 180_000 };
    let device = device();
    let (vm, bo) = (Vm::new(&device).expect("a VM"), Bo::system(&device, PAGE).expect("a buffer"));
    let at = |i: usize| NOWHERE + (i * PAGE) as u64;
    let binds: Vec<_> = (0..count).map(|i| Bind::bo(&bo, 0, at(i), PAGE as u64)).collect();
    vm.bind(&binds).expect("very many binds");
    vm.bind(&[Bind::unmap_all(&bo)]).expect("unmapped");
}

/// Many operations are undone when the last one fails.
fn undone_array() {
    const COUNT: usize = 10_000;
    let device = device();
    let (vm, bo) = (Vm::new(&device).expect("a VM"), Bo::system(&device, PAGE).expect("a buffer"));
    let at = |i: usize| NOWHERE + (i * PAGE) as u64;
    let mut binds: Vec<_> = (0..COUNT).map(|i| Bind::bo(&bo, 0, at(i), PAGE as u64)).collect();
    binds.push(Bind::prefetch(at(0), PAGE as u64, -1));
    let refused = vm.bind(&binds).map_err(|e| e.errno());
    assert_eq!(refused, Err(libc::EINVAL), "a prefetch to where nothing was advised");
    assert_eq!(vxe_uapi::vmas::vmas(&vm, NOWHERE..at(COUNT)).len(), 0, "all of them undone");
}

/// The region of system memory.
fn system_of(device: &Device) -> sys::drm_xe_mem_region {
    let class = sys::DRM_XE_MEM_REGION_CLASS_SYSMEM as u16;
    let regions = device.memory_regions().expect("the regions");
    regions.into_iter().find(|region| region.mem_class == class).expect("system memory")
}

/// Nor do they take the offsets at which buffers can be mapped, of which each has as many as bytes.
fn offsets() {
    /// Of what DRM has a quarter.
    const ALL: u64 = 4 << 40;
    let device = device();
    let total = system_of(&device).total_size;
    let large = || Bo::system(&device, total as usize).expect("a buffer of the largest size");
    let hogs: Vec<_> = (0..=ALL / total).map(|_| large()).collect();
    println!("{} buffers of {} MiB", hogs.len(), total >> 20);
    fork(|_| {
        let bo = Bo::system(&vxe_uapi::gpu::device(), PAGE).expect("a buffer of another process");
        let mapping = bo.map().expect("mapped");
        mapping.words()[0].store(1, Ordering::Relaxed);
        assert_eq!(mapping.words()[0].load(Ordering::Relaxed), 1);
    })
    .expect_success();
}

/// To map a buffer takes all of it from its region, as to bind it does.
fn mapped() {
    const SIZE: usize = 4 * SZ_2M;
    let device = device();
    let before = system_of(&device).used;
    let bo = Bo::system(&device, SIZE).expect("a buffer");
    let mapping = bo.map().expect("mapped");
    assert_eq!(system_of(&device).used, before + SIZE as u64, "used by a buffer that is mapped");
    drop((mapping, bo));
    soon("all is free", || system_of(&device).used == before);
}

/// Who is killed while a large buffer is mapped takes no more of it.
fn mapped_killed() {
    /// How much of it must be there before, and how much may come after the signal: a huge page.
    const LEAST: u64 = 16 << 20;
    const MORE: u64 = SZ_2M as u64 + SLACK;
    let size = (system_of(&device()).total_size as usize / 4).next_multiple_of(SZ_2M);
    // On a busy machine the signal may come too late.
    for round in 0..20 {
        let group = Cgroup::of_memory(&format!("its-{round}"));
        let child = fork(|link| {
            link.receive();
            let bo = Bo::system(&device(), size).expect("a buffer");
            drop(bo.map().expect("mapped"));
            let _ = link.try_receive();
        });
        group.add(child.pid());
        child.link().send(0);
        soon("a part of it is there", || group.memory() > LEAST);
        child.signal(libc::SIGKILL);
        let then = group.memory();
        child.wait();
        let peak = group.memory_peak();
        println!("killed at {} of {} MiB, at most {} MiB", then >> 20, size >> 20, peak >> 20);
        soon("all is free", || group.memory() < SLACK);
        if then < size as u64 / 2 {
            assert!(peak < then + MORE, "{} bytes were taken after the signal", peak - then);
            return;
        }
    }
    panic!("nobody was killed in the middle");
}

/// Buffers that nobody has touched take nothing from others, however large they are.
fn untouched() {
    const SIZE: usize = 64 << 20;
    let device = device();
    let system = || system_of(&device);
    let before = system();
    let count = before.total_size as usize / SIZE + 2;
    let hogs: Vec<_> = (0..count).map(|_| Bo::system(&device, SIZE).expect("a buffer")).collect();
    assert_eq!(system().used, before.used, "used by buffers that nobody touched");
    let gpu = Gpu::on_device(&device);
    let bo = Bo::system(&device, SZ_2M).expect("a buffer beside them");
    gpu.vm().bind(&[Bind::bo(&bo, 0, NOWHERE, SZ_2M as u64)]).expect("bound");
    gpu.store(NOWHERE, 1);
    assert_eq!(system().used, before.used + SZ_2M as u64, "used by the one that was bound");
    drop((hogs, gpu, bo));
    soon("all is free", || system().used == before.used);
    let refused = Bo::system(&device, before.total_size as usize + PAGE).map(|_| ());
    assert_eq!(refused.map_err(|e| e.errno()), Err(libc::ENOMEM), "more than there is");
}

/// A process has faults that wait for pages which somebody else holds back. When it is killed all of its memory
/// is free, and nobody serves it any more, even if somebody else has the file.
fn held_back() {
    const VMS: usize = 4;
    const SIZE: usize = 24 << 20;
    for keep_file in [false, true] {
        let group = Cgroup::of_memory("its");
        let child = fork(|link| {
            link.receive();
            let _resident = filled(SIZE);
            let map = Map::aligned(SZ_2M, SZ_2M);
            let uffd = Uffd::new(map);
            let device = device();
            let gpus: Vec<_> = (0..VMS).map(|_| Gpu::on_device(&device)).collect();
            let jobs = gpus
                .iter()
                .enumerate()
                .map(|(i, gpu)| gpu.start(|c| _ = c.increment(map.at(i * CHUNK))).expect("a job"));
            let _jobs: Vec<_> = jobs.collect();
            for _ in 0..VMS {
                uffd.next_fault(Duration::from_secs(10)).expect("a fault for each of them");
            }
            link.send(uffd.fd() as u64);
            link.send(device.as_raw_fd() as u64);
            link.receive();
        });
        group.add(child.pid());
        child.link().send(0);
        // Nobody gives the pages as long as this is there.
        let held = child.take_fd(child.link().receive() as i32);
        let file = child.link().receive() as i32;
        let file = keep_file.then(|| child.take_fd(file));
        assert!(group.memory() > SIZE as u64, "its memory is charged");
        child.kill();
        soon("its memory is free", || group.memory() < SIZE as u64 / 2);
        drop((held, file));
    }
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_memcg", "All that a process makes grow is charged to it.");
    p.subtest("vms", "Address spaces are charged.", vms);
    p.subtest("vmas", "Pieces of an address space are charged.", vmas);
    p.subtest("page-tables", "The GPU's page tables are charged.", page_tables);
    p.subtest("buffers", "Buffers in system memory are charged when they are bound.", buffers);
    p.subtest("queues", "Exec queues are charged.", queues);
    p.subtest("ranges", "What is known of a process's memory is charged.", ranges);
    p.subtest("resets", "So are those that a reset of attributes makes.", resets);
    p.subtest("blocks", "What is kept of device memory is charged.", blocks);
    p.subtest("removals", "Mappings are removed by a process with little memory.", removals);
    p.subtest("waiting-array", "An array of operations does not end.", waiting_array);
    p.subtest("number-alone", "There are fewer operations than their number says.", number_alone);
    p.subtest("large-array", "There are more operations than small arrays hold.", large_array);
    p.subtest("undone-array", "The last of many operations fails.", undone_array);
    p.subtest("untouched", "Buffers without pages take nothing.", untouched);
    p.subtest("offsets", "Nor do they take all offsets to map them at.", offsets);
    p.subtest("mapped", "A buffer that is mapped has pages.", mapped);
    p.subtest("held-back", "A process goes whose faults wait for somebody else.", held_back);
    p.subtest("mapped-killed", "Who is killed while a buffer is mapped stops.", mapped_killed);
    p.main()
}
