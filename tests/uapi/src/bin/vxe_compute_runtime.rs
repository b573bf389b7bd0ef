// SPDX-License-Identifier: GPL-2.0

//! The calls that Intel's compute runtime makes for shared memory, in its order and with its
//! arguments. Its kernels need execution units, which this device does not have; stores by the copy
//! engine take their place.

use std::{
    fs,
    os::fd::AsRawFd,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
};
use vxe_client::{
    request, sys, Advice, AtomicAccess, Bind, Bo, Device, Error, Fence, Location, Migrate, Timeout,
    Vm, Wait,
};
use vxe_uapi::{gpu, Gpu, Map, Program, MIDDLE, PAGE, RO, RW, SZ_2M};

/// What the runtime's mirror covers: the addresses that the CPU has.
const CPU_SPAN: u64 = 1 << 47;

/// The consultation of what was advised, instead of a region.
const CONSULT: i32 = sys::DRM_XE_CONSULT_MEM_ADVISE_PREF_LOC;

/// How long the runtime waits for a bind.
const BIND_WAIT: Timeout = Timeout::ms(1000);

const LR_FAULT: u32 = sys::DRM_XE_VM_CREATE_FLAG_LR_MODE | sys::DRM_XE_VM_CREATE_FLAG_FAULT_MODE;

/// Finds the device: by its PCI address, or else the first render node.
fn discovered() -> Device {
    // Skips where there is no device.
    gpu::device();
    let by_path = fs::read_dir("/dev/dri/by-path").into_iter().flatten().flatten();
    let named =
        by_path.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with("-render"));
    let paths =
        named.into_iter().chain((128..192).map(|minor| format!("/dev/dri/renderD{minor}").into()));
    let device = paths.filter_map(|path| Device::open_path(path).ok()).next();
    device.expect("a render node")
}

fn find() {
    let device = discovered();
    assert_eq!(device.driver_name().as_deref(), Ok("xe"));
    let config = device.config().expect("the configuration");
    assert!(config.can_mirror(), "flags {:#x}", config.flags);
    assert!(1u64 << config.va_bits >= CPU_SPAN, "{} bits of address", config.va_bits);
    let regions = device.memory_regions().expect("the regions");
    assert_eq!(u32::from(regions[0].mem_class), sys::DRM_XE_MEM_REGION_CLASS_SYSMEM);
    assert!(!device.engines().expect("the engines").is_empty());
    // Two calls for the topology, which has a mask for each kind.
    let mut ask = sys::drm_xe_device_query {
        query: sys::DRM_XE_DEVICE_QUERY_GT_TOPOLOGY,
        ..Default::default()
    };
    // SAFETY: with size 0 the kernel only fills in the size.
    unsafe { device.call(&request::DEVICE_QUERY, &mut ask) }.expect("the size of the topology");
    let memory = Map::anon(PAGE);
    assert!(ask.size != 0 && ask.size as usize <= PAGE, "{} bytes of topology", ask.size);
    ask.data = memory.at(0);
    // SAFETY: the memory has room for what the kernel writes.
    unsafe { device.call(&request::DEVICE_QUERY, &mut ask) }.expect("the topology");
}

/// The runtime creates a VM only to see whether there are faults, then the one that it uses.
fn vms() {
    let device = discovered();
    let probe = Vm::with_flags(&device, LR_FAULT).expect("a VM with faults");
    probe.destroy().expect("the end of the probe");
    let flags = LR_FAULT | sys::DRM_XE_VM_CREATE_FLAG_NO_VM_OVERCOMMIT;
    Vm::with_flags(&device, flags).expect("a VM without overcommit");
}

/// A VM with the runtime's mirror: all addresses of the CPU in one binding, whose fence is a word of the
/// CPU's, waited for without a queue.
#[track_caller]
fn mirrored() -> Gpu {
    let device = discovered();
    let vm = Vm::with_flags(&device, LR_FAULT).expect("a VM");
    let mirror = Bind::mirror(0, CPU_SPAN).flags(sys::DRM_XE_VM_BIND_FLAG_MADVISE_AUTORESET).pat(0);
    bind(&vm, &[mirror]);
    Gpu::on_vm(&vm)
}

/// Binds as the runtime does.
#[track_caller]
fn bind(vm: &Vm, binds: &[Bind]) {
    static WORD: AtomicU64 = AtomicU64::new(0);
    let (address, value) = (WORD.as_ptr() as u64, WORD.load(Ordering::Acquire) + 1);
    // SAFETY: the word lives as long as the process.
    unsafe { vm.bind_async(binds, None, &[Fence { address, value }.to_sync()]) }.expect("a bind");
    vm.device()
        .wait_user_fence(&Wait::equal(address, value, BIND_WAIT))
        .expect("the fence of a bind");
    assert_eq!(WORD.load(Ordering::Acquire), value, "the word of a fence");
}

