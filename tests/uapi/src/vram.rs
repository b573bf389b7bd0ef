// SPDX-License-Identifier: GPL-2.0

//! The device's own memory: how much there is, and what of a process is in it.

use crate::{memory::vmstat, skip, sysfs::Provider, Gpu, Map, CHUNK, SZ_2M};
use std::{
    fmt::Debug,
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};
use vxe_client::{
    stats::debugfs_directory, sys, Advice, Bind, Bo, Device, Location, Migrate, Stats,
};

/// How long what is done by work of the kernel's may take.
const SOON: Duration = Duration::from_secs(20);

/// The device's memory region, or skips the subtest if there is none.
#[track_caller]
pub fn region(device: &Device) -> sys::drm_xe_mem_region {
    let class = sys::DRM_XE_MEM_REGION_CLASS_VRAM as u16;
    let regions = device.memory_regions().expect("the regions");
    match regions.into_iter().find(|region| region.mem_class == class) {
        Some(region) => region,
        None => skip!("the device has no memory of its own"),
    }
}

/// A buffer that can only be in the device's memory.
pub fn try_buffer(device: &Device, size: usize) -> vxe_client::Result<Bo> {
    Bo::create(device, size, 1 << region(device).instance, None)
}

/// The same, which must be had.
#[track_caller]
pub fn buffer(device: &Device, size: usize) -> Bo {
    try_buffer(device, size).expect("a buffer in the device's memory")
}

/// Buffers in the device's memory that stay there as long as this is there: another device has their
/// dma-bufs, and so their addresses.
pub struct Hogs {
    buffers: Vec<(Bo, OwnedFd, Bo)>,
    importer: Device,
    provider: Option<Provider>,
}

impl Hogs {
    /// None yet.
    #[track_caller]
    pub fn new() -> Self {
        let provider = Provider::load(2);
        Self { buffers: Vec::new(), importer: provider.slot().open(), provider: Some(provider) }
    }

    /// One more, of the device.
    pub fn add(&mut self, device: &Device, size: usize) -> vxe_client::Result<()> {
        let bo = try_buffer(device, size)?;
        let buffer = bo.export()?;
        let imported = Bo::import(&self.importer, buffer.as_fd(), size)?;
        self.buffers.push((bo, buffer, imported));
        Ok(())
    }

