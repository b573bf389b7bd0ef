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

/// Returns the reason why a device cannot share memory with the CPU by the functions below; none if it can.
///
/// Both use the mapped memory at once, without a transfer of ownership, so that there must be no copies in caches or
/// bounce buffers. The checks are those of `hmm_dma_map_alloc()`, and that for `swiotlb=force`. The answer is a best
/// approximation: where it is wrong, mapping fails.
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

/// The address that stands for a failed mapping, `DMA_MAPPING_ERROR`.
pub const MAPPING_ERROR: u64 = !0;

/// Maps `size` bytes from the start of `page`, `dma_map_page()`.
///
/// The mapping is coherent and without a bounce buffer, or fails.
///
/// The address may have any value, including 0. Fails with `EFAULT` if the device cannot reach the
/// page or there is no IOVA space, as `drm_gpusvm_get_pages()` does.
///
/// # Safety
///
/// `dev` must be a device with a DMA mask that stays valid until the mapping is undone; `page` must
/// be the first of physically contiguous pages of at least `size` bytes that stay allocated until then.
#[inline]
pub unsafe fn map_page(
    dev: *mut device,
    page: *mut page,
    size: usize,
    dir: Direction,
) -> Result<u64> {
    observer::call(dev, Call::Map, size)?;
    // SAFETY: By this function's requirements.
    let addr = unsafe { bindings::dma_map_page(dev, page, 0, size, dir.c()) };
    if addr == MAPPING_ERROR {
        return Err(EFAULT);
    }
    Ok(addr)
}

/// Whether mappings of [`map_page`] must be undone by [`unmap_page`], `dma_need_unmap()`: not if the device reaches all
/// memory directly and there is nothing to copy or to write back.
///
/// The answer holds for mappings made before the call. With DMA-API debugging, which tracks mappings, it is true.
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
    let _ = observer::call(dev, Call::Unmap, size);
    // SAFETY: By this function's requirements.
    unsafe { bindings::dma_unmap_page(dev, addr, size, dir.c()) }
}

/// Reserves `size` bytes of IOVA space. Returns false if the device has no IOMMU with that support.
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
    observer::call(dev, Call::Link, size)?;
    // SAFETY: By this function's requirements.
    to_result(unsafe { bindings::dma_iova_link(dev, state, phys, offset, size, dir.c()) })
}

/// Makes the links in `[offset, offset + size)` visible to the device.
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
    observer::call(dev, Call::Sync, size)?;
    // SAFETY: By this function's requirements.
    to_result(unsafe { bindings::dma_iova_sync(dev, state, offset, size) })
}

/// Removes the links in `[offset, offset + size)`, and waits until the device cannot reach the memory.
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
    let _ = observer::call(dev, Call::Unlink, size);
    // SAFETY: By this function's requirements.
    unsafe { bindings::dma_iova_unlink(dev, state, offset, size, dir.c()) }
}

/// Frees a reservation.
///
/// # Safety
///
/// `state` must hold a reservation for `dev` in which nothing is linked.
pub unsafe fn iova_free(dev: *mut device, state: &mut IovaState) {
    // SAFETY: By this function's requirements.
    unsafe { bindings::dma_iova_free(dev, state) };
    *state = IovaState::default();
}

/// A call of this module that maps or unmaps.
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

/// The hook of tests: an observer is called before each [`Call`] of any thread.
///
/// A static stub of KUnit would replace functions in the test's own thread only, and other threads unmap as well. The
/// hook exists only with `CONFIG_DMA_API_DEBUG`, with which everything that was mapped is also unmapped.
#[cfg(CONFIG_DMA_API_DEBUG)]
pub mod observer {
    use super::*;
    use core::ptr;
    use kernel::sync::atomic::{Acquire, Atomic, Release};

    /// An observer. The parameters are the device, the call, and the size in bytes. If it returns an error the call
    /// fails; for calls that undo a mapping the error is ignored.
    pub struct Observer(pub fn(*mut device, Call, usize) -> Result);

    /// Null, or a pointer to a static.
    static OBSERVER: Atomic<*mut Observer> = Atomic::new(ptr::null_mut());

    /// Calls `observer` for all calls from now on; none removes the observer.
    pub fn set(observer: Option<&'static Observer>) {
        let observer = observer.map_or(ptr::null_mut(), |observer| {
            ptr::from_ref(observer).cast_mut()
        });
        OBSERVER.store(observer, Release);
    }

    pub(super) fn call(dev: *mut device, call: Call, size: usize) -> Result {
        // SAFETY: The pointer is null, or `set()` made it from a shared reference to a static.
        match unsafe { OBSERVER.load(Acquire).as_ref() } {
            Some(Observer(see)) => see(dev, call, size),
            None => Ok(()),
        }
    }
}

#[cfg(not(CONFIG_DMA_API_DEBUG))]
mod observer {
    use super::*;

    #[inline(always)]
    pub(super) fn call(_dev: *mut device, _call: Call, _size: usize) -> Result {
        Ok(())
    }
}
