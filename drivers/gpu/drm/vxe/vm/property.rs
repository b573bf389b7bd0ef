// SPDX-License-Identifier: GPL-2.0

//! VM_GET_PROPERTY: the faults of a VM that could not be serviced.
//!
//! Lock order: the list's lock is a leaf; memory is allocated under it.

use super::SPAN;
use crate::{
    check::ensure,
    driver::VA_BITS,
    fault::Fault,
    gpu::{
        Access,
        PAGE_SIZE, //
    },
    ioctl::Ioctl,
    uapi, //
};
use kernel::{
    prelude::*,
    sync::{
        new_mutex,
        Mutex, //
    }, //
};

/// How many faults a VM records: the first ones, as in xe.
const MAX: usize = 50;

/// The size of an entry, in bytes.
const ENTRY: usize = size_of::<uapi::xe_vm_fault>();

/// The faults of a VM that could not be serviced.
#[pin_data]
pub(crate) struct FailedFaults {
    #[pin]
    list: Mutex<KVec<uapi::xe_vm_fault>>,
}

impl FailedFaults {
    /// Creates an empty list.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- new_mutex!(KVec::new(), "vxe_failed_faults"),
        })
    }

    /// Allocates room for one more fault, unless the list is full. Errors are ignored. The memory
    /// is charged to the cgroup that the calling thread charges.
    pub(super) fn make_room(&self) {
        let mut list = self.list.lock();
        if list.len() < MAX {
            let _ = list.reserve(1, GFP_KERNEL_ACCOUNT);
        }
    }

    /// Records a fault and why it failed, if there is room.
    pub(crate) fn add(&self, fault: &Fault, error: Error) {
        let mut list = self.list.lock();
        if list.len() < MAX {
            // Without room the fault is not recorded: the list is for debugging only.
            let _ = list.push_within_capacity(entry(fault, error));
        }
    }
}

fn entry(fault: &Fault, error: Error) -> uapi::xe_vm_fault {
    let unused = u64::BITS - VA_BITS;
    let page = fault.addr & (SPAN.end - 1) & !(PAGE_SIZE - 1);
    let (access, kind) = match fault.access {
        Access::Read => (
            uapi::FAULT_ACCESS_TYPE_READ,
            uapi::FAULT_TYPE_NOT_PRESENT, //
        ),
        Access::Write if error == EPERM => {
            (uapi::FAULT_ACCESS_TYPE_WRITE, uapi::FAULT_TYPE_WRITE_ACCESS)
        }
        Access::Write => (uapi::FAULT_ACCESS_TYPE_WRITE, uapi::FAULT_TYPE_NOT_PRESENT),
        Access::Atomic if error == EACCES || error == EPERM => (
            uapi::FAULT_ACCESS_TYPE_ATOMIC,
            uapi::FAULT_TYPE_ATOMIC_ACCESS,
        ),
        Access::Atomic => (
            uapi::FAULT_ACCESS_TYPE_ATOMIC,
            uapi::FAULT_TYPE_NOT_PRESENT, //
        ),
    };
    uapi::xe_vm_fault {
        // CAST: To a signed type, for an arithmetic shift: addresses are returned in canonical
        // form.
        address: ((page << unused) as i64 >> unused) as u64,
        // CAST: The page size and the values of the uAPI fit.
        address_precision: PAGE_SIZE as u32,
        access_type: access as u8,
        fault_type: kind as u8,
        fault_level: uapi::FAULT_LEVEL_PTE as u8,
        ..Default::default()
    }
}

/// VM_GET_PROPERTY.
///
/// With size 0 it returns the size of all faults. Fails as xe does: with `EINVAL`, also for a size
/// larger than all faults, `ENOENT` for no such VM, `EFAULT`, `ENOMEM`.
pub(crate) fn ioctl(ioctl: &mut Ioctl<'_>, args: &mut uapi::drm_xe_vm_get_property) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    ensure!(dev, args.extensions == 0, EINVAL);
    ensure!(dev, args.pad == 0 && args.reserved == [0; 3], EINVAL);
    let vm = file.inner().vm(args.vm_id)?;
    let faults = args.property == uapi::DRM_XE_VM_GET_PROPERTY_FAULTS;
    ensure!(dev, faults, EINVAL);

    let mut copy = KVec::new();
    copy.extend_from_slice(&vm.failed.list.lock(), GFP_KERNEL_ACCOUNT)?;
    if args.size == 0 {
        // CAST: There are at most `MAX` entries.
        args.size = (copy.len() * ENTRY) as u32;
        return Ok(0);
    }
    // CAST: Widens.
    let size = args.size as usize;
    ensure!(dev, size % ENTRY == 0, EINVAL);
    let wanted = copy.get(..size / ENTRY).ok_or(EINVAL)?;
    let mut writer = ioctl.writer(args.data(), size);
    for fault in wanted {
        writer.write(fault)?;
    }
    Ok(0)
}