    /// All that the device has in pieces of `least` bytes or more.
    #[track_caller]
    pub fn add_all(&mut self, device: &Device, least: usize) {
        let mut size = 32 << 20;
        while size >= least {
            if let Err(e) = self.add(device, size) {
                assert_eq!(e.errno(), libc::ENOMEM, "a buffer of {size} bytes");
                size /= 2;
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.buffers.len()
    }

    /// Every other one of those from number `first` on goes.
    pub fn thin_out(&mut self, first: usize) {
        let mut number = 0;
        self.buffers.retain(|_| {
            number += 1;
            number <= first || number % 2 == 0
        });
    }

    /// One goes.
    pub fn pop(&mut self) {
        self.buffers.pop();
    }

    /// How many bytes they take.
    pub fn size(&self) -> usize {
        self.buffers.iter().map(|(bo, ..)| bo.size()).sum()
    }
}

impl Default for Hogs {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.buffers.clear();
        // The device is closed before its module is removed.
        if let Some(provider) = self.provider.take() {
            let importer = std::mem::replace(&mut self.importer, Device::from_fd(null()));
            drop(importer);
            // A test that fails says why; the next one says so if the module is left.
            if !std::thread::panicking() {
                provider.remove();
            }
        }
    }
}

/// An open file that is no device.
fn null() -> OwnedFd {
    File::open("/dev/null").expect("/dev/null").into()
}

/// Buffers that leave no more than `rest` bytes of the device's memory to others, as long as they
/// live. What processes have there goes, and so do other buffers.
#[track_caller]
pub fn leave(device: &Device, rest: usize) -> Hogs {
    let mut hogs = Hogs::new();
    in_pieces(device, rest, |size| hogs.add(device, size));
    hogs
}

/// Has all go that is in the device's memory and can.
#[track_caller]
pub fn evict_all(device: &Device) {
    let mut buffers = Vec::new();
    in_pieces(device, 0, |size| {
        buffers.push(try_buffer(device, size)?);
        Ok(())
    });
}

/// Takes all of the device's memory but `rest` bytes with `take`, in pieces, lest one is more than the
/// device has in one.
#[track_caller]
fn in_pieces(device: &Device, rest: usize, mut take: impl FnMut(usize) -> vxe_client::Result<()>) {
    let total = region(device).total_size as usize;
    let mut left = total.checked_sub(rest).unwrap_or_else(|| skip!("there is less than {rest:#x}"));
    while left > 0 {
        let size = left.min(32 << 20);
        // What somebody holds at the moment, who reads it, cannot go.
        let end = Instant::now() + SOON;
        loop {
            match take(size) {
                Err(e) if e.errno() == libc::ENOMEM && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                done => break done.expect("a buffer in the device's memory"),
            }
        }
        left -= size;
    }
}

/// How much of an open file's buffers is in the device's memory.
#[track_caller]
pub fn resident(device: &Device) -> usize {
    let path = format!("/proc/self/fdinfo/{}", device.as_raw_fd());
    let text = std::fs::read_to_string(&path).expect("fdinfo");
    let line = text.lines().find_map(|line| line.strip_prefix("drm-resident-vram0:"));
    let mut words = line.expect("the key").split_ascii_whitespace();
    let number: usize = words.next().and_then(|word| word.parse().ok()).expect("a number");
    match words.next() {
        None => number,
        Some("KiB") => number << 10,
        Some("MiB") => number << 20,
        Some(unit) => panic!("in {unit}"),
    }
}

/// Waits until something is so.
#[track_caller]
pub fn soon(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not after {SOON:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until what is found is as wanted.
#[track_caller]
pub fn soon_equal<T: PartialEq + Debug>(what: &str, wanted: &T, find: impl Fn() -> T) {
    let end = Instant::now() + SOON;
    loop {
        let found = find();
        if found == *wanted {
            return;
        }
        assert!(Instant::now() < end, "{what}: {found:?} instead of {wanted:?} after {SOON:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How many bytes of `map` the GPU has mapped in device memory; skips the subtest where the driver
/// does not tell.
#[track_caller]
pub fn in_device(gpu: &Gpu, map: Map) -> usize {
    sum_of_ranges(gpu, map, |range| range.device)
}

/// How many bytes of `map` the GPU has mapped, wherever; skips the subtest as well.
#[track_caller]
pub fn mapped(gpu: &Gpu, map: Map) -> usize {
    sum_of_ranges(gpu, map, |range| range.mapped)
}

#[track_caller]
fn sum_of_ranges(gpu: &Gpu, map: Map, what: fn(&Range) -> usize) -> usize {
    let path = debugfs_directory(gpu.device()).unwrap_or_else(|e| skip!("{e}")).join("vms");
    let ours = format!("vm of process {}", std::process::id());
    let end = Instant::now() + SOON;
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| skip!("{path:?}: {e}"));
        match bytes_in(&text, &ours, map, what) {
            Some(bytes) => return bytes,
            None => assert!(Instant::now() < end, "the VM is always busy"),
        }
        std::thread::yield_now();
    }
}

/// The sum over the ranges in `map` of all VMs of a process; none if one is busy.
fn bytes_in(text: &str, ours: &str, map: Map, what: fn(&Range) -> usize) -> Option<usize> {
    let (mut in_ours, mut in_ranges, mut bytes) = (false, false, 0);
    for line in text.lines() {
        if !line.starts_with(' ') {
            (in_ours, in_ranges) = (line == ours, false);
        } else if !line.starts_with("   ") {
            in_ranges = line == "  ranges:";
        } else if in_ours && in_ranges {
            if line.trim() == "busy" {
                return None;
            }
            bytes += Range::parse(line, map).as_ref().map_or(0, what);
        }
    }
    Some(bytes)
}

/// What the driver tells of a range, in bytes.
struct Range {
    mapped: usize,
    device: usize,
}

impl Range {
    /// A line about a range, if that is in `map`.
    fn parse(line: &str, map: Map) -> Option<Self> {
        let (start, rest) = line.trim().split_once('-')?;
        let start = usize::from_str_radix(start.strip_prefix("0x")?, 16).ok()?;
        if start < map.start() || start >= map.start() + map.len() {
            return None;
        }
        let bytes = |kib: &str| Some(kib.strip_suffix('K')?.parse::<usize>().ok()? * 1024);
        let mut words = rest.split_ascii_whitespace().skip(1);
        let (size, state) = (bytes(words.next()?)?, words.next()?);
        let device = words.find_map(|word| bytes(word.strip_prefix("device=")?))?;
        Some(Self { mapped: if state == "mapped" { size } else { 0 }, device })
    }
}

/// Asks for all of `map` to be brought to the device, however often it went to and fro. Says whether
/// that was tried to the end: others may have kept changing it.
#[track_caller]
pub fn prefetch(gpu: &Gpu, map: Map) -> bool {
    let region = region(gpu.device()).instance;
    let bind = Bind::prefetch(map.at(0), map.len() as u64, region.into());
    match gpu.vm().bind(&[bind]) {
        Ok(()) => true,
        Err(e) if e.errno() == libc::EBUSY => false,
        Err(e) => panic!("a prefetch: {e}"),
    }
}

/// Has all that the GPU uses stay in system memory.
#[track_caller]
pub fn keep_out(gpu: &Gpu) {
    let stay = Advice::Preferred(Location::System, Migrate::AllPages);
    gpu.vm().madvise(0, 1 << 48, stay).expect("advice");
}

/// One of the device's counters; skips the subtest where the driver does not tell, and fails it where
/// there is none of that name.
#[track_caller]
pub fn counter(device: &Device, name: &str) -> u64 {
    let stats = Stats::read(device).unwrap_or_else(|e| skip!("the counters: {e}"));
    stats.get(name).unwrap_or_else(|| panic!("there is no counter {name}"))
}

/// What the device counts meanwhile.
#[track_caller]
pub fn counted(device: &Device, meanwhile: impl FnOnce()) -> Stats {
    let read = || Stats::read(device).unwrap_or_else(|e| skip!("the counters: {e}"));
    let before = read();
    meanwhile();
    read().since(&before)
}

/// How many pages the kernel has taken to compact memory, or moved.
fn compacted() -> u64 {
    vmstat("compact_isolated") + vmstat("pgmigrate_success")
}

/// Has the GPU work on all of `map`, whose chunks must then be in the device's memory. Those that the kernel was
/// moving itself meanwhile, to compact memory, must come when they are asked for again.
#[track_caller]
pub fn bring(gpu: &Gpu, map: Map) {
    let before = compacted();
    let counts = counted(gpu.device(), || touch(gpu, map));
    let there = in_device(gpu, map);
    if there != map.len() && compacted() != before {
        return soon("all is in the device's memory", || {
            prefetch(gpu, map) && in_device(gpu, map) == map.len()
        });
    }
    assert_eq!(there, map.len(), "bytes in the device's memory: {counts:?}");
}

/// Has the GPU read all of `map`, chunk by chunk, and change nothing.
#[track_caller]
pub fn touch(gpu: &Gpu, map: Map) {
    // Shared memory does not move to the device, where it would take room.
    let sink = Map::shared(crate::PAGE);
    for offset in (0..map.len()).step_by(SZ_2M) {
        gpu.run(|c| {
            for offset in (offset..map.len().min(offset + SZ_2M)).step_by(CHUNK) {
                c.copy(map.at(offset), sink.at(0), 256);
            }
        });
    }
    sink.unmap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_map_are_summed() {
        let text = "vm of process 7\n  vmas:\n    a mirror\n  ranges:\n\
            \x20   0x0000000000200000-0x0000000000400000  2048K mapped   rw- segments=1 device=2048K thrashing=0\n\
            \x20   0x0000000000400000-0x0000000000410000    64K mapped   rw- segments=2 device=60K thrashing=0\n\
            \x20   0x0000000000600000-0x0000000000610000    64K mapped   rw- segments=2 device=64K thrashing=0\n\
            vm of process 8\n  ranges:\n    busy\n";
        let map = Map::existing(0x20_0000, 0x40_0000);
        let sum = |ours, what| bytes_in(text, ours, map, what);
        assert_eq!(sum("vm of process 7", |range| range.device), Some((2048 + 60) * 1024));
        assert_eq!(sum("vm of process 7", |range| range.mapped), Some((2048 + 64) * 1024));
        assert_eq!(sum("vm of process 8", |range| range.device), None);
        assert_eq!(sum("vm of process 9", |range| range.device), Some(0));
    }
}