fn shared_memory() {
    let gpu = mirrored();
    let map = Map::aligned(SZ_2M, SZ_2M);
    map.write(0, 7);
    gpu.increment(map.at(0));
    map.expect_word("stored by both", 0, 8);
}

/// A buffer takes the place of a part of the mirror that the GPU does not use. The end of that is one
/// call of two operations: the second, which restores the mirror, names no object and no offset.
fn buffer() {
    let gpu = mirrored();
    let map = Map::aligned(MIDDLE, SZ_2M);
    let bo = Bo::system(gpu.device(), MIDDLE).expect("a buffer");
    let mapping = bo.map().expect("a mapping of the buffer");
    let contents = Map::existing(mapping.as_ptr() as usize, mapping.len());
    for round in 1..=3 {
        // What the GPU used is unmapped by this.
        map.replace_anon(RW).fill(|_| 100);
        bind(gpu.vm(), &[Bind::bo(&bo, 0, map.at(0), MIDDLE as u64)]);
        gpu.increment(map.at(0));
        contents.expect_word("the buffer", 0, round);
        map.expect_word("the memory below", 0, 100);
        let restored = Bind::mirror(map.at(0), MIDDLE as u64)
            .flags(sys::DRM_XE_VM_BIND_FLAG_MADVISE_AUTORESET)
            .pat(0);
        assert_eq!(restored.as_raw().obj, 0);
        bind(gpu.vm(), &[Bind::unmap(map.at(0), MIDDLE as u64), restored]);
        gpu.increment(map.at(0));
        map.expect_word("the mirror again", 0, 101);
        contents.expect_word("the buffer, unbound", 0, round);
    }
}

/// A prefetch consults the advice, over whatever the program named: parts of mappings, with holes and
/// memory that never migrates.
fn prefetch() {
    let gpu = mirrored();
    let room = Map::reserve(4 * SZ_2M, SZ_2M);
    room.part(0, SZ_2M).replace_anon(RW).fill(|o| o as u32);
    let rest = room.part(2 * SZ_2M, SZ_2M).replace_anon(RW);
    rest.protect(RO);
    room.part(SZ_2M, PAGE).unmap();
    room.part(3 * SZ_2M, PAGE).unmap();
    for (offset, length) in [
        (0, SZ_2M),
        (PAGE, MIDDLE),
        (0, 4 * SZ_2M),
        (SZ_2M - PAGE, 2 * PAGE),
        (2 * SZ_2M, SZ_2M),
        (SZ_2M, PAGE),
    ] {
        bind(gpu.vm(), &[Bind::prefetch(room.at(offset), length as u64, CONSULT)]);
    }
    room.part(0, SZ_2M).expect("prefetched", |o| o as u32);
}

/// Advice is given to each VM of the process in turn.
fn advice() {
    let gpus = [mirrored(), mirrored()];
    let map = Map::aligned(MIDDLE, SZ_2M);
    map.fill(|_| 0);
    let fd = gpus[0].device().as_raw_fd();
    let regions = gpus[0].device().memory_regions().expect("the regions");
    let mut places = vec![Location::System, Location::Local];
    places.extend(
        regions
            .iter()
            .filter(|r| u32::from(r.mem_class) == sys::DRM_XE_MEM_REGION_CLASS_VRAM)
            .map(|r| Location::Device { fd, region: r.instance }),
    );
    let mut count = 0;
    for policy in [Migrate::AllPages, Migrate::OnlySystemPages] {
        for place in &places {
            for access in [
                AtomicAccess::Undefined,
                AtomicAccess::Device,
                AtomicAccess::Global,
                AtomicAccess::Cpu,
            ] {
                for gpu in &gpus {
                    let advise = |advice| {
                        gpu.vm().madvise(map.at(0), map.len() as u64, advice).expect("advice");
                    };
                    advise(Advice::Preferred(*place, policy));
                    advise(Advice::Atomic(access));
                    gpu.run(|c| _ = c.store(map.at(0), count));
                    map.expect_word("stored", 0, count);
                    count += 1;
                }
            }
        }
    }
}

