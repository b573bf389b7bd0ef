// SPDX-License-Identifier: GPL-2.0

//! The two sides of a copy: pages of the copying device's memory, and memory that it is given access
//! to, which is RAM or another device's.
//!
//! Both are arrays with an entry for each page of a span, as C's operations want them. An entry of
//! the second may stand for several pages, those behind are empty then.

use super::drm_pagemap::Pagemap;
use crate::segment::{Protocol, Segment};
use core::ptr::{self, NonNull};
use kernel::{
    alloc::Flags,
    bindings::{device, page},
    page::PAGE_SIZE,
    prelude::*, //
};
use kernel_ext::{
    bindings as ext,
    dma::{self, Direction}, //
};

/// Whether memory is mapped at an entry of a copy. Any address may be that of a page, 0 as well; but
/// copies have one direction, so that what is mapped never has the entry that stands for nothing.
pub(crate) fn is_mapped(segment: &Segment) -> bool {
    segment.dir() != Direction::Bidirectional
}

/// The two sides of a copy. Dropped, the device has no access any more.
///
/// # Invariants
///
/// Those entries of `addrs` that are [mapped](is_mapped) are mapped for `dev`: RAM, or, where their
/// protocol says otherwise, memory of `pagemap`.
pub(crate) struct CopyMapping<'a> {
    dev: *mut device,
    pagemap: Option<&'a Pagemap>,
    dir: Direction,
    is_empty: bool,
    pages: KVVec<*mut page>,
    addrs: KVVec<Segment>,
}

impl<'a> CopyMapping<'a> {
    /// Sides for a copy of up to `pages` pages, with nothing in them. `dir` is
    /// [`ToDevice`](Direction::ToDevice) or [`FromDevice`](Direction::FromDevice). Allocates as `flags` say; fails
    /// with `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `dev` must be a device with a DMA mask that outlives the result.
    pub(crate) unsafe fn new(
        dev: *mut device,
        dir: Direction,
        pages: usize,
        flags: Flags,
    ) -> Result<Self> {
        // INVARIANT: Nothing is mapped.
        Ok(Self {
            dev,
            pagemap: None,
            is_empty: true,
            dir,
            pages: KVVec::from_elem(ptr::null_mut(), pages, flags)?,
            addrs: KVVec::from_elem(Segment::default(), pages, flags)?,
        })
    }

    /// Has [`map_device`](Self::map_device) map memory of `pagemap`. Nothing may be mapped so far.
    pub(crate) fn with(self, pagemap: &'a Pagemap) -> Self {
        let mut this = self;
        this.pagemap = Some(pagemap);
        this
    }

    /// Whether no page of device memory is noted.
    pub(crate) fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// Notes a page of device memory. Fails with `EINVAL` if there is no such entry.
    pub(crate) fn set_page(&mut self, index: usize, page: NonNull<page>) -> Result {
        *self.pages.get_mut(index).ok_or(EINVAL)? = page.as_ptr();
        self.is_empty = false;
        Ok(())
    }

    /// Maps RAM, `1 << order` pages from `page` on, for the device. Fails with `EFAULT` when that
    /// cannot be done, `EINVAL` if there is no such entry.
    ///
    /// # Safety
    ///
    /// The pages must be contiguous RAM that stays allocated until the mapping is dropped. Each entry
    /// is mapped once.
    pub(crate) unsafe fn map(&mut self, index: usize, page: NonNull<page>, order: u32) -> Result {
        let slot = self.addrs.get_mut(index).ok_or(EINVAL)?;
        let size = PAGE_SIZE << order;
        // SAFETY: By this function's requirements, and those of `new()`.
        let addr = unsafe { dma::map_page(self.dev, page.as_ptr(), size, self.dir) }?;
        // INVARIANT: What was mapped is noted.
        *slot = Segment::new(addr, Protocol::SYSTEM, order, self.dir);
        Ok(())
    }

    /// Maps memory of the other device, `1 << order` pages from `page` on. Fails with `EFAULT` when the
    /// device cannot reach it, `EINVAL` if there is no such entry.
    ///
    /// # Safety
    ///
    /// The pages must be of the pagemap, contiguous, and stay in use until the mapping is dropped. Each
    /// entry is mapped once.
    pub(crate) unsafe fn map_device(
        &mut self,
        index: usize,
        page: NonNull<page>,
        order: u32,
    ) -> Result {
        let slot = self.addrs.get_mut(index).ok_or(EINVAL)?;
        let pagemap = self.pagemap.ok_or(EINVAL)?;
        // SAFETY: By this function's requirements, and those of `new()`.
        let segment = unsafe { pagemap.map_for(self.dev, page, order, self.dir) }?;
        // INVARIANT: What was mapped is noted.
        *slot = segment;
        Ok(())
    }

    /// The arguments of the operations that copy: the pages, the addresses, and their number.
    pub(crate) fn arguments(&mut self) -> (*mut *mut page, *mut ext::drm_pagemap_addr, usize) {
        (
            self.pages.as_mut_ptr(),
            self.addrs.as_mut_ptr().cast(),
            self.pages.len(),
        )
    }
}

impl Drop for CopyMapping<'_> {
    fn drop(&mut self) {
        for segment in self.addrs.iter().filter(|segment| is_mapped(segment)) {
            if segment.is_system() {
                // SAFETY: By the type invariants.
                unsafe { dma::unmap_page(self.dev, segment.addr(), segment.size(), self.dir) };
            } else if let Some(pagemap) = self.pagemap {
                // SAFETY: By the type invariants.
                unsafe { pagemap.unmap_for(self.dev, segment) };
            }
        }
    }
}
