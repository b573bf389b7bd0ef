// SPDX-License-Identifier: GPL-2.0

//! The TLB of an address space: recently used translations.
//!
//! It is a real cache. An access that hits does not read the page table, so a translation remains
//! in use after the page table lost it, until an invalidation removes it (or another page evicts it
//! by chance). Entries are for small pages, and large leaves are cached page by page, so an
//! invalidation that is too narrow has an effect, too. Unmapped pages are not cached, and an access
//! that an entry does not allow reads the page table again, as on GPUs and CPUs: so a new mapping,
//! or a mapping with more rights, needs no invalidation.
//!
//! The TLB is set-associative; each set has a spinlock. An access holds the lock of its page's set
//! until its memory access is done. An invalidation takes the lock of each set that may have an
//! entry to remove. So when it returns, no access with a removed translation is in flight, and it
//! has waited for each lock for at most one access of a page. Accesses and invalidations in
//! different sets run in parallel.
//!
//! Lock order: the lock of one set at a time, then that of the page table.

use super::page_table::{Access, Pte};
use core::ops::Range;
use kernel::{
    prelude::*,
    sync::{new_spinlock, SpinLock}, //
};
use pin_init::pin_init_array_from_fn;

/// Sets of the TLB. Adjacent pages are in different sets.
const SETS: usize = 64;

/// Entries of a set.
const WAYS: usize = 8;

/// A cached translation.
#[derive(Clone, Copy)]
struct Entry {
    /// The page number.
    page: u64,
    pte: Pte,
}

/// The entries of all pages whose numbers are equal modulo [`SETS`].
struct Set {
    ways: [Option<Entry>; WAYS],
    /// The last way that was evicted.
    victim: usize,
    hits: u64,
    misses: u64,
}

impl Set {
    const fn new() -> Self {
        Self {
            ways: [None; WAYS],
            victim: 0,
            hits: 0,
            misses: 0,
        }
    }

    fn find(&self, page: u64) -> Option<Pte> {
        let entry = self.ways.iter().flatten().find(|entry| entry.page == page);
        entry.map(|entry| entry.pte)
    }

    /// Adds an entry, or replaces the one for the same page.
    fn insert(&mut self, page: u64, pte: Pte) {
        let same = |way: &Option<Entry>| way.is_some_and(|entry| entry.page == page);
        let way = self
            .ways
            .iter()
            .position(same)
            .or_else(|| self.ways.iter().position(Option::is_none))
            .unwrap_or_else(|| {
                self.victim = (self.victim + 1) % WAYS;
                self.victim
            });
        if let Some(way) = self.ways.get_mut(way) {
            *way = Some(Entry { page, pte });
        }
    }

    fn forget(&mut self, pages: &Range<u64>) {
        for way in &mut self.ways {
            way.take_if(|entry| pages.contains(&entry.page));
        }
    }
}

/// A TLB of 512 entries.
#[pin_data]
pub(super) struct Tlb {
    #[pin]
    sets: [SpinLock<Set>; SETS],
}

impl Tlb {
    /// Creates an empty TLB.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            sets <- pin_init_array_from_fn(|_| new_spinlock!(Set::new(), "vxe_gpu_tlb_set")),
        })
    }

    fn set(&self, page: u64) -> &SpinLock<Set> {
        // In bounds: a remainder of the number of sets.
        &self.sets[(page % SETS as u64) as usize]
    }

    /// Translates page number `page` for `access`, and calls `f` with the result. No invalidation
    /// of the page completes meanwhile.
    ///
    /// On a miss, or if the entry does not allow the access, calls `walk`, which reads the page
    /// table. Returns `None`, a fault, if the page table does not allow the access either. The
    /// closures must neither sleep nor use the TLB.
    pub(super) fn access<R>(
        &self,
        page: u64,
        access: Access,
        walk: impl FnOnce() -> Option<Pte>,
        f: impl FnOnce(Pte) -> R,
    ) -> Option<R> {
        let mut set = self.set(page).lock();
        let pte = match set.find(page).filter(|pte| pte.allows(access)) {
            Some(pte) => {
                set.hits = set.hits.wrapping_add(1);
                pte
            }
            None => {
                set.misses = set.misses.wrapping_add(1);
                // The set's lock is held: an invalidation after a change of the page table also
                // removes an entry that is made here from the old table.
                let pte = walk().filter(|pte| pte.allows(access))?;
                set.insert(page, pte);
                pte
            }
        };
        Some(f(pte))
    }

    /// Removes all translations of page numbers in `pages`, and waits for accesses that use them.
    ///
    /// Waits only for memory accesses of at most one page each. Does not sleep.
    pub(super) fn invalidate(&self, pages: Range<u64>) {
        if pages.end.saturating_sub(pages.start) < SETS as u64 {
            for page in pages.clone() {
                self.set(page).lock().forget(&pages);
            }
        } else {
            for set in &self.sets {
                set.lock().forget(&pages);
            }
        }
    }

    /// Returns the numbers of hits and of misses.
    pub(super) fn hits_and_misses(&self) -> (u64, u64) {
        self.sets
            .iter()
            .fold((0, 0), |(hits, misses): (u64, u64), set| {
                let set = set.lock();
                (hits.wrapping_add(set.hits), misses.wrapping_add(set.misses))
            })
    }
}

