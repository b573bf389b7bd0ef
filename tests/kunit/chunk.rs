// SPDX-License-Identifier: GPL-2.0

//! Tests of the choice of a chunk, against arithmetic that cannot overflow.

use crate::random::Random;
use core::ops::Range;
use gpusvm::chunk::{candidates, chunk_at, contains, overlaps, sizes_are_valid, Bounds};
use kernel::{
    prelude::*,
    sizes::{SZ_16K, SZ_2M, SZ_32M, SZ_4K, SZ_512M, SZ_64K, SZ_8K}, //
};

/// The chunk sizes of kernels with pages of different sizes: the code does not depend on
/// `PAGE_SIZE`.
const PAGE_SIZES: [(usize, &[usize]); 3] = [
    (SZ_4K, &[SZ_2M, SZ_64K, SZ_4K]),
    (SZ_16K, &[SZ_32M, SZ_2M, SZ_16K]),
    (SZ_64K, &[SZ_512M, SZ_2M, SZ_64K]),
];

const ALL: Range<usize> = 0..usize::MAX;

fn unbounded() -> Bounds {
    Bounds {
        vma: ALL,
        notifier: ALL,
        window: ALL,
        svm: ALL,
        limit: usize::MAX,
    }
}

/// Returns the chunk of `size` bytes at `addr`, if it must be a candidate.
fn expected(size: usize, addr: usize, bounds: &Bounds) -> Option<Range<usize>> {
    let start = addr - addr.checked_rem(size)?;
    let end = start as u128 + size as u128;
    let inside = [&bounds.vma, &bounds.notifier, &bounds.window, &bounds.svm]
        .iter()
        .all(|outer| outer.start <= start && end <= outer.end as u128);
    // CAST: A chunk inside the bounds has an end of type `usize`.
    (inside && size <= bounds.limit).then_some(start..end as usize)
}

fn check(sizes: &[usize], addr: usize, bounds: &Bounds) -> Result {
    let mut found = candidates(sizes, addr, bounds);
    for &size in sizes {
        if let Some(chunk) = expected(size, addr, bounds) {
            ensure!(chunk.contains(&addr));
            ensure_eq!(found.next(), Some(chunk));
        }
    }
    ensure_eq!(found.next(), None);
    Ok(())
}

/// Returns a span around or beside `addr`, aligned to pages.
fn span_near(random: &mut Random, addr: usize, page: usize, reach: usize) -> Range<usize> {
    let below = random.below(reach) / page * page;
    let above = (1 + random.below(reach) / page) * page;
    let base = addr / page * page;
    let shift = if random.below(8) == 0 { page } else { 0 };
    base.saturating_sub(below) + shift..base.saturating_add(above)
}

