// SPDX-License-Identifier: GPL-2.0

//! The checked operations of a VM_BIND.
//!
//! An [`Op`] is valid by itself: its flags are consistent, and its addresses are pages of the VM.
//! [`bind`](super::bind) makes the checks that depend on the state of the VM.

use super::{
    attributes::PatIndex,
    userptr::VmUserptr,
    vma::Span,
    Mode,
    Vm,
    SPAN, //
};
use crate::{
    bo::{
        self,
        Bo,
        BoData,
        Payer, //
    },
    check::ensure,
    driver::{
        Device,
        DrmFile,
        RegisteredDevice, //
    },
    memory::Policy,
    svm::migrate::Destination,
    uapi, //
};
use kernel::{
    drm::gem::BaseObject,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};

/// The accepted flags, including those that have no effect here.
const FLAGS: u32 = uapi::DRM_XE_VM_BIND_FLAG_READONLY
    | uapi::DRM_XE_VM_BIND_FLAG_IMMEDIATE
    | uapi::DRM_XE_VM_BIND_FLAG_NULL
    | uapi::DRM_XE_VM_BIND_FLAG_DUMPABLE
    | uapi::DRM_XE_VM_BIND_FLAG_CHECK_PXP
    | uapi::DRM_XE_VM_BIND_FLAG_CPU_ADDR_MIRROR
    | uapi::DRM_XE_VM_BIND_FLAG_MADVISE_AUTORESET
    | uapi::DRM_XE_VM_BIND_FLAG_DECOMPRESS;

/// The region number that stands for the advised location.
// CAST: -1, in an unsigned field.
const ADVISED: u32 = uapi::DRM_XE_CONSULT_MEM_ADVISE_PREF_LOC as u32;

/// A buffer by the GEM handle that userspace passed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GemHandle(u32);

/// How operations name the memory that they map.
pub(crate) trait Names {
    /// A buffer.
    type Buffer;
    /// Memory of the process.
    type Userptr;
}

/// As userspace does: by GEM handle and by address.
pub(crate) struct ByNumber;

impl Names for ByNumber {
    type Buffer = GemHandle;
    type Userptr = u64;
}

/// By reference, once looked up.
pub(crate) struct ByReference;

impl Names for ByReference {
    type Buffer = ARef<Bo>;
    type Userptr = Arc<VmUserptr>;
}

/// An operation.
pub(crate) enum Op<N: Names> {
    /// Mirror the process.
    Mirror {
        /// The addresses.
        span: Span,
        /// The attributes of the mapping.
        params: MapParams,
        /// Reset attributes to their defaults where the CPU unmaps.
        autoreset: bool,
    },
    /// Map a buffer.
    Buffer {
        /// The addresses.
        span: Span,
        /// The attributes of the mapping.
        params: MapParams,
        /// The buffer.
        bo: N::Buffer,
        /// The offset in the buffer, in bytes.
        offset: u64,
        /// Write the page table in this call.
        immediate: bool,
    },
    /// Map memory of the process.
    Userptr {
        /// The addresses.
        span: Span,
        /// The attributes of the mapping.
        params: MapParams,
        /// The memory.
        userptr: N::Userptr,
        /// Write the page table in this call.
        immediate: bool,
    },
    /// Map no memory.
    Null {
        /// The addresses.
        span: Span,
        /// The attributes of the mapping.
        params: MapParams,
    },
    /// Remove all mappings.
    Unmap {
        /// The addresses.
        span: Span,
    },
    /// Remove all mappings of a buffer.
    UnmapAll {
        /// The buffer.
        bo: N::Buffer,
        /// The caching. It has no effect, but is checked as for a mapping.
        pat: PatIndex,
    },
    /// Map pages before the GPU accesses them.
    Prefetch {
        /// The addresses.
        span: Span,
        /// Where the pages migrate.
        to: Destination,
    },
}

/// The attributes of a mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapParams {
    /// The caching.
    pub(crate) pat: PatIndex,
    /// The GPU may not write.
    pub(crate) read_only: bool,
}

