// SPDX-License-Identifier: GPL-2.0

//! Moving pages from a device to RAM: what a fault of a CPU and an eviction have in common.
//!
//! C: `__drm_pagemap_migrate_to_ram()`, `drm_pagemap_evict_to_ram()`.

use super::{
    devmem::Allocation,
    mapping::Mapping,
    zdd::Zdd, //
};
use core::ptr::{self, NonNull};
use kernel::{
    bindings::page,
    error::to_result,
    ffi::c_ulong,
    prelude::*, //
};
use kernel_ext::{
    dma::Direction,
    folio::{LockedFolio, Place},
    migrate::{Entry, Migration},
    zone_device, //
};

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// What is needed is back, or was not there.
    Back,
    /// Only the mapping of a huge folio was split, for want of huge RAM; to be tried again.
    Split,
}

/// What is to come back, and where to.
pub(crate) struct Wanted<'a, F: Fn(usize) -> Place<'a>> {
    /// The allocation; pages of others stay.
    pub(crate) allocation: &'a Allocation,
    /// The place in the span that must come back; if it does not, nothing does. Without one all
    /// must.
    pub(crate) needed: Option<usize>,
    /// Where to allocate memory for a place in the span.
    pub(crate) memory: F,
}

/// The page of an entry, if it is to come back.
fn source(entry: Entry, allocation: &Allocation) -> Option<NonNull<page>> {
    if !entry.is_migrating() {
        return None;
    }
    let page = entry.page()?;
    // SAFETY: The migration holds a reference to the page, which it took from a pagemap of the core
    // if it is device-private.
    let ours = unsafe {
        zone_device::is_device_private(page)
            && !Zdd::is_retired(page)
            && ptr::eq(Zdd::of(page).allocation(), allocation)
    };
    ours.then_some(page)
}

