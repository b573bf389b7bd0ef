// SPDX-License-Identifier: GPL-2.0

//! System memory as a device accesses it by DMA, accessed by the CPU instead.
//!
//! A software device cannot master a bus. [`DmaMemory`] takes the DMA addresses that the DMA API
//! mapped for the device, translates them with the device's IOMMU if there is one, and refuses
//! memory that a device must not access. Accesses go through the kernel's mapping of memory, so
//! KASAN reports a device that still uses a freed page.
//!
//! Direct DMA and IOMMUs of the generic IOMMU layer are supported; platforms with their own DMA
//! operations are not. The rights of an IOMMU mapping (read-only or not) are not checked, as
//! `iommu_iova_to_phys()` does not return them.
//!
//! C headers: [`include/linux/dma-direct.h`](srctree/include/linux/dma-direct.h),
//! [`include/linux/iommu.h`](srctree/include/linux/iommu.h),
//! [`include/linux/highmem.h`](srctree/include/linux/highmem.h)

use crate::bindings;
use core::ptr::NonNull;
use kernel::{
    device::{self, Bound},
    devres::Devres,
    dma::DmaAddress,
    error::to_result,
    io::PhysAddr,
    page::{Page, PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Acquire, Atomic, Full, Release}, //
    },
};

/// No access may cross a multiple of this many bytes: no IOMMU has smaller pages.
pub const ACCESS_SPAN: usize = 4096;

static_assert!(PAGE_SIZE % ACCESS_SPAN == 0);

/// Returns the physical address of a page.
///
/// This is also the page's DMA address for a device without an IOMMU, whose bus addresses are the
/// CPU's.
pub fn page_to_phys(page: &Page) -> PhysAddr {
    // SAFETY: `page` is a page that the kernel crate allocated.
    unsafe { bindings::page_to_phys(page.as_ptr()) }
}

/// The direction of an access.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

/// The memory that a device accesses by DMA.
///
/// It can be accessed while the device is bound to its driver, because only then the IOMMU's domain
/// is the driver's: unbind waits for accesses in flight, and later ones fail.
///
/// All accesses fail with:
///
/// - `ENODEV` when the device is no longer bound,
/// - `EINVAL` when the access would cross a multiple of [`ACCESS_SPAN`], or is not aligned as its
///   operation requires,
/// - `EFAULT` when the IOMMU has no translation for the address,
/// - `ENXIO` when there is no RAM at the address,
/// - `ESTALE` when the page has been freed,
/// - `EACCES` when the page is the kernel's own (slab, page table), or for a write to a page that
///   processes can only read: one of the kernel's image (such as the vDSO), or the zero page,
/// - `EIO` when a device could access the page, but the kernel cannot: it is secret memory (see
///   `memfd_secret(2)`), or poisoned.
///
/// Accesses never sleep, and may be made in atomic context, though not in an interrupt.
pub struct DmaMemory(Devres<BoundDevice>);

/// The device of a [`DmaMemory`], accessible only while it is bound.
struct BoundDevice(ARef<device::Device>);

impl DmaMemory {
    /// Creates the DMA memory of `dev`.
    ///
    /// Fails with `ENOMEM`. May sleep, as dropping the result may.
    pub fn new(dev: &device::Device<Bound>) -> Result<Self> {
        Ok(Self(Devres::new(dev, BoundDevice(dev.into()))?))
    }

    /// Reads `buf.len()` bytes at `addr`. Not atomic.
    ///
    /// # Safety
    ///
    /// `addr` must come from a DMA mapping for this device that allows reading. If the mapping may
    /// have been removed since, the caller accepts the behaviour of hardware: if none of the checks
    /// above fails, this reads whatever is there now.
    pub unsafe fn read(&self, addr: DmaAddress, buf: &mut [u8]) -> Result {
        self.with(addr, buf.len(), Direction::Read, |from| {
            // SAFETY: `from` is valid for reading `buf.len()` bytes, as `with` checked; `buf` is
            // kernel memory of the caller and no DMA target, so they do not overlap.
            unsafe { bindings::memcpy(buf.as_mut_ptr().cast(), from.cast(), buf.len()) }
        })
    }

