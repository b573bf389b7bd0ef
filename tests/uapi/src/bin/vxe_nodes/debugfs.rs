// SPDX-License-Identifier: GPL-2.0

//! The files in debugfs that xe has, too: they tell the same as the uAPI.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::PathBuf};
use vxe_client::{stats::debugfs_directory, Advice, Bind, Bo, Device, Vm};
use vxe_uapi::{gpu::device, sysfs::Slot, Gpu, Map, Program, MIDDLE, PAGE};

/// The files for reading that every device has.
pub const FILES: [&str; 8] = [
    "vms",
    "objects",
    "info",
    "gtt_mm",
    "forcewake_all",
    "tile0/gt0/stats",
    "tile0/gt0/hw_engines",
    "tile0/gt0/pat_sw_config",
];

pub fn directory(device: &Device) -> PathBuf {
    debugfs_directory(device).expect("the device's minor")
}

#[track_caller]
fn read(device: &Device, name: &str) -> String {
    let text = fs::read_to_string(directory(device).join(name));
    text.unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// All files have something to tell, to root.
fn files() {
    let _bound = Slot::first();
    let device = device();
    for name in FILES {
        let text = read(&device, name);
        // There may be no VM.
        assert!(name == "vms" || text.ends_with('\n'), "{name}: {text:?}");
        let mode = fs::metadata(directory(&device).join(name)).expect("a file").mode() & 0o7777;
        let wanted = if name.ends_with("stats") { 0o600 } else { 0o400 };
        assert_eq!(mode, wanted, "{name}");
    }
    // Where older versions of xe had it.
    let link = fs::read_link(directory(&device).join("gt0")).expect("a link");
    assert_eq!(link, PathBuf::from("tile0/gt0"));
    assert!(read(&device, "gt0/stats").contains("svm_pagefault_count: "));
}

/// `info` tells the same as the queries.
fn info() {
    let _bound = Slot::first();
    let device = device();
    let text = read(&device, "info");
    let keys: BTreeMap<_, _> =
        text.lines().map(|line| line.rsplit_once(' ').expect(line)).collect();
    let config = device.config().expect("the configuration");
    let has_vram = device.memory_regions().expect("the regions").len() > 1;
    let expected = [
        ("devid", format!("{:#x}", config.device_id)),
        ("revid", config.revision.to_string()),
        ("is_dgfx", if has_vram { "yes" } else { "no" }.to_owned()),
        ("tile_count", "1".to_owned()),
        ("vm_max_level", "3".to_owned()),
        ("has_usm", "yes".to_owned()),
        ("gt0 engines", "bcs0".to_owned()),
        ("graphics_verx100", "2001".to_owned()),
    ];
    for (key, value) in expected {
        assert_eq!(keys.get(key).copied(), Some(&*value), "{key} in {text}");
    }
    assert_eq!(config.va_bits, 48, "for three levels above the lowest");
}

/// The size and the usage of a memory region, in bytes.
#[track_caller]
fn memory(device: &Device, name: &str) -> (u64, u64) {
    let text = read(device, name);
    let number = |key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
        line.unwrap_or_else(|| panic!("{key} in {text}")).trim().parse().expect("a number")
    };
    (number("size:"), number("usage:"))
}

/// The memory regions are as large as the query says, and used by buffers.
fn regions() {
    let _bound = Slot::first();
    let device = device();
    let regions = device.memory_regions().expect("the regions");
    let has_vram = regions.len() > 1;
    assert_eq!(directory(&device).join("tile0/vram_mm").exists(), has_vram);
    for (instance, name) in ["gtt_mm", "tile0/vram_mm"].into_iter().enumerate() {
        let Some(region) = regions.get(instance) else { continue };
        let (size, before) = memory(&device, name);
        assert_eq!(size, region.total_size, "{name}");
        let bo = Bo::create(&device, MIDDLE, 1 << instance, None).expect("a buffer");
        let vm = Vm::mirrored(&device).expect("a VM");
        vm.bind(&[Bind::bo(&bo, 0, 1 << 46, MIDDLE as u64)]).expect("a bind");
        // Others may use the device at the same time.
        let (_, bound) = memory(&device, name);
        assert!(bound >= MIDDLE as u64, "{name}: {before} bytes, then {bound}");
    }
}

