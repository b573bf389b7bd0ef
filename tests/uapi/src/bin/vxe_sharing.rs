// SPDX-License-Identifier: GPL-2.0

//! Buffers are shared by files, VMs and devices, but for those that are made for one VM.

use std::{
    os::fd::{AsFd, AsRawFd},
    process::ExitCode,
    sync::atomic::Ordering,
    thread,
};
use vxe_client::{Bind, Bo, Device, Error, Mapping, Vm};
use vxe_uapi::{
    contents::pattern,
    env::iterations,
    gpu::device,
    process::fork,
    sysfs::{Provider, Slot},
    vram, Gpu, Map, Program, MIDDLE, SZ_2M,
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

/// Device memory is exported: to its own device, to the CPU, and to another device.
fn device_memory() {
    let slot = Slot::first();
    let provider = Provider::load(2);
    let gpu = Gpu::on_device(&slot.open());
    let size = 2 * SZ_2M + MIDDLE;
    let bo = vram::buffer(gpu.device(), size);
    bind(gpu.vm(), &bo).expect("a bind");
    let buffer = bo.export().expect("a dma-buf");
    assert_eq!(size_of(&buffer), size, "its size");
    let mapping = Mapping::file(size, buffer.as_fd()).expect("a mapping of the dma-buf");
    let memory = Map::existing(mapping.as_ptr() as usize, size);
    memory.fill(pattern);

    let other = Gpu::on_device(&slot.open());
    let imported = Bo::import(other.device(), buffer.as_fd(), size).expect("an import");
    bind(other.vm(), &imported).expect("a bind of what was imported");
    let theirs = Gpu::on_device(&provider.slot().open());
    let there = Bo::import(theirs.device(), buffer.as_fd(), size).expect("an import");
    bind(theirs.vm(), &there).expect("a bind on another device");
    for at in [4, MIDDLE, SZ_2M, size - 4] {
        for gpu in [&gpu, &other, &theirs] {
            gpu.increment(AT + at as u64);
        }
        memory.expect_word("counted by all", at, pattern(at).wrapping_add(3));
        memory.write(at, pattern(at));
    }
    let to = Map::anon(size);
    theirs.run(|c| _ = c.copy(AT, to.at(0), size));
    to.expect("read by another device", pattern);
    // What was exported is needed, whatever the VMAs say.
    for gpu in [&gpu, &other, &theirs] {
        assert_eq!(gpu.vm().set_needed(AT, size as u64, false), Ok(true));
    }
    bind(other.vm(), &imported).expect("bound once more");
    drop((bo, gpu));
    other.store(AT + 4, 21);
    drop((imported, other));
    theirs.increment(AT + 4);
    memory.expect_word("the other device has it still", 4, 22);
    provider.slot().unbind();
    let mapped = provider.slot().dma_mappings().unwrap_or_default();
    assert!(mapped.is_empty(), "mapped for DMA: {}", mapped.join("\n"));
    drop((there, theirs));
    memory.expect_word("the dma-buf is left", 4, 22);
    drop((mapping, buffer));
    provider.slot().bind();
    provider.remove();
}

/// The size of a dma-buf.
fn size_of(buffer: &impl AsRawFd) -> usize {
    // SAFETY: the call takes no pointers.
    let end = unsafe { libc::lseek(buffer.as_raw_fd(), 0, libc::SEEK_END) };
    usize::try_from(end).expect("a dma-buf has an end")
}

/// A file has one handle for a buffer, however it got it; when that is closed it gets another.
fn handles() {
    let device = device();
    for placement in placements(&device) {
        let bo = Bo::create(&device, MIDDLE, placement, None).expect("a buffer");
        let buffer = bo.export().expect("a dma-buf");
        let again = std::mem::ManuallyDrop::new(
            Bo::import(&device, buffer.as_fd(), MIDDLE).expect("an import"),
        );
        assert_eq!(again.handle(), bo.handle(), "the buffer itself");
        let other = Device::open().expect("another file");
        let first = Bo::import(&other, buffer.as_fd(), MIDDLE).expect("an import");
        let second = std::mem::ManuallyDrop::new(
            Bo::import(&other, buffer.as_fd(), MIDDLE).expect("an import"),
        );
        assert_eq!(first.handle(), second.handle(), "the import");
        let reexported = first.export().expect("a dma-buf of the import");
        assert_eq!(size_of(&reexported), MIDDLE);
        drop(first);
        let later = Bo::import(&other, reexported.as_fd(), MIDDLE).expect("an import");
        bind(&Vm::new(&other).expect("a VM"), &later).expect("a bind");
    }
}

/// What another device exports is the same memory, for both.
fn between_devices() {
    let slot = Slot::first();
    let provider = Provider::load(2);
    let gpu = Gpu::on_device(&slot.open());
    let theirs = Gpu::on_device(&provider.slot().open());
    let size = 2 * SZ_2M + MIDDLE;
    let bo = Bo::system(theirs.device(), size).expect("a buffer");
    bind(theirs.vm(), &bo).expect("a bind");
    let buffer = bo.export().expect("a dma-buf");
    let imported = Bo::import(gpu.device(), buffer.as_fd(), size).expect("an import");
    bind(gpu.vm(), &imported).expect("a bind of the import");
    let mapping = bo.map().expect("a mapping");
    let memory = Map::existing(mapping.as_ptr() as usize, size);
    memory.fill(pattern);
    for at in [0, MIDDLE, SZ_2M, size - 4] {
        gpu.increment(AT + at as u64);
        theirs.increment(AT + at as u64);
        memory.expect_word("counted by both", at, pattern(at).wrapping_add(2));
        memory.write(at, pattern(at));
    }
    let to = Map::anon(size);
    gpu.run(|c| _ = c.copy(AT, to.at(0), size));
    to.expect("read through the import", pattern);
    // A part of it, elsewhere; and all of it away.
    let part = Bind::bo(&imported, SZ_2M as u64, 2 * AT, MIDDLE as u64);
    gpu.vm().bind(&[part]).expect("a bind of a part");
    gpu.store(2 * AT, 5);
    memory.expect_word("the part", SZ_2M, 5);
    assert_eq!(gpu.vm().set_needed(AT, size as u64, false), Ok(true), "an import is kept");
    assert_eq!(gpu.vm().set_needed(2 * AT, MIDDLE as u64, false), Ok(true), "an import is kept");
    gpu.vm().bind(&[part]).expect("a bind of an import whose contents are not needed");
    gpu.increment(2 * AT);
    memory.expect_word("the part again", SZ_2M, 6);
    assert_eq!(gpu.vm().set_needed(AT, size as u64, true), Ok(true), "an import is kept");
    gpu.vm().bind(&[Bind::unmap_all(&imported)]).expect("an unbind");

    // As in xe, an import is bound with the caches in view, and the CPU maps it by its dma-buf only.
    let past_caches = Bind::bo(&imported, 0, AT, size as u64).pat(0);
    refused(libc::EINVAL, "an access past the caches", gpu.vm().bind(&[past_caches]));
    let by_import = imported.map().expect("a mapping of the import");
    let word = Map::existing(by_import.as_ptr() as usize, 4);
    let status = fork(|_| _ = word.read(0)).wait();
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "{status:#x}");
    let by_buffer = Mapping::file(size, buffer.as_fd()).expect("a mapping of the dma-buf");
    by_buffer.words()[2].store(77, Ordering::Relaxed);
    memory.expect_word("by the dma-buf", 8, 77);

    // The exporter's objects go first.
    bind(gpu.vm(), &imported).expect("bound again");
    drop((bo, mapping, by_buffer, buffer, theirs));
    gpu.run(|c| _ = c.copy(AT, to.at(0), size));
    assert_eq!(to.read(8), 77, "still there");
    drop((gpu, imported, by_import));
    provider.remove();
}

