// SPDX-License-Identifier: GPL-2.0

//! Moving pages from a device to RAM: what a fault of a CPU and an eviction have in common.
//!
//! C: `__drm_pagemap_migrate_to_ram()`, `drm_pagemap_evict_to_ram()`.

use super::{
    copy_mapping::CopyMapping,
    devmem::Devmem,
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
    mm::{
        folio::{
            LockedFolio,
            MemPolicy, //
        },
        migrate::{
            Entry,
            Migration, //
        },
        zone_device, //
    }, //
};

/// What outcome of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// What is needed is back, or was not there.
    Moved,
    /// Only the mapping of a huge folio was split, for want of huge RAM; to be tried again.
    Split,
}

/// What is to come back, and where to.
pub(crate) struct ToRam<'a, F: Fn(usize) -> MemPolicy<'a>> {
    /// The allocation; pages of others stay.
    pub(crate) allocation: &'a Devmem,
    /// The place in the span that must come back; if it does not, nothing does. Without one all
    /// must.
    pub(crate) needed: Option<usize>,
    /// Where to allocate memory for a place in the span.
    pub(crate) memory: F,
}

/// The page of an entry, if it is to come back.
fn source(entry: Entry, allocation: &Devmem) -> Option<NonNull<page>> {
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

impl<'a, F: Fn(usize) -> MemPolicy<'a>> ToRam<'a, F> {
    /// Brings what was collected back to RAM, and says what outcome of it.
    ///
    /// A folio comes back as one: of several pages, if there is a folio of RAM like it. The one that is
    /// needed has its mapping split otherwise ([`Outcome::Split`]); each other stays.
    ///
    /// Sleeps. Errors, after which everything is where it was:
    /// - `ENOMEM`: there is no RAM for what is needed; if that is all, what there is RAM for outcome
    ///   back;
    /// - `EFAULT`: the device cannot reach the RAM;
    /// - an error of the provider's.
    pub(crate) fn migrate_to_ram(&self, migration: &mut Migration<'_>) -> Result<Outcome> {
        let pages = migration.entries().len();
        let device = self.allocation.dma_device();
        let dir = Direction::FromDevice;
        // SAFETY: The device lives as long as the allocation.
        let mut mapping = unsafe { CopyMapping::new(device, dir, pages, GFP_KERNEL) }?;
        let mut outcome = Outcome::Moved;
        // Whether there was no RAM for something, and whether for not even a page.
        let (mut short, mut spent) = (false, false);
        let mut any = false;
        // What is needed comes first; then, what there is memory for.
        if let Some(head) = self
            .needed
            .and_then(|place| self.entry_of(migration, place))
        {
            if !self.prepare(migration, &mut mapping, head)? {
                if self.order(migration, head) == 0
                    || !self.prepare_split(migration, &mut mapping, head)?
                {
                    return Err(ENOMEM);
                }
                outcome = Outcome::Split;
            }
            any = true;
        }
        for index in 0..pages {
            if outcome == Outcome::Split || (spent && self.needed.is_some()) {
                break;
            }
            let has_destination = migration
                .destinations()
                .get(index)
                .is_some_and(|entry| entry.page().is_some());
            if has_destination || self.source(migration, index).is_none() {
                continue;
            }
            if self.prepare(migration, &mut mapping, index)? {
                any = true;
            } else {
                short = true;
                spent |= self.order(migration, index) == 0;
            }
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
        Ok(outcome)
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
        mapping: &mut CopyMapping<'_>,
        index: usize,
    ) -> Result<bool> {
        let order = self.order(migration, index);
        match self.fill(migration, mapping, index, order)? {
            Some(folio) => migration.set_destination(index, folio).map(|()| true),
            None => Ok(false),
        }
    }

    /// Allocates and maps RAM for the first page of the folio of a fault, so that its mapping is split;
    /// says whether there is any.
    fn prepare_split(
        &self,
        migration: &mut Migration<'_>,
        mapping: &mut CopyMapping<'_>,
        index: usize,
    ) -> Result<bool> {
        match self.fill(migration, mapping, index, 0)? {
            Some(page) => migration.split_mapping(index, page).map(|()| true),
            None => Ok(false),
        }
    }

    /// Allocates RAM, `1 << order` pages, for the first ones of an entry, and notes both for the copy.
    /// The folio is to be made the migration's, which gives it back only when the mapping is gone.
    fn fill(
        &self,
        migration: &Migration<'_>,
        mapping: &mut CopyMapping<'_>,
        index: usize,
        order: u32,
    ) -> Result<Option<LockedFolio>> {
        let page = self.source(migration, index).ok_or(EINVAL)?;
        let Some(folio) = LockedFolio::ram((self.memory)(index), order) else {
            return Ok(None);
        };
        mapping.set_page(index, page)?;
        // SAFETY: The folio is RAM, and stays allocated, see above.
        unsafe { mapping.map(index, folio.page(), order) }?;
        Ok(Some(folio))
    }

    /// Has the provider fill the RAM.
    fn copy(&self, mapping: &mut CopyMapping<'_>) -> Result {
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
