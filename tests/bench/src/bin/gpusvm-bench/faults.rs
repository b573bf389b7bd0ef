// SPDX-License-Identifier: GPL-2.0

//! What happens to one range: it is faulted in, found valid, invalidated, faulted in again, removed.

use crate::{
    abi::{callee, fault},
    memory::{self, Arena, Kind, NOTIFIER, PAGE, SZ_2M, SZ_64K},
    report::{Cell, Table},
    samples::{Figures, Summary},
    session::{Measured, Session},
    Outcome,
};

/// A kind of range.
struct Case {
    id: &'static str,
    title: &'static str,
    size: usize,
    kind: Kind,
    /// How many segments it has, if all is as it should be.
    segments: u64,
    /// How often it is measured.
    repeat: usize,
}

impl Case {
    const fn new(
        id: &'static str,
        title: &'static str,
        size: usize,
        kind: Kind,
        repeat: usize,
    ) -> Self {
        let segments = match kind {
            Kind::Huge => (size / SZ_2M) as u64,
            Kind::Small => (size / PAGE) as u64,
        };
        Self { id, title, size, kind, segments, repeat }
    }
}

const CASES: [Case; 4] = [
    Case::new("4k", "4 KiB", PAGE, Kind::Small, 500),
    Case::new("64k", "64 KiB, 16 small pages", SZ_64K, Kind::Small, 200),
    Case::new("2m_huge", "2 MiB, one huge page", SZ_2M, Kind::Huge, 40),
    Case::new("2m_small", "2 MiB, 512 small pages", SZ_2M, Kind::Small, 40),
];

/// All that happened to ranges of one kind.
#[derive(Default)]
struct Life {
    /// The first fault.
    fault: Figures,
    /// What it calls, on memory that is alike.
    callees: Figures,
    /// A fault on what is mapped already.
    valid: Figures,
    /// The notifier's callback.
    invalidate: Figures,
    /// The fault after that.
    again: Figures,
    /// The removal, of a range that is mapped.
    remove: Figures,
}

impl Life {
    /// Goes through it for `case`, with memory that the CPU touched before, or did not.
    fn of(session: &Session, case: &Case, present: bool) -> Outcome<Self> {
        session.start(case.size)?;
        let arena = Arena::reserve(NOTIFIER, NOTIFIER)?;
        // One pair more than is counted: the first fault makes the notifier, which its range keeps.
        let slots = arena.slots(2 * (case.repeat + 1), case.size, case.size, case.kind)?;
        let mut life = Self::default();
        for (i, (first, second)) in slots.pairs().enumerate() {
            if present {
                memory::touch(first, case.size);
                memory::touch(second, case.size);
            }
            // Neither of the two that are compared always goes first.
            let (fault, callees) = if i % 2 == 0 {
                let fault = session.fault(first, case.size, true)?;
                (fault, session.callees(second, case.size, true)?)
            } else {
                let callees = session.callees(first, case.size, true)?;
                (session.fault(second, case.size, true)?, callees)
            };
            let range = if i % 2 == 0 { first } else { second };
            let valid = session.fault(range, case.size, true)?;
            let invalidate = session.invalidate(range, case.size)?;
            let again = session.fault(range, case.size, true)?;
            check(case, &fault, &callees, &valid, &invalidate, &again)?;
            if i != 0 {
                life.fault.push(&fault);
                life.callees.push(&callees);
                life.valid.push(&valid);
                life.invalidate.push(&invalidate);
                life.again.push(&again);
                life.remove.push(&session.remove(range)?);
            }
        }
        session.stop()?;
        Ok(life)
    }
}

/// Whether what was measured is what was meant.
fn check(
    case: &Case,
    first: &Measured,
    callees: &Measured,
    valid: &Measured,
    invalidate: &Measured,
    again: &Measured,
) -> Outcome<()> {
    let seen = [
        ("segments", first.figures[fault::SEGMENTS], case.segments),
        ("segments of the walk alone", callees.figures[callee::SEGMENTS], case.segments),
        ("size of the range", first.figures[fault::SIZE], case.size as u64),
        ("walks of the first fault", first.figures[fault::WALKS], 1),
        ("walks of a fault on a valid range", valid.figures[fault::WALKS], 0),
        ("hits of the invalidation", invalidate.figures[1], 1),
        ("walks of the fault after it", again.figures[fault::WALKS], 1),
    ];
    for (what, found, expected) in seen {
        if found != expected {
            return Err(format!("{}: {what}: {found}, not {expected}", case.title).into());
        }
    }
    Ok(())
}

/// A line of total, parts that others took, and our own share.
fn split(table: &mut Table, id: &str, title: &str, total: Summary, parts: &[Summary]) {
    let others: u64 = parts.iter().map(|part| part.mean).sum();
    let ours = total.mean.saturating_sub(others);
    let mut cells = vec![Cell::from(total)];
    cells.extend(parts.iter().map(|&part| Cell::from(part)));
    cells.extend([Cell::from(ours), Cell::percent(ours, total.mean)]);
    table.row(id, title, cells);
}

