// SPDX-License-Identifier: GPL-2.0

//! DEVICE_QUERY: what the device says of itself, and how it is asked.

use std::process::ExitCode;
use vxe_client::{request, sys, Device, Query};
use vxe_uapi::{gpu::device, Map, Program, PAGE, RW};

const QUERIES: [(&str, Query); 4] = [
    ("engines", Query::Engines),
    ("mem-regions", Query::MemoryRegions),
    ("config", Query::Config),
    ("gt-list", Query::GtList),
];

/// Asks; what the kernel says, and the size that it filled in.
fn ask(device: &Device, mut ask: sys::drm_xe_device_query) -> Result<u32, i32> {
    // SAFETY: `data` is the test's memory, or none.
    unsafe { device.call(&request::DEVICE_QUERY, &mut ask) }
        .map(|()| ask.size)
        .map_err(|e| e.errno())
}

/// Two calls: one for the size, one for the data; any other size is wrong.
fn protocol(query: Query) {
    let device = device();
    let base = sys::drm_xe_device_query { query: query as u32, ..Default::default() };
    let size = ask(&device, base).expect("the size");
    assert!(size > 8 && size % 8 == 0 && (size as usize) < PAGE, "{size} bytes");
    assert_eq!(ask(&device, base), Ok(size), "the size once more");

    let memory = Map::anon(PAGE);
    memory.fill(|_| 0x5a5a_5a5a);
    let full = sys::drm_xe_device_query { size, data: memory.at(0), ..base };
    assert_eq!(ask(&device, full), Ok(size));
    for offset in (size as usize..PAGE).step_by(4) {
        memory.expect_word("beyond the size", offset, 0x5a5a_5a5a);
    }
    let all: Vec<u32> = (0..size as usize).step_by(4).map(|o| memory.read(o)).collect();
    assert!(all.contains(&0), "padding is zero");
    assert!(all[0] > 0 && all[0] < 16, "a count: {}", all[0]);
    assert_eq!(all[1], 0, "pad");

    for wrong in [1, size - 8, size - 1, size + 1, size + 8, 2 * size, u32::MAX] {
        let asked = ask(&device, sys::drm_xe_device_query { size: wrong, ..full });
        assert_eq!(asked, Err(libc::EINVAL), "size {wrong} instead of {size}");
    }
    // MEM_REGIONS answers -ENOSPC where all others answer -EFAULT.
    let fault = if query == Query::MemoryRegions { libc::ENOSPC } else { libc::EFAULT };
    let room = Map::reserve(2 * PAGE, PAGE);
    room.part(0, PAGE).replace_anon(RW);
    for (what, data) in
        [("nothing", room.at(PAGE)), ("null", 0), ("too little", room.at(PAGE - size as usize + 8))]
    {
        let asked = ask(&device, sys::drm_xe_device_query { data, ..full });
        assert_eq!(asked, Err(fault), "{what} for {size} bytes of data");
    }
}

/// Reserved fields, extensions and queries that there are not.
fn rejections() {
    let device = device();
    let base = sys::drm_xe_device_query { query: Query::Config as u32, ..Default::default() };
    ask(&device, base).expect("a good query");
    for (what, spoilt) in [
        ("an extension", sys::drm_xe_device_query { extensions: 8, ..base }),
        ("reserved[0]", sys::drm_xe_device_query { reserved: [1, 0], ..base }),
        ("reserved[1]", sys::drm_xe_device_query { reserved: [0, 1], ..base }),
        ("an unknown query", sys::drm_xe_device_query { query: 11, ..base }),
        ("the last query", sys::drm_xe_device_query { query: u32::MAX, ..base }),
    ] {
        assert_eq!(ask(&device, spoilt), Err(libc::EINVAL), "{what}");
    }
}