#[kunit_tests(vxe_gpu_tlb)]
mod tests {
    use super::super::{page_table::PteFlag, Target};
    use super::*;

    fn tlb() -> Result<Pin<KVBox<Tlb>>> {
        KVBox::pin_init(Tlb::new(), GFP_KERNEL)
    }

    /// Returns a translation that allows writing.
    fn pte(addr: u64) -> Option<Pte> {
        Some(Pte::new(Target::System(addr), PteFlag::Writable.into()))
    }

    /// Returns a translation that does not allow writing.
    fn read_only(addr: u64) -> Option<Pte> {
        Some(Pte::new(Target::System(addr), Default::default()))
    }

    /// Translates an access of a page whose page table entry is `entry`.
    fn translate(tlb: &Tlb, page: u64, access: Access, entry: Option<Pte>) -> Option<u64> {
        tlb.access(page, access, || entry, |pte| pte.target().addr())
    }

    fn read(tlb: &Tlb, page: u64, entry: Option<Pte>) -> Option<u64> {
        translate(tlb, page, Access::Read, entry)
    }

    fn write(tlb: &Tlb, page: u64, entry: Option<Pte>) -> Option<u64> {
        translate(tlb, page, Access::Write, entry)
    }

    #[test]
    fn a_translation_outlives_its_entry() -> Result {
        let tlb = tlb()?;
        assert_eq!(read(&tlb, 7, pte(0x1000)), Some(0x1000));
        // The page table changes, without an invalidation.
        assert_eq!(read(&tlb, 7, pte(0x2000)), Some(0x1000));
        assert_eq!(write(&tlb, 7, None), Some(0x1000));
        assert_eq!(tlb.hits_and_misses(), (2, 1));
        Ok(())
    }

    #[test]
    fn invalidation_makes_it_forget() -> Result {
        let tlb = tlb()?;
        read(&tlb, 7, pte(0x1000));
        tlb.invalidate(7..8);
        assert_eq!(read(&tlb, 7, None), None);
        assert_eq!(read(&tlb, 7, pte(0x2000)), Some(0x2000));
        assert_eq!(tlb.hits_and_misses(), (0, 3));
        Ok(())
    }

    #[test]
    fn invalidation_of_others_does_not() -> Result {
        let tlb = tlb()?;
        read(&tlb, 100, pte(0x1000));
        tlb.invalidate(0..100);
        tlb.invalidate(101..u64::MAX);
        tlb.invalidate(99..100);
        tlb.invalidate(101..102);
        tlb.invalidate(100..100);
        assert_eq!(read(&tlb, 100, None), Some(0x1000));
        Ok(())
    }

    #[test]
    fn invalidations_of_all_widths() -> Result {
        let tlb = tlb()?;
        for width in [1, 2, 63, 64, 65, 512] {
            for page in 1000..1000 + width {
                read(&tlb, page, pte(page << 12));
            }
            tlb.invalidate(1000..1000 + width);
            for page in 1000..1000 + width {
                assert_eq!(read(&tlb, page, None), None);
            }
        }
        Ok(())
    }

    #[test]
    fn faults_are_not_cached() -> Result {
        let tlb = tlb()?;
        assert_eq!(read(&tlb, 7, None), None);
        assert_eq!(read(&tlb, 7, pte(0x1000)), Some(0x1000));
        Ok(())
    }

    #[test]
    fn rights_are_asked_for_again() -> Result {
        let tlb = tlb()?;
        read(&tlb, 7, read_only(0x1000));
        // Neither the TLB entry nor the page table entry allows it.
        assert_eq!(write(&tlb, 7, read_only(0x2000)), None);
        assert_eq!(write(&tlb, 7, None), None);
        // The TLB entry is kept.
        assert_eq!(read(&tlb, 7, None), Some(0x1000));
        // More rights need no invalidation, and replace the entry.
        assert_eq!(write(&tlb, 7, pte(0x2000)), Some(0x2000));
        assert_eq!(read(&tlb, 7, None), Some(0x2000));
        assert_eq!(translate(&tlb, 7, Access::Atomic, pte(0x2000)), None);
        Ok(())
    }

    #[test]
    fn room_is_bounded() -> Result {
        let tlb = tlb()?;
        let pages = 0..4 * (SETS * WAYS) as u64;
        for page in pages.clone() {
            read(&tlb, page, pte(page << 12));
        }
        let cached = pages.filter(|page| read(&tlb, *page, None).is_some());
        assert_eq!(cached.count(), SETS * WAYS);
        Ok(())
    }

    #[test]
    fn the_last_pages_stay() -> Result {
        let tlb = tlb()?;
        // All in one set.
        for i in 0..100 {
            read(&tlb, i * SETS as u64, pte(i << 12));
        }
        for i in 100 - WAYS as u64..100 {
            assert_eq!(read(&tlb, i * SETS as u64, None), Some(i << 12));
        }
        Ok(())
    }
}
