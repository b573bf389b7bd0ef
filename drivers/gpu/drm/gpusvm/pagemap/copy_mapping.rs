// SPDX-License-Identifier: GPL-2.0

//! The two sides of a copy: pages of the copying device's memory, and the memory that is mapped for it, which is system
//! memory or another device's.
//!
//! Both are arrays with an entry for each page of a span, as C's copy operations expect. An entry of the second array
//! may stand for several pages; the entries for the other pages are empty then.

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

/// Returns whether an entry of a copy is mapped. Any address may be valid, even 0. But copies have one direction, so a
/// mapped entry never has the direction of an empty one, which is bidirectional.
pub(crate) fn is_mapped(segment: &Segment) -> bool {
    segment.dir() != Direction::Bidirectional
}

/// The two sides of a copy. When this is dropped, the device loses access to the second side.
///
/// # Invariants
///
/// The entries of `addrs` that are [mapped](is_mapped) are mapped for `dev`. An entry with the protocol
/// [`Protocol::SYSTEM`] is system memory; any other is memory of `pagemap`.
pub(crate) struct CopyMapping<'a> {
    dev: *mut device,
    pagemap: Option<&'a Pagemap>,
    dir: Direction,
    is_empty: bool,
    pages: KVVec<*mut page>,
    addrs: KVVec<Segment>,
}

impl<'a> CopyMapping<'a> {
    /// Creates empty sides for a copy of up to `pages` pages. `dir` is [`ToDevice`](Direction::ToDevice) or
    /// [`FromDevice`](Direction::FromDevice). Allocates with `flags`; fails with `ENOMEM`.
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
        // INVARIANT: No entry is mapped.
        Ok(Self {
            dev,
            pagemap: None,
            is_empty: true,
            dir,
            pages: KVVec::from_elem(ptr::null_mut(), pages, flags)?,
            addrs: KVVec::from_elem(Segment::default(), pages, flags)?,
        })
    }

    /// Sets the memory that [`map_device`](Self::map_device) maps. No entry may be mapped yet.
    pub(crate) fn with(self, pagemap: &'a Pagemap) -> Self {
        let mut this = self;
        this.pagemap = Some(pagemap);
        this
    }

    /// Returns whether no page of device memory was set.
    pub(crate) fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// Sets a page of device memory. Fails with `EINVAL` if there is no such entry.
    pub(crate) fn set_page(&mut self, index: usize, page: NonNull<page>) -> Result {
        *self.pages.get_mut(index).ok_or(EINVAL)? = page.as_ptr();
        self.is_empty = false;
        Ok(())
    }

    /// Maps `1 << order` pages of system memory from `page` on for the device. Fails with `EFAULT` if the device cannot
    /// reach them, and with `EINVAL` if there is no such entry.
    ///
    /// # Safety
    ///
    /// The pages must be contiguous system memory that stays allocated until this object is dropped. Each entry may be
    /// mapped once.
    pub(crate) unsafe fn map(&mut self, index: usize, page: NonNull<page>, order: u32) -> Result {
        let slot = self.addrs.get_mut(index).ok_or(EINVAL)?;
        let size = PAGE_SIZE << order;
        // SAFETY: By the requirements of this function and of `new()`.
        let addr = unsafe { dma::map_page(self.dev, page.as_ptr(), size, self.dir) }?;
        // INVARIANT: The entry records the mapping.
        *slot = Segment::new(addr, Protocol::SYSTEM, order, self.dir);
        Ok(())
    }

    /// Maps `1 << order` pages of the other device's memory from `page` on. Fails with `EFAULT` if the device cannot
    /// reach them, and with `EINVAL` if there is no such entry.
    ///
    /// # Safety
    ///
    /// The pages must be contiguous, belong to the pagemap, and stay in use until this object is dropped. Each entry
    /// may be mapped once.
    pub(crate) unsafe fn map_device(
        &mut self,
        index: usize,
        page: NonNull<page>,
        order: u32,
    ) -> Result {
        let slot = self.addrs.get_mut(index).ok_or(EINVAL)?;
        let pagemap = self.pagemap.ok_or(EINVAL)?;
        // SAFETY: By the requirements of this function and of `new()`.
        let segment = unsafe { pagemap.map_for(self.dev, page, order, self.dir) }?;
        // INVARIANT: The entry records the mapping.
        *slot = segment;
        Ok(())
    }

    /// Returns the arguments of the copy operations: the pages, the addresses, and their number.
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
