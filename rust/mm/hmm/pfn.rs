// SPDX-License-Identifier: GPL-2.0

//! The entries of a walk of page tables, and the blocks that they form.

use crate::bindings;
use kernel::ffi::c_ulong;

/// One entry of a walk's result, a `hmm_pfn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Pfn(pub(super) c_ulong);

impl Pfn {
    /// Whether the CPU maps a page, at least for reading.
    #[inline]
    pub fn is_valid(self) -> bool {
        self.0 & bindings::hmm_pfn_flags_HMM_PFN_VALID as c_ulong != 0
    }

    /// Whether the CPU maps the page for writing.
    #[inline]
    pub fn is_writable(self) -> bool {
        self.0 & bindings::hmm_pfn_flags_HMM_PFN_WRITE as c_ulong != 0
    }

    /// Whether no VMA covers the page, or HMM cannot use the memory.
    #[inline]
    pub(super) fn is_unusable(self) -> bool {
        self.0 & bindings::hmm_pfn_flags_HMM_PFN_ERROR as c_ulong != 0
    }

    /// Whether the page is as required by a request with these `flags`. As in HMM, a
    /// device-private page of the walk's owner meets every request, even if it is not writable.
    #[inline]
    pub(super) fn has(self, flags: c_ulong) -> bool {
        self.0 & flags == flags
            || (self.is_valid()
                // SAFETY: A valid entry names a page that has a `struct page`.
                && unsafe { bindings::is_device_private_page(self.page()) })
    }

    /// Log2 of the number of pages that the page-table entry of this page maps.
    #[inline]
    pub fn map_order(self) -> u32 {
        ((self.0 >> bindings::hmm_pfn_flags_HMM_PFN_ORDER_SHIFT) & 0x1f) as u32
    }

    /// Returns the page frame number.
    pub fn frame(self) -> usize {
        self.0 & !(bindings::hmm_pfn_flags_HMM_PFN_FLAGS as c_ulong)
    }

    /// Returns the physical address in bytes.
    pub fn phys(self) -> u64 {
        // SAFETY: Arithmetic on the value.
        unsafe { bindings::hmm_pfn_to_phys(self.0) }
    }

    /// Returns the page. The caller may dereference it only while the snapshot is known to be valid.
    #[inline]
    pub fn page(self) -> *mut kernel::bindings::page {
        // SAFETY: Arithmetic on the value.
        unsafe { bindings::hmm_pfn_to_page(self.0) }
    }

    /// Resolves the entry to its page, which a device is about to map for writing (`write`) or for reading.
    ///
    /// A store by a device does not set the dirty bit of the CPU's page-table entry. A page that the CPU may write is
    /// therefore marked dirty here if `write`, or if it is anonymous.
    ///
    /// # Safety
    ///
    /// The CPU must map the page as the entry says, and the page must stay allocated during the call.
    #[inline]
    pub unsafe fn resolve(self, write: bool) -> ResolvedPage {
        // SAFETY: By this function's requirements.
        ResolvedPage(unsafe { bindings::hmm_pfn_resolve(self.0, write) })
    }

    /// Returns the flags of the entry, without the frame number.
    fn flags(self) -> c_ulong {
        self.0 & bindings::hmm_pfn_flags_HMM_PFN_FLAGS as c_ulong
    }

    /// Returns the entry with another frame number.
    pub(super) fn moved_to(self, frame: usize) -> Self {
        Self(self.flags() | frame as c_ulong)
    }

    /// Returns the entry of the next page of the same huge page.
    #[inline]
    pub(super) fn following(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// Makes an entry from its parts, for tests.
    pub fn from_parts(frame: usize, order: u32, valid: bool, writable: bool) -> Self {
        let mut v = frame as c_ulong;
        v |= ((order & 0x1f) as c_ulong) << bindings::hmm_pfn_flags_HMM_PFN_ORDER_SHIFT;
        if valid {
            v |= bindings::hmm_pfn_flags_HMM_PFN_VALID as c_ulong;
        }
        if writable {
            v |= bindings::hmm_pfn_flags_HMM_PFN_WRITE as c_ulong;
        }
        Self(v)
    }
}

/// The result of [`Pfn::resolve`]: the address of a page, and two flags in its low bits.
#[derive(Clone, Copy, Debug)]
pub struct ResolvedPage(c_ulong);

impl ResolvedPage {
    const ZONE_DEVICE: c_ulong = 1;
    const KEEPS_STORES: c_ulong = 2;

    /// Returns the page.
    #[inline]
    pub fn page(self) -> *mut kernel::bindings::page {
        // CAST: An address.
        (self.0 & !(Self::ZONE_DEVICE | Self::KEEPS_STORES)) as *mut _
    }

    /// Whether the page is in `ZONE_DEVICE`.
    #[inline]
    pub fn is_zone_device(self) -> bool {
        self.0 & Self::ZONE_DEVICE != 0
    }

    /// Whether the CPU maps the page for writing and its folio is dirty, so that reclaim keeps the stores of a device.
    #[inline]
    pub fn keeps_stores(self) -> bool {
        self.0 & Self::KEEPS_STORES != 0
    }
}

/// Returns the number of pages of the largest power-of-two block that starts at entry `index` and lies both
/// in the CPU's mapping of that entry and in the `pages` entries of the walk.
///
/// C's `drm_gpusvm_hmm_pfn_to_order()`, in pages instead of its logarithm.
pub fn block_pages(pfn: Pfn, index: usize, pages: usize) -> usize {
    let whole = 1usize << pfn.map_order();
    // The rest of the CPU's mapping, which is aligned to its size.
    let left = whole - (pfn.frame() & (whole - 1));
    let left = left.min(pages.saturating_sub(index)).max(1);
    // The largest power of two that is at most `left`.
    1usize << (usize::BITS - 1 - left.leading_zeros())
}

/// A block of pages that one entry of the CPU's page tables maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PfnBlock {
    /// The entry of its first page.
    pub pfn: Pfn,
    /// The index of its first page in the walk.
    pub index: usize,
    /// Log2 of its number of pages.
    pub order: u32,
}

/// Iterates over the blocks of a walk.
#[derive(Clone)]
pub struct Blocks<'a> {
    pfns: &'a [Pfn],
    next: usize,
}

impl<'a> Blocks<'a> {
    /// Iterates over the blocks of `pfns`.
    pub fn of(pfns: &'a [Pfn]) -> Self {
        Self { pfns, next: 0 }
    }
}

impl Iterator for Blocks<'_> {
    type Item = PfnBlock;

    #[inline]
    fn next(&mut self) -> Option<PfnBlock> {
        let pfn = *self.pfns.get(self.next)?;
        let (pages, order) = match pfn.map_order() {
            // Most pages are small.
            0 => (1, 0),
            _ => {
                let pages = block_pages(pfn, self.next, self.pfns.len());
                (pages, pages.trailing_zeros())
            }
        };
        debug_assert!(pfn.flags() != 0 || pages == 1);
        let block = PfnBlock {
            pfn,
            index: self.next,
            order,
        };
        self.next += pages;
        Some(block)
    }

    #[inline]
    fn count(self) -> usize {
        // One OR for each entry, instead of a branch, if all pages are small.
        let rest = self.pfns.get(self.next..).unwrap_or_default();
        if rest.first().is_none_or(|pfn| pfn.map_order() == 0)
            && Pfn(rest.iter().fold(0, |common, pfn| common | pfn.0)).map_order() == 0
        {
            return rest.len();
        }
        self.fold(0, |count, _| count + 1)
    }
}
