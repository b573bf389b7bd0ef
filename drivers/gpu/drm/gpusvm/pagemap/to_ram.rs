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
    /// Brings what was collected back to RAM, and says how many pages have moved.
    ///
    /// Sleeps. Errors, after which everything is where it was:
    /// - `ENOMEM`: there is no RAM for what is needed;
    /// - `EFAULT`: the device cannot reach the RAM;
    /// - an error of the provider's.
    pub(crate) fn bring_back(&self, migration: &mut Migration<'_>) -> Result<usize> {
        let pages = migration.entries().len();
        // SAFETY: The device lives as long as the allocation.
        let mut mapping =
            unsafe { Mapping::new(self.allocation.dma_device(), Direction::FromDevice, pages) }?;
        let mut any = false;
        // What is needed comes first, and what there is memory for is had.
        if let Some(needed) = self.needed {
            let head = self.entry_of(migration, needed);
            if let Some(head) = head {
                let filled = self.prepare(migration, &mut mapping, head)?;
                if head + filled <= needed {
                    return Err(ENOMEM);
                }
                any = true;
            }
        }
        let mut short = false;
        for index in 0..pages {
            if short && self.needed.is_some() {
                break;
            }
            let Some(entry) = migration.entries().get(index).copied() else {
                break;
            };
            let done = migration
                .destinations()
                .get(index)
                .is_some_and(|entry| entry.page().is_some());
            if done || source(entry, self.allocation).is_none() {
                continue;
            }
            let filled = self.prepare(migration, &mut mapping, index)?;
            any |= filled != 0;
            short |= filled < entry.pages();
        }
        if !any {
            return if short { Err(ENOMEM) } else { Ok(0) };
        }
        self.copy(&mut mapping)?;
        drop(mapping);
        let moved = migration.migrate();
        retire(migration);
        if short && self.needed.is_none() {
            return Err(ENOMEM);
        }
        Ok(moved)
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

    /// Allocates and maps RAM for the folio of an entry: a folio like it, or, if there is none,
    /// single pages. Returns for how many pages there was memory.
    fn prepare(
        &self,
        migration: &mut Migration<'_>,
        mapping: &mut Mapping,
        index: usize,
    ) -> Result<usize> {
        let entry = migration.entries().get(index).copied().unwrap_or_default();
        let Some(page) = source(entry, self.allocation) else {
            return Ok(0);
        };
        // SAFETY: The migration holds the folio.
        let (order, frame) = unsafe { (zone_device::order_of(page), zone_device::frame_of(page)) };
        if let Some(folio) = LockedFolio::ram((self.memory)(index), order) {
            mapping.set_page(index, page)?;
            // SAFETY: The folio is RAM, and the migration's from now on, which gives it back only
            // when the mapping is gone.
            unsafe { mapping.map(index, folio.page(), order) }?;
            migration.set_destination(index, folio)?;
            return Ok(1 << order);
        }
        if order == 0 || !migration.can_split() {
            return Ok(0);
        }
        for offset in 0..1 << order {
            let place = index + offset;
            let Some(folio) = LockedFolio::ram((self.memory)(place), 0) else {
                return Ok(offset);
            };
            // SAFETY: The folio's pages are contiguous.
            mapping.set_page(place, unsafe { zone_device::page_of(frame + offset) })?;
            // SAFETY: As above.
            unsafe { mapping.map(place, folio.page(), 0) }?;
            migration.set_destination(place, folio)?;
        }
        Ok(1 << order)
    }

    /// Has the provider fill the RAM.
    fn copy(&self, mapping: &mut Mapping) -> Result {
        let copy = self.allocation.ops().copy_to_ram.ok_or(EOPNOTSUPP)?;
        let (pages, addrs, count) = mapping.arguments();
        // SAFETY: The arrays are complete and have so many entries.
        to_result(unsafe { copy(pages, addrs, count as c_ulong, ptr::null_mut()) })
    }
}

/// Notes of each folio that has moved that it did.
fn retire(migration: &Migration<'_>) {
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
