// SPDX-License-Identifier: GPL-2.0

//! KUnit suite of the page table.

use kernel::prelude::*;

#[kunit_tests(vxe_gpu_page_table)]
mod suite {
    use super::super::*;
    use kernel::str::CString;

    const K: u64 = 1 << 10;
    const M: u64 = 1 << 20;
    const G: u64 = 1 << 30;

    /// A boundary of small and large pages, and of tables of all levels.
    const BORDER: u64 = 1 << 39;

    fn table() -> Result<Pin<KBox<PageTable>>> {
        KBox::pin_init(PageTable::new(48)?, GFP_KERNEL)
    }

    fn writable() -> PteFlags {
        PteFlag::Writable.into()
    }

    /// Stages and maps a span.
    fn map(table: &PageTable, va: u64, len: u64, target: u64) -> Result<Option<Range<u64>>> {
        let mut staged = table.stage(va, len)?;
        table.map(&mut staged, va, len, Target::System(target), writable())
    }

    fn unmap(table: &PageTable, va: u64, len: u64) -> Result<Option<Range<u64>>> {
        let mut staged = table.stage(va, len)?;
        table.zap_exact(&mut staged, va, len)
    }

    fn addr(table: &PageTable, va: u64) -> Option<u64> {
        Some(table.translate(va)?.target().addr())
    }

    /// Returns the size of the leaf that maps `va`.
    fn leaf_size(table: &PageTable, va: u64) -> Option<u64> {
        let leaf = table.tree.lock().next_leaf(va)?;
        (leaf.start <= va).then_some(leaf.size)
    }

    /// Returns whether exactly the pages of `span` are mapped, contiguously from `target` on.
    fn is_mapped(table: &PageTable, span: Range<u64>, target: u64) -> bool {
        let mut pages = span.clone().step_by(PAGE_SIZE as usize);
        pages.all(|va| addr(table, va + 123) == Some(target + (va - span.start)))
            && addr(table, span.start.wrapping_sub(1)).is_none()
            && addr(table, span.end).is_none()
    }

    /// Returns the number of nodes in the pool.
    fn pooled(table: &PageTable) -> usize {
        table.pool.nodes.lock().len
    }

    #[test]
    fn nothing_is_mapped_at_first() -> Result {
        let table = table()?;
        for va in [0, 4 * K, BORDER, (1 << 48) - 1, 1 << 48, u64::MAX] {
            assert_eq!(table.translate(va), None);
        }
        assert_eq!(table.zap(0, 1 << 48), None);
        assert_eq!(table.zap(0, u64::MAX), None);
        Ok(())
    }

    #[test]
    fn a_page_is_mapped_alone() -> Result {
        let table = table()?;
        for va in [
            0,
            4 * K,
            2 * M - 4 * K,
            2 * M,
            BORDER - 4 * K,
            BORDER,
            (1 << 48) - 4 * K,
        ] {
            assert_eq!(map(&table, va, 4 * K, 0x1234_5000)?, None);
            assert!(is_mapped(&table, va..va + 4 * K, 0x1234_5000));
            assert_eq!(table.zap(va, 4 * K), Some(va..va + 4 * K));
            assert_eq!(table.translate(va), None);
        }
        Ok(())
    }

