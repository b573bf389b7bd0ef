// SPDX-License-Identifier: GPL-2.0

//! The choice of a new range's span: logic only, without locks and allocations.
//!
//! The span of a range is the largest chunk around the fault that lies in the CPU's VMA, in the
//! notifier, in the GPU's window and in the address space of the SVM, and that overlaps no other
//! range. If the driver asks for it, the CPU must also have mapped all pages of the chunk.
//!
//! C: `drm_gpusvm_range_chunk_size()`.

use core::ops::Range;

/// Returns whether `inner` lies in `outer`. Ends are exclusive.
pub fn contains(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// Returns whether two spans have an address in common. Ends are exclusive.
pub fn overlaps(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Returns the chunk of `size` bytes, a power of two, in which `addr` lies; none if the chunk would
/// end beyond the last address.
pub fn chunk_at(addr: usize, size: usize) -> Option<Range<usize>> {
    let start = addr & !size.checked_sub(1)?;
    Some(start..start.checked_add(size)?)
}

/// Returns whether `sizes`, in bytes, are valid chunk sizes: powers of two in descending order, the
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
    /// The largest size of the chunk, in bytes.
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

/// Returns the chunks around `addr` that lie in `bounds`, the largest first.
///
/// This function assumes no page size: the last of `sizes` is the smallest chunk.
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
