// SPDX-License-Identifier: GPL-2.0

//! What a migration to a device has to have copied, and by whom: by the device itself what is in RAM, by
//! other devices what is in their memory.
//!
//! The memory for what a device copies is there before any page is collected, but for what other devices copy:
//! which these are is known by the pages only. For that nobody waits.
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

/// The copies of a migration. Dropped, nobody has access any more to what it does not own.
pub(super) struct Copies<'a> {
    to: &'a Pagemap,
    pages: usize,
    own: CopyMapping<'a>,
    others: KVec<Other<'a>>,
}

/// What another device copies.
struct Other<'a> {
    // Dropped first.
    mapping: CopyMapping<'a>,
    from: Arc<Zdd>,
}

/// What is ready to be moved, in pages.
pub(super) struct Prepared {
    /// What is to be copied.
    pub(super) copied: usize,
    /// What cannot be, as the device that has it does not reach the other.
    pub(super) unreachable: usize,
}

impl<'a> Copies<'a> {
    /// Copies to the memory of a pagemap, for a span of `pages` pages. Fails with `ENOMEM`.
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

    /// Makes the folios of a piece ready to be filled, which carry `zdd`, and maps both sides for who copies.
    /// Fails with `EINVAL` if it is a huge folio for which the frames are no [block](are_block), with `EFAULT` if
    /// the device does not reach the RAM, and `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `frames` must have those of the piece, which must be of the pagemap and the allocation of `zdd`, free, and
    /// nobody else's. The piece must be of the migration, which outlives this object.
    pub(super) unsafe fn prepare(
        &mut self,
        zdd: &Arc<Zdd>,
        migration: &mut Migration<'_>,
        frames: &[usize],
        piece: &MigrationUnit,
    ) -> Result<Prepared> {
        let pages = piece.pages();
        let places = piece.index..piece.index + pages;
        let frames = frames.get(places.clone()).ok_or(EINVAL)?;
        let mut done = Prepared {
            copied: 0,
            unreachable: 0,
        };
        // A huge folio, or single pages for the place of one.
        let (order, step) = if are_block(frames) {
            (piece.order, pages)
        } else {
            (0, 1)
        };
        for (place, frame) in places.zip(frames).step_by(step) {
            // SAFETY: By this function's requirements; what frees folios of the pagemap is `fault`'s,
            // which takes the word for a reference.
            let folio = unsafe {
                LockedFolio::device(
                    self.to.dev_pagemap(),
                    *frame,
                    order,
                    zdd.clone().into_data(),
                )
            };
            // SAFETY: The pages of a folio are contiguous, and their frames in ascending order.
            let behind = |first| unsafe {
                zone_device::page_of(zone_device::frame_of(first) + place - piece.index)
            };
            match piece.source {
                Source::Nowhere => self.own.set_page(place, folio.page())?,
                Source::Ram(first) => {
                    self.own.set_page(place, folio.page())?;
                    // SAFETY: The source is isolated RAM that the migration holds.
                    unsafe { self.own.map(place, behind(first), order) }?;
                    done.copied += 1 << order;
                }
                Source::Device(first) => {
                    // SAFETY: The source is device memory that the migration holds.
                    let other = unsafe { self.other(first) }?;
                    // SAFETY: The folio is of the pagemap, and the migration's from now on, which
                    // gives it back only when the mapping is gone.
                    let mapped = unsafe { other.mapping.map_device(place, folio.page(), order) };
                    if let Err(e) = mapped {
                        kernel_ext::debug!(
                            "page {place} is on a device that cannot copy it: {e:?}"
                        );
                        done.unreachable = piece.index + pages - place;
                        break;
                    }
                    other.mapping.set_page(place, behind(first))?;
                    done.copied += 1 << order;
                }
            }
            migration.set_destination(place, folio)?;
        }
        Ok(done)
    }

    /// What the device copies that has a page.
    ///
    /// # Safety
    ///
    /// The page must be of a pagemap of the core, and in use.
    unsafe fn other(&mut self, page: NonNull<page>) -> Result<&mut Other<'a>> {
        // SAFETY: By this function's requirements.
        let from = unsafe { Zdd::of(page) };
        let is_from = |other: &Other<'_>| {
            ptr::eq(other.from.pagemap(), from.pagemap())
                && ptr::eq(other.from.allocation().ops(), from.allocation().ops())
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

    /// Has everything copied, and cleared what comes from nowhere. `allocation` is what is copied to.
    pub(super) fn run(&mut self, allocation: &Devmem) -> Result {
        // SAFETY: Only this migration fills the allocation.
        let fence = unsafe { allocation.fence() };
        copy(&mut self.own, allocation.ops().copy_to_devmem, fence)?;
        for other in &mut self.others {
            let copy_to_ram = other.from.allocation().ops().copy_to_ram;
            copy(&mut other.mapping, copy_to_ram, fence)?;
        }
        // SAFETY: As above.
        unsafe { allocation.put_fence() };
        Ok(())
    }
}

type Operation = unsafe extern "C" fn(
    *mut *mut page,
    *mut kernel_ext::bindings::drm_pagemap_addr,
    c_ulong,
    *mut dma_fence,
) -> kernel::ffi::c_int;

/// Has a device copy, if there is anything to be copied.
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
    // SAFETY: The arrays are complete and have so many entries; the operation is of the device that
    // the pages are of.
    to_result(unsafe { operation(pages, addrs, count as c_ulong, fence) })
}

/// Whether `frames` can be one folio.
pub(super) fn are_block(frames: &[usize]) -> bool {
    let Some(&first) = frames.first() else {
        return false;
    };
    first % frames.len() == 0
        && frames
            .iter()
            .enumerate()
            .all(|(index, frame)| *frame == first + index)
}