fn config() {
    let device = device();
    let config = device.config().expect("the configuration");
    assert!(config.can_mirror(), "flags {:#x}", config.flags);
    let purges = u64::from(sys::DRM_XE_QUERY_CONFIG_FLAG_HAS_PURGING_SUPPORT);
    assert_ne!(config.flags & purges, 0, "flags {:#x}", config.flags);
    assert_eq!(config.va_bits, 48);
    assert_eq!(config.min_alignment, PAGE as u64);
    assert!(config.device_id != 0, "a device number");
    let vram = sys::DRM_XE_MEM_REGION_CLASS_VRAM as u16;
    let has_vram =
        device.memory_regions().expect("the regions").iter().any(|r| r.mem_class == vram);
    let says_vram = config.flags & u64::from(sys::DRM_XE_QUERY_CONFIG_FLAG_HAS_VRAM) != 0;
    assert_eq!(says_vram, has_vram, "the flag against the list of regions");
}

fn gts() {
    let device = device();
    let gts = device.gts().expect("the GTs");
    let main = u32::from(gts[0].type_);
    assert_eq!((gts.len(), main, gts[0].gt_id), (1, sys::DRM_XE_QUERY_GT_TYPE_MAIN, 0));
    let (near, far) = (gts[0].near_mem_regions, gts[0].far_mem_regions);
    assert_ne!(near, 0, "no memory is near");
    assert_eq!(near & far, 0, "near and far");
    let all = device
        .memory_regions()
        .expect("the regions")
        .iter()
        .fold(0u64, |mask, region| mask | (1 << region.instance));
    assert_eq!(near | far, all, "all regions are near or far");
    assert!(gts[0].reference_clock > 0);
}

fn regions() {
    let device = device();
    let regions = device.memory_regions().expect("the regions");
    let system = regions.first().expect("a region");
    assert_eq!(u32::from(system.mem_class), sys::DRM_XE_MEM_REGION_CLASS_SYSMEM);
    assert_eq!(system.instance, 0);
    for (i, region) in regions.iter().enumerate() {
        assert_eq!(usize::from(region.instance), i);
        assert_eq!(region.min_page_size, PAGE as u32);
        assert!(region.total_size > 0 && region.used <= region.total_size, "{region:?}");
        assert_eq!(region.reserved, [0; 6]);
        if i > 0 {
            assert_eq!(u32::from(region.mem_class), sys::DRM_XE_MEM_REGION_CLASS_VRAM);
            assert!(region.cpu_visible_size <= region.total_size, "{region:?}");
        }
    }
}

/// One copy engine: with two, programs that toggle huge pages per engine race with themselves.
fn engines() {
    let engines = device().engines().expect("the engines");
    assert_eq!(engines.len(), 1);
    let class = u32::from(engines[0].engine_class);
    assert_eq!(class, sys::DRM_XE_ENGINE_CLASS_COPY);
    assert_eq!((engines[0].engine_instance, engines[0].gt_id, engines[0].pad), (0, 0, 0));
}

/// The primary and the render node are the same device.
fn nodes() {
    let (primary, render) = (device(), Device::open_render().expect("the render node"));
    let minors = (primary.minor().expect("a minor"), render.minor().expect("a minor"));
    assert!(minors.0 < 64 && minors.1 >= 128, "{minors:?}");
    assert_eq!(primary.config(), render.config());
    assert_eq!(primary.engines().map(|e| e.len()), render.engines().map(|e| e.len()));
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_query", "DEVICE_QUERY: what it says and how it is asked.");
    for (name, query) in QUERIES {
        p.subtest(format!("protocol-{name}"), "size 0, then the exact size", move || {
            protocol(query)
        });
    }
    p.subtest("rejections", "reserved fields and unknown queries", rejections);
    p.subtest("config", "the configuration", config);
    p.subtest("gt-list", "one main GT", gts);
    p.subtest("mem-regions", "system memory first", regions);
    p.subtest("engines", "one copy engine", engines);
    p.subtest("nodes", "both nodes say the same", nodes);
    p.main()
}
