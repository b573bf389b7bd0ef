// SPDX-License-Identifier: GPL-2.0

//! What moves to a device's memory, and back: in instructions, and in bytes copied.

use crate::{
    abi::{fault, migration},
    memory::{self, Arena, Kind, NOTIFIER, PAGE, SZ_2M},
    report::{Cell, Table},
    samples::Samples,
    session::{Measured, Session},
    Outcome,
};

/// The device's memory: as much as is there at once, and some more.
const MEMORY: usize = 128 << 20;

/// What is prefetched at once.
const PREFETCH: usize = 64 << 20;

/// Pages of one kind.
struct Case {
    id: &'static str,
    title: &'static str,
    kind: Kind,
    repeat: usize,
}

const CASES: [Case; 2] = [
    Case { id: "huge", title: "huge pages", kind: Kind::Huge, repeat: 20 },
    Case { id: "small", title: "small pages", kind: Kind::Small, repeat: 10 },
];

/// What came of one way of moving.
#[derive(Default)]
struct Cost {
    total: Samples,
    copy: Samples,
    copied: Samples,
}

impl Cost {
    fn push(&mut self, total: u64, copy: u64, copied: u64, disturbed: bool) {
        self.total.push(total, disturbed);
        self.copy.push(copy, disturbed);
        self.copied.push(copied, false);
    }

    /// Adds what the kernel measured.
    fn measured(&mut self, m: &Measured) {
        let [total, copy, copied] =
            [migration::TOTAL, migration::COPY, migration::COPIED].map(|i| m.figures[i]);
        self.push(total, copy, copied, m.disturbed);
    }

    /// A line of the table; `size` bytes were missing.
    fn row(&self, table: &mut Table, id: &str, title: &str, size: usize) {
        let (total, copy) = (self.total.summary(), self.copy.summary());
        let rest = total.mean.saturating_sub(copy.mean);
        table.row(
            id,
            title,
            vec![
                total.into(),
                copy.into(),
                rest.into(),
                Cell::percent(rest, total.mean),
                (size as u64).into(),
                self.copied.summary().into(),
            ],
        );
    }
}

/// All that is measured of one kind of pages.
#[derive(Default)]
struct Moves {
    fault: Cost,
    touch: Cost,
    evict: Cost,
    prefetch: Cost,
}

impl Moves {
    fn of(session: &Session, empty: u64, case: &Case) -> Outcome<Self> {
        session.start(SZ_2M)?;
        session.memory(MEMORY)?;
        let arena = Arena::reserve(NOTIFIER, NOTIFIER)?;
        let slots = arena.slots(case.repeat + 1, SZ_2M, 2 * SZ_2M, case.kind)?;
        let mut moves = Self::default();
        // The first fault makes the notifier.
        for (i, slot) in slots.addresses().enumerate() {
            memory::touch(slot, SZ_2M);
            let fault = session.migrating_fault(slot, SZ_2M)?;
            // One to collect what moves, one to map it.
            check(case, "walks of a fault", fault.figures[fault::WALKS], 2)?;
            let back = memory::poke(empty, slot + 5 * PAGE);
            let copied = session.copied()?;
            session.populate(slot, SZ_2M)?;
            let evict = session.evict()?;
            if i != 0 {
                let [total, copy, bytes] =
                    [fault::TOTAL, fault::COPY, fault::COPIED].map(|i| fault.figures[i]);
                moves.fault.push(total, copy, bytes, fault.disturbed);
                let [copy, bytes] = [migration::COPY, migration::COPIED].map(|i| copied.figures[i]);
                moves.touch.push(back, copy, bytes, false);
                moves.evict.measured(&evict);
            }
        }
        drop(arena);
        let arena = Arena::reserve(NOTIFIER, NOTIFIER)?;
        let slots = arena.slots(3, PREFETCH, PREFETCH, case.kind)?;
        for slot in slots.addresses() {
            memory::touch(slot, PREFETCH);
            let prefetch = session.populate(slot, PREFETCH)?;
            moves.prefetch.measured(&prefetch);
            session.evict()?;
        }
        session.stop()?;
        session.memory(0)?;
        for (what, cost, size) in moves.named() {
            let copied = cost.copied.summary();
            check(case, what, copied.least, size as u64)?;
            check(case, what, copied.most, size as u64)?;
        }
        Ok(moves)
    }

    /// The ways, each with the number of bytes that are missing where they are to go.
    fn named(&self) -> [(&'static str, &Cost, usize); 4] {
        [
            ("a fault that migrates 2 MiB", &self.fault, SZ_2M),
            ("a CPU's touch that brings 2 MiB back", &self.touch, SZ_2M),
            ("eviction of 2 MiB", &self.evict, SZ_2M),
            ("prefetch of 64 MiB", &self.prefetch, PREFETCH),
        ]
    }
}

/// Whether what was measured is what was meant.
fn check(case: &Case, what: &str, found: u64, expected: u64) -> Outcome<()> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}, {}: {found}, not {expected}", case.title).into())
}

/// The table of this file.
pub fn table(session: &Session, empty: u64) -> Outcome<Table> {
    let mut table = Table::new(
        "migration",
        "Moving memory",
        &[
            ("total", "total"),
            ("copy", "copy"),
            ("rest", "the rest"),
            ("rest_percent", "share"),
            ("missing", "bytes missing"),
            ("copied", "copied"),
        ],
    );
    for case in &CASES {
        let moves = Moves::of(session, empty, case)?;
        let ids = ["fault", "touch", "evict", "prefetch"];
        for (id, (what, cost, size)) in ids.into_iter().zip(moves.named()) {
            let (id, title) = (format!("{id}_{}", case.id), format!("{what}, {}", case.title));
            cost.row(&mut table, &id, &title, size);
        }
    }
    table.note("\"copy\" is the device's part: a step of eight bytes is an instruction.");
    Ok(table)
}
