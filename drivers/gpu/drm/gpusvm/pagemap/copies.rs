// SPDX-License-Identifier: GPL-2.0

//! The copies of a migration to a device: the device itself copies from system memory, and other devices copy from
//! their own memory.
//!
//! The memory for the device's own copies is allocated before pages are collected. The memory for the other devices'
//! copies cannot be: only the collected pages tell which devices these are. It is allocated without waiting.
//!
//! C: `drm_pagemap_migrate_range()`.

use super::{
    copy_mapping::CopyMapping,
    devmem::Devmem,
    drm_pagemap::Pagemap,
    to_device::{MigrationUnit, Source},
    zdd::Zdd, //
};
use core::ptr::{self, NonNull};
use kernel::{
    bindings::{dma_fence, page},
    error::to_result,
    ffi::c_ulong,
    prelude::*,
    sync::Arc, //
};
use kernel_ext::{
    dma::Direction,
    mm::{
        folio::LockedFolio,
        migrate::Migration,
        zone_device, //
    }, //
};

/// The copies of a migration. When this is dropped, no device can access memory of another one or system memory any
/// more.
pub(super) struct Copies<'a> {
    to: &'a Pagemap,
    pages: usize,
    own: CopyMapping<'a>,
    others: KVec<Other<'a>>,
}

/// The copies that another device makes.
struct Other<'a> {
    // Dropped first.
    mapping: CopyMapping<'a>,
    from: Arc<Zdd>,
}

/// The numbers of pages that were prepared.
pub(super) struct Prepared {
    /// The pages to be copied.
    pub(super) copied: usize,
    /// The pages that cannot be copied, as their device does not reach the destination.
    pub(super) unreachable: usize,
}

impl<'a> Copies<'a> {
    /// Creates an empty set of copies to the memory of a pagemap, for a span of `pages` pages. Fails with `ENOMEM`.
    pub(super) fn new(to: &'a Pagemap, pages: usize) -> Result<Self> {
        let device = to.drm().dma_device();
        Ok(Self {
            to,
            pages,
            // SAFETY: The device lives as long as the pagemap.
            own: unsafe { CopyMapping::new(device, Direction::ToDevice, pages, GFP_KERNEL) }?,
            others: KVec::new(),
        })
    }

    /// Creates the destination folios of a unit, with `zdd` as their zone-device data, and maps both sides for the
    /// device that copies. Fails with `EINVAL` if the unit is a huge folio and its frames
    /// [cannot be one](can_be_folio), with `EFAULT` if the device does not reach the system memory, and with `ENOMEM`.
    ///
    /// # Safety
    ///
    /// The frames of the unit in `frames` must belong to the pagemap and to the block of `zdd`, be free, and be in no
    /// other block. The unit must belong to the migration, which must outlive this object.
    pub(super) unsafe fn prepare(
        &mut self,
        zdd: &Arc<Zdd>,
        migration: &mut Migration<'_>,
        frames: &[usize],
        unit: &MigrationUnit,
    ) -> Result<Prepared> {
        let pages = unit.pages();
        let indices = unit.index..unit.index + pages;
        let frames = frames.get(indices.clone()).ok_or(EINVAL)?;
        let mut done = Prepared {
            copied: 0,
            unreachable: 0,
        };
        // Either one huge folio, or a single page for each page of the unit.
        let (order, step) = if can_be_folio(frames) {
            (unit.order, pages)
        } else {
            (0, 1)
        };
        for (index, frame) in indices.zip(frames).step_by(step) {
            // SAFETY: By this function's requirements. `fault::folio_free()` takes the reference in the zone-device
            // data back.
            let folio = unsafe {
                LockedFolio::device(
                    self.to.dev_pagemap(),
                    *frame,
                    order,
                    zdd.clone().into_data(),
                )
            };
            // SAFETY: The pages of a folio are contiguous, and their frames ascend.
            let source_page = |first| unsafe {
                zone_device::page_of(zone_device::frame_of(first) + index - unit.index)
            };
            match unit.source {
                Source::Nowhere => self.own.set_page(index, folio.page())?,
                Source::Ram(first) => {
                    self.own.set_page(index, folio.page())?;
                    // SAFETY: The page is isolated system memory, to which the migration holds a reference.
                    unsafe { self.own.map(index, source_page(first), order) }?;
                    done.copied += 1 << order;
                }
                Source::Device(first) => {
                    // SAFETY: The page is device memory, to which the migration holds a reference.
                    let other = unsafe { self.other(first) }?;
                    // SAFETY: The folio belongs to the pagemap. The migration gets it, and frees it only after the
                    // mapping is dropped.
                    let mapped = unsafe { other.mapping.map_device(index, folio.page(), order) };
                    if let Err(e) = mapped {
                        kernel_ext::debug!(
                            "page {index} is on a device that cannot copy it: {e:?}"
                        );
                        done.unreachable = unit.index + pages - index;
                        break;
                    }
                    other.mapping.set_page(index, source_page(first))?;
                    done.copied += 1 << order;
                }
            }
            migration.set_destination(index, folio)?;
        }
        Ok(done)
    }

