// SPDX-License-Identifier: GPL-2.0

//! The `dev_pagemap_ops` of device-private pages: CPU faults, and freeing and splitting of folios.
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

/// The longest sleep of a fault before it returns to be retried, in milliseconds.
const WAIT_MS: u32 = 20;

/// How often a fault tries to migrate before it lets the CPU fault again: a huge page may have to be split first.
const ATTEMPTS: u32 = 2;

/// The operations of all device-private memory of the core. C: `drm_pagemap_pagemap_ops_get()`.
pub(crate) static OPS: memremap::Ops = memremap::Ops {
    folio_free: Some(folio_free),
    migrate_to_ram: Some(migrate_to_ram),
    folio_split: Some(folio_split),
    ..pin_init::zeroed()
};

/// Called when the last reference to a folio is dropped. Any context but interrupts.
///
/// # Safety
///
/// Called by the kernel only.
unsafe extern "C" fn folio_free(folio: *mut folio) {
    if let Some(page) = NonNull::new(folio.cast()) {
        // SAFETY: The folio is free. All folios of pagemaps with these operations own a reference to a `Zdd`.
        unsafe {
            ext::folio_forget_mlock(folio);
            drop(Zdd::take(page));
        }
    }
}

/// Called when a folio is split: `new` is a part of it, or null at the end.
///
/// # Safety
///
/// Called by the kernel only.
unsafe extern "C" fn folio_split(old: *mut folio, new: *mut folio) {
    let (Some(old_page), Some(new_page)) = (NonNull::new(old.cast()), NonNull::new(new.cast()))
    else {
        return;
    };
    // SAFETY: Both are locked folios of device-private memory, and the first one owns a reference to a `Zdd`.
    unsafe {
        ext::folio_share_pgmap(new, old);
        Zdd::share(old_page, new_page);
    }
}

/// Called when a CPU accesses a page that is on the device.
///
/// # Safety
///
/// Called by the kernel only.
unsafe extern "C" fn migrate_to_ram(vmf: *mut vm_fault) -> vm_fault_t {
    // SAFETY: The kernel passes a valid fault. It holds the mmap lock, the page lock, and a reference to the page.
    let result = unsafe { fault(&*vmf) };
    match result {
        Ok(reason) => reason,
        Err(e) if e == ENOMEM => bindings::vm_fault_reason_VM_FAULT_OOM,
        Err(_) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
    }
}

/// Serves a CPU fault.
///
/// # Safety
///
/// As for [`migrate_to_ram`], which calls this.
unsafe fn fault(vmf: &vm_fault) -> Result<vm_fault_t> {
    // SAFETY: These fields of the fault are valid and do not change.
    let (vma, addr, page) = unsafe {
        let info = &vmf.__bindgen_anon_1;
        (
            VmaRef::from_raw(info.vma),
            info.address,
            NonNull::new(vmf.page).ok_or(EINVAL)?,
        )
    };
    // SAFETY: The page is device-private, and the caller holds a reference to it.
    let zdd = unsafe { Zdd::of(page) };
    let devmem = zdd.devmem();
    let left = devmem.timeslice_left();
    if left != 0 && may_sleep(vmf) {
        // SAFETY: The caller holds both locks and the reference. `VM_FAULT_RETRY` says that the mmap lock was dropped.
        unsafe { wait(vma, page, left) };
        return Ok(bindings::vm_fault_reason_VM_FAULT_RETRY);
    }

    let span = span(vma, addr, devmem.span_size());
    let to_ram = ToRam {
        devmem,
        needed: Some((addr - span.start) >> PAGE_SHIFT),
        memory: |index| MemPolicy::Vma(vma, span.start + (index << PAGE_SHIFT)),
    };
    let collect = |span, huge| {
        let owner = zdd.pagemap().owner_ptr();
        // SAFETY: The mmap lock is held. The caller holds the page lock and a reference to the page.
        unsafe { Migration::collect(vma, span, Select::DevicePrivate, huge, owner, Some(page)) }
    };
    // SAFETY: The caller holds a reference to the page.
    if !unsafe { zone_device::is_first(page) } {
        // The page belongs to a huge folio that is mapped by PTEs here. Collecting it splits the folio. If another of
        // its pages is collected first, 7.3's `migrate_vma_collect_pmd()` continues with the head page of the fault's
        // former folio, which it has unlocked: it would migrate that page. So first collect this page alone, which then
        // is the head of its own folio.
        let addr = addr - addr % PAGE_SIZE;
        drop(collect(addr..addr + PAGE_SIZE, Huge::Split)?);
        // SAFETY: The caller holds a reference to the page.
        if unsafe { zone_device::order_of(page) } != 0 {
            // Another user holds a reference to the folio. The CPU faults again.
            return Ok(0);
        }
    }
    for _ in 0..ATTEMPTS {
        let mut migration = collect(span.clone(), Huge::Whole)?;
        if to_ram.migrate_to_ram(&mut migration)? == Outcome::Moved {
            break;
        }
    }
    Ok(0)
}

/// Returns the aligned span of `size` bytes around an address, as far as it is in the VMA. C drivers allocate powers of
/// two only; other sizes are rounded up to one.
fn span(vma: &VmaRef, addr: usize, size: usize) -> Range<usize> {
    let size = size.max(PAGE_SIZE).next_power_of_two();
    let start = addr - addr % size;
    let end = start.saturating_add(size);
    start.max(vma.start())..end.min(vma.end())
}

/// Returns whether the fault may drop the mmap lock.
fn may_sleep(vmf: &vm_fault) -> bool {
    let flags = vmf.flags;
    flags & bindings::fault_flag_FAULT_FLAG_ALLOW_RETRY != 0
        && flags & bindings::fault_flag_FAULT_FLAG_RETRY_NOWAIT == 0
}

/// Sleeps until the timeslice ends, at most [`WAIT_MS`], or until the thread is killed. Drops the mmap lock; drops the
/// page lock while it sleeps, and takes it again.
///
/// # Safety
///
/// The caller must hold both locks and a reference to the page, and report to the kernel that the mmap lock was
/// dropped.
unsafe fn wait(vma: &VmaRef, page: NonNull<bindings::page>, jiffies: usize) {
    // SAFETY: The VMA is valid, and the faulting thread uses its mm.
    unsafe {
        let mm = (*vma.as_ptr()).vm_mm;
        zone_device::unlock(page);
        ext::mmap_read_unlock(mm);
    }
    sched::sleep_killable(jiffies.min(msecs_to_jiffies(WAIT_MS)));
    // SAFETY: The caller's reference keeps the page. This thread has unlocked it.
    unsafe { zone_device::lock(page) };
}