impl Op<ByNumber> {
    /// Checks an operation for a VM of this mode.
    ///
    /// Fails with `EINVAL` as xe does, and for fields that must be zero. Fails with `EOPNOTSUPP`
    /// for decompression.
    pub(crate) fn new(dev: &Device, raw: &uapi::drm_xe_vm_bind_op, mode: Mode) -> Result<Self> {
        let has = |flag| raw.flags & flag != 0;
        let mirror = has(uapi::DRM_XE_VM_BIND_FLAG_CPU_ADDR_MIRROR);
        let null = has(uapi::DRM_XE_VM_BIND_FLAG_NULL);
        let decompress = has(uapi::DRM_XE_VM_BIND_FLAG_DECOMPRESS);
        let autoreset = has(uapi::DRM_XE_VM_BIND_FLAG_MADVISE_AUTORESET);
        let (obj, offset) = (raw.obj, raw.obj_offset());
        let region = raw.prefetch_mem_region_instance;

        ensure!(dev, raw.extensions == 0, EINVAL);
        ensure!(dev, raw.pad == 0 && raw.pad2 == 0, EINVAL);
        ensure!(dev, raw.reserved == [0; 3], EINVAL);
        ensure!(dev, !mirror || mode == Mode::OnFault, EINVAL);
        let pat = PatIndex::new(dev, raw.pat_index.into())?;
        ensure!(dev, raw.op <= uapi::DRM_XE_VM_BIND_OP_PREFETCH, EINVAL);
        ensure!(dev, raw.flags & !FLAGS == 0, EINVAL);

        let is_map = raw.op == uapi::DRM_XE_VM_BIND_OP_MAP;
        ensure!(dev, !(null && mirror), EINVAL);
        ensure!(dev, is_map || !(mirror || null || decompress), EINVAL);
        ensure!(dev, !(mirror || null) || (obj == 0 && offset == 0), EINVAL);
        ensure!(dev, !decompress || !pat.is_compressed(), EINVAL);
        ensure!(dev, !autoreset || mirror, EINVAL);
        let is_prefetch = raw.op == uapi::DRM_XE_VM_BIND_OP_PREFETCH;
        ensure!(dev, region == 0 || is_prefetch, EINVAL);
        ensure!(
            dev,
            region == ADVISED || 1u32.checked_shl(region).unwrap_or(0) & dev.regions.mask() != 0,
            EINVAL
        );
        ensure!(dev, offset % PAGE_SIZE as u64 == 0, EINVAL);

        let params = MapParams {
            pat,
            read_only: has(uapi::DRM_XE_VM_BIND_FLAG_READONLY),
        };
        let span = || Self::span(dev, raw);
        Ok(match raw.op {
            uapi::DRM_XE_VM_BIND_OP_MAP if mirror => Op::Mirror {
                span: span()?,
                params,
                autoreset,
            },
            uapi::DRM_XE_VM_BIND_OP_MAP => {
                let span = span()?;
                ensure!(dev, obj != 0 || null, EINVAL);
                ensure!(dev, !decompress, EOPNOTSUPP);
                if null {
                    return Ok(Op::Null { span, params });
                }
                Op::Buffer {
                    span,
                    params,
                    bo: GemHandle(obj),
                    offset,
                    immediate: has(uapi::DRM_XE_VM_BIND_FLAG_IMMEDIATE),
                }
            }
            uapi::DRM_XE_VM_BIND_OP_UNMAP => {
                ensure!(dev, obj == 0, EINVAL);
                Op::Unmap { span: span()? }
            }
            uapi::DRM_XE_VM_BIND_OP_MAP_USERPTR => {
                ensure!(dev, obj == 0, EINVAL);
                ensure!(dev, pat.is_coherent() && !pat.is_compressed(), EINVAL);
                Op::Userptr {
                    span: span()?,
                    params,
                    userptr: offset,
                    immediate: has(uapi::DRM_XE_VM_BIND_FLAG_IMMEDIATE),
                }
            }
            uapi::DRM_XE_VM_BIND_OP_UNMAP_ALL => {
                ensure!(dev, obj != 0, EINVAL);
                ensure!(dev, raw.addr == 0 && raw.range == 0, EINVAL);
                Op::UnmapAll {
                    bo: GemHandle(obj),
                    pat,
                }
            }
            _ => {
                ensure!(dev, obj == 0, EINVAL);
                Op::Prefetch {
                    span: span()?,
                    to: match region {
                        ADVISED => Destination::Preferred,
                        0 => Destination::System,
                        _ => Destination::Own,
                    },
                }
            }
        })
    }