/// Either device is unbound while the other uses a shared buffer.
fn unbound_between() {
    let slot = Slot::first();
    let provider = Provider::load(2);
    for exporter_goes in [true, false] {
        let gpu = Gpu::on_device(&slot.open());
        let theirs = Gpu::on_device(&provider.slot().open());
        let (from, to) = if exporter_goes { (&theirs, &gpu) } else { (&gpu, &theirs) };
        let bo = Bo::system(from.device(), MIDDLE).expect("a buffer");
        bind(from.vm(), &bo).expect("a bind");
        let buffer = bo.export().expect("a dma-buf");
        let imported = Bo::import(to.device(), buffer.as_fd(), MIDDLE).expect("an import");
        bind(to.vm(), &imported).expect("a bind");
        to.store(AT, 1);
        provider.slot().unbind();
        let mapped = provider.slot().dma_mappings().unwrap_or_default();
        assert!(mapped.is_empty(), "mapped for DMA: {}", mapped.join("\n"));
        gpu.increment(AT);
        let mapping = Mapping::file(MIDDLE, buffer.as_fd()).expect("a mapping of the dma-buf");
        assert_eq!(mapping.words()[0].load(Ordering::Relaxed), 2);
        drop((mapping, imported, buffer, bo, gpu, theirs));
        provider.slot().bind();
    }
    provider.remove();
}

/// Two devices import from each other, and close, in threads.
fn race() {
    let slot = Slot::first();
    let provider = Provider::load(2);
    let slots = [&slot, provider.slot()];
    thread::scope(|s| {
        for i in 0..4 {
            let (from, to) = (slots[i % 2], slots[1 - i % 2]);
            s.spawn(move || {
                let (from, to) = (from.open(), to.open());
                let gpu = Gpu::on_device(&to);
                for round in 0..iterations(30) {
                    let bo = Bo::system(&from, MIDDLE).expect("a buffer");
                    let buffer = bo.export().expect("a dma-buf");
                    drop(bo);
                    let imported = Bo::import(&to, buffer.as_fd(), MIDDLE).expect("an import");
                    let place = AT + (u64::from(round) % 3) * SZ_2M as u64;
                    gpu.vm().bind(&[Bind::bo(&imported, 0, place, MIDDLE as u64)]).expect("a bind");
                    drop(imported);
                    gpu.store(place, round);
                    let mapping = Mapping::file(MIDDLE, buffer.as_fd()).expect("a mapping");
                    assert_eq!(mapping.words()[0].load(Ordering::Relaxed), round);
                }
            });
        }
    });
    provider.remove();
}

/// Nothing is mapped for a device before it is bound in a VM: what was imported is no reason not to unbind it.
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
    p.subtest("device-memory", "device memory is exported", device_memory);
    p.subtest("handles", "one handle for a buffer", handles);
    p.subtest("devices", "a device imports what another exports", between_devices);
    p.subtest("unbound-between", "one of two devices is unbound", unbound_between);
    p.subtest("race", "two devices import from each other", race);
    p.subtest("unbound-importer", "a device that has imports is unbound", unbound_importer);
    p.main()
}
