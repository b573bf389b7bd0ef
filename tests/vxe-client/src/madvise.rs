// SPDX-License-Identifier: GPL-2.0

//! Advice on memory of a VM: where it should live, what atomics it must bear.

use crate::{request, sys, Result, Vm};

/// What atomics may touch a piece of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AtomicAccess {
    /// The driver's default.
    Undefined = sys::DRM_XE_ATOMIC_UNDEFINED,
    /// The device's.
    Device = sys::DRM_XE_ATOMIC_DEVICE,
    /// The device's and the CPU's.
    Global = sys::DRM_XE_ATOMIC_GLOBAL,
    /// The CPU's only: the device's are errors.
    Cpu = sys::DRM_XE_ATOMIC_CPU,
}

/// Where memory should live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// In system memory.
    System,
    /// In the memory of the device that faults.
    Local,
    /// In a memory region of the device with this descriptor.
    Device {
        /// An open file of the device.
        fd: i32,
        /// Instance of the region.
        region: u16,
    },
}

/// Which pages move to where memory should live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Migrate {
    /// All.
    AllPages = sys::DRM_XE_MIGRATE_ALL_PAGES as u16,
    /// Those that are in system memory.
    OnlySystemPages = sys::DRM_XE_MIGRATE_ONLY_SYSTEM_PAGES as u16,
}

/// A piece of advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Where it should live.
    Preferred(Location, Migrate),
    /// What atomics there are.
    Atomic(AtomicAccess),
    /// The entry of the page attribute table.
    Pat(u32),
}

impl Advice {
    fn fill(self, args: &mut sys::drm_xe_madvise) {
        match self {
            Self::Preferred(location, migrate) => {
                args.type_ = sys::DRM_XE_MEM_RANGE_ATTR_PREFERRED_LOC;
                let (fd, region) = match location {
                    Location::System => (sys::DRM_XE_PREFERRED_LOC_DEFAULT_SYSTEM as u32, 0),
                    Location::Local => (sys::DRM_XE_PREFERRED_LOC_DEFAULT_DEVICE, 0),
                    Location::Device { fd, region } => (fd as u32, region),
                };
                args.__bindgen_anon_1.preferred_mem_loc =
                    sys::drm_xe_madvise__bindgen_ty_1__bindgen_ty_1 {
                        devmem_fd: fd,
                        migration_policy: migrate as u16,
                        region_instance: region,
                        reserved: 0,
                    };
            }
            Self::Atomic(access) => {
                args.type_ = sys::DRM_XE_MEM_RANGE_ATTR_ATOMIC;
                args.__bindgen_anon_1.atomic = sys::drm_xe_madvise__bindgen_ty_1__bindgen_ty_2 {
                    val: access as u32,
                    ..Default::default()
                };
            }
            Self::Pat(index) => {
                args.type_ = sys::DRM_XE_MEM_RANGE_ATTR_PAT;
                args.__bindgen_anon_1.pat_index = sys::drm_xe_madvise__bindgen_ty_1__bindgen_ty_3 {
                    val: index,
                    ..Default::default()
                };
            }
        }
    }
}

impl Vm {
    /// Advises on a range of addresses.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn madvise(&self, start: u64, length: u64, advice: Advice) -> Result<()> {
        let mut args =
            sys::drm_xe_madvise { vm_id: self.id(), start, range: length, ..Default::default() };
        advice.fill(&mut args);
        // SAFETY: advice changes where memory is, not what is in it.
        unsafe { self.device().call(&request::MADVISE, &mut args) }
    }

    /// Says whether the contents of the buffers in a range of addresses are needed; returns whether
    /// they are still there.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn set_needed(&self, start: u64, length: u64, needed: bool) -> Result<bool> {
        let mut retained = 0u32;
        let mut args = sys::drm_xe_madvise {
            vm_id: self.id(),
            start,
            range: length,
            type_: sys::DRM_XE_VMA_ATTR_PURGEABLE_STATE,
            ..Default::default()
        };
        args.__bindgen_anon_1.purge_state_val = sys::drm_xe_madvise__bindgen_ty_1__bindgen_ty_4 {
            val: if needed {
                sys::DRM_XE_VMA_PURGEABLE_STATE_WILLNEED
            } else {
                sys::DRM_XE_VMA_PURGEABLE_STATE_DONTNEED
            },
            retained_ptr: &raw mut retained as u64,
            ..Default::default()
        };
        // SAFETY: the kernel writes one word, which lives through the call; a buffer's contents
        // are nothing that Rust knows of.
        unsafe { self.device().call(&request::MADVISE, &mut args) }?;
        Ok(retained != 0)
    }

    /// The attributes of the VM's memory in a range of addresses.
    ///
    /// # Errors
    ///
    /// What the ioctl says; ENOSPC if the VM kept changing meanwhile.
    pub fn memory_attributes(
        &self,
        start: u64,
        length: u64,
    ) -> Result<Vec<sys::drm_xe_mem_range_attr>> {
        let mut last = None;
        for _ in 0..4 {
            let mut args = sys::drm_xe_vm_query_mem_range_attr {
                vm_id: self.id(),
                start,
                range: length,
                ..Default::default()
            };
            // SAFETY: without an array the kernel only counts.
            unsafe { self.device().call(&request::VM_QUERY_MEM_RANGE_ATTRS, &mut args) }?;
            let mut attributes =
                vec![sys::drm_xe_mem_range_attr::default(); args.num_mem_ranges as usize];
            if attributes.is_empty() {
                return Ok(attributes);
            }
            args.sizeof_mem_range_attr = size_of::<sys::drm_xe_mem_range_attr>() as u64;
            args.vector_of_mem_attr = attributes.as_mut_ptr() as u64;
            // SAFETY: the array has room for as many entries as it says.
            let result =
                unsafe { self.device().call(&request::VM_QUERY_MEM_RANGE_ATTRS, &mut args) };
            match result {
                Ok(()) => {
                    attributes.truncate(args.num_mem_ranges as usize);
                    return Ok(attributes);
                }
                Err(e) if e.errno() == libc::ENOSPC => last = Some(e),
                Err(e) => return Err(e),
            }
        }
        Err(last
            .unwrap_or(crate::Error::new(request::VM_QUERY_MEM_RANGE_ATTRS.name(), libc::ENOSPC)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_memory_is_minus_one() {
        let mut args = sys::drm_xe_madvise::default();
        Advice::Preferred(Location::System, Migrate::OnlySystemPages).fill(&mut args);
        // SAFETY: the field was just written.
        let location = unsafe { args.__bindgen_anon_1.preferred_mem_loc };
        assert_eq!(location.devmem_fd as i32, -1);
        assert_eq!(u32::from(location.migration_policy), sys::DRM_XE_MIGRATE_ONLY_SYSTEM_PAGES);
        assert_eq!(args.type_, sys::DRM_XE_MEM_RANGE_ATTR_PREFERRED_LOC);
    }
}