    /// Checks the addresses of an operation. Fails with `EINVAL` unless they are pages of the VM.
    fn span(dev: &Device, raw: &uapi::drm_xe_vm_bind_op) -> Result<Span> {
        let addr = raw.addr;
        ensure!(dev, addr % PAGE_SIZE as u64 == 0, EINVAL);
        ensure!(dev, raw.range % PAGE_SIZE as u64 == 0, EINVAL);
        ensure!(dev, raw.range != 0, EINVAL);
        let end = addr.checked_add(raw.range).ok_or(EINVAL)?;
        ensure!(dev, end <= SPAN.end, EINVAL);
        Ok(addr..end)
    }

    /// Looks up the buffer, and allocates its pages if the operation maps it; or gets the pages of
    /// the process. What is mapped at once is brought to where the GPU may use it, by `policy`.
    /// Sleeps.
    ///
    /// Fails with `ENOENT` if there is no such buffer, `EINVAL` if the operation goes beyond its
    /// end, the buffer is private to another VM, or the caching does not suit it, as
    /// [`Vm::pin_userptr`] does, with `EINTR` for a killed caller, and `ENOMEM`.
    pub(crate) fn resolve(
        self,
        dev: &Device,
        file: &DrmFile,
        vm: &Arc<Vm>,
        policy: &Policy<'_>,
    ) -> Result<Op<ByReference>> {
        let lookup = |handle: GemHandle, pat: PatIndex| -> Result<ARef<Bo>> {
            let bo = bo::lookup(dev, file, handle.0)?;
            ensure!(dev, !bo.is_private_to_other(vm), EINVAL);
            ensure!(dev, pat.is_coherent() || !bo.is_cpu_cached(), EINVAL);
            ensure!(dev, !pat.is_compressed() || bo.is_compressible(), EINVAL);
            Ok(bo)
        };
        Ok(match self {
            Op::Mirror {
                span,
                params,
                autoreset,
            } => Op::Mirror {
                span,
                params,
                autoreset,
            },
            Op::Buffer {
                span,
                params,
                bo,
                offset,
                immediate,
            } => {
                let bo = lookup(bo, params.pat)?;
                let (len, size) = (span.end - span.start, bo.size() as u64);
                ensure!(dev, len <= size && offset <= size - len, EINVAL);
                BoData::populate(&bo)?;
                if bo.is_movable() && (immediate || vm.mode == Mode::Immediate) {
                    bo.check_needed()?;
                    BoData::make_resident(&bo, Payer::Caller, policy)?;
                }
                Op::Buffer {
                    span,
                    params,
                    bo,
                    offset,
                    immediate,
                }
            }
            Op::Userptr {
                span,
                params,
                userptr,
                immediate,
            } => Op::Userptr {
                userptr: vm.pin_userptr(&span, userptr, params.read_only)?,
                span,
                params,
                immediate,
            },
            Op::Null { span, params } => Op::Null { span, params },
            Op::Unmap { span } => Op::Unmap { span },
            Op::UnmapAll { bo, pat } => Op::UnmapAll {
                bo: lookup(bo, pat)?,
                pat,
            },
            Op::Prefetch { span, to } => Op::Prefetch { span, to },
        })
    }
}

impl Op<ByReference> {
    /// Maps the buffer for the device, if the operation maps one. Fails as [`BoData::pin_segments`]
    /// does.
    pub(crate) fn pin(&self, dev: &RegisteredDevice) -> Result {
        match self {
            Op::Buffer { bo, .. } => BoData::pin_segments(bo, dev),
            _ => Ok(()),
        }
    }
}
