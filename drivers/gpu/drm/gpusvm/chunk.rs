// SPDX-License-Identifier: GPL-2.0

//! Choosing the span of a new range: logic only, no locks and no memory.
//!
//! A range is the largest chunk around the fault that its CPU VMA, its notifier, the GPU's window
//! and the address space of the SVM all hold, that overlaps no other range, and whose pages the
//! CPU has, where the driver asks for that.
//!
//! C: `drm_gpusvm_range_chunk_size()`.

use core::ops::Range;

/// Whether `inner` lies in `outer`. Ends are exclusive.
pub fn contains(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// Whether two spans have an address in common. Ends are exclusive.
pub fn overlaps(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The chunk of `size` bytes, a power of two, in which `addr` lies; none if it would reach beyond
/// the last address that can be told.
pub fn chunk_at(addr: usize, size: usize) -> Option<Range<usize>> {
    let start = addr & !size.checked_sub(1)?;
    Some(start..start.checked_add(size)?)
}

/// Whether `sizes`, in bytes, are what chunks may be cut to: powers of two in descending order, the
/// last of them a page.
pub fn sizes_are_valid(sizes: &[usize], page_size: usize) -> bool {
    sizes.iter().all(|size| size.is_power_of_two())
        && sizes.windows(2).all(|pair| match pair {
            [larger, smaller] => larger > smaller,
            _ => false,
        })
        && sizes.last() == Some(&page_size)
}

/// The spans that bound a chunk. All ends are exclusive, all addresses in bytes.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// The CPU's VMA.
    pub vma: Range<usize>,
    /// The MMU notifier that will watch the range.
    pub notifier: Range<usize>,
    /// The part of the GPU's address space that mirrors the CPU's here.
    pub window: Range<usize>,
    /// The SVM's address space.
    pub svm: Range<usize>,
    /// No larger chunk than this, in bytes.
    pub limit: usize,
}

impl Bounds {
    fn hold(&self, chunk: &Range<usize>) -> bool {
        chunk.end - chunk.start <= self.limit
            && contains(&self.vma, chunk)
            && contains(&self.notifier, chunk)
            && contains(&self.window, chunk)
            && contains(&self.svm, chunk)
    }
}

/// The chunks around `addr` that `bounds` hold, the largest first.
///
/// Nothing here supposes a page size: the smallest chunk is whatever `sizes` says that it is.
pub fn candidates<'a>(
    sizes: &'a [usize],
    addr: usize,
    bounds: &'a Bounds,
) -> impl Iterator<Item = Range<usize>> + 'a {
    sizes
        .iter()
        .filter_map(move |&size| chunk_at(addr, size))
        .filter(|chunk| bounds.hold(chunk))
}
