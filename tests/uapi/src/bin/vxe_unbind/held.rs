// SPDX-License-Identifier: GPL-2.0

//! An ioctl sleeps on memory of its caller's that does not come: that holds up the caller, and not who
//! unbinds the device, or another one.

use crate::works;
use std::{
    sync::{mpsc, Mutex},
    time::Duration,
};
use vxe_client::{request, sys, Bind, Device, ExecQueue, Request, Vm};
use vxe_uapi::{
    contents::filled,
    gpu::{copy_engine, PATIENCE_TIME},
    sysfs::{Provider, Slot},
    uffd::Uffd,
    Gpu, Map, Program, MIDDLE, PAGE,
};

/// How long it may take until the ioctl sleeps.
const ARRIVAL: Duration = Duration::from_secs(10);

/// What the ioctl sleeps in.
#[derive(Clone, Copy)]
enum Held {
    /// Any access to the page: there is none yet.
    Read,
    /// A write to the page, which can be read, and has this number in its first word.
    Write(u32),
}

/// Calls an ioctl that sleeps on the page that it is given, and unbinds two devices meanwhile: its own, and
/// that of another driver. Both unbindings must end, and later the ioctl.
fn held(kind: Held, call: impl FnOnce(&Device, Map) + Send) {
    let slot = Slot::first();
    let provider = Provider::load(2);
    let page = Map::anon(PAGE);
    let uffd = match kind {
        Held::Read => Uffd::new(page),
        Held::Write(word) => {
            page.write(0, word);
            Uffd::write_protected(page)
        }
    };
    let release = || match kind {
        Held::Read => uffd.populate(|_| 0),
        Held::Write(_) => uffd.unprotect(),
    };
    std::thread::scope(|scope| {
        let device = slot.open();
        let caller = scope.spawn(move || call(&device, page));
        if uffd.next_fault(ARRIVAL).is_none() {
            release();
            caller.join().expect("the caller");
            panic!("the ioctl does not touch the page");
        }
        let (ended, ends) = mpsc::channel();
        for (what, slot) in [("the other device", provider.slot()), ("the device", &slot)] {
            let ended = ended.clone();
            scope.spawn(move || {
                slot.unbind();
                let _ = ended.send(what);
            });
        }
        drop(ended);
        let mut left = vec!["the other device", "the device"];
        while let Ok(what) = ends.recv_timeout(PATIENCE_TIME) {
            left.retain(|other| *other != what);
            if left.is_empty() {
                break;
            }
        }
        let asleep = !caller.is_finished();
        let mapped = slot.dma_mappings().unwrap_or_default();
        // Whatever came of it, all must end.
        release();
        caller.join().expect("the caller");
        assert!(left.is_empty(), "still being unbound: {}", left.join(", "));
        assert!(asleep, "the ioctl ended without the page");
        assert!(mapped.is_empty(), "{} DMA mappings are left: {}", mapped.len(), mapped[0]);
    });
    provider.slot().bind();
    provider.remove();
    slot.bind();
    works(&vxe_uapi::gpu::device(), "counted");
}

/// Calls an ioctl, whatever comes of it: the device is gone by then.
fn call<T>(device: &Device, request: &Request<T>, mut argument: T) {
    // SAFETY: the addresses in it are of memory that the test mapped, and stays.
    let result = unsafe { device.call(request, &mut argument) };
    println!("{}: {:?}", request.name(), result.map_err(|e| e.errno()));
}

fn query(query: u32, kind: Held) {
    held(kind, |device, page| {
        let mut ask = sys::drm_xe_device_query { query, ..Default::default() };
        // SAFETY: with size 0 the kernel only fills in the size.
        unsafe { device.call(&request::DEVICE_QUERY, &mut ask) }.expect("a size");
        ask.data = page.at(0);
        call(device, &request::DEVICE_QUERY, ask);
    });
}

/// A prefetch, which has the VM's SVM lock.
fn prefetch() {
    held(Held::Read, |device, page| {
        let vm = Vm::mirrored(device).expect("a mirrored VM");
        let done = vm.bind(&[Bind::prefetch(page.at(0), page.len() as u64, 0)]);
        println!("prefetch: {:?}", done.map_err(|e| e.errno()));
    });
}