    /// Returns the copies that the device of a page makes.
    ///
    /// # Safety
    ///
    /// The page must belong to a pagemap of the core, and be in use.
    unsafe fn other(&mut self, page: NonNull<page>) -> Result<&mut Other<'a>> {
        // SAFETY: By this function's requirements.
        let from = unsafe { Zdd::of(page) };
        let is_from = |other: &Other<'_>| {
            ptr::eq(other.from.pagemap(), from.pagemap())
                && ptr::eq(other.from.devmem().ops(), from.devmem().ops())
        };
        let known = self.others.iter().position(is_from);
        let index = match known {
            Some(index) => index,
            None => {
                let device = from.pagemap().drm().dma_device();
                let (dir, flags) = (Direction::FromDevice, GFP_NOWAIT);
                // SAFETY: The device lives as long as the pagemap.
                let mapping = unsafe { CopyMapping::new(device, dir, self.pages, flags) }?;
                let other = Other {
                    mapping: mapping.with(self.to),
                    from: from.into(),
                };
                self.others.push(other, GFP_NOWAIT)?;
                self.others.len() - 1
            }
        };
        self.others.get_mut(index).ok_or(EINVAL)
    }

    /// Calls the drivers that copy, and those that clear pages without contents. `devmem` is the destination.
    pub(super) fn run(&mut self, devmem: &Devmem) -> Result {
        // SAFETY: Only this migration fills the block.
        let fence = unsafe { devmem.fence() };
        copy(&mut self.own, devmem.ops().copy_to_devmem, fence)?;
        for other in &mut self.others {
            let copy_to_ram = other.from.devmem().ops().copy_to_ram;
            copy(&mut other.mapping, copy_to_ram, fence)?;
        }
        // SAFETY: As above.
        unsafe { devmem.put_fence() };
        Ok(())
    }
}

type Operation = unsafe extern "C" fn(
    *mut *mut page,
    *mut kernel_ext::bindings::drm_pagemap_addr,
    c_ulong,
    *mut dma_fence,
) -> kernel::ffi::c_int;

/// Calls a driver's copy operation, if there is anything to copy or clear.
fn copy(
    mapping: &mut CopyMapping<'_>,
    operation: Option<Operation>,
    fence: *mut dma_fence,
) -> Result {
    if mapping.is_empty() {
        return Ok(());
    }
    let operation = operation.ok_or(EOPNOTSUPP)?;
    let (pages, addrs, count) = mapping.arguments();
    // SAFETY: Both arrays are complete and have `count` entries. The operation belongs to the device of the pages.
    to_result(unsafe { operation(pages, addrs, count as c_ulong, fence) })
}

/// Returns whether `frames` can be one folio.
pub(super) fn can_be_folio(frames: &[usize]) -> bool {
    let Some(&first) = frames.first() else {
        return false;
    };
    first % frames.len() == 0
        && frames
            .iter()
            .enumerate()
            .all(|(index, frame)| *frame == first + index)
}
