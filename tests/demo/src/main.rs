// SPDX-License-Identifier: GPL-2.0

//! A GPU works on a program's own memory: malloc'ed, mapped, on the stack, of a file, through plain
//! pointers, while the CPU checks every byte and takes some of it away.

mod in_flight;
mod memory;
mod moves;
mod table;
mod work;

use std::{error::Error, process::ExitCode};
use table::Table;
use vxe_client::{Device, ExecQueue, Report, Stats, Vm};
use work::Done;

const INTRODUCTION: &str = "\
A GPU works on this program's own memory, through plain pointers. In each page of the first half it
stores a word and increments another; then it copies that half onto the second. The CPU checks.
";

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vxe-demo: {e}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<(), Box<dyn Error>> {
    let device = Device::open()?;
    let vm = Vm::mirrored(&device)?;
    let queue = ExecQueue::new(&vm)?;
    let before = Stats::read(&device).ok();

    println!("{INTRODUCTION}");
    let done = [
        memory::malloc(&queue)?,
        memory::mapped(&queue)?,
        memory::huge(&queue)?,
        memory::stack(&queue)?,
        memory::file(&queue)?,
    ];
    print!("{}", memory_table(&done));

    println!("\nAnd while the GPU works, the CPU takes some away:");
    for line in in_flight::run(&vm)? {
        println!("  {line}");
    }

    let moves = moves::run(&queue)?;
    if let Some(moves) = &moves {
        println!(
            "\nMemory lives where it is worked on: three of {} in a device that has room for {}:",
            table::size(moves.size),
            table::size(moves.room)
        );
        print!("{}", moves.table);
    }

    println!("\nWhat the driver counted:");
    print!("{}", counters(&device, before.as_ref()));
    let mut wrong: Vec<_> = done.iter().filter_map(|d| d.wrong.as_deref()).collect();
    wrong.extend(moves.as_ref().and_then(|m| m.wrong.as_deref()));
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("; ").into())
    }
}

fn memory_table(done: &[Done]) -> Table {
    let mut table = Table::new(&[
        "memory",
        "address",
        "size",
        "faults",
        "ranges",
        "pages mapped",
        "in device",
        "time",
        "every byte",
    ]);
    for d in done {
        table.row(vec![
            d.name.to_owned(),
            format!("{:#x}", d.span.start),
            table::size(d.span.end - d.span.start),
            d.faults.map_or("?".into(), |n| n.to_string()),
            d.mapped.chunks.clone(),
            d.mapped.pages.clone(),
            d.mapped.device.clone(),
            table::milliseconds(d.time),
            d.wrong.as_ref().map_or("right", |_| "WRONG").to_owned(),
        ]);
    }
    table
}

/// The driver's own figures; what it does not count is not shown.
fn counters(device: &Device, before: Option<&Stats>) -> Table {
    let mut table = Table::new(&[]);
    if let (Ok(now), Some(before)) = (Stats::read(device), before) {
        let since = now.since(before);
        let sizes = ["4K", "64K", "2M"];
        let each = |what: &str| -> Option<Vec<u64>> {
            sizes.iter().map(|size| since.get(&format!("svm_{size}_{what}"))).collect()
        };
        if let Some(total) = since.get("svm_pagefault_count") {
            table.row(vec![
                "page faults".into(),
                total.to_string(),
                split(&sizes, each("pagefault_count"), |n| n.to_string()),
            ]);
        }
        if let Some(valid) = each("valid_pagefault_count") {
            table.row(vec![
                "  on what was mapped already".into(),
                valid.iter().sum::<u64>().to_string(),
                String::new(),
            ]);
        }
        for (what, label) in [
            ("pagefault_us", "  time in them"),
            ("get_pages_us", "    to get the CPU's pages"),
            ("bind_us", "    to map them for the GPU"),
        ] {
            if let Some(times) = each(what) {
                table.row(vec![
                    label.into(),
                    table::microseconds(times.iter().sum()),
                    split(&sizes, Some(times), table::microseconds),
                ]);
            }
        }
        if let Some(count) = since.get("svm_tlb_inval_count") {
            let time = since.get("svm_tlb_inval_us").map(table::microseconds);
            let time = time.map_or(String::new(), |t| format!("taking {t}"));
            table.row(vec!["invalidations by the CPU".into(), count.to_string(), time]);
        }
    }
    if let Ok(report) = Report::read(device) {
        for (name, value) in report.faults {
            table.row(vec![format!("faults {name}"), value.to_string(), String::new()]);
        }
    }
    table
}

/// A figure for each size of range that has any.
fn split(sizes: &[&str], values: Option<Vec<u64>>, show: fn(u64) -> String) -> String {
    let pairs = sizes.iter().zip(values.unwrap_or_default()).filter(|&(_, value)| value > 0);
    pairs.map(|(size, value)| format!("{size}: {}", show(value))).collect::<Vec<_>>().join(", ")
}