    /// Writes `data` at `addr`. Not atomic.
    ///
    /// # Safety
    ///
    /// `addr` must come from a DMA mapping for this device that allows writing, of memory that no
    /// Rust reference covers. If the mapping may have been removed since, the caller accepts the
    /// behaviour of hardware: if none of the checks above fails, this overwrites whatever is there
    /// now.
    pub unsafe fn write(&self, addr: DmaAddress, data: &[u8]) -> Result {
        self.with(addr, data.len(), Direction::Write, |to| {
            // SAFETY: `to` is valid for writing `data.len()` bytes, as `with` checked; `data` is
            // kernel memory of the caller and no DMA target, so they do not overlap.
            unsafe { bindings::memcpy(to.cast(), data.as_ptr().cast(), data.len()) }
        })
    }

    /// Loads the 32-bit value at `addr` in a single access, before all later accesses.
    ///
    /// # Safety
    ///
    /// As for [`Self::read`].
    pub unsafe fn load_u32(&self, addr: DmaAddress) -> Result<u32> {
        self.with_aligned(addr, Direction::Read, |from: *mut u32| {
            // SAFETY: `from` is aligned and valid for `u32`, as `with_aligned` checked, and is only
            // read; concurrent accesses by user programs are not made by Rust code.
            unsafe { Atomic::from_ptr(from) }.load(Acquire)
        })
    }

    /// Stores a 32-bit `value` at `addr` in a single access, after all earlier accesses.
    ///
    /// # Safety
    ///
    /// As for [`Self::write`].
    pub unsafe fn store_u32(&self, addr: DmaAddress, value: u32) -> Result {
        self.with_aligned(addr, Direction::Write, |to: *mut u32| {
            // SAFETY: `to` is aligned and valid for `u32`, as `with_aligned` checked; concurrent
            // accesses by user programs are not made by Rust code.
            unsafe { Atomic::from_ptr(to) }.store(value, Release)
        })
    }

    /// Stores a 64-bit `value` at `addr` in a single access, after all earlier accesses.
    ///
    /// # Safety
    ///
    /// As for [`Self::write`].
    pub unsafe fn store_u64(&self, addr: DmaAddress, value: u64) -> Result {
        self.with_aligned(addr, Direction::Write, |to: *mut u64| {
            // SAFETY: `to` is aligned and valid for `u64`, as `with_aligned` checked; concurrent
            // accesses by user programs are not made by Rust code.
            unsafe { Atomic::from_ptr(to) }.store(value, Release)
        })
    }

    /// Adds `delta` to the 32-bit value at `addr`, wrapping, and returns the old value. Atomic
    /// towards CPUs as well.
    ///
    /// # Safety
    ///
    /// As for [`Self::write`].
    pub unsafe fn fetch_add_u32(&self, addr: DmaAddress, delta: u32) -> Result<u32> {
        self.with_aligned(addr, Direction::Write, |to: *mut u32| {
            // SAFETY: `to` is aligned and valid for `u32`, as `with_aligned` checked; concurrent
            // accesses by user programs are not made by Rust code.
            unsafe { Atomic::from_ptr(to) }.fetch_add(delta, Full)
        })
    }

    /// As [`Self::with`], for a `T` at an aligned address.
    fn with_aligned<T, R>(
        &self,
        addr: DmaAddress,
        direction: Direction,
        f: impl FnOnce(*mut T) -> R,
    ) -> Result<R> {
        // CAST: Alignments are small.
        if addr % align_of::<T>() as u64 != 0 {
            return Err(EINVAL);
        }
        self.with(addr, size_of::<T>(), direction, |ptr| f(ptr.cast()))
    }

    /// Calls `f` with a pointer to the `len` bytes at `addr`, for reading only. See [`Self::with`].
    pub(crate) fn with_readable<R>(
        &self,
        addr: DmaAddress,
        len: usize,
        f: impl FnOnce(*const u8) -> R,
    ) -> Result<R> {
        self.with(addr, len, Direction::Read, |ptr| f(ptr))
    }

    /// Calls `f` with a pointer to the `len` bytes at `addr`, for writing. See [`Self::with`].
    pub(crate) fn with_writable<R>(
        &self,
        addr: DmaAddress,
        len: usize,
        f: impl FnOnce(*mut u8) -> R,
    ) -> Result<R> {
        self.with(addr, len, Direction::Write, f)
    }

