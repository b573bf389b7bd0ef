// SPDX-License-Identifier: GPL-2.0

//! Migration of device pages to system memory: the common part of CPU faults and evictions.
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

/// The result of a migration to system memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The needed page was migrated, or was not on the device.
    Moved,
    /// Only the mapping of a huge folio was split, as there was no huge folio of system memory. The caller must try
    /// again.
    Split,
}

/// A migration of the pages of one block to system memory.
pub(crate) struct ToRam<'a, F: Fn(usize) -> MemPolicy<'a>> {
    /// The block; pages of other blocks stay on their device.
    pub(crate) devmem: &'a Devmem,
    /// The index of the page in the span that must be migrated; if it cannot be, no page is. If none, all pages must be
    /// migrated.
    pub(crate) needed: Option<usize>,
    /// Returns the memory policy for the page at an index of the span.
    pub(crate) memory: F,
}

/// Returns the page of an entry if it is in the block and not retired.
fn source(entry: Entry, devmem: &Devmem) -> Option<NonNull<page>> {
    if !entry.is_migrating() {
        return None;
    }
    let page = entry.page()?;
    // SAFETY: The migration holds a reference to the page. A device-private page that it collects is of a pagemap of
    // the core.
    let ours = unsafe {
        zone_device::is_device_private(page)
            && !Zdd::is_retired(page)
            && ptr::eq(Zdd::of(page).devmem(), devmem)
    };
    ours.then_some(page)
}

impl<'a, F: Fn(usize) -> MemPolicy<'a>> ToRam<'a, F> {
    /// Migrates the collected pages to system memory.
    ///
    /// A folio of several pages is copied to one folio of system memory of the same size. If there is none, the mapping
    /// of the folio with the needed page is split ([`Outcome::Split`]), and other folios stay on the device.
    ///
    /// Sleeps. Errors, after which all pages are where they were:
    /// - `ENOMEM`: there is no system memory for the needed page. If no page is needed, that is an error as well, but
    ///   the pages for which there was memory were migrated;
    /// - `EFAULT`: the device cannot reach the system memory;
    /// - an error of the provider's.
    pub(crate) fn migrate_to_ram(&self, migration: &mut Migration<'_>) -> Result<Outcome> {
        let pages = migration.entries().len();
        let device = self.devmem.dma_device();
        let dir = Direction::FromDevice;
        // SAFETY: The device lives as long as the block.
        let mut mapping = unsafe { CopyMapping::new(device, dir, pages, GFP_KERNEL) }?;
        let mut outcome = Outcome::Moved;
        // `failed`: a folio got no memory. `exhausted`: not even a single page did.
        let (mut failed, mut exhausted) = (false, false);
        let mut any = false;
        // The needed page comes first; others follow as long as there is memory.
        if let Some(head) = self
            .needed
            .and_then(|index| self.entry_of(migration, index))
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
            if outcome == Outcome::Split || (exhausted && self.needed.is_some()) {
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
                failed = true;
                exhausted |= self.order(migration, index) == 0;
            }
        }
        if any {
            self.copy(&mut mapping)?;
            drop(mapping);
            migration.migrate();
            retire(migration);
        }
        if failed && self.needed.is_none() {
            return Err(ENOMEM);
        }
        Ok(outcome)
    }

    /// Returns the page of an entry if it is to be migrated.
    fn source(&self, migration: &Migration<'_>, index: usize) -> Option<NonNull<page>> {
        source(*migration.entries().get(index)?, self.devmem)
    }

    /// Returns log2 of the number of pages of an entry's folio.
    fn order(&self, migration: &Migration<'_>, index: usize) -> u32 {
        self.source(migration, index).map_or(0, |page| {
            // SAFETY: The migration holds a reference to the folio.
            unsafe { zone_device::order_of(page) }
        })
    }

    /// Returns the index of the entry whose folio contains the page at `needed`.
    fn entry_of(&self, migration: &Migration<'_>, needed: usize) -> Option<usize> {
        let is_there = |index: usize| {
            migration
                .entries()
                .get(index)
                .is_some_and(|entry| source(*entry, self.devmem).is_some())
        };
        if is_there(needed) {
            return Some(needed);
        }
        let entries = migration.entries();
        (needed.saturating_sub(zone_device::HUGE_PAGES - 1)..needed)
            .rev()
            .find(|&index| entries.get(index).is_some_and(|entry| entry.is_huge()))
            .filter(|&index| is_there(index) && index + zone_device::HUGE_PAGES > needed)
    }

    /// Allocates and maps a folio of system memory of the size of an entry's folio. Returns whether there was one.
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

    /// Allocates and maps a page of system memory for the first page of the needed folio, whose mapping is split.
    /// Returns whether there was one.
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

    /// Allocates `1 << order` pages of system memory for the first pages of an entry, and adds both to the copy. The
    /// caller must make the folio a destination of the migration, which frees it only after the mapping is dropped.
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
        // SAFETY: The folio is system memory, and the migration keeps it until `mapping` is dropped.
        unsafe { mapping.map(index, folio.page(), order) }?;
        Ok(Some(folio))
    }

    /// Calls the provider's `copy_to_ram`.
    fn copy(&self, mapping: &mut CopyMapping<'_>) -> Result {
        let copy = self.devmem.ops().copy_to_ram.ok_or(EOPNOTSUPP)?;
        let (pages, addrs, count) = mapping.arguments();
        // SAFETY: Both arrays are complete and have `count` entries.
        to_result(unsafe { copy(pages, addrs, count as c_ulong, ptr::null_mut()) })
    }
}

/// Marks each migrated device folio as retired.
pub(super) fn retire(migration: &Migration<'_>) {
    for entry in migration.entries() {
        if let (true, Some(page)) = (entry.is_migrating(), entry.page()) {
            // SAFETY: The migration holds a reference to the folio, and its lock.
            unsafe {
                if zone_device::is_device_private(page) {
                    Zdd::retire(page);
                }
            }
        }
    }
}
