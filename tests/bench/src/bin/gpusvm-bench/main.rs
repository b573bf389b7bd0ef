// SPDX-License-Identifier: GPL-2.0

//! What single operations of the core cost, in instructions: what is its own, and what it calls.
//!
//! Single operations of the core run in the kernel, in the module `gpusvm_bench`, on memory that
//! this program prepares. Run it by `make bench`, which boots a guest whose clock counts
//! instructions: a figure is then the same whatever the machine, and whatever else it does.
//!
//! Environment: `BENCH_JSON`, a file for all figures.

#![deny(missing_docs)]

mod abi;
mod counter;
mod faults;
mod kept;
mod memory;
mod migration;
mod report;
mod samples;
mod scaling;
mod session;
mod unmap;

use report::{Facts, Table};
use session::Session;
use std::{env, error::Error, fs, path::PathBuf, process::ExitCode};

/// A result whose errors are for people.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

const USAGE: &str = "\
Usage: gpusvm-bench [--any-clock] [TABLE]...

Measures what operations of gpusvm cost, in instructions.

  --any-clock   measure where the counter does not count instructions, too
  TABLE         faults, migration, unmap, growth, memory, services: only that (default: all)

Environment: BENCH_JSON=path, a file for all figures.";

/// What the program was told.
struct Options {
    any_clock: bool,
    only: Vec<String>,
}

impl Options {
    fn parse() -> Result<Self, String> {
        let mut options = Self { any_clock: false, only: Vec::new() };
        for arg in env::args().skip(1) {
            match arg.as_str() {
                "--any-clock" => options.any_clock = true,
                "faults" | "migration" | "unmap" | "growth" | "memory" | "services" => {
                    options.only.push(arg);
                }
                _ => return Err(USAGE.into()),
            }
        }
        Ok(options)
    }

    fn wants(&self, table: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == table)
    }
}

fn main() -> ExitCode {
    let options = match Options::parse() {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("gpusvm-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Outcome<()> {
    let exact = counter::counts_instructions();
    if !exact && !options.any_clock {
        return Err("the counter does not count instructions here: use \"make bench\", or \
                    --any-clock to measure time instead"
            .into());
    }
    let unit = if exact { "instructions" } else { "ticks of the time-stamp counter" };
    let empty = counter::empty();
    let plain = unmap::Plain::measure(empty)?;
    let session = Session::open()?;
    let facts: Facts = vec![
        ("unit", unit.into()),
        ("kernel", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().into()),
    ];
    println!("All figures are {unit}, means of undisturbed runs.\n");

    let mut tables = Vec::new();
    let mut add = |made: Vec<Table>| {
        for table in made {
            println!("{}", table.text());
            tables.push(table);
        }
    };
    if options.wants("faults") {
        add(faults::tables(&session)?);
    }
    if options.wants("migration") {
        add(vec![migration::table(&session, empty)?]);
    }
    if options.wants("unmap") {
        add(vec![unmap::table(&session, empty, &plain)?]);
    }
    if options.wants("growth") {
        add(scaling::tables(&session, empty)?);
    }
    if options.wants("memory") {
        add(vec![kept::memory(&session)?]);
    }
    if options.wants("services") {
        add(vec![kept::services(&session)?]);
    }
    if let Some(path) = env::var_os("BENCH_JSON").map(PathBuf::from) {
        fs::write(&path, report::json(&facts, &tables))
            .map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}