/// The tables of this file.
pub fn tables(session: &Session) -> Outcome<Vec<Table>> {
    let mut faults = Table::new(
        "fault",
        "A fault",
        &[
            ("total", "total"),
            ("hmm", "HMM walk"),
            ("dma", "DMA map"),
            ("ours", "ours"),
            ("ours_percent", "share"),
        ],
    );
    faults.note("DMA is direct, with no IOMMU. The driver does nothing, and so has no share.");
    let mut phases = Table::new(
        "fault_phases",
        "Where a fault goes",
        &[
            ("begin", "lock, collect"),
            ("find_or_insert", "find or insert"),
            ("get", "get"),
            ("get_ours", "ours in get"),
            ("commit", "commit"),
            ("end", "unlock, free"),
        ],
    );
    let with_unmap =
        [("total", "total"), ("dma", "DMA unmap"), ("ours", "ours"), ("ours_percent", "share")];
    let mut invalidate = Table::new("invalidate", "An invalidation that hits", &with_unmap);
    let mut remove = Table::new("remove", "Removing a mapped range", &with_unmap);

    let variants = [("fresh", "first touch", false), ("present", "the CPU has the memory", true)];
    let mut known = Vec::new();
    for (variant, variant_title, present) in variants {
        for case in &CASES {
            let life = Life::of(session, case, present)?;
            let id = format!("{variant}_{}", case.id);
            let title = format!("{variant_title}: {}", case.title);
            let hmm = life.callees.get(callee::HMM);
            let map = life.callees.get(callee::MAP);
            split(&mut faults, &id, &title, life.fault.get(fault::TOTAL), &[hmm, map]);
            let get = life.fault.get(fault::GET);
            phases.row(
                id,
                title,
                vec![
                    life.fault.get(fault::BEGIN).into(),
                    life.fault.get(fault::FIND_OR_INSERT).into(),
                    get.into(),
                    get.mean.saturating_sub(hmm.mean + map.mean).into(),
                    life.fault.get(fault::COMMIT).into(),
                    life.fault.get(fault::END).into(),
                ],
            );
            if present {
                known.push((case, life));
            }
        }
    }
    for (case, life) in &known {
        let parts = [life.callees.get(callee::HMM_AGAIN), life.callees.get(callee::MAP)];
        let (id, title) =
            (format!("again_{}", case.id), format!("after an invalidation: {}", case.title));
        split(&mut faults, &id, &title, life.again.get(fault::TOTAL), &parts);
        let unmap = [life.callees.get(callee::UNMAP)];
        split(&mut invalidate, case.id, case.title, life.invalidate.get(0), &unmap);
        split(&mut remove, case.id, case.title, life.remove.get(0), &unmap);
    }
    for (case, life) in &known {
        let nothing = Summary::default();
        let (id, title) = (format!("valid_{}", case.id), format!("already valid: {}", case.title));
        split(&mut faults, &id, &title, life.valid.get(fault::TOTAL), &[nothing, nothing]);
    }
    first_in_notifier(session, &mut faults)?;
    upgrade(session, &mut faults)?;
    Ok(vec![faults, phases, invalidate, remove])
}

/// The fault that makes a notifier: the first in each 512 MiB.
fn first_in_notifier(session: &Session, table: &mut Table) -> Outcome<()> {
    const TIMES: usize = 32;
    session.start(PAGE)?;
    let arena = Arena::reserve(TIMES * NOTIFIER, NOTIFIER)?;
    let slots = arena.slots(TIMES, 2 * PAGE, NOTIFIER, Kind::Small)?;
    let (mut first, mut callees) = (Figures::default(), Figures::default());
    for slot in slots.addresses().skip(1) {
        memory::touch(slot, 2 * PAGE);
        first.push(&session.fault(slot, PAGE, true)?);
        callees.push(&session.callees(slot + PAGE, PAGE, true)?);
    }
    session.stop()?;
    split(
        table,
        "first_in_notifier_4k",
        "the first of 512 MiB, present: 4 KiB",
        first.get(fault::TOTAL),
        &[callees.get(callee::HMM), callees.get(callee::MAP)],
    );
    Ok(())
}

/// A write to what the device has mapped for reading: the page of zeroes that stands for memory
/// that nobody wrote.
fn upgrade(session: &Session, table: &mut Table) -> Outcome<()> {
    const TIMES: usize = 200;
    session.start(PAGE)?;
    let arena = Arena::reserve(NOTIFIER, NOTIFIER)?;
    let slots = arena.slots(2 * TIMES, PAGE, PAGE, Kind::Small)?;
    let (mut write, mut callees) = (Figures::default(), Figures::default());
    for (i, (first, second)) in slots.pairs().enumerate() {
        memory::peek(second);
        let read = session.fault(first, PAGE, false)?;
        if read.figures[fault::WALKS] != 1 {
            return Err("a read of memory that nobody wrote was no fault".into());
        }
        let written = session.fault(first, PAGE, true)?;
        let alone = session.callees(second, PAGE, true)?;
        if i != 0 {
            write.push(&written);
            callees.push(&alone);
        }
    }
    session.stop()?;
    split(
        table,
        "upgrade_4k",
        "a write to what was mapped for reading: 4 KiB",
        write.get(fault::TOTAL),
        &[callees.get(callee::HMM), callees.get(callee::MAP)],
    );
    Ok(())
}