    /// Calls `f` with a pointer to the `len` bytes at `addr`, which are RAM in use, aligned as
    /// `addr` is. The pointer is valid only within `f`, which must not sleep.
    fn with<R>(
        &self,
        addr: DmaAddress,
        len: usize,
        direction: Direction,
        f: impl FnOnce(*mut u8) -> R,
    ) -> Result<R> {
        // CAST: A remainder of `ACCESS_SPAN`.
        let offset = (addr % ACCESS_SPAN as u64) as usize;
        if len > ACCESS_SPAN - offset {
            return Err(EINVAL);
        }

        let device = self.0.try_access().ok_or(ENODEV)?;
        let place = device.page(addr, direction)?;
        let mapped = LocalMapping::new(place.page);
        // SAFETY: The offset and the `len` bytes after it are within the mapped page, as the access
        // crosses no multiple of `ACCESS_SPAN`, and pages consist of such spans.
        let ptr = unsafe { mapped.0.add(place.offset) };
        // SAFETY: Any address is allowed.
        if !unsafe { bindings::kernel_can_reach(ptr.cast()) } {
            return Err(EIO);
        }
        Ok(f(ptr))
    }
}

/// A page of RAM, and an offset in it.
struct PageOffset {
    page: NonNull<kernel::bindings::page>,
    offset: usize,
}

impl BoundDevice {
    fn as_raw(&self) -> *mut kernel::bindings::device {
        let dev: *const device::Device = &*self.0;
        // CAST: `Device` is a transparent wrapper of `Opaque<struct device>`, which allows
        // mutation; its own accessor is private to the kernel crate.
        dev.cast::<kernel::bindings::device>().cast_mut()
    }

    /// Returns the RAM at a DMA address of the device, which is bound.
    fn page(&self, addr: DmaAddress, direction: Direction) -> Result<PageOffset> {
        let mut phys: PhysAddr = 0;
        // SAFETY: The device is valid and bound, so its IOMMU domain stays; `phys` is writable.
        to_result(unsafe { bindings::dma_resolve(self.as_raw(), addr, &mut phys) })?;

        let pfn = usize::try_from(phys >> PAGE_SHIFT).map_err(|_| ENXIO)?;
        // SAFETY: Any frame number is allowed.
        let page = unsafe { bindings::pfn_to_online_page(pfn) };
        let page = NonNull::new(page).ok_or(ENXIO)?;

        // SAFETY: Any frame number is allowed, and `page` is a page of online memory.
        let fixed =
            unsafe { bindings::is_zero_pfn(pfn) || bindings::page_is_reserved(page.as_ptr()) };
        if fixed {
            // The page allocator never allocates this page.
            if direction == Direction::Write {
                return Err(EACCES);
            }
        // Some kernel allocations have no reference count, like free pages: slabs.
        // SAFETY: `page` is a page of online memory.
        } else if unsafe { bindings::page_is_internal(page.as_ptr()) } {
            return Err(EACCES);
        // SAFETY: `page` is a page of online memory.
        } else if unsafe { bindings::page_is_free(page.as_ptr()) } {
            return Err(ESTALE);
        }
        Ok(PageOffset {
            page,
            // CAST: A remainder of `PAGE_SIZE`.
            offset: (phys % PAGE_SIZE as PhysAddr) as usize,
        })
    }
}

static_assert!(size_of::<device::Device>() == size_of::<kernel::bindings::device>());

/// A page mapped in the kernel's address space until this is dropped: by the same thread, which
/// must not sleep meanwhile, and in the reverse order of the mappings.
pub(crate) struct LocalMapping(*mut u8);

impl LocalMapping {
    pub(crate) fn new(page: NonNull<kernel::bindings::page>) -> Self {
        // SAFETY: A page of online RAM can be mapped; that never fails.
        Self(unsafe { kernel::bindings::kmap_local_page(page.as_ptr()) }.cast())
    }

    /// Returns the address of the page.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.0
    }
}

impl Drop for LocalMapping {
    fn drop(&mut self) {
        // SAFETY: `kmap_local_page()` returned this address, and only this unmaps it.
        unsafe { kernel::bindings::kunmap_local(self.0.cast()) }
    }
}

#[kunit_tests(vxe_sim_dma_memory)]
mod tests {
    use super::*;
    use kernel::faux;

    /// Returns the DMA memory of a device without IOMMU.
    fn memory() -> Result<(faux::Registration, DmaMemory)> {
        let device = faux::Registration::new(c"vxe-sim-kunit", None)?;
        let bound: &faux::Device<Bound> = device.as_ref();
        let memory = DmaMemory::new(bound.as_ref())?;
        Ok((device, memory))
    }

    fn read(memory: &DmaMemory, addr: DmaAddress) -> Result<u32> {
        let mut word = [0; 4];
        // SAFETY: The tests read pages that they allocated, or that may be read at any time.
        unsafe { memory.read(addr, &mut word) }?;
        Ok(u32::from_le_bytes(word))
    }

    /// Returns an error to fail the test, so that it cleans up: a failed assertion would not.
    fn check(holds: bool) -> Result {
        holds.then_some(()).ok_or(EIO)
    }