/// A prefetch of a VM that is destroyed meanwhile, so that nobody can name it when the device goes: unbinding waits
/// for it no more than for another, and leaves nothing mapped.
fn prefetch_of_destroyed() {
    let slot = Slot::first();
    let before = filled(MIDDLE);
    let page = Map::anon(PAGE);
    let uffd = Uffd::new(page);
    let device = slot.open();
    let vm = Vm::mirrored(&device).expect("a mirrored VM");
    let prefetch = |map: Map| vm.bind(&[Bind::prefetch(map.at(0), map.len() as u64, 0)]);
    prefetch(before).expect("a prefetch");
    if let Some(mappings) = slot.dma_mappings() {
        assert!(!mappings.is_empty(), "nothing is mapped for DMA");
    }
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| prefetch(page).map_err(|e| e.errno()));
        uffd.next_fault(ARRIVAL).expect("the prefetch wants the page");
        vm.destroy().expect("destroyed");
        let (ended, end) = mpsc::channel();
        let slot = &slot;
        scope.spawn(move || {
            slot.unbind();
            let _ = ended.send(());
        });
        let in_time = end.recv_timeout(PATIENCE_TIME);
        let mapped = slot.dma_mappings().unwrap_or_default();
        let asleep = !caller.is_finished();
        uffd.populate(|_| 0);
        println!("prefetch: {:?}", caller.join().expect("the caller"));
        in_time.expect("unbinding waits for userspace");
        assert!(asleep, "the prefetch ended without the page");
        assert!(mapped.is_empty(), "{} DMA mappings are left: {}", mapped.len(), mapped[0]);
    });
    before.unmap();
    slot.bind();
    works(&vxe_uapi::gpu::device(), "counted");
}

fn buffer_extensions() {
    held(Held::Read, |device, page| {
        let create = sys::drm_xe_gem_create {
            size: PAGE as u64,
            placement: 1,
            cpu_caching: sys::DRM_XE_GEM_CPU_CACHING_WB as u16,
            extensions: page.at(0),
            ..Default::default()
        };
        call(device, &request::GEM_CREATE, create);
    });
}

/// A queue whose engine, or whose extension, is in the page.
fn queue(engine_in_page: bool) {
    held(Held::Read, move |device, page| {
        let vm = Vm::new(device).expect("a VM");
        let engine = copy_engine(device);
        let (instances, extensions) = match engine_in_page {
            true => (page.at(0), 0),
            false => (&raw const engine as u64, page.at(0)),
        };
        let create = sys::drm_xe_exec_queue_create {
            width: 1,
            num_placements: 1,
            vm_id: vm.id(),
            instances,
            extensions,
            ..Default::default()
        };
        call(device, &request::EXEC_QUEUE_CREATE, create);
    });
}

fn exec_syncs() {
    held(Held::Read, |device, page| {
        let vm = Vm::new(device).expect("a VM");
        let queue = ExecQueue::new(&vm).expect("a queue");
        let exec = sys::drm_xe_exec {
            exec_queue_id: queue.id(),
            num_syncs: 1,
            syncs: page.at(0),
            num_batch_buffer: 1,
            ..Default::default()
        };
        call(device, &request::EXEC, exec);
    });
}

/// A bind of a mirror, changed.
fn bind(kind: Held, change: impl FnOnce(&mut sys::drm_xe_vm_bind, Map) + Send) {
    held(kind, |device, page| {
        let vm = Vm::new(device).expect("a VM");
        let mut bind = sys::drm_xe_vm_bind { vm_id: vm.id(), num_binds: 1, ..Default::default() };
        bind.__bindgen_anon_1.bind = *Bind::mirror(0, 1 << 47).as_raw();
        change(&mut bind, page);
        call(device, &request::VM_BIND, bind);
    });
}

fn bind_vector() {
    bind(Held::Read, |bind, page| {
        bind.num_binds = 2;
        bind.__bindgen_anon_1.vector_of_binds = page.at(0);
    });
}

fn bind_syncs() {
    bind(Held::Read, |bind, page| {
        bind.num_syncs = 1;
        bind.syncs = page.at(0);
    });
}

/// The fence is in the page: it is read before anything is done, and written when all is.
fn bind_fence(kind: Held) {
    let sync = Mutex::new(sys::drm_xe_sync::default());
    bind(kind, |bind, page| {
        let mut sync = sync.lock().expect("the sync");
        *sync = vxe_client::Fence { address: page.at(0), value: 1 }.to_sync();
        bind.num_syncs = 1;
        bind.syncs = &raw const *sync as u64;
    });
}

