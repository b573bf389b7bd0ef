// SPDX-License-Identifier: GPL-2.0

//! Each part of a call that can fail does so once: slab allocations, page allocations, copies from and to
//! userspace, DMA mappings. The call then fails with it and changes nothing, and the same call succeeds
//! afterwards.
//!
//! That no memory leaks is for kmemleak to say, afterwards.

mod binds;
mod calls;
mod objects;
mod workers;

use vxe_client::{sys::drm_xe_vm_bind, Bind, Device, Error, Request, Result, Vm};
use vxe_uapi::{
    failure::{self, Kind, Met},
    gpu::ALL,
    vmas::{backings, vmas, Vma},
    Program,
};

/// What a call on a VM may change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    vmas: Vec<Vma>,
    backings: Vec<String>,
}

impl State {
    #[track_caller]
    fn of(vm: &Vm) -> Self {
        Self { vmas: vmas(vm, 0..ALL), backings: backings(vm) }
    }
}

/// Calls an ioctl whose argument is all there.
fn call<T>(device: &Device, request: &Request<T>, argument: &mut T) -> Result<()> {
    // SAFETY: what it points to is the test's, and stays; so does what a job is to access.
    unsafe { device.call(request, argument) }
}

/// The argument of VM_BIND for one bind without fences.
fn one_bind(vm: &Vm, bind: &Bind) -> drm_xe_vm_bind {
    let mut args = drm_xe_vm_bind { vm_id: vm.id(), num_binds: 1, ..Default::default() };
    args.__bindgen_anon_1.bind = *bind.as_raw();
    args
}

/// What may come of a call a part of which failed: the error of that, or one of `others`.
#[track_caller]
fn check_errno(kind: Kind, error: Option<Error>, others: &[i32]) {
    if let Some(e) = error {
        let known = e.errno() == kind.errno() || others.contains(&e.errno());
        assert!(known, "after a failure of the kind {}: {e}", kind.name());
    }
}

/// A call must have failed so many times at the least for want of slab memory, and once for a copy: each
/// has an argument that is copied. Few need a page.
#[track_caller]
fn enough(kind: Kind, met: Met, slab: u32) {
    println!("{met}");
    let least = match kind {
        Kind::Slab => slab,
        Kind::Page => 0,
        Kind::Copy => 1,
    };
    assert!(met.errors >= least, "only {met}");
}

/// A name, what it is about, and what has each failure of a kind come.
type Call = (&'static str, &'static str, fn(Kind));

/// A subtest for each kind of failure.
fn of_each_kind(p: &mut Program, name: &str, about: &str, body: fn(Kind)) {
    for kind in Kind::ALL {
        p.subtest(format!("{name}-{}", kind.name()), about, move || body(kind));
    }
}

fn main() -> std::process::ExitCode {
    failure::learn();
    let mut p = Program::new(
        "vxe_failures",
        "Each part of a call fails once: nothing changes, and the call can be made again.",
    );
    let calls: [Call; 23] = [
        ("bind-buffer", "a buffer in several holes", |kind| binds::bind_buffer(kind, false)),
        ("bind-buffer-immediate", "that is mapped at once", |kind| binds::bind_buffer(kind, true)),
        ("bind-buffer-over-buffer", "a buffer over another", binds::buffer_over_buffer),
        ("bind-mirror", "a mirror over a buffer", binds::bind_mirror),
        ("unmap-page", "a page of a buffer", binds::unmap_page),
        ("unmap-mirror", "a page of a mirror", binds::unmap_mirror),
        ("unmap-all", "UNMAP_ALL of a buffer", binds::unmap_all),
        ("bind-array", "all of that in one call", binds::array),
        ("bind-first", "a buffer that has no pages yet", binds::first_bind),
        ("madvise", "advice on mirrors and a buffer", binds::madvise),
        ("prefetch", "memory to the device", binds::prefetch),
        ("vm-create", "a VM", objects::vm_create),
        ("vm-destroy", "the end of a VM", objects::vm_destroy),
        ("exec-queue-create", "a queue", objects::queue_create),
        ("exec-queue-destroy", "the end of a queue", objects::queue_destroy),
        ("gem-create", "a buffer", |kind| objects::gem_create(kind, false)),
        ("gem-create-vram", "a buffer in the device's memory", |kind| {
            objects::gem_create(kind, true);
        }),
        ("gem-close", "the end of a handle", objects::gem_close),
        ("exec", "a job", calls::exec),
        ("wait-user-fence", "a fence that has signalled", calls::wait_user_fence),
        ("query", "what a device says of itself", calls::query),
        ("query-attributes", "what is advised", calls::query_attributes),
        ("properties", "of queues, VMs and buffers", calls::properties),
    ];
    for (name, about, body) in calls {
        of_each_kind(&mut p, name, about, body);
    }
    p.subtest("fault-slab", "the service of a fault", || workers::fault(Kind::Slab));
    p.subtest("fault-page", "the service of a fault", || workers::fault(Kind::Page));
    p.subtest("bind-fence-copy", "the fence of a bind cannot be written", binds::fence);
    for (name, value) in workers::MAPPINGS {
        let short = name.trim_start_matches("kext_dma_").replace('_', "-");
        p.subtest(format!("fault-dma-{short}"), "a page cannot be mapped", move || {
            workers::dma(name, value, false);
        });
        p.subtest(format!("prefetch-dma-{short}"), "a page cannot be mapped", move || {
            workers::dma(name, value, true);
        });
    }
    p.main()
}
