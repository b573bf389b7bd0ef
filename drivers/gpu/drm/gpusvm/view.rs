// SPDX-License-Identifier: GPL-2.0

//! Device addresses, while they are known to be valid.
//!
//! A [`View`] exists only inside [`LockedRange::commit`](crate::guard::LockedRange::commit) and
//! [`LockedUserptr::commit`](crate::userptr::LockedUserptr::commit): the notifier lock is held, and
//! the pages have been checked to be valid. The borrow checker keeps
//! [`Segments`] and [`Mapped`] from leaving the closure. A driver copies the address out of a
//! `Mapped` into its GPU page tables, and [`Driver::invalidate`] must remove it there.
//!
//! [`Driver::invalidate`]: crate::driver::Driver::invalidate

use crate::{
    pages::Pages,
    segment::{Protocol, Segment}, //
};
use core::{
    marker::PhantomData,
    ops::Range, //
};
use kernel_ext::{
    dma::Direction,
    drm::device::DrmDevice, //
};

/// The mapped pages of a range, or a part of those of a userptr, under the notifier lock.
pub struct View<'v> {
    span: Range<usize>,
    pages: &'v [Pages],
    /// The indices of the segments in `span`.
    part: Range<usize>,
}

impl<'v> View<'v> {
    /// # Safety
    ///
    /// The notifier lock must be held during `'v`, and all of `pages` must be valid, for `span`.
    pub(crate) unsafe fn new(span: Range<usize>, pages: &'v [Pages]) -> Self {
        Self {
            span,
            pages,
            part: 0..usize::MAX,
        }
    }

    /// Creates a view of the segments with the indices `part`, the first of which is at the address
    /// `start`. Returns `None` if there is no such segment.
    ///
    /// # Safety
    ///
    /// As for [`new`](Self::new).
    pub(crate) unsafe fn part(
        start: usize,
        pages: &'v [Pages],
        part: Range<usize>,
    ) -> Option<Self> {
        let mut view = Self {
            span: start..start,
            pages,
            part,
        };
        // The segments of all devices have the same sizes.
        let last = view.segments().last()?;
        view.span.end = last.va.wrapping_add(last.len);
        Some(view)
    }

    /// Returns the addresses of the range, or of the part, in bytes.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Returns the number of devices that the pages are mapped for; at least one.
    pub fn devices(&self) -> usize {
        self.pages.len()
    }

    /// Returns the segments of the first device, or the only one.
    pub fn segments(&self) -> Segments<'v> {
        self.of(0)
    }

    /// Returns the segments of the device with the index `device`; none if there is no such device.
    pub fn of(&self, device: usize) -> Segments<'v> {
        let all = match self.pages.get(device) {
            // SAFETY: The caller of `new()` guarantees that the notifier lock is held during `'v`.
            Some(pages) => unsafe { pages.mapped() },
            None => &[],
        };
        let end = self.part.end.min(all.len());
        let rest = all.get(self.part.start..end).unwrap_or(&[]);
        Segments {
            next: self.span.start,
            rest,
        }
    }

    /// Returns the device with the index `device`.
    pub fn device(&self, device: usize) -> Option<&'v DrmDevice> {
        self.pages.get(device).map(Pages::device)
    }
}

/// A contiguous piece of a range or userptr, with its device address, valid as long as the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped<'v> {
    /// The process's address, in bytes; for a range, it is also the GPU's.
    pub va: usize,
    /// The device's address, in bytes: a DMA address, if `proto` is [`Protocol::SYSTEM`].
    pub addr: u64,
    /// Size in bytes.
    pub len: usize,
    /// Whether the device may write to it.
    pub writable: bool,
    /// The kind of `addr`.
    pub proto: Protocol,
    _view: PhantomData<&'v Segment>,
}

/// Iterates over the segments of a view, in ascending order of address.
pub struct Segments<'v> {
    next: usize,
    rest: &'v [Segment],
}

impl<'v> Iterator for Segments<'v> {
    type Item = Mapped<'v>;

    #[inline]
    fn next(&mut self) -> Option<Mapped<'v>> {
        let (segment, rest) = self.rest.split_first()?;
        let mapped = Mapped {
            va: self.next,
            addr: segment.addr(),
            len: segment.size(),
            writable: segment.dir() == Direction::Bidirectional,
            proto: segment.proto(),
            _view: PhantomData,
        };
        self.next = self.next.wrapping_add(mapped.len);
        self.rest = rest;
        Some(mapped)
    }
}