fn advice(kind: Held) {
    held(kind, |device, page| {
        let vm = Vm::mirrored(device).expect("a VM");
        let mut args = sys::drm_xe_madvise {
            vm_id: vm.id(),
            start: 1 << 30,
            range: PAGE as u64,
            type_: sys::DRM_XE_VMA_ATTR_PURGEABLE_STATE,
            ..Default::default()
        };
        args.__bindgen_anon_1.purge_state_val = sys::drm_xe_madvise__bindgen_ty_1__bindgen_ty_4 {
            val: sys::DRM_XE_VMA_PURGEABLE_STATE_WILLNEED,
            retained_ptr: page.at(0),
            ..Default::default()
        };
        call(device, &request::MADVISE, args);
    });
}

fn attributes() {
    held(Held::Write(0), |device, page| {
        let vm = Vm::mirrored(device).expect("a VM");
        let args = sys::drm_xe_vm_query_mem_range_attr {
            vm_id: vm.id(),
            num_mem_ranges: 1,
            range: 1 << 47,
            sizeof_mem_range_attr: size_of::<sys::drm_xe_mem_range_attr>() as u64,
            vector_of_mem_attr: page.at(0),
            ..Default::default()
        };
        call(device, &request::VM_QUERY_MEM_RANGE_ATTRS, args);
    });
}

fn property() {
    held(Held::Write(0), |device, page| {
        let gpu = Gpu::on_device(device);
        let bad = Map::reserve(PAGE, PAGE);
        gpu.try_run(|c| _ = c.store(bad.at(0), 1)).expect_err("a fault that fails");
        let mut args = sys::drm_xe_vm_get_property {
            vm_id: gpu.vm().id(),
            property: sys::DRM_XE_VM_GET_PROPERTY_FAULTS,
            size: size_of::<sys::xe_vm_fault>() as u32,
            ..Default::default()
        };
        args.__bindgen_anon_1.data = page.at(0);
        call(device, &request::VM_GET_PROPERTY, args);
    });
}

fn wait() {
    held(Held::Read, |device, page| {
        let args = sys::drm_xe_wait_user_fence {
            addr: page.at(0),
            op: sys::DRM_XE_UFENCE_WAIT_OP_EQ as u16,
            mask: u64::MAX,
            timeout: 1_000_000_000,
            ..Default::default()
        };
        call(device, &request::WAIT_USER_FENCE, args);
    });
}

/// Adds the subtests: one for each access of an ioctl to memory of its caller's.
pub fn subtests(p: &mut Program) {
    let mut add = |name: &str, about: &str, body: fn()| {
        p.subtest(format!("held-{name}"), format!("{about} does not come"), body);
    };
    add("query", "the answer's room", || {
        query(sys::DRM_XE_DEVICE_QUERY_CONFIG, Held::Write(0));
    });
    add("query-regions", "the room for regions", || {
        query(sys::DRM_XE_DEVICE_QUERY_MEM_REGIONS, Held::Write(0));
    });
    add("query-cycles", "what clock to read", || {
        query(sys::DRM_XE_DEVICE_QUERY_ENGINE_CYCLES, Held::Read);
    });
    add("query-cycles-write", "the room for times", || {
        let engine = sys::DRM_XE_ENGINE_CLASS_COPY;
        query(sys::DRM_XE_DEVICE_QUERY_ENGINE_CYCLES, Held::Write(engine));
    });
    add("query-firmware", "what firmware to ask", || {
        query(sys::DRM_XE_DEVICE_QUERY_UC_FW_VERSION, Held::Read);
    });
    add("gem-create", "an extension", buffer_extensions);
    add("queue-engine", "a queue's engine", || queue(true));
    add("queue-extension", "a queue's extension", || queue(false));
    add("exec", "a job's sync", exec_syncs);
    add("bind", "an array of binds", bind_vector);
    add("bind-sync", "a bind's sync", bind_syncs);
    add("bind-fence", "a bind's fence", || bind_fence(Held::Read));
    add("bind-fence-write", "a bind's fence, for writing,", || bind_fence(Held::Write(0)));
    add("prefetch", "a page to be prefetched", prefetch);
    add("prefetch-destroyed", "a page for a VM that is destroyed", prefetch_of_destroyed);
    add("madvise", "where to tell what is retained", || advice(Held::Read));
    add("madvise-write", "where to tell what is retained, for writing,", || {
        advice(Held::Write(0));
    });
    add("attributes", "the room for attributes", attributes);
    add("property", "the room for faults", property);
    add("wait", "the word that is waited for", wait);
}