#[kunit_tests(gpusvm_chunk)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_chunk_comes_first() -> Result {
        for (page, sizes) in PAGE_SIZES {
            let addr = 5 * SZ_512M + 3 * page + 17;
            let bounds = unbounded();
            let mut found = candidates(sizes, addr, &bounds).map(|chunk| chunk.len());
            for &size in sizes {
                ensure_eq!(found.next(), Some(size));
            }
            ensure_eq!(found.next(), None);
        }
        Ok(())
    }

    #[test]
    fn each_bound_clamps() -> Result {
        for (page, sizes) in PAGE_SIZES {
            let addr = 6 * SZ_512M + sizes[0] / 2 + 5 * page;
            // Bounds that are one page smaller than the largest chunk, at either end.
            let largest = chunk_at(addr, sizes[0]).ok_or(EINVAL)?;
            for tight in [
                largest.start + page..largest.end,
                largest.start..largest.end - page,
            ] {
                for which in 0..4 {
                    let mut bounds = unbounded();
                    match which {
                        0 => bounds.vma = tight.clone(),
                        1 => bounds.notifier = tight.clone(),
                        2 => bounds.window = tight.clone(),
                        _ => bounds.svm = tight.clone(),
                    }
                    let found = candidates(sizes, addr, &bounds).next().ok_or(EINVAL)?;
                    ensure!(contains(&tight, &found));
                    ensure_eq!(found.len(), sizes[1]);
                    check(sizes, addr, &bounds)?;
                }
            }
            // A bound that is exactly as large as the chunk.
            let mut bounds = unbounded();
            bounds.vma = largest.clone();
            ensure_eq!(candidates(sizes, addr, &bounds).next(), Some(largest));
        }
        Ok(())
    }

    #[test]
    fn the_limit_clamps() -> Result {
        for (page, sizes) in PAGE_SIZES {
            for (index, &size) in sizes.iter().enumerate() {
                let mut bounds = unbounded();
                for (limit, left) in [(size, index), (size * 2 - 1, index), (size - 1, index + 1)] {
                    bounds.limit = limit;
                    let found = candidates(sizes, SZ_512M, &bounds).map(|chunk| chunk.len());
                    ensure!(found.eq(sizes[left..].iter().copied()));
                }
            }
            let mut bounds = unbounded();
            bounds.limit = page;
            ensure_eq!(
                candidates(sizes, 3 * page + 1, &bounds).next(),
                Some(3 * page..4 * page)
            );
        }
        Ok(())
    }

    #[test]
    fn nothing_fits_into_less_than_a_page() -> Result {
        for (page, sizes) in PAGE_SIZES {
            let mut bounds = unbounded();
            bounds.vma = 4 * page..5 * page - 1;
            ensure_eq!(candidates(sizes, 4 * page, &bounds).next(), None);
            // An address outside of the VMA.
            bounds.vma = 4 * page..5 * page;
            ensure_eq!(candidates(sizes, 5 * page, &bounds).next(), None);
            ensure_eq!(candidates(sizes, 4 * page - 1, &bounds).next(), None);
        }
        Ok(())
    }

    #[test]
    fn sums_do_not_overflow() -> Result {
        for (page, sizes) in PAGE_SIZES {
            // The end of the last page does not fit into a `usize`.
            ensure_eq!(chunk_at(usize::MAX, page), None);
            ensure_eq!(chunk_at(usize::MAX - page + 1, page), None);
            let below = usize::MAX - page;
            ensure_eq!(
                chunk_at(below, page),
                Some(below - (page - 1)..usize::MAX - (page - 1))
            );
            for addr in [usize::MAX, usize::MAX - page, usize::MAX - 2 * page, 0, 1] {
                check(sizes, addr, &unbounded())?;
            }
        }
        ensure_eq!(chunk_at(0x1234, 0), None);
        ensure_eq!(chunk_at(0x1234, 1), Some(0x1234..0x1235));
        Ok(())
    }

    #[test]
    fn random_bounds_agree_with_wide_arithmetic() -> Result {
        let mut random = Random::new(0x1234_5678_9abc_def1);
        for (page, sizes) in PAGE_SIZES {
            for _ in 0..3000 {
                // CAST: Random bits are truncated.
                let addr = match random.below(4) {
                    0 => random.below(2 * SZ_512M),
                    1 => usize::MAX - random.below(2 * SZ_512M),
                    _ => random.any() as usize >> 16,
                };
                let reach = 2 * sizes[random.below(sizes.len())];
                let mut bounds = Bounds {
                    vma: span_near(&mut random, addr, page, reach),
                    notifier: span_near(&mut random, addr, page, 2 * reach),
                    window: span_near(&mut random, addr, page, 2 * reach),
                    svm: span_near(&mut random, addr, page, 4 * reach),
                    limit: usize::MAX,
                };
                if random.below(4) == 0 {
                    bounds.limit = page + random.below(sizes[0]);
                }
                check(sizes, addr, &bounds)?;
            }
        }
        Ok(())
    }

    #[test]
    fn sizes_descend_to_a_page() -> Result {
        for (page, sizes) in PAGE_SIZES {
            ensure!(sizes_are_valid(sizes, page));
            ensure!(sizes_are_valid(&[page], page));
            ensure!(!sizes_are_valid(&[], page));
            // No page size; a part of a page; the page size of another kernel.
            ensure!(!sizes_are_valid(&sizes[..sizes.len() - 1], page));
            ensure!(!sizes_are_valid(&[page, page / 2], page));
            ensure!(!sizes_are_valid(sizes, page * 2));
            ensure!(!sizes_are_valid(sizes, page / 2));
            // Equal sizes; ascending sizes; not a power of two; zero.
            ensure!(!sizes_are_valid(&[page, page], page));
            ensure!(!sizes_are_valid(&[2 * page, 4 * page, page], page));
            ensure!(!sizes_are_valid(&[3 * page, page], page));
            ensure!(!sizes_are_valid(&[page, 0], page));
        }
        ensure!(!sizes_are_valid(&[SZ_2M, SZ_64K, SZ_4K], SZ_8K));
        Ok(())
    }

    #[test]
    fn spans_contain_and_overlap() -> Result {
        // Compares all spans in a small space address by address.
        const SPACE: usize = 6;
        for a in 0..SPACE * SPACE {
            for b in 0..SPACE * SPACE {
                let (a, b) = (a / SPACE..a % SPACE + 1, b / SPACE..b % SPACE + 1);
                if a.is_empty() || b.is_empty() {
                    continue;
                }
                ensure_eq!(contains(&a, &b), b.clone().all(|x| a.contains(&x)));
                ensure_eq!(overlaps(&a, &b), b.clone().any(|x| a.contains(&x)));
            }
        }
        Ok(())
    }
}