/// The attributes of one range, of any address and length; there must be one.
fn attributes() {
    let gpu = mirrored();
    let map = Map::aligned(MIDDLE, SZ_2M);
    gpu.vm()
        .madvise(
            map.at(0),
            MIDDLE as u64,
            Advice::Preferred(Location::System, Migrate::OnlySystemPages),
        )
        .expect("advice");
    for (offset, length) in [(0, MIDDLE), (24, 100), (PAGE - 4, 8), (MIDDLE - 1, 1)] {
        let (start, range) = (map.at(offset), length as u64);
        let mut attribute = sys::drm_xe_mem_range_attr::default();
        let mut args = sys::drm_xe_vm_query_mem_range_attr {
            vm_id: gpu.vm().id(),
            num_mem_ranges: 1,
            start,
            range,
            sizeof_mem_range_attr: size_of::<sys::drm_xe_mem_range_attr>() as u64,
            vector_of_mem_attr: &raw mut attribute as u64,
            ..Default::default()
        };
        // SAFETY: there is room for the one entry.
        unsafe { gpu.device().call(&request::VM_QUERY_MEM_RANGE_ATTRS, &mut args) }
            .expect("the attributes");
        assert_eq!(args.num_mem_ranges, 1, "{offset:#x}, {length:#x}");
        assert!(attribute.start <= start && start + range <= attribute.end, "{attribute:?}");
        let fd = attribute.preferred_mem_loc.devmem_fd as i32;
        assert_eq!(fd, sys::DRM_XE_PREFERRED_LOC_DEFAULT_SYSTEM, "{attribute:?}");
    }
}

/// A program's own memory is a host buffer: at another address of the GPU, which the runtime chooses.
fn host_buffer() {
    let gpu = mirrored();
    let memory = Map::aligned(5 * PAGE, PAGE);
    memory.fill(|_| 0);
    let at = CPU_SPAN + gpu::FAR;
    bind(gpu.vm(), &[Bind::userptr(memory.at(0), at, memory.len() as u64).immediate()]);
    for round in 1..=3 {
        gpu.increment(at + 4 * PAGE as u64);
        memory.expect_word("the host buffer", 4 * PAGE, round);
    }
    bind(gpu.vm(), &[Bind::unmap(at, memory.len() as u64)]);
    memory.expect_word("after its end", 4 * PAGE, 3);
}

/// The GPU's time and the CPU's, at once: both advance, and at rates that agree.
fn cycles() {
    let device = discovered();
    let engine = device.engines().expect("the engines")[0];
    let clock = f64::from(device.gts().expect("the GTs")[0].reference_clock);
    let now = || {
        let mut cycles = sys::drm_xe_query_engine_cycles {
            eci: engine,
            clockid: libc::CLOCK_MONOTONIC_RAW,
            ..Default::default()
        };
        let mut ask = sys::drm_xe_device_query {
            query: sys::DRM_XE_DEVICE_QUERY_ENGINE_CYCLES,
            size: size_of_val(&cycles) as u32,
            data: &raw mut cycles as u64,
            ..Default::default()
        };
        // SAFETY: the kernel writes the struct whose size it was told.
        unsafe { device.call(&request::DEVICE_QUERY, &mut ask) }.expect("the cycles");
        cycles
    };
    let first = now();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let second = now();
    assert!(first.width >= 32, "{} bits", first.width);
    let ns = (second.cpu_timestamp - first.cpu_timestamp) as f64;
    let cycles = (second.engine_cycles - first.engine_cycles) as f64;
    let rate = cycles / (ns / 1e9);
    assert!((0.5..2.0).contains(&(rate / clock)), "{rate} Hz instead of {clock}");
}

/// A queue tells whether it was banned, which is how the runtime learns of a hang.
fn ban() {
    let mut gpu = mirrored();
    assert_eq!(gpu.queue().is_banned(), Ok(false));
    let nothing = Map::aligned(PAGE, PAGE);
    nothing.unmap();
    let failed = gpu.try_run(|c| _ = c.store(nothing.at(0), 1));
    assert_eq!(failed.map_err(|e: Error| e.errno()), Err(libc::EIO));
    assert_eq!(gpu.queue().is_banned(), Ok(true));
    gpu.renew();
    let map = Map::anon(PAGE);
    gpu.store(map.at(0), 5);
    map.expect_word("on a new queue", 0, 5);
}

/// All in one process, as a program that uses the runtime does it.
fn whole() {
    for step in [find, vms, shared_memory, buffer, prefetch, advice, attributes, host_buffer, ban] {
        step();
    }
}

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_compute_runtime",
        "The calls of Intel's compute runtime for shared memory.",
    );
    p.subtest("find", "a render node, and what it says", find);
    p.subtest("vms", "a probe for faults, then a VM", vms);
    p.subtest("shared-memory", "one mirror of all addresses", shared_memory);
    p.subtest("buffer", "a buffer under the mirror, removed by two operations", buffer);
    p.subtest("prefetch", "to where it was advised", prefetch);
    p.subtest("advice", "locations and atomics, for each VM", advice);
    p.subtest("attributes", "of one range, not aligned", attributes);
    p.subtest("host-buffer", "memory at another address", host_buffer);
    p.subtest("cycles", "the GPU's time and the CPU's", cycles);
    p.subtest("ban", "how a hang is told", ban);
    p.subtest("whole", "all of that", whole);
    p.main()
}
