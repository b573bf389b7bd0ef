// SPDX-License-Identifier: GPL-2.0

//! How operations grow with the number of ranges in a VM.

use crate::{
    abi::fault,
    memory::{self, Arena, Kind, NOTIFIER, PAGE},
    report::{Cell, Table},
    samples::{Samples, Summary},
    session::Session,
    Outcome,
};

/// How many ranges there are.
const COUNTS: [usize; 5] = [10, 100, 1_000, 10_000, 100_000];

/// How often each operation is measured, on ranges drawn at random.
const REPEAT: usize = 400;

/// How ranges lie.
struct Layout {
    id: &'static str,
    title: &'static str,
    /// From one range to the next, in bytes: always a page of range, the rest free.
    stride: usize,
}

const LAYOUTS: [Layout; 2] = [
    Layout { id: "dense", title: "every other page", stride: 2 * PAGE },
    Layout { id: "sparse", title: "one in each 512 MiB", stride: NOTIFIER },
];

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// What operations cost among so many ranges.
#[derive(Default)]
struct Costs {
    find: Samples,
    insert: Samples,
    remove: Samples,
    valid: Samples,
    hit: Samples,
    miss: Samples,
    discard: Samples,
}

/// Which figure of [`Costs`] a table shows.
type Select = fn(&Costs) -> &Samples;

const OPERATIONS: [(&str, &str, Select); 7] = [
    ("find", "find", |c| &c.find),
    ("insert", "insert", |c| &c.insert),
    ("remove", "remove", |c| &c.remove),
    ("valid_fault", "fault on a valid range of 4 KiB", |c| &c.valid),
    ("invalidate_hit", "invalidation of 4 KiB that hits", |c| &c.hit),
    ("invalidate_miss", "invalidation of 4 KiB that misses", |c| &c.miss),
    ("discard", "madvise(MADV_DONTNEED) of 4 KiB mapped", |c| &c.discard),
];

impl Costs {
    fn among(session: &Session, empty: u64, layout: &Layout, count: usize) -> Outcome<Self> {
        let mut costs = Self::default();
        session.start(PAGE)?;
        let arena = Arena::reserve(count * layout.stride, NOTIFIER)?;
        arena.slots(count, layout.stride, layout.stride, Kind::Small)?;
        session.fill(arena.start(), layout.stride, count)?;

        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..REPEAT {
            let range = arena.start() + random.below(count) * layout.stride;
            let free = range + PAGE;
            let m = session.find(range)?;
            costs.find.push(m.figures[0], m.disturbed);
            let m = session.insert_remove(free)?;
            costs.insert.push(m.figures[0], m.disturbed);
            costs.remove.push(m.figures[1], m.disturbed);
            let m = session.invalidate(free, PAGE)?;
            costs.miss.push(m.figures[0], m.disturbed);
            session.fault(range, PAGE, true)?;
            let m = session.fault(range, PAGE, true)?;
            costs.valid.push(m.figures[fault::TOTAL], m.disturbed);
            let m = session.invalidate(range, PAGE)?;
            costs.hit.push(m.figures[0], m.disturbed);
            session.fault(range, PAGE, true)?;
            costs.discard.push(memory::discard(empty, range, PAGE), false);
        }
        session.stop()?;
        Ok(costs)
    }
}

/// The tables of this file.
pub fn tables(session: &Session, empty: u64) -> Outcome<Vec<Table>> {
    let columns = [
        ("ranges_10", "10 ranges"),
        ("ranges_100", "100"),
        ("ranges_1000", "1,000"),
        ("ranges_10000", "10,000"),
        ("ranges_100000", "100,000"),
        ("growth", "growth"),
        ("growth_of_log", "of log2"),
    ];
    let mut tables = Vec::new();
    for layout in &LAYOUTS {
        let (id, title) = match layout.id {
            "dense" => ("growth_dense", "With a range on every other page"),
            _ => ("growth_sparse", "With a range in each 512 MiB"),
        };
        let mut table = Table::new(id, title, &columns);
        let all = COUNTS
            .iter()
            .map(|&count| Costs::among(session, empty, layout, count))
            .collect::<Outcome<Vec<_>>>()
            .map_err(|e| format!("ranges on {}: {e}", layout.title))?;
        for (id, title, select) in OPERATIONS {
            let summaries: Vec<Summary> = all.iter().map(|c| select(c).summary()).collect();
            let mut cells: Vec<Cell> = summaries.iter().map(|&s| s.into()).collect();
            let (first, last) = (summaries[0].mean, summaries[COUNTS.len() - 1].mean);
            cells.push(Cell::Ratio(last as f64 / first.max(1) as f64));
            let log = |count: usize| (count as f64).log2();
            cells.push(Cell::Ratio(log(COUNTS[COUNTS.len() - 1]) / log(COUNTS[0])));
            table.row(id, title, cells);
        }
        tables.push(table);
    }
    Ok(tables)
}
