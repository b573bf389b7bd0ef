// SPDX-License-Identifier: GPL-2.0

//! `munmap(2)` of 2 MiB, with and without a device that has it mapped.

use crate::{
    memory::{self, Arena, Kind, NOTIFIER, SZ_2M},
    report::{Cell, Table},
    samples::{Samples, Summary},
    session::Session,
    Outcome,
};

const REPEAT: usize = 30;

/// `munmap(2)` in a process that no device mirrors: to be measured before the first SVM is made,
/// as a process never forgets that it was mirrored.
pub struct Plain([Summary; 2]);

const KINDS: [(&str, &str, Kind); 2] = [
    ("huge", "munmap of 2 MiB, one huge page", Kind::Huge),
    ("small", "munmap of 2 MiB, 512 small pages", Kind::Small),
];

/// Unmaps slots, after `prepare` has worked on each.
fn unmapped(
    empty: u64,
    kind: Kind,
    mut prepare: impl FnMut(usize, usize) -> Outcome<()>,
) -> Outcome<Summary> {
    let arena = Arena::reserve(NOTIFIER, NOTIFIER)?;
    let slots = arena.slots(REPEAT + 1, SZ_2M, 2 * SZ_2M, kind)?;
    let mut samples = Samples::default();
    for (i, slot) in slots.addresses().enumerate() {
        memory::touch(slot, SZ_2M);
        prepare(i, slot)?;
        let cost = memory::unmap(empty, slot, SZ_2M);
        if i != 0 {
            samples.push(cost, false);
        }
    }
    Ok(samples.summary())
}

impl Plain {
    /// Measures.
    pub fn measure(empty: u64) -> Outcome<Self> {
        let mut summaries = [Summary::default(); 2];
        for (summary, (_, _, kind)) in summaries.iter_mut().zip(KINDS) {
            *summary = unmapped(empty, kind, |_, _| Ok(()))?;
        }
        Ok(Self(summaries))
    }
}

/// The table of this file.
pub fn table(session: &Session, empty: u64, plain: &Plain) -> Outcome<Table> {
    let mut table = Table::new(
        "munmap",
        "munmap(2)",
        &[
            ("unmirrored", "no mirror"),
            ("elsewhere", "mirror elsewhere"),
            ("miss", "notifier, no range"),
            ("hit", "mapped by a device"),
            ("added", "added"),
            ("added_percent", "share"),
            ("collect", "collecting it"),
        ],
    );
    for ((id, title, kind), plain) in KINDS.into_iter().zip(plain.0) {
        // A notifier far away.
        session.start(SZ_2M)?;
        let arena = Arena::reserve(NOTIFIER, NOTIFIER)?;
        let slots = arena.slots(1, SZ_2M, SZ_2M, kind)?;
        for far in slots.addresses() {
            session.fault(far, SZ_2M, true)?;
        }
        let elsewhere = unmapped(empty, kind, |_, _| Ok(()))?;
        // The first slot's range keeps the notifier, though it is retired.
        let miss = unmapped(empty, kind, |i, slot| {
            if i == 0 {
                session.fault(slot, SZ_2M, true)?;
            }
            Ok(())
        })?;
        session.collect()?;
        let mut collect = Samples::default();
        let hit = unmapped(empty, kind, |_, slot| {
            let collected = session.collect()?;
            if collected.figures[1] == 1 {
                collect.push(collected.figures[0], collected.disturbed);
            }
            session.fault(slot, SZ_2M, true)?;
            Ok(())
        })?;
        session.stop()?;
        let added = hit.mean.saturating_sub(plain.mean);
        table.row(
            id,
            title,
            vec![
                plain.into(),
                elsewhere.into(),
                miss.into(),
                hit.into(),
                added.into(),
                Cell::percent(added, hit.mean),
                collect.summary().into(),
            ],
        );
    }
    table.note(
        "\"added\": what a mapping of a device adds to munmap in a process without a mirror.",
    );
    Ok(table)
}
