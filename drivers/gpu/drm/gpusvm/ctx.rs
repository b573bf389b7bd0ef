// SPDX-License-Identifier: GPL-2.0

//! The parameters of finding and mapping a range.

use crate::pagemap::OwnerId;
use core::{ffi::c_void, ptr};
use kernel::page::PAGE_SIZE;
use kernel_ext::mm::hmm::HmmRequest;

/// The access that a device needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads. Pages are faulted in as by a read of the CPU: this breaks no copy-on-write
    /// and makes no file dirty.
    Read,
    /// The device writes, or reads and writes.
    Write,
}

impl From<Access> for HmmRequest {
    fn from(access: Access) -> Self {
        match access {
            Access::Read => HmmRequest::Read,
            Access::Write => HmmRequest::Write,
        }
    }
}

/// The parameters of an operation, `struct drm_gpusvm_ctx`.
#[derive(Clone, Copy, Debug)]
pub struct Ctx {
    /// The access that the device needs.
    pub access: Access,
    /// Chunks of up to this many bytes are used only if the CPU has mapped all of their pages; 0
    /// disables the check.
    pub check_pages_threshold: usize,
    /// New ranges may migrate to device memory, if their VMA allows it.
    pub devmem_possible: bool,
    /// All pages must be device memory: a page of system memory is an error, `EFAULT`.
    pub devmem_only: bool,
    /// A range may mix device memory of one provider and system memory. (Without this, C also
    /// refuses to mix allocations of one provider.)
    pub allow_mixed: bool,
    owner: Option<OwnerId>,
    fault_around: FaultAround,
}

/// The limit for populating memory of which the CPU has few pages, see [`Ctx::with_fault_around`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct FaultAround {
    /// The largest size, in bytes, of a chunk that may be populated without any page.
    pub(crate) limit: usize,
    /// The owner whose device-private pages count as populated.
    owner: Option<OwnerId>,
}

impl FaultAround {
    /// Returns the owner whose device-private pages count as populated, as HMM expects it; null for
    /// none.
    pub(crate) fn owner(&self) -> *mut c_void {
        as_ptr(self.owner)
    }

    /// Returns whether a range of `size` bytes is used only if it is populated already.
    pub(crate) fn is_exceeded_by(&self, size: usize) -> bool {
        size > self.limit.max(PAGE_SIZE)
    }
}

impl Ctx {
    /// Creates parameters for `access`, with everything else disabled.
    pub const fn new(access: Access) -> Self {
        Self {
            access,
            check_pages_threshold: 0,
            devmem_possible: false,
            devmem_only: false,
            allow_mixed: false,
            owner: None,
            fault_around: FaultAround {
                limit: usize::MAX,
                owner: None,
            },
        }
    }

    /// Returns these parameters with a limit for populating sparse memory: a fault populates at
    /// most `limit` bytes, a chunk size, of memory that is mostly not populated. A larger range is
    /// used only if the CPU has at least half of its pages with the permission that `access` needs
    /// (a page that a write would have to copy does not count), or if the CPU would populate the
    /// whole range by one huge page. Device-private pages of `owner` count like the CPU's.
    ///
    /// Without this a range of any size may be populated as a whole, as in C.
    pub const fn with_fault_around(self, limit: usize, owner: Option<OwnerId>) -> Self {
        Self {
            fault_around: FaultAround { limit, owner },
            ..self
        }
    }

    pub(crate) fn fault_around(&self) -> &FaultAround {
        &self.fault_around
    }

    /// Returns these parameters with the owner of the device-private pages that a fault leaves in
    /// device memory. See [`Pagemap::owner`](crate::pagemap::Pagemap::owner) and
    /// [`Member::owner`](crate::pagemap::Member::owner).
    pub const fn with_owner(self, owner: Option<OwnerId>) -> Self {
        Self { owner, ..self }
    }

    /// Returns the owner of the device-private pages that a fault leaves in device memory, as HMM
    /// expects it; null if all device-private pages must migrate back to system memory.
    pub(crate) fn owner(&self) -> *mut c_void {
        as_ptr(self.owner)
    }
}

/// Returns the pointer that HMM compares; null for no owner.
fn as_ptr(owner: Option<OwnerId>) -> *mut c_void {
    owner.map_or(ptr::null_mut(), OwnerId::as_ptr)
}
