// SPDX-License-Identifier: GPL-2.0

//! What a driver asks for: the parameters of finding and mapping a range.

use crate::pagemap::OwnerId;
use core::{ffi::c_void, ptr};
use kernel::page::PAGE_SIZE;
use kernel_ext::mm::hmm::HmmRequest;

/// What a device wants to do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it. Pages are faulted in as by a read of the CPU: no copy-on-write is broken and no
    /// file made dirty.
    Read,
    /// Write it, or read and write.
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
    /// What the device wants to do.
    pub access: Access,
    /// Chunks of up to this many bytes are used only if the CPU has all of their pages; 0 asks for
    /// no such check.
    pub check_pages_threshold: usize,
    /// New ranges may move to device memory, if their VMA can.
    pub devmem_possible: bool,
    /// Only device memory will do: system pages are an error, `EFAULT`.
    pub devmem_only: bool,
    /// Device memory of one provider and system memory may be mixed in a range. (Without this C
    /// refuses to mix allocations of one provider, too.)
    pub allow_mixed: bool,
    owner: Option<OwnerId>,
    fault_around: FaultAround,
}

/// How much a fault may populate where the CPU has few pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FaultAround {
    /// The largest chunk, in bytes, that needs no pages.
    pub(crate) limit: usize,
    /// Whose device-private pages count as there.
    owner: Option<OwnerId>,
}

impl FaultAround {
    /// Whose device-private pages count as there, as HMM wants it; null for nobody's.
    pub(crate) fn owner(&self) -> *mut c_void {
        as_ptr(self.owner)
    }

    /// Whether a range of `size` bytes must be populated already.
    pub(crate) fn is_exceeded_by(&self, size: usize) -> bool {
        size > self.limit.max(PAGE_SIZE)
    }
}

impl Ctx {
    /// Parameters for `access`, with everything else off.
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

    /// The same parameters, where a fault populates at most `limit` bytes, a chunk size, of memory that is
    /// mostly not populated: a larger range is used only if the CPU has at least half of its pages, as
    /// `access` needs them (a page that a write would have to copy is none), or if the CPU would populate
    /// it as a whole, by a huge page. Device-private pages of `owner` count like the CPU's.
    ///
    /// Without this a range may be populated as a whole whatever its size, as in C.
    pub const fn with_fault_around(self, limit: usize, owner: Option<OwnerId>) -> Self {
        Self {
            fault_around: FaultAround { limit, owner },
            ..self
        }
    }

    pub(crate) fn fault_around(&self) -> &FaultAround {
        &self.fault_around
    }

    /// The same parameters, where device-private pages of `owner` need not come back to system memory:
    /// [`Pagemap::owner`](crate::pagemap::Pagemap::owner), [`Member::owner`](crate::pagemap::Member::owner).
    pub const fn with_owner(self, owner: Option<OwnerId>) -> Self {
        Self { owner, ..self }
    }

    /// The owner of the device-private pages that need not come back to system memory, as HMM wants it; null says
    /// that all of them must.
    pub(crate) fn owner(&self) -> *mut c_void {
        as_ptr(self.owner)
    }
}

/// What HMM compares; null for no owner.
fn as_ptr(owner: Option<OwnerId>) -> *mut c_void {
    owner.map_or(ptr::null_mut(), OwnerId::as_ptr)
}
