// SPDX-License-Identifier: GPL-2.0

//! Mapping of single pages for a device, and mapping into one contiguous IOVA range.
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use crate::bindings;
use kernel::{
    bindings::{device, page},
    error::to_result,
    prelude::*, //
};

/// The state of an IOVA reservation, `struct dma_iova_state`.
pub use kernel::bindings::dma_iova_state as IovaState;

/// What a device may do with the memory that is mapped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Read and write.
    Bidirectional,
    /// Read only.
    ToDevice,
    /// Write only.
    FromDevice,
}

impl Direction {
    /// The value of C's `enum dma_data_direction`.
    pub const fn raw(self) -> i32 {
        match self {
            Direction::Bidirectional => kernel::bindings::dma_data_direction::DMA_BIDIRECTIONAL.0,
            Direction::ToDevice => kernel::bindings::dma_data_direction::DMA_TO_DEVICE.0,
            Direction::FromDevice => kernel::bindings::dma_data_direction::DMA_FROM_DEVICE.0,
        }
    }

    /// The direction of a value of C's `enum dma_data_direction`; [`Bidirectional`](Self::Bidirectional)
    /// for none of them.
    #[inline]
    pub fn from_raw(raw: i32) -> Self {
        [Direction::ToDevice, Direction::FromDevice]
            .into_iter()
            .find(|dir| dir.raw() == raw)
            .unwrap_or(Direction::Bidirectional)
    }

    /// The C value.
    pub fn c(self) -> kernel::bindings::dma_data_direction {
        kernel::bindings::dma_data_direction(self.raw())
    }
}

/// Why a device cannot share memory with the CPU by the functions below; none if it can.
///
/// What is mapped is never handed over from the CPU to the device and back, so that it has to be one and
/// the same memory for both, without copies in caches or bounce buffers. As `hmm_dma_map_alloc()` says, and
/// where all DMA is made to bounce. The answer is a best approximation: where it turns out to be wrong,
/// mapping fails.
///
/// # Safety
///
/// `dev` must be a valid device, whose driver has set its DMA mask.
pub unsafe fn obstacle_to_sharing(dev: *mut device) -> Option<&'static str> {
    // SAFETY: By this function's requirements.
    let (is_bounced, needs_sync) =
        unsafe { (bindings::dma_is_bounced(dev), bindings::dma_needs_sync(dev)) };
    if is_bounced {
        Some("its DMA is bounced: it cannot address all memory, or the kernel was told so (swiotlb=force)")
    } else if needs_sync {
        Some("its DMA is not coherent with the CPU's caches, or its driver has set no DMA mask")
    } else {
        None
    }
}

/// `DMA_MAPPING_ERROR`.
const MAPPING_ERROR: u64 = !0;

/// Maps `size` bytes from the start of `page`, `dma_map_page()`.
///
/// Nothing is bounced, and the memory is coherent: where that cannot be, it fails.
///
/// Any address may be the result, 0 as well. Fails with `EFAULT` when the device cannot reach the
/// page or mapping space is short, as `drm_gpusvm_get_pages()` does.
///
/// # Safety
///
/// `dev` must be a device with a DMA mask that stays valid until the mapping is undone; `page` must
/// be the first of physically contiguous pages of at least `size` bytes that stay allocated so
/// long.
#[inline]
pub unsafe fn map_page(
    dev: *mut device,
    page: *mut page,
    size: usize,
    dir: Direction,
) -> Result<u64> {
    probe::call(dev, Call::Map, size)?;
    // SAFETY: By this function's requirements.
    let addr = unsafe { bindings::dma_map_page(dev, page, 0, size, dir.c()) };
    if addr == MAPPING_ERROR {
        return Err(EFAULT);
    }
    Ok(addr)
}

/// Whether what [`map_page`] mapped must be undone by [`unmap_page`]: not where a device reaches all
/// memory directly and nothing has to be copied or written back, `dma_need_unmap()`.
///
/// The answer is for what was mapped before it was asked for. It is yes with DMA-API debugging, which
/// keeps an account.
///
/// # Safety
///
/// `dev` must be a valid device.
#[inline]
pub unsafe fn need_unmap(dev: *mut device) -> bool {
    // SAFETY: By this function's requirements.
    unsafe { bindings::dma_need_unmap(dev) }
}

/// Undoes [`map_page`].
///
/// # Safety
///
/// `addr` must be the result of [`map_page`] with the same device, size and direction, and be
/// undone only once.
#[inline]
pub unsafe fn unmap_page(dev: *mut device, addr: u64, size: usize, dir: Direction) {
    let _ = probe::call(dev, Call::Unmap, size);
    // SAFETY: By this function's requirements.
    unsafe { bindings::dma_unmap_page(dev, addr, size, dir.c()) }
}

