// SPDX-License-Identifier: GPL-2.0

//! How much memory a range takes, and what single services of the kernel cost.

use crate::{
    abi::service,
    memory::{self, Arena, Kind, NOTIFIER, PAGE, SZ_2M, SZ_64K},
    report::Table,
    samples::Figures,
    session::Session,
    Outcome,
};
use std::fs;

/// A kind of range, and how many of them are made.
struct Case {
    id: &'static str,
    title: &'static str,
    size: usize,
    kind: Kind,
    count: usize,
}

const CASES: [Case; 4] = [
    Case { id: "4k", title: "4 KiB", size: PAGE, kind: Kind::Small, count: 20_000 },
    Case {
        id: "64k",
        title: "64 KiB, 16 small pages",
        size: SZ_64K,
        kind: Kind::Small,
        count: 4_000,
    },
    // The huge page of zeroes serves for all of them.
    Case {
        id: "2m_huge",
        title: "2 MiB, one huge page",
        size: SZ_2M,
        kind: Kind::Huge,
        count: 8_000,
    },
    Case {
        id: "2m_small",
        title: "2 MiB, 512 small pages",
        size: SZ_2M,
        kind: Kind::Small,
        count: 400,
    },
];

/// The memory that the kernel's allocators have in use, and cannot give back, in bytes.
fn allocated() -> Outcome<u64> {
    // What others freed is given back when a grace period has ended.
    std::thread::sleep(std::time::Duration::from_millis(300));
    // Counts what every processor has not told yet.
    fs::read("/proc/sys/vm/stat_refresh")?;
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:"));
    let kilobytes = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    Ok(kilobytes.ok_or("no SUnreclaim in /proc/meminfo")? << 10)
}

/// The table of memory.
pub fn memory(session: &Session) -> Outcome<Table> {
    let mut table = Table::new(
        "memory",
        "Memory of a range, in bytes",
        &[
            ("allocated", "allocated"),
            ("range", "range itself"),
            ("segments", "segments"),
            ("addresses", "of addresses"),
        ],
    );
    for case in &CASES {
        let arena = Arena::reserve(case.count * case.size, NOTIFIER)?;
        // Memory that all slots share: what is allocated then is the core's.
        let slots = arena.slots(case.count, case.size, case.size, case.kind)?;
        for slot in slots.addresses() {
            for page in (slot..slot + case.size).step_by(PAGE) {
                memory::peek(page);
            }
        }
        let sizes = session.start(case.size)?;
        let before = allocated()?;
        let mut segments = 0;
        for slot in slots.addresses() {
            segments = session.fault(slot, case.size, false)?.figures[crate::abi::fault::SEGMENTS];
        }
        let each = allocated()?.saturating_sub(before) / case.count as u64;
        session.stop()?;
        table.row(
            case.id,
            case.title,
            vec![
                each.into(),
                sizes.range.into(),
                segments.into(),
                (segments * sizes.segment).into(),
            ],
        );
    }
    table.note("\"allocated\" is what the kernel has less for it, whatever it rounds up to.");
    Ok(table)
}

/// The table of services.
pub fn services(session: &Session) -> Outcome<Table> {
    let sizes = session.start(PAGE)?;
    let arena = Arena::reserve(PAGE, PAGE)?;
    arena.slots(1, PAGE, PAGE, Kind::Small)?;
    let measure = |size: usize| -> Outcome<Figures> {
        let mut figures = Figures::default();
        for _ in 0..100 {
            figures.push(&session.services(arena.start(), size)?);
        }
        Ok(figures)
    };
    let range = measure(sizes.range as usize)?;
    let page = measure(PAGE)?;
    let pages = measure(2 * PAGE)?;
    let more = measure(2 * PAGE + sizes.segment as usize)?;
    session.stop()?;
    let mut table = Table::new("services", "What the kernel takes itself", &[("cost", "")]);
    let mut add = |id: &str, title: &str, from: &Figures, figure: usize| {
        table.row(id, title, vec![from.get(figure).into()]);
    };
    add("rwsem_read", "a read hold of an rw_semaphore", &range, service::RWSEM_READ);
    add("rwsem_write", "a write hold of an rw_semaphore", &range, service::RWSEM_WRITE);
    add("svm_lock", "a hold of the SVM lock, a mutex", &range, service::SVM_LOCK);
    add("mmget", "mmget_not_zero(), mmput()", &range, service::MMGET);
    add("vma_lookup", "mmap lock for reading, and finding a VMA", &range, service::VMA_LOOKUP);
    add("alloc_range", "allocating and freeing a range", &range, service::ALLOC);
    add("alloc_4k", "allocating and freeing 4 KiB", &page, service::ALLOC);
    add("alloc_8k", "allocating and freeing 8 KiB", &pages, service::ALLOC);
    add("alloc_8k_16", "allocating and freeing 8 KiB and 16 bytes", &more, service::ALLOC);
    Ok(table)
}