    #[test]
    fn a_page_is_read_and_written() -> Result {
        let (_device, memory) = memory()?;
        let page = Page::alloc_page(GFP_KERNEL | __GFP_ZERO)?;
        let addr = page_to_phys(&page);
        // SAFETY: The page is this test's own, and no reference to its bytes exists.
        unsafe {
            memory.write(addr + 5, &[1, 2, 3])?;
            memory.store_u32(addr + 16, 0x1234_5678)?;
            memory.store_u64(addr + 4088, u64::MAX)?;
            check(memory.fetch_add_u32(addr + 16, 8)? == 0x1234_5678)?;
            check(memory.load_u32(addr + 16)? == 0x1234_5680)?;
            check(memory.load_u32(addr + 18) == Err(EINVAL))?;
            check(memory.fetch_add_u32(addr + 4088, 2)? == u32::MAX)?;
        }
        check(read(&memory, addr + 4)? == 0x0302_0100)?;
        check(read(&memory, addr + 16)? == 0x1234_5680)?;
        check(read(&memory, addr + 4088)? == 1)?;
        check(read(&memory, addr + 4092)? == u32::MAX)
    }

    #[test]
    fn accesses_stay_within_their_span() -> Result {
        let (_device, memory) = memory()?;
        let page = Page::alloc_page(GFP_KERNEL | __GFP_ZERO)?;
        let addr = page_to_phys(&page);
        check(read(&memory, addr + 4092) == Ok(0))?;
        check(read(&memory, addr + 4093) == Err(EINVAL))?;
        // SAFETY: The page is this test's own, and no reference to its bytes exists.
        unsafe {
            check(memory.write(addr, &[0; 4097]) == Err(EINVAL))?;
            check(memory.store_u32(addr + 2, 0) == Err(EINVAL))?;
            check(memory.store_u64(addr + 4, 0) == Err(EINVAL))?;
            check(memory.fetch_add_u32(addr + 1, 0) == Err(EINVAL))
        }
    }

    #[test]
    fn what_is_no_memory() -> Result {
        let (_device, memory) = memory()?;
        for addr in [1 << 51, !0 << 12] {
            check(read(&memory, addr) == Err(ENXIO))?;
        }
        Ok(())
    }

    #[test]
    fn freed_pages_are_refused() -> Result {
        let (_device, memory) = memory()?;
        // Another task may allocate the page before it is read.
        for _ in 0..100 {
            let page = Page::alloc_page(GFP_KERNEL)?;
            let addr = page_to_phys(&page);
            check(read(&memory, addr).is_ok())?;
            drop(page);
            if read(&memory, addr) == Err(ESTALE) {
                return Ok(());
            }
        }
        Err(EIO)
    }

    #[test]
    fn the_zero_page_is_only_read() -> Result {
        let (_device, memory) = memory()?;
        // SAFETY: Has no requirements.
        let addr = unsafe { bindings::zero_page_phys() };
        check(read(&memory, addr) == Ok(0))?;
        // SAFETY: The access is refused, as the test checks; otherwise it would write the zero that
        // is there.
        check(unsafe { memory.store_u32(addr, 0) } == Err(EACCES))
    }

    /// A process maps such a page as its vDSO.
    #[test]
    fn the_kernels_image_is_only_read() -> Result {
        let (_device, memory) = memory()?;
        // SAFETY: Has no requirements.
        let addr = unsafe { bindings::kernel_image_phys() };
        check(read(&memory, addr & !3).is_ok())?;
        // SAFETY: The access is refused, as the test checks.
        check(unsafe { memory.write(addr, &[0]) } == Err(EACCES))
    }

    /// Like a page of a process that was freed, and then allocated by the kernel.
    #[test]
    fn what_the_kernel_allocated_is_refused() -> Result {
        let (_device, memory) = memory()?;
        let word = KBox::new(0u64, GFP_KERNEL)?;
        // SAFETY: Any address of the kernel's linear map is allowed.
        let addr = unsafe { bindings::linear_phys(core::ptr::from_ref(&*word).cast()) };
        check(read(&memory, addr & !3) == Err(EACCES))
    }

    #[test]
    fn a_device_that_is_unbound() -> Result {
        let (device, memory) = memory()?;
        let page = Page::alloc_page(GFP_KERNEL | __GFP_ZERO)?;
        check(read(&memory, page_to_phys(&page)) == Ok(0))?;
        drop(device);
        check(read(&memory, page_to_phys(&page)) == Err(ENODEV))
    }
}