/// Reserves `size` bytes of IOVA space, if the device has an IOMMU that this works with.
///
/// # Safety
///
/// `dev` must be a valid device, `state` a state that holds no reservation.
pub unsafe fn iova_try_alloc(
    dev: *mut device,
    state: &mut IovaState,
    phys: u64,
    size: usize,
) -> bool {
    // SAFETY: By this function's requirements.
    unsafe { bindings::dma_iova_try_alloc(dev, state, phys, size) }
}

/// Whether `state` holds a reservation.
#[inline]
pub fn use_iova(state: &mut IovaState) -> bool {
    // SAFETY: Reads the state.
    unsafe { bindings::dma_use_iova(state) }
}

/// Maps `size` bytes at physical address `phys` to `offset` in the reservation.
///
/// # Safety
///
/// `state` must hold a reservation for `dev` that reaches beyond `offset + size` and has nothing
/// there; the memory must stay allocated until it is unlinked.
pub unsafe fn iova_link(
    dev: *mut device,
    state: &mut IovaState,
    phys: u64,
    offset: usize,
    size: usize,
    dir: Direction,
) -> Result {
    probe::call(dev, Call::Link, size)?;
    // SAFETY: By this function's requirements.
    to_result(unsafe { bindings::dma_iova_link(dev, state, phys, offset, size, dir.c()) })
}

/// Makes what was linked in `[offset, offset + size)` visible to the device.
///
/// # Safety
///
/// `state` must hold a reservation for `dev`, with all of the span linked.
pub unsafe fn iova_sync(
    dev: *mut device,
    state: &mut IovaState,
    offset: usize,
    size: usize,
) -> Result {
    probe::call(dev, Call::Sync, size)?;
    // SAFETY: By this function's requirements.
    to_result(unsafe { bindings::dma_iova_sync(dev, state, offset, size) })
}

/// Undoes links, and waits until the device cannot reach the memory.
///
/// # Safety
///
/// All of `[offset, offset + size)` must be linked, with the direction `dir`.
pub unsafe fn iova_unlink(
    dev: *mut device,
    state: &mut IovaState,
    offset: usize,
    size: usize,
    dir: Direction,
) {
    let _ = probe::call(dev, Call::Unlink, size);
    // SAFETY: By this function's requirements.
    unsafe { bindings::dma_iova_unlink(dev, state, offset, size, dir.c()) }
}

/// Gives a reservation back.
///
/// # Safety
///
/// `state` must hold a reservation for `dev` in which nothing is linked.
pub unsafe fn iova_free(dev: *mut device, state: &mut IovaState) {
    // SAFETY: By this function's requirements.
    unsafe { bindings::dma_iova_free(dev, state) };
    *state = IovaState::default();
}

/// A call of this module, as a test's probe sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`map_page`]
    Map,
    /// [`unmap_page`]
    Unmap,
    /// [`iova_link`]
    Link,
    /// [`iova_sync`]
    Sync,
    /// [`iova_unlink`]
    Unlink,
}

/// Where tests come in: a probe sees each [`Call`] before it is made, and what it refuses fails.
///
/// There is none on kernels without `CONFIG_DMA_API_DEBUG`. With it everything is unmapped that was
/// mapped, so that a probe sees both.
#[cfg(CONFIG_DMA_API_DEBUG)]
pub mod probe {
    use super::*;
    use kernel::sync::atomic::{Acquire, Atomic, Release};

    /// Is given the device, the call, and the size in bytes. The error of a call that undoes
    /// something is ignored.
    pub type Probe = fn(*mut device, Call, usize) -> Result;

    /// 0, or a [`Probe`].
    static PROBE: Atomic<usize> = Atomic::new(0);

    /// Has all calls from now on seen by `probe`, or by nobody.
    pub fn set(probe: Option<Probe>) {
        PROBE.store(probe.map_or(0, |probe| probe as usize), Release);
    }

    pub(super) fn call(dev: *mut device, call: Call, size: usize) -> Result {
        let probe = PROBE.load(Acquire);
        if probe == 0 {
            return Ok(());
        }
        // SAFETY: Whatever is not 0 was a `Probe` when it was stored.
        let probe = unsafe { core::mem::transmute::<usize, Probe>(probe) };
        probe(dev, call, size)
    }
}

#[cfg(not(CONFIG_DMA_API_DEBUG))]
mod probe {
    use super::*;

    #[inline(always)]
    pub(super) fn call(_dev: *mut device, _call: Call, _size: usize) -> Result {
        Ok(())
    }
}