impl<'a, F: Fn(usize) -> Place<'a>> Wanted<'a, F> {
    /// Brings what was collected back to RAM, and says what came of it.
    ///
    /// Sleeps. Errors, after which everything is where it was:
    /// - `ENOMEM`: there is no RAM for what is needed; if that is all, what there is RAM for came
    ///   back;
    /// - `EFAULT`: the device cannot reach the RAM;
    /// - an error of the provider's.
    pub(crate) fn bring_back(&self, migration: &mut Migration<'_>) -> Result<Came> {
        let pages = migration.entries().len();
        let device = self.allocation.dma_device();
        // SAFETY: The device lives as long as the allocation.
        let mut mapping = unsafe { Mapping::new(device, Direction::FromDevice, pages) }?;
        let mut came = Came::Back;
        let mut short = false;
        let mut any = false;
        // What is needed comes first; then, what there is memory for.
        if let Some(head) = self
            .needed
            .and_then(|place| self.entry_of(migration, place))
        {
            if !self.prepare(migration, &mut mapping, head)? {
                // Nobody can split a folio that a fault holds, but its mapping is split when it is
                // tried. After that it can be.
                if !self.prepare_single(migration, &mut mapping, head, 0)? {
                    return Err(ENOMEM);
                }
                if migration
                    .entries()
                    .get(head)
                    .is_some_and(|entry| entry.is_huge())
                {
                    came = Came::Split;
                }
            }
            any = true;
        }
        for index in 0..pages {
            if came == Came::Split || (short && self.needed.is_some()) {
                break;
            }
            let has_destination = migration
                .destinations()
                .get(index)
                .is_some_and(|entry| entry.page().is_some());
            if has_destination || self.source(migration, index).is_none() {
                continue;
            }
            let order = self.order(migration, index);
            let mut count = 0;
            if self.prepare(migration, &mut mapping, index)? {
                count = 1 << order;
            } else if order != 0 && migration.can_split() {
                while count < 1 << order
                    && self.prepare_single(migration, &mut mapping, index, count)?
                {
                    count += 1;
                }
            }
            any |= count != 0;
            short |= count < 1 << order;
        }
        if any {
            self.copy(&mut mapping)?;
            drop(mapping);
            migration.migrate();
            retire(migration);
        }
        if short && self.needed.is_none() {
            return Err(ENOMEM);
        }
        Ok(came)
    }

    /// The page of an entry, if it is to come back.
    fn source(&self, migration: &Migration<'_>, index: usize) -> Option<NonNull<page>> {
        source(*migration.entries().get(index)?, self.allocation)
    }

    /// Log2 of the number of pages of an entry's folio.
    fn order(&self, migration: &Migration<'_>, index: usize) -> u32 {
        self.source(migration, index).map_or(0, |page| {
            // SAFETY: The migration holds the folio.
            unsafe { zone_device::order_of(page) }
        })
    }

    /// The entry whose folio has the page at a place.
    fn entry_of(&self, migration: &Migration<'_>, place: usize) -> Option<usize> {
        let is_there = |index: usize| {
            migration
                .entries()
                .get(index)
                .is_some_and(|entry| source(*entry, self.allocation).is_some())
        };
        if is_there(place) {
            return Some(place);
        }
        let entries = migration.entries();
        (place.saturating_sub(zone_device::HUGE_PAGES - 1)..place)
            .rev()
            .find(|&index| entries.get(index).is_some_and(|entry| entry.is_huge()))
            .filter(|&index| is_there(index) && index + zone_device::HUGE_PAGES > place)
    }

    /// Allocates and maps RAM for the folio of an entry, a folio like it; says whether there is any.
    fn prepare(
        &self,
        migration: &mut Migration<'_>,
        mapping: &mut Mapping<'_>,
        index: usize,
    ) -> Result<bool> {
        let order = self.order(migration, index);
        self.prepare_folio(migration, mapping, index, 0, order)
    }

    /// The same for one page of the folio, which will be split.
    fn prepare_single(
        &self,
        migration: &mut Migration<'_>,
        mapping: &mut Mapping<'_>,
        index: usize,
        offset: usize,
    ) -> Result<bool> {
        self.prepare_folio(migration, mapping, index, offset, 0)
    }

    fn prepare_folio(
        &self,
        migration: &mut Migration<'_>,
        mapping: &mut Mapping<'_>,
        index: usize,
        offset: usize,
        order: u32,
    ) -> Result<bool> {
        let place = index + offset;
        let page = self.source(migration, index).ok_or(EINVAL)?;
        let Some(folio) = LockedFolio::ram((self.memory)(place), order) else {
            return Ok(false);
        };
        // SAFETY: The pages of a folio are contiguous.
        let page = unsafe { zone_device::page_of(zone_device::frame_of(page) + offset) };
        mapping.set_page(place, page)?;
        // SAFETY: The folio is RAM, and the migration's from now on, which gives it back only when
        // the mapping is gone.
        unsafe { mapping.map(place, folio.page(), order) }?;
        migration.set_destination(place, folio)?;
        Ok(true)
    }

    /// Has the provider fill the RAM.
    fn copy(&self, mapping: &mut Mapping<'_>) -> Result {
        let copy = self.allocation.ops().copy_to_ram.ok_or(EOPNOTSUPP)?;
        let (pages, addrs, count) = mapping.arguments();
        // SAFETY: The arrays are complete and have so many entries.
        to_result(unsafe { copy(pages, addrs, count as c_ulong, ptr::null_mut()) })
    }
}

/// Notes of each device's folio that has moved that it did.
pub(super) fn retire(migration: &Migration<'_>) {
    for entry in migration.entries() {
        if let (true, Some(page)) = (entry.is_migrating(), entry.page()) {
            // SAFETY: The migration holds the folio, and its lock.
            unsafe {
                if zone_device::is_device_private(page) {
                    Zdd::retire(page);
                }
            }
        }
    }
}
