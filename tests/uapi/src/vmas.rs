// SPDX-License-Identifier: GPL-2.0

//! The VMAs of a VM, as the kernel tells them.

use std::ops::Range;
use vxe_client::{stats::debugfs_directory, sys, AtomicAccess, Device, Vm};

/// What a program may say about a piece of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The descriptor of where it should live, or one of `DRM_XE_PREFERRED_LOC_*`.
    pub location: i32,
    /// Which pages move there: `DRM_XE_MIGRATE_*`.
    pub migration: u32,
    /// What atomics it must bear: `DRM_XE_ATOMIC_*`.
    pub atomic: u32,
    /// Its entry of the page attribute table.
    pub pat: u32,
}

impl Attributes {
    /// Those of what was bound with an entry of the page attribute table, before any advice.
    pub const fn bound_with(pat: u32) -> Self {
        Self {
            location: sys::DRM_XE_PREFERRED_LOC_DEFAULT_DEVICE as i32,
            migration: sys::DRM_XE_MIGRATE_ALL_PAGES,
            atomic: AtomicAccess::Undefined as u32,
            pat,
        }
    }
}

/// A VMA: its addresses, and their attributes.
#[derive(Clone, PartialEq, Eq)]
pub struct Vma {
    /// Its addresses.
    pub span: Range<u64>,
    /// Their attributes.
    pub attributes: Attributes,
}

impl std::fmt::Debug for Vma {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}-{:#x} {:?}", self.span.start, self.span.end, self.attributes)
    }
}

impl From<&sys::drm_xe_mem_range_attr> for Vma {
    fn from(entry: &sys::drm_xe_mem_range_attr) -> Self {
        Self {
            span: entry.start..entry.end,
            attributes: Attributes {
                location: entry.preferred_mem_loc.devmem_fd as i32,
                migration: entry.preferred_mem_loc.migration_policy,
                atomic: entry.atomic.val,
                pat: entry.pat_index.val,
            },
        }
    }
}

/// The VMAs of a VM that overlap `span`.
#[track_caller]
pub fn vmas(vm: &Vm, span: Range<u64>) -> Vec<Vma> {
    let entries = vm.memory_attributes(span.start, span.end - span.start).expect("the attributes");
    entries.iter().map(Vma::from).collect()
}

/// All VMAs of this process's VMs as debugfs has them, a line each, with what is behind them; none
/// where there is no such file.
pub fn backings(vm: &Vm) -> Vec<String> {
    backings_of(vm.device(), std::process::id())
}

/// The same of another process.
pub fn backings_of(device: &Device, pid: u32) -> Vec<String> {
    let Some(text) = debugfs_directory(device)
        .ok()
        .and_then(|directory| std::fs::read_to_string(directory.join("vms")).ok())
    else {
        return Vec::new();
    };
    backings_in(&text, &format!("vm of process {pid}"))
}

fn backings_in(text: &str, ours: &str) -> Vec<String> {
    let (mut in_ours, mut in_vmas) = (false, false);
    let mut lines = Vec::new();
    for line in text.lines() {
        if !line.starts_with(' ') {
            (in_ours, in_vmas) = (line == ours, false);
        } else if !line.starts_with("   ") {
            in_vmas = line == "  vmas:";
        } else if in_ours && in_vmas {
            lines.push(line.trim().to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmas_of_one_process_are_found() {
        let text = "vm of process 7\n  vmas:\n    a mirror\n  ranges:\n    r\n\
                    vm of process 77\n  maps on fault\n  vmas:\n    b bo+0x0\n    c mirror\n\
                    \x20 ranges:\n    busy\n";
        assert_eq!(backings_in(text, "vm of process 77"), ["b bo+0x0", "c mirror"]);
        assert_eq!(backings_in(text, "vm of process 7"), ["a mirror"]);
        assert!(backings_in(text, "vm of process 777").is_empty());
    }
}