/// An engine that runs something is not idle.
fn engines() {
    let _bound = Slot::first();
    let gpu = Gpu::new();
    let number = |key: &str| -> u64 {
        let text = read(gpu.device(), "gt0/hw_engines");
        assert!(text.starts_with("bcs0 (physical), logical instance=0\n"), "{text}");
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
        let value = line.unwrap_or_else(|| panic!("{key} in {text}")).trim().to_owned();
        match value.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).expect("a number"),
            None => value.parse().expect("a number"),
        }
    };
    let all = std::thread::available_parallelism().expect("the processors").get() as u64;
    assert_eq!(number("engines:"), all);
    vxe_uapi::vram::soon("all engines are idle", || number("idle:") == all);
    let counter = Map::shared(PAGE);
    // SAFETY: the page is shared, and stays.
    unsafe { crate::properties::count(gpu.device(), gpu.queue().id(), counter.at(0)) };
    vxe_uapi::vram::soon("an engine is at work", || number("idle:") == all - 1);
    let before = number("RING_TIMESTAMP:");
    assert!(number("RING_TIMESTAMP:") > before, "time stands still");
}

/// An entry of the page attribute table.
struct Entry {
    compressed: bool,
    coherency: u32,
    is_reserved: bool,
}

/// Where the fields of an entry are in its value.
const SHIFTS: [u32; 6] = [10, 9, 6, 4, 2, 0];

fn entries(text: &str) -> Vec<Entry> {
    let lines = text.lines().filter(|line| line.starts_with("PAT["));
    let parse = |(index, line): (usize, &str)| {
        let (name, rest) = line.split_once(" = [").expect(line);
        assert_eq!(name, format!("PAT[{index:2}]"), "{line}");
        let (fields, rest) = rest.split_once(']').expect(line);
        let fields: Vec<u32> =
            fields.split(',').map(|field| field.trim().parse().expect(line)).collect();
        let (value, mark) =
            rest.trim().strip_prefix('(').and_then(|rest| rest.split_once(')')).expect(line);
        let value = u32::from_str_radix(value.trim().trim_start_matches("0x"), 16).expect(line);
        assert_eq!(fields.len(), SHIFTS.len(), "{line}");
        let all = fields.iter().zip(SHIFTS).fold(0, |all, (field, shift)| all | (field << shift));
        assert_eq!(value, all, "{line}");
        Entry { compressed: fields[1] != 0, coherency: fields[5], is_reserved: mark.contains('*') }
    };
    lines.enumerate().map(parse).collect()
}

/// A binding may name the entries that are not reserved, and that of a userptr those which are coherent and
/// not compressed.
fn page_attributes() {
    let _bound = Slot::first();
    let device = device();
    let text = read(&device, "gt0/pat_sw_config");
    let entries = entries(&text);
    assert!(!entries.is_empty(), "{text}");
    let vm = Vm::mirrored(&device).expect("a VM");
    let memory = Map::anon(PAGE);
    let at = 1 << 46;
    let advise = |index: usize| {
        let advice = Advice::Pat(index as u32);
        vm.madvise(memory.at(0), PAGE as u64, advice).map_err(|e| e.errno())
    };
    let bind = |index: usize| {
        let bind = Bind::userptr(memory.at(0), at, PAGE as u64).pat(index as u16);
        vm.bind(&[bind]).map_err(|e| e.errno())
    };
    for (index, entry) in entries.iter().enumerate() {
        let refused = if entry.is_reserved { Err(libc::EINVAL) } else { Ok(()) };
        assert_eq!(advise(index), refused, "entry {index}");
        let can_bind = !entry.is_reserved && !entry.compressed && entry.coherency != 0;
        let wanted = if can_bind { Ok(()) } else { Err(libc::EINVAL) };
        assert_eq!(bind(index), wanted, "a userptr with entry {index}");
    }
    assert_eq!(advise(entries.len()), Err(libc::EINVAL), "an entry beyond the table");
    // The entries by name.
    let index = |name: &str| -> usize {
        let key = format!("IDX[XE_CACHE_{name}] = ");
        let value = text.lines().find_map(|line| line.strip_prefix(&key));
        value.unwrap_or_else(|| panic!("{key}")).parse().expect("an index")
    };
    assert_ne!(entries[index("WB")].coherency, 0);
    assert!(entries[index("NONE_COMPRESSION")].compressed);
    for name in ["NONE", "WT", "WB", "NONE_COMPRESSION"] {
        assert!(!entries[index(name)].is_reserved, "{name}");
    }
}

pub fn subtests(p: &mut Program) {
    p.subtest("debugfs-files", "the files of debugfs", files);
    p.subtest("info", "what the device is", info);
    p.subtest("regions", "its memory", regions);
    p.subtest("engines", "its engines", engines);
    p.subtest("page-attributes", "its page attribute table", page_attributes);
}