    #[test]
    fn spans_of_all_alignments() -> Result {
        let table = table()?;
        for start in [0, 4 * K, M, 2 * M - 4 * K] {
            for len in [4 * K, 64 * K, 2 * M - 4 * K, 2 * M, 2 * M + 4 * K, 4 * M] {
                for target in [0, 4 * K, M, 6 * M] {
                    let va = BORDER - 2 * M + start;
                    assert_eq!(map(&table, va, len, target)?, None);
                    assert!(is_mapped(&table, va..va + len, target));
                    assert_eq!(unmap(&table, va, len)?, Some(va..va + len));
                    assert_eq!(table.zap(0, 1 << 48), None);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn large_pages_where_both_sides_are_aligned() -> Result {
        let table = table()?;
        map(&table, G, 2 * M, 8 * M)?;
        assert_eq!(leaf_size(&table, G), Some(2 * M));
        // Parts of the span outside of large pages take small ones.
        map(&table, 2 * G - 4 * K, 2 * M + 8 * K, 8 * M - 4 * K)?;
        assert_eq!(leaf_size(&table, 2 * G - 4 * K), Some(4 * K));
        assert_eq!(leaf_size(&table, 2 * G), Some(2 * M));
        assert_eq!(leaf_size(&table, 2 * G + 2 * M), Some(4 * K));
        // The target is not aligned.
        map(&table, 3 * G, 2 * M, 8 * M + 4 * K)?;
        assert_eq!(leaf_size(&table, 3 * G), Some(4 * K));
        Ok(())
    }

    #[test]
    fn calls_are_not_merged() -> Result {
        let table = table()?;
        map(&table, G, M, 8 * M)?;
        map(&table, G + M, M, 9 * M)?;
        assert!(is_mapped(&table, G..G + 2 * M, 8 * M));
        assert_eq!(table.zap(G, M), Some(G..G + M));
        assert!(is_mapped(&table, G + M..G + 2 * M, 9 * M));
        Ok(())
    }

    #[test]
    fn zap_of_a_part_takes_the_large_page() -> Result {
        let table = table()?;
        map(&table, G - 4 * K, 6 * M + 8 * K, 10 * M - 4 * K)?;
        // From the middle of the first large page to the middle of the second.
        assert_eq!(table.zap(G + M, 2 * M), Some(G..G + 4 * M));
        assert!(is_mapped(&table, G - 4 * K..G, 10 * M - 4 * K));
        assert!(is_mapped(&table, G + 4 * M..G + 6 * M + 4 * K, 14 * M));
        assert_eq!(table.zap(G, 4 * M), None);
        Ok(())
    }

    #[test]
    fn zap_clears_small_pages_exactly() -> Result {
        let table = table()?;
        map(&table, G, 64 * K, 4 * K)?;
        assert_eq!(table.zap(G + 16 * K, 16 * K), Some(G + 16 * K..G + 32 * K));
        assert!(is_mapped(&table, G..G + 16 * K, 4 * K));
        assert!(is_mapped(&table, G + 32 * K..G + 64 * K, 36 * K));
        // The returned span covers only mapped pages; partly covered pages are cleared.
        assert_eq!(table.zap(G + 17 * K, 16 * K), Some(G + 32 * K..G + 36 * K));
        Ok(())
    }

    #[test]
    fn unmap_splits_large_pages() -> Result {
        let table = table()?;
        map(&table, G, 6 * M, 8 * M)?;
        assert_eq!(unmap(&table, G + M, 4 * M)?, Some(G + M..G + 5 * M));
        assert!(is_mapped(&table, G..G + M, 8 * M));
        assert!(is_mapped(&table, G + 5 * M..G + 6 * M, 13 * M));
        assert_eq!(table.translate(G).map(Pte::flags), Some(writable()));
        // A hole in the middle of a large page.
        map(&table, 2 * G, 2 * M, 8 * M)?;
        assert_eq!(
            unmap(&table, 2 * G + M, 4 * K)?,
            Some(2 * G + M..2 * G + M + 4 * K)
        );
        assert!(is_mapped(&table, 2 * G..2 * G + M, 8 * M));
        assert!(is_mapped(
            &table,
            2 * G + M + 4 * K..2 * G + 2 * M,
            9 * M + 4 * K
        ));
        Ok(())
    }

    #[test]
    fn map_replaces_and_says_so() -> Result {
        let table = table()?;
        map(&table, G, 2 * M, 8 * M)?;
        // Mapping the same pages again changes nothing.
        assert_eq!(map(&table, G, 2 * M, 8 * M)?, None);
        assert_eq!(map(&table, G + M, 4 * K, 9 * M)?, None);
        assert_eq!(leaf_size(&table, G), Some(4 * K));

        // Small pages within the large page, which was split.
        assert_eq!(
            map(&table, G + M, 8 * K, 4 * K)?,
            Some(G + M..G + M + 8 * K)
        );
        assert!(addr(&table, G + M - 1) == Some(9 * M - 4 * K));
        assert!(addr(&table, G + M + 8 * K) == Some(9 * M + 8 * K));

        // A large page over all of them.
        assert_eq!(map(&table, G, 2 * M, 16 * M)?, Some(G..G + 2 * M));
        assert_eq!(leaf_size(&table, G), Some(2 * M));

        // Other rights are another translation.
        let mut staged = table.stage(G, 2 * M)?;
        let read_only = PteFlags::empty();
        let stale = table.map(&mut staged, G, 2 * M, Target::System(16 * M), read_only)?;
        assert_eq!(stale, Some(G..G + 2 * M));
        Ok(())
    }

    #[test]
    fn rights() -> Result {
        let table = table()?;
        let rights = |flags: PteFlags| -> Result<[bool; 3]> {
            let mut staged = table.stage(G, 4 * K)?;
            table.map(&mut staged, G, 4 * K, Target::System(0), flags)?;
            let pte = table.translate(G).ok_or(EINVAL)?;
            Ok([Access::Read, Access::Write, Access::Atomic].map(|access| pte.allows(access)))
        };
        assert_eq!(rights(PteFlags::empty())?, [true, false, false]);
        assert_eq!(rights(PteFlag::Writable.into())?, [true, true, false]);
        assert_eq!(rights(PteFlag::Atomic.into())?, [true, false, false]);
        assert_eq!(
            rights(PteFlag::Writable | PteFlag::Atomic)?,
            [true, true, true]
        );
        Ok(())
    }

    #[test]
    fn nodes_come_back() -> Result {
        let table = table()?;
        // One node of each level.
        assert_eq!(table.stage(G, 4 * K)?.nodes.len, 4);
        assert_eq!(pooled(&table), 4);
        map(&table, G, 4 * K, 0)?;
        assert_eq!(pooled(&table), 0);
        // A neighbouring page needs no node; the staged ones return to the pool.
        map(&table, G + 4 * K, 4 * K, 0)?;
        assert_eq!(pooled(&table), 4);
        // An unmapped page returns all nodes of its tables.
        table.zap(G, 8 * K);
        assert_eq!(pooled(&table), 8);
        // The pool keeps a limited number of nodes.
        for i in 0..64 {
            map(&table, i * G, 4 * K, 0)?;
        }
        for i in 0..64 {
            table.zap(i * G, 4 * K);
        }
        assert_eq!(pooled(&table), 16);
        // A table that a large page replaces returns to the pool, too.
        drop(table.stage(BORDER - 4 * K, 8 * K)?);
        map(&table, G, 4 * K, 0)?;
        let before = pooled(&table);
        map(&table, G, 2 * M, 0)?;
        assert_eq!(pooled(&table), before + 1);
        Ok(())
    }

    #[test]
    fn stage_counts_the_worst_case() -> Result {
        let table = table()?;
        for (va, len, nodes) in [
            (0, 4 * K, 4),
            (BORDER - 4 * K, 8 * K, 7),
            (0, 2 * M, 4),
            (M, 2 * M, 5),
            (0, G, 512 + 3),
        ] {
            assert_eq!(table.stage(va, len)?.nodes.len, nodes);
        }
        // Enough for the worst case: one page at a time.
        let va = BORDER - 2 * M;
        let mut staged = table.stage(va, 4 * M)?;
        for page in 0..4 * M / PAGE_SIZE {
            let at = page * PAGE_SIZE;
            table.map(
                &mut staged,
                va + at,
                PAGE_SIZE,
                Target::System(at),
                writable(),
            )?;
        }
        assert_eq!(staged.nodes.len, 0);
        assert!(is_mapped(&table, va..va + 4 * M, 0));
        Ok(())
    }

    /// Adjacent small spans share tables, which are counted once.
    #[test]
    fn many_spans_are_staged_in_proportion() -> Result {
        let table = table()?;
        let pages = |count: u64, every: u64| {
            (0..count).map(move |i| BORDER + i * every..BORDER + i * every + 4 * K)
        };
        for (count, every, nodes) in [
            (1, 4 * K, 4),
            (512, 4 * K, 4),
            (513, 4 * K, 5),
            (100, 2 * M, 100 + 3),
            (100, G, 2 * 100 + 2),
        ] {
            let mut staged = table.stage_all(pages(count, every))?;
            assert_eq!(staged.nodes.len, nodes);
            for span in pages(count, every) {
                table.map(
                    &mut staged,
                    span.start,
                    4 * K,
                    Target::System(0),
                    writable(),
                )?;
            }
            assert_eq!(staged.nodes.len, 0);
            assert!(pages(count, every).all(|span| addr(&table, span.start) == Some(0)));
            drop(staged);
            table.zap(BORDER, 200 * G);
        }
        Ok(())
    }

    /// A removal needs a node only where it splits a large page, once for each.
    #[test]
    fn removals_are_staged_for_what_they_split() -> Result {
        let table = table()?;
        map(&table, BORDER, 8 * M, 0)?;
        map(&table, BORDER + 8 * M, 2 * M, 4 * K)?;
        let at = |&(start, end): &(u64, u64)| BORDER + start..BORDER + end;
        for (spans, nodes) in [
            (&[(0, 8 * M)][..], 0),
            (&[(0, 4 * K)], 1),
            (&[(M, 2 * M + 4 * K)], 2),
            (&[(M, 7 * M)], 2),
            (&[(4 * K, 8 * K), (16 * K, 20 * K), (M, M + 4 * K)], 1),
            (&[(4 * K, 8 * K), (3 * M, 4 * M), (5 * M, 7 * M)], 4),
            // Small pages, and no page.
            (&[(8 * M + 4 * K, 9 * M)], 0),
            (&[(11 * M, 12 * M)], 0),
        ] {
            let spans = || spans.iter().map(at);
            assert_eq!(table.stage_removals(spans())?.nodes.len, nodes);
        }
        let gone = [(M, 2 * M + 4 * K), (5 * M, 7 * M)];
        let mut staged = table.stage_removals(gone.iter().map(at))?;
        for span in gone.iter().map(at) {
            let len = span.end - span.start;
            assert_eq!(table.zap_exact(&mut staged, span.start, len)?, Some(span));
        }
        for page in 0..8 * M / PAGE_SIZE {
            let offset = page * PAGE_SIZE;
            let left = !gone
                .iter()
                .any(|&(start, end)| (start..end).contains(&offset));
            assert_eq!(addr(&table, BORDER + offset), left.then_some(offset));
        }
        Ok(())
    }

    /// Clearing a wide span detaches whole tables, and clears nothing else.
    #[test]
    fn wide_spans_are_cleared() -> Result {
        let table = table()?;
        let mapped = [M, 2 * G, 2 * G + 6 * M, 3 * G - 4 * K, 4 * G, 600 * G];
        for span in [
            0..1 << 40,
            M..3 * G,
            G..4 * G,
            2 * G + 4 * K..4 * G + 4 * K,
            2 * G + 4 * M..3 * G,
            2 * G..3 * G - 4 * K,
        ] {
            for at in mapped {
                map(&table, at, 4 * K, 0)?;
            }
            let gone = || mapped.into_iter().filter(|at| span.contains(at));
            let (first, last) = (gone().next(), gone().last());
            let zapped = first.zip(last).map(|(first, last)| first..last + 4 * K);
            assert_eq!(table.zap(span.start, span.end - span.start), zapped);
            for at in mapped {
                assert_eq!(addr(&table, at).is_none(), span.contains(&at));
            }
            table.zap(0, 1 << 48);
            assert_eq!(table.zap(0, 1 << 48), None);
        }
        Ok(())
    }

    #[test]
    fn bad_spans_are_refused() -> Result {
        let table = table()?;
        let bad = [
            (0, 0),
            (1, 4 * K),
            (0, K),
            (1 << 48, 4 * K),
            ((1 << 48) - 4 * K, 8 * K),
            (4 * K, u64::MAX - 4 * K + 1),
            (u64::MAX - 4 * K + 1, 8 * K),
        ];
        let mut staged = table.stage(0, 2 * M)?;
        for (va, len) in bad {
            assert!(table.stage(va, len).is_err());
            let mapped = table.map(&mut staged, va, len, Target::System(0), writable());
            assert_eq!(mapped, Err(EINVAL));
            assert_eq!(table.zap_exact(&mut staged, va, len), Err(EINVAL));
        }
        // A span that was not staged; an unaligned target; one that wraps around.
        for (va, target) in [(2 * M, 0), (M, K), (0, u64::MAX - 4 * K + 1)] {
            let mapped = table.map(&mut staged, va, 2 * M, Target::System(target), writable());
            assert_eq!(mapped, Err(EINVAL));
        }
        assert_eq!(table.zap_exact(&mut staged, M, 2 * M), Err(EINVAL));
        assert_eq!(table.zap(0, 1 << 48), None);

        assert!(PageTable::new(20).is_err());
        assert!(PageTable::new(49).is_err());
        Ok(())
    }

    #[test]
    fn any_address_is_a_target() -> Result {
        let table = table()?;
        map(&table, 0, 4 * K, 0)?;
        map(&table, 4 * K, 4 * K, u64::MAX - 8 * K + 1)?;
        assert_eq!(addr(&table, 0), Some(0));
        assert_eq!(addr(&table, 4 * K), Some(u64::MAX - 8 * K + 1));
        Ok(())
    }

    #[test]
    fn dump_joins_what_is_contiguous() -> Result {
        struct Dump<'a>(&'a PageTable);
        impl fmt::Display for Dump<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.dump(f)
            }
        }
        let table = table()?;
        map(&table, G - 4 * K, 2 * M + 8 * K, 8 * M - 4 * K)?;
        map(&table, 2 * G, 4 * K, 0)?;
        let text = CString::try_from_fmt(fmt!("{}", Dump(&table)))?;
        assert_eq!(
            text.to_bytes(),
            b"0x00003ffff000-0x000040201000 rw- system 0x7ff000\n\
              0x000080000000-0x000080001000 rw- system 0x0\n"
        );
        Ok(())
    }

    /// Random changes, compared with a plain array.
    #[test]
    fn agrees_with_a_model() -> Result {
        const PAGES: u64 = 2048;
        const BASE: u64 = BORDER - PAGES / 2 * PAGE_SIZE;

        let table = table()?;
        let mut model: KVVec<Option<u64>> = KVVec::from_elem(None, PAGES as usize, GFP_KERNEL)?;
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut random = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };

        for _ in 0..400 {
            // Often whole large pages.
            let unit = if random(2) == 0 { 512 } else { 1 };
            let first = random(PAGES / unit) * unit;
            let count = (random(PAGES / unit).min(1024 / unit) + 1) * unit;
            let count = count.min(PAGES - first);
            let (va, len) = (BASE + first * PAGE_SIZE, count * PAGE_SIZE);
            let range = first as usize..(first + count) as usize;
            match random(3) {
                0 => {
                    let target = random(4) * 512 * PAGE_SIZE + random(2) * PAGE_SIZE;
                    map(&table, va, len, target)?;
                    for (i, page) in model[range].iter_mut().enumerate() {
                        *page = Some(target + i as u64 * PAGE_SIZE);
                    }
                }
                1 => {
                    unmap(&table, va, len)?;
                    model[range].fill(None);
                }
                _ => {
                    let stale = table.zap(va, len).unwrap_or(va..va);
                    // All requested pages are cleared, and no page outside of the returned span.
                    model[range].fill(None);
                    for (i, page) in (0u64..).zip(model.iter_mut()) {
                        let va = BASE + i * PAGE_SIZE;
                        if stale.contains(&va) && addr(&table, va).is_none() {
                            *page = None;
                        }
                    }
                }
            }
            let mut pages = (0u64..).zip(model.iter());
            assert!(pages.all(|(i, page)| addr(&table, BASE + i * PAGE_SIZE) == *page));
        }
        Ok(())
    }
}
