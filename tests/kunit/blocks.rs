// SPDX-License-Identifier: GPL-2.0

//! Tests of the split of a page-table walk's result into blocks, against a page-by-page model.

use crate::random::Random;
use kernel::prelude::*;
use kernel_ext::mm::hmm::{
    block_pages, //
    Blocks,
    Pfn,
};

/// A page of the model: the mapping that it belongs to, and its PFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page {
    mapping: usize,
    frame: usize,
    order: u32,
    valid: bool,
    writable: bool,
}

impl Page {
    fn pfn(&self) -> Pfn {
        Pfn::from_parts(self.frame, self.order, self.valid, self.writable)
    }
}

/// Returns `length` pages of random CPU mappings, the first of which may begin in the middle.
fn mappings(random: &mut Random, length: usize) -> Result<KVVec<Page>> {
    let mut pages = KVVec::new();
    let mut mapping = 0;
    while pages.len() < length {
        // CAST: The order is small.
        let order = [0, 0, 0, 1, 2, 4, 4, 9][random.below(8)] as u32;
        let whole = 1usize << order;
        // The PFNs of a mapping are aligned to its size; the largest mapping is that of a PMD.
        let first = (1 + random.below(1 << 20)) << order;
        let skipped = if mapping == 0 { random.below(whole) } else { 0 };
        let valid = order > 0 || random.below(5) != 0;
        let writable = valid && random.flip();
        for page in skipped..whole.min(skipped + length - pages.len()) {
            pages.push(
                Page {
                    mapping,
                    frame: if valid { first + page } else { 0 },
                    order,
                    valid,
                    writable,
                },
                GFP_KERNEL,
            )?;
        }
        mapping += 1;
    }
    Ok(pages)
}

/// Returns the size of the largest block at `index`, found by comparing each of its pages.
fn largest_block(pages: &[Page], index: usize) -> usize {
    let first = pages[index];
    (0..10)
        .rev()
        .map(|order| 1usize << order)
        .find(|&size| {
            index + size <= pages.len()
                && (0..size).all(|i| {
                    let page = pages[index + i];
                    page.mapping == first.mapping && page.frame == first.frame + i
                })
        })
        .unwrap_or(1)
}

#[kunit_tests(gpusvm_blocks)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_made_of_its_parts() -> Result {
        for order in [0, 4, 9, 18] {
            for flags in 0..3 {
                let (valid, writable) = (flags > 0, flags > 1);
                let pfn = Pfn::from_parts(0x12345, order, valid, writable);
                ensure_eq!(pfn.frame(), 0x12345);
                ensure_eq!(pfn.map_order(), order);
                ensure_eq!(pfn.is_valid(), valid);
                ensure_eq!(pfn.is_writable(), writable);
                ensure_eq!(pfn.phys(), 0x12345 << kernel::page::PAGE_SHIFT);
            }
        }
        Ok(())
    }

    #[test]
    fn a_huge_page_is_one_block() -> Result {
        let mut pfns = KVVec::new();
        for page in 0..512 {
            pfns.push(Pfn::from_parts(0x800 + page, 9, true, true), GFP_KERNEL)?;
        }
        let mut blocks = Blocks::of(&pfns);
        let block = blocks.next().ok_or(EINVAL)?;
        ensure_eq!((block.index, block.order), (0, 9));
        ensure_eq!(block.pfn, pfns[0]);
        ensure!(blocks.next().is_none());

        // From the second page on, the blocks are powers of two, down to a page at the end.
        let rest = Blocks::of(&pfns[1..]).map(|block| 1usize << block.order);
        ensure!(rest.eq([256, 128, 64, 32, 16, 8, 4, 2, 1]));
        // The same without the last page.
        let rest = Blocks::of(&pfns[..511]).map(|block| 1usize << block.order);
        ensure!(rest.eq([256, 128, 64, 32, 16, 8, 4, 2, 1]));
        Ok(())
    }

    #[test]
    fn single_pages_are_not_joined() -> Result {
        let mut pfns = KVVec::new();
        for page in 0..64 {
            pfns.push(Pfn::from_parts(0x800 + page, 0, true, true), GFP_KERNEL)?;
        }
        ensure_eq!(Blocks::of(&pfns).count(), 64);
        ensure!(Blocks::of(&pfns).all(|block| block.order == 0));
        ensure_eq!(Blocks::of(&[]).count(), 0);
        Ok(())
    }

    #[test]
    fn random_mappings_agree_with_a_model() -> Result {
        let mut random = Random::new(0xb10c_b10c);
        for _ in 0..20 {
            let length = 1 + random.below(700);
            let pages = mappings(&mut random, length)?;
            let mut pfns = KVVec::new();
            for page in &pages {
                pfns.push(page.pfn(), GFP_KERNEL)?;
            }
            for index in 0..length {
                ensure_eq!(
                    block_pages(pfns[index], index, length),
                    largest_block(&pages, index)
                );
            }
            // The blocks cover all pages without gaps.
            let mut next = 0;
            for block in Blocks::of(&pfns) {
                ensure_eq!(block.index, next);
                ensure_eq!(block.pfn, pfns[next]);
                ensure_eq!(1 << block.order, largest_block(&pages, next));
                next += 1 << block.order;
            }
            ensure_eq!(next, length);
        }
        Ok(())
    }
}
