// SPDX-License-Identifier: GPL-2.0

//! What the kernel's memory management asks of device-private pages: that a CPU's fault brings them
//! back, and what they carry.
//!
//! C: `drm_pagemap_migrate_to_ram()`, `drm_pagemap_folio_free()`, `drm_pagemap_folio_split()`.

use super::{
    to_ram::{Outcome, ToRam},
    zdd::Zdd, //
};
use core::{ops::Range, ptr::NonNull};
use kernel::{
    bindings::{self, folio, vm_fault, vm_fault_t},
    mm::virt::VmaRef,
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
    time::msecs_to_jiffies, //
};
use kernel_ext::{
    bindings as ext,
    mm::{
        folio::MemPolicy,
        memremap,
        migrate::{
            Huge,
            Migration,
            Select, //
        },
        zone_device, //
    },
    sched, //
};

/// How long a fault sleeps at most before it looks again, in milliseconds.
const WAIT_MS: u32 = 20;

/// How often a fault is tried, before it is left to the CPU to fault again: a huge page may have to
/// be split first.
const ATTEMPTS: u32 = 2;

/// The operations of all device-private memory. C: `drm_pagemap_pagemap_ops_get()`.
pub(crate) static OPS: memremap::Ops = memremap::Ops {
    folio_free: Some(folio_free),
    migrate_to_ram: Some(migrate_to_ram),
    folio_split: Some(folio_split),
    ..pin_init::zeroed()
};

/// The last reference to a folio is gone. Any context but interrupts.
///
/// # Safety
///
/// To be called by the kernel.
unsafe extern "C" fn folio_free(folio: *mut folio) {
    if let Some(page) = NonNull::new(folio.cast()) {
        // SAFETY: The folio is free, and carries a reference, as all that are of pagemaps with these
        // operations.
        unsafe {
            ext::folio_forget_mlock(folio);
            drop(Zdd::take(page));
        }
    }
}

/// A folio is split: `new` is a part of it, or null at the end.
///
/// # Safety
///
/// To be called by the kernel.
unsafe extern "C" fn folio_split(old: *mut folio, new: *mut folio) {
    let (Some(old_page), Some(new_page)) = (NonNull::new(old.cast()), NonNull::new(new.cast()))
    else {
        return;
    };
    // SAFETY: Both are locked folios of device-private memory; the first carries a reference.
    unsafe {
        ext::folio_share_pgmap(new, old);
        Zdd::share(old_page, new_page);
    }
}

/// A CPU has touched a page that is on the device.
///
/// # Safety
///
/// To be called by the kernel.
unsafe extern "C" fn migrate_to_ram(vmf: *mut vm_fault) -> vm_fault_t {
    // SAFETY: The kernel passes a valid fault, with the mmap lock held, and the page locked and
    // referenced.
    let result = unsafe { fault(&*vmf) };
    match result {
        Ok(reason) => reason,
        Err(e) if e == ENOMEM => bindings::vm_fault_reason_VM_FAULT_OOM,
        Err(_) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
    }
}

/// # Safety
///
/// As for [`migrate_to_ram`], from where it is called.
unsafe fn fault(vmf: &vm_fault) -> Result<vm_fault_t> {
    // SAFETY: These are what the fault is about, and stay as they are.
    let (vma, addr, page) = unsafe {
        let about = &vmf.__bindgen_anon_1;
        (
            VmaRef::from_raw(about.vma),
            about.address,
            NonNull::new(vmf.page).ok_or(EINVAL)?,
        )
    };
    // SAFETY: The page is device-private, and the caller's reference keeps it.
    let zdd = unsafe { Zdd::of(page) };
    let allocation = zdd.allocation();
    let left = allocation.timeslice_left();
    if left != 0 && may_sleep(vmf) {
        // SAFETY: The locks are the kernel's, which is told by the result.
        unsafe { wait(vma, page, left) };
        return Ok(bindings::vm_fault_reason_VM_FAULT_RETRY);
    }

    let span = span(vma, addr, allocation.span_size());
    let wanted = ToRam {
        allocation,
        needed: Some((addr - span.start) >> PAGE_SHIFT),
        memory: |index| MemPolicy::Vma(vma, span.start + (index << PAGE_SHIFT)),
    };
    let collect = |span, huge| {
        let owner = zdd.pagemap().owner_ptr();
        // SAFETY: The mmap lock is held; the page is locked and referenced by the caller.
        unsafe { Migration::collect(vma, span, Select::DevicePrivate, huge, owner, Some(page)) }
    };
    // SAFETY: The page is referenced by the caller.
    if !unsafe { zone_device::is_first(page) } {
        // The page is one of a huge folio that is mapped by single entries here, and split when it is
        // collected. Where that is done for another of its pages first, 7.3's `migrate_vma_collect_pmd()`
        // goes on with what was the fault's folio before: it would migrate the first page, whose lock it
        // has let go. So it is done for this page alone, which is passed by then.
        let addr = addr - addr % PAGE_SIZE;
        drop(collect(addr..addr + PAGE_SIZE, Huge::Split)?);
        // SAFETY: As above.
        if unsafe { zone_device::order_of(page) } != 0 {
            // Somebody holds it. The CPU faults again.
            return Ok(0);
        }
    }
    for _ in 0..ATTEMPTS {
        let mut migration = collect(span.clone(), Huge::Whole)?;
        if wanted.migrate_to_ram(&mut migration)? == Outcome::Moved {
            break;
        }
    }
    Ok(0)
}

/// The span of `size` bytes around an address, aligned, as far as it is in the VMA. (A C driver has
/// it that its sizes are powers of two; of ours, the next larger is taken.)
fn span(vma: &VmaRef, addr: usize, size: usize) -> Range<usize> {
    let size = size.max(PAGE_SIZE).next_power_of_two();
    let start = addr - addr % size;
    let end = start.saturating_add(size);
    start.max(vma.start())..end.min(vma.end())
}

/// Whether the fault may let the mmap lock go.
fn may_sleep(vmf: &vm_fault) -> bool {
    let flags = vmf.flags;
    flags & bindings::fault_flag_FAULT_FLAG_ALLOW_RETRY != 0
        && flags & bindings::fault_flag_FAULT_FLAG_RETRY_NOWAIT == 0
}

/// Sleeps until the time of the device is over, for a while, or until the thread is killed, without
/// the mmap lock and the page's, and takes the latter again.
///
/// # Safety
///
/// The caller must hold both locks and a reference to the page, and tell the kernel that the mmap
/// lock is gone.
unsafe fn wait(vma: &VmaRef, page: NonNull<bindings::page>, jiffies: usize) {
    // SAFETY: The VMA is valid, as is its process, which the faulting thread uses.
    unsafe {
        let mm = (*vma.as_ptr()).vm_mm;
        zone_device::unlock(page);
        ext::mmap_read_unlock(mm);
    }
    sched::sleep_killable(jiffies.min(msecs_to_jiffies(WAIT_MS)));
    // SAFETY: The reference keeps the page, whose lock was let go.
    unsafe { zone_device::lock(page) };
}
