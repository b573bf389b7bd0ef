// SPDX-License-Identifier: GPL-2.0

//! VM_QUERY_MEM_RANGE_ATTRS: the memory attributes of a range of addresses, one entry for each VMA.

use super::{
    account,
    vma::{
        Span,
        Vma, //
    },
    Vm,
    SPAN, //
};
use crate::{
    check::ensure,
    ioctl::Ioctl,
    uapi, //
};
use kernel::prelude::*;
use kernel_ext::sched;

/// The size of an entry, in bytes.
const ENTRY: u64 = size_of::<uapi::drm_xe_mem_range_attr>() as u64;

/// VM_QUERY_MEM_RANGE_ATTRS.
///
/// With no room for entries it returns their number. Fails as xe does: with `EINVAL`, `ENOSPC` if
/// there are more entries than room, `EFAULT`, `EINTR` for a killed process, `ENOBUFS`, `ENOMEM`.
pub(crate) fn ioctl(
    ioctl: &mut Ioctl<'_>,
    args: &mut uapi::drm_xe_vm_query_mem_range_attr,
) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    let (room, vector) = (args.num_mem_ranges, args.vector_of_mem_attr);
    ensure!(dev, args.extensions == 0, EINVAL);
    ensure!(dev, args.reserved == [0; 2], EINVAL);
    let size = if room == 0 { 0 } else { ENTRY };
    ensure!(dev, args.sizeof_mem_range_attr == size, EINVAL);
    ensure!(dev, (room == 0) == (vector == 0), EINVAL);
    let end = args.start.checked_add(args.range).ok_or(EINVAL)?;
    let span = args.start..end.min(SPAN.end);
    let vm = file.inner().vm(args.vm_id).map_err(|_| EINVAL)?;

    if room == 0 {
        let mut count = 0u32;
        for _ in vm.map.lock_killable()?.overlapping(span) {
            sched::check_killed()?;
            count = count.checked_add(1).ok_or(EOVERFLOW)?;
        }
        args.num_mem_ranges = count;
        args.sizeof_mem_range_attr = ENTRY;
        return Ok(0);
    }
    // CAST: Widens.
    let entries = vm.attributes(span, room as usize)?;
    let size = entries.len() * size_of::<uapi::drm_xe_mem_range_attr>();
    let mut writer = ioctl.writer(vector, size);
    for entry in &entries {
        writer.write(entry)?;
    }
    // CAST: At most `room`.
    args.num_mem_ranges = entries.len() as u32;
    Ok(0)
}

impl Vm {
    /// Returns the entries of the VMAs that overlap `span`. Fails with `ENOSPC` if there are more
    /// than `room`, with `EINTR` for a killed caller, and, as xe does, with `ENOBUFS` for lack of
    /// memory if `room` is more than 1, else `ENOMEM`.
    fn attributes(&self, span: Span, room: usize) -> Result<KVVec<uapi::drm_xe_mem_range_attr>> {
        let mut entries = KVVec::new();
        for vma in self.map.lock_killable()?.overlapping(span) {
            sched::check_killed()?;
            if entries.len() == room {
                return Err(ENOSPC);
            }
            // As in xe, the lack of memory for an array has its own error.
            let pushed = entries.push(entry(vma), account());
            pushed.map_err(|_| if room > 1 { ENOBUFS } else { ENOMEM })?;
        }
        Ok(entries)
    }
}

fn entry(vma: &Vma) -> uapi::drm_xe_mem_range_attr {
    let attributes = &vma.attributes;
    let mut entry = uapi::drm_xe_mem_range_attr {
        start: vma.span.start,
        end: vma.span.end,
        ..Default::default()
    };
    // CAST: The uAPI stores the signed descriptor in an unsigned field.
    entry.preferred_mem_loc.devmem_fd = attributes.location.devmem_fd() as u32;
    entry.preferred_mem_loc.migration_policy = attributes.policy.get();
    entry.atomic.val = attributes.atomics.get();
    entry.pat_index.val = attributes.pat.get();
    entry
}
