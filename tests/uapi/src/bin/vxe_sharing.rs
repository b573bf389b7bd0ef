// SPDX-License-Identifier: GPL-2.0

//! Buffers are shared by files, VMs and devices, but for those that are made for one VM.

use std::{os::fd::AsFd, process::ExitCode, sync::atomic::Ordering};
use vxe_client::{Bind, Bo, Device, Error, Mapping, Vm};
use vxe_uapi::{
    gpu::device,
    sysfs::{Provider, Slot},
    vram, Gpu, Program, MIDDLE, PAGE,
};

/// Where buffers are bound.
const AT: u64 = 1 << 40;

/// Binds a buffer.
fn bind(vm: &Vm, bo: &Bo) -> Result<(), Error> {
    vm.bind(&[Bind::bo(bo, 0, AT, bo.size() as u64)])
}

#[track_caller]
fn refused<T>(errno: i32, what: &str, result: Result<T, Error>) {
    assert_eq!(result.map(|_| ()).map_err(|e| e.errno()), Err(errno), "{what}");
}

/// Each kind of buffers: system memory, and the device's if it has any.
fn placements(device: &Device) -> Vec<u32> {
    let regions = device.memory_regions().expect("the regions");
    regions.iter().map(|region| 1 << region.instance).collect()
}

#[track_caller]
fn private(vm: &Vm, placement: u32) -> Bo {
    Bo::create(vm.device(), MIDDLE, placement, Some(vm)).expect("a private buffer")
}

/// What is made for a VM is not exported, before it was bound, while it is, and when the VM is gone.
fn private_export() {
    let device = device();
    for placement in placements(&device) {
        let gpu = Gpu::on_device(&device);
        let bo = private(gpu.vm(), placement);
        refused(libc::EPERM, "a private buffer", bo.export());
        bind(gpu.vm(), &bo).expect("a bind in its VM");
        gpu.store(AT, 1);
        refused(libc::EPERM, "a private buffer that is bound", bo.export());
        gpu.vm().destroy().expect("destroy");
        refused(libc::EPERM, "a private buffer without its VM", bo.export());
    }
}

/// What is made for a VM is bound there only.
fn private_elsewhere() {
    let device = device();
    for placement in placements(&device) {
        let (vm, other) = (Vm::new(&device).expect("a VM"), Vm::new(&device).expect("a VM"));
        let bo = private(&vm, placement);
        refused(libc::EINVAL, "another VM", bind(&other, &bo));
        bind(&vm, &bo).expect("its VM");
        refused(libc::EINVAL, "another VM", bind(&other, &bo));
    }
}

/// No later VM is the one that is gone, wherever the kernel puts it.
fn private_orphan() {
    let device = device();
    for placement in placements(&device) {
        let vm = Vm::new(&device).expect("a VM");
        let bo = private(&vm, placement);
        vm.destroy().expect("destroy");
        for _ in 0..60 {
            let later = Vm::new(&device).expect("a VM");
            refused(libc::EINVAL, "a later VM", bind(&later, &bo));
            later.destroy().expect("destroy");
        }
    }
}

/// What one file exports another imports: it is the same memory, for both GPUs' VMs and the CPU.
fn between_files() {
    let gpu = Gpu::new();
    let bo = Bo::system(gpu.device(), MIDDLE).expect("a buffer");
    bind(gpu.vm(), &bo).expect("a bind");
    gpu.store(AT + 4, 11);
    let buffer = bo.export().expect("a dma-buf");

    let other = Gpu::on_device(&Device::open().expect("another file"));
    let imported = Bo::import(other.device(), buffer.as_fd(), MIDDLE).expect("an import");
    drop((bo, buffer));
    bind(other.vm(), &imported).expect("a bind of what was imported");
    other.increment(AT + 4);
    let mapping: Mapping = imported.map().expect("its memory");
    assert_eq!(mapping.words()[1].load(Ordering::Relaxed), 12);
    gpu.increment(AT + 4);
    assert_eq!(mapping.words()[1].load(Ordering::Relaxed), 13);
}

/// Device memory is not exported, as nobody who imports it could know where it is.
fn device_memory() {
    let device = device();
    let bo = vram::buffer(&device, MIDDLE);
    refused(libc::EOPNOTSUPP, "a buffer in device memory", bo.export());
}

/// What another device exports gets a handle, but cannot be used, which is told.
fn between_devices() {
    let slot = Slot::first();
    let provider = Provider::load(2);
    let gpu = Gpu::on_device(&slot.open());
    let theirs = provider.slot().open();
    let bo = Bo::system(&theirs, MIDDLE).expect("a buffer");
    let buffer = bo.export().expect("a dma-buf");
    let imported = Bo::import(gpu.device(), buffer.as_fd(), MIDDLE).expect("an import");
    refused(libc::EOPNOTSUPP, "a bind", bind(gpu.vm(), &imported));
    refused(libc::EOPNOTSUPP, "an unbind", gpu.vm().bind(&[Bind::unmap_all(&imported)]));
    refused(libc::EOPNOTSUPP, "an offset", imported.mmap_offset());
    // The VM is none the worse for it.
    let own = Bo::system(gpu.device(), PAGE).expect("a buffer");
    bind(gpu.vm(), &own).expect("a bind");
    gpu.store(AT, 1);
    drop((imported, buffer, bo, theirs));
    provider.remove();
}

/// Nothing is mapped for a device that cannot use it: what it has imported is no reason not to unbind it.
fn unbound_importer() {
    let provider = Provider::load(2);
    let bo = Bo::system(&Slot::first().open(), MIDDLE).expect("a buffer");
    let buffer = bo.export().expect("a dma-buf");
    let theirs = provider.slot().open();
    let imported = Bo::import(&theirs, buffer.as_fd(), MIDDLE).expect("an import");
    let mapped = provider.slot().dma_mappings().unwrap_or_default();
    assert!(mapped.is_empty(), "mapped for DMA: {}", mapped.join("\n"));
    provider.slot().unbind();
    drop((imported, theirs, buffer, bo));
    provider.slot().bind();
    provider.remove();
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_sharing", "Buffers are shared, or private to a VM.");
    p.subtest("private-export", "private buffers are not exported", private_export);
    p.subtest("private-elsewhere", "private buffers are bound in no other VM", private_elsewhere);
    p.subtest("private-orphan", "private buffers are bound in no later VM", private_orphan);
    p.subtest("files", "a file imports what another exports", between_files);
    p.subtest("device-memory", "device memory is not exported", device_memory);
    p.subtest("devices", "a device imports what another exports", between_devices);
    p.subtest("unbound-importer", "a device that has imports is unbound", unbound_importer);
    p.main()
}
