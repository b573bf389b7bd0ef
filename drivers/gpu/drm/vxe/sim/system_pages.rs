// SPDX-License-Identifier: GPL-2.0

//! System memory of a driver's own, which a device accesses by DMA and processes map.
//!
//! The memory is mapped for the device until it is dropped or the device is unbound. It is not moved
//! or swapped.
//!
//! C headers: [`include/linux/vmalloc.h`](srctree/include/linux/vmalloc.h),
//! [`include/linux/scatterlist.h`](srctree/include/linux/scatterlist.h)

use crate::bindings as ext;
use core::ptr::NonNull;
use kernel::{
    alloc::{
        allocator::VmallocPageIter,
        Flags, //
    },
    device::{
        self,
        Bound, //
    },
    dma::{
        DataDirection,
        DmaAddress, //
    },
    page::{
        AsPageIter,
        Page,
        PAGE_SIZE, //
    },
    prelude::*,
    scatterlist::{
        Owned,
        SGTable, //
    },
    sync::Arc, //
};

/// Returns the flags of the allocations for memory of buffers: charged to the caller's memory cgroup, without a warning, and
/// without an OOM kill.
pub fn flags() -> Flags {
    const _: () = assert!(size_of::<Flags>() == size_of::<u32>());
    // SAFETY: `Flags` has one field, a `u32`, and the same size, so that the field is all of it. The
    // value is a flag of the allocator.
    let may_fail = unsafe { core::mem::transmute::<u32, Flags>(ext::VXESIM_GFP_RETRY_MAYFAIL) };
    GFP_KERNEL_ACCOUNT | __GFP_NOWARN | may_fail
}

/// Whole pages, whose contents change without Rust's knowledge: the vector has no elements.
struct Pages(VVec<u8>);

impl Pages {
    /// Returns the pages from number `index` on.
    fn from(&self, index: usize) -> Option<VmallocPageIter<'_>> {
        let offset = index.checked_mul(PAGE_SIZE)?;
        let rest = self.0.capacity().checked_sub(offset)?;
        let start = NonNull::new(self.0.as_ptr().cast_mut())?;
        // SAFETY: The offset is at most the size of the allocation, which is `Vmalloc`'s, and lives as
        // long as the borrow. It consists of whole pages and begins with one.
        Some(unsafe { VmallocPageIter::new(start.add(offset), rest) })
    }
}

/// The pages that a table of a device refers to.
struct Shared(Arc<Pages>);

impl AsPageIter for Shared {
    type Iter<'a> = VmallocPageIter<'a>;

    fn page_iter(&mut self) -> VmallocPageIter<'_> {
        // SAFETY: As in `Pages::from()`; without an offset there is no condition.
        unsafe {
            VmallocPageIter::new(
                NonNull::new_unchecked(self.0 .0.as_ptr().cast_mut()),
                self.0 .0.capacity(),
            )
        }
    }
}

/// Memory that is not mapped for a device yet.
pub struct Unmapped(Arc<Pages>);

/// Memory that is mapped for a device.
pub struct SystemPages {
    // Dropped first.
    table: Pin<KBox<SGTable<Owned<Shared>>>>,
    pages: Arc<Pages>,
}

impl SystemPages {
    /// Allocates `size` bytes, whole pages, zeroed if that is asked for. They are charged to the
    /// caller's memory cgroup. Fails with `ENOMEM`, also for a killed caller, and with `EINVAL` unless
    /// the size is positive and a multiple of the page size. Sleeps.
    pub fn allocate(size: usize, is_zeroed: bool) -> Result<Unmapped> {
        if size == 0 || size % PAGE_SIZE != 0 {
            return Err(EINVAL);
        }
        let flags = match is_zeroed {
            true => flags() | __GFP_ZERO,
            false => flags(),
        };
        let pages = Pages(VVec::with_capacity(size, flags)?);
        Ok(Unmapped(Arc::new(pages, self::flags())?))
    }

    /// Calls `f` with the DMA address and length of each contiguous part, in order, until that fails.
    /// Fails as `f` does.
    pub fn for_each(&self, mut f: impl FnMut(DmaAddress, u64) -> Result) -> Result {
        for entry in self.table.iter() {
            f(entry.dma_address(), entry.dma_len())?;
        }
        Ok(())
    }

    /// Calls `f` with the page at `index`, if there is one.
    pub fn with_page<R>(&self, index: usize, f: impl FnOnce(&Page) -> R) -> Option<R> {
        let page = self.pages.from(index)?.next()?;
        Some(f(&page))
    }
}

impl Unmapped {
    /// Maps the memory for `dev`, for reads and writes. Fails with `ENOMEM`, and as the DMA API does.
    pub fn map(self, dev: &device::Device<Bound>) -> Result<SystemPages> {
        let shared = Shared(self.0.clone());
        let table = SGTable::new(dev, shared, DataDirection::Bidirectional, flags());
        Ok(SystemPages {
            table: KBox::pin_init(table, flags())?,
            pages: self.0,
        })
    }
}
