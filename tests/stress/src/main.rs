// SPDX-License-Identifier: GPL-2.0

//! Stress: several processes run random sequences of what a process and its GPUs do to memory, on
//! all devices, and check all contents; other processes make trouble. A sequence that goes wrong is
//! named by its seed, and `--replay` runs it again. A run in which too little happened has failed, too.

mod args;
mod pressure;
mod remover;
mod sequence;
mod tally;
mod verdict;

use args::Args;
use std::{
    collections::BTreeSet,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tally::Tally;
use verdict::{Figures, COUNTERS};
use vxe_client::Stats;
use vxe_uapi::{process::fork, random::Hint, sysfs::Slot, Rng};

/// How long a sequence may take, with KCSAN and on a busy machine.
const SEQUENCE: Duration = Duration::from_secs(240);

/// How often progress is shown.
const PROGRESS: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64);
    let args = match Args::parse(std::env::args().skip(1), clock & 0xffff_ffff) {
        Ok(args) => args,
        Err(e) => {
            eprintln!("vxe-stress: {e}\nUsage: vxe-stress [OPTION]...\n{}", args::HELP);
            return ExitCode::from(2);
        }
    };
    let tally = Tally::shared();
    let devices = sequence::devices().len();
    if devices == 0 {
        eprintln!("vxe-stress: there is no xe device");
        return ExitCode::from(77);
    }
    if let Some(seed) = args.replay {
        return match one(seed, args.pages, tally) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        };
    }
    let Args { time, seed, processes, .. } = args;
    println!(
        "{processes} processes on {devices} device(s) for {} s, --seed {seed:#x}",
        time.as_secs()
    );
    if stress(&args, tally) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs the sequence of a seed in a process of its own; says whether it went well.
fn one(seed: u64, pages: usize, tally: &'static Tally) -> bool {
    let status = fork(|_| sequence::run(seed, pages, tally)).wait_within(SEQUENCE);
    let well = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
    if !well {
        eprintln!("vxe-stress: status {status:#x} of the sequence --replay {seed:#x}");
    }
    well
}

fn stress(args: &Args, tally: &'static Tally) -> bool {
    let start = Instant::now();
    let end = start + args.time;
    let pages = args.pages;
    let mut rng = Rng::new(args.seed);
    let mut workers: Vec<_> = (0..args.processes)
        .map(|_| {
            let mut rng = Rng::new(rng.next_u64());
            // What it says when it ends is whether all went well.
            fork(move |link| {
                let mut well = true;
                while well && Instant::now() < end {
                    well = one(rng.next_u64(), pages, tally);
                }
                link.send(well.into());
            })
        })
        .collect();
    let pressure = (args.pressure > 0).then(|| {
        let seed = rng.next_u64();
        fork(move |_| pressure::run(args.pressure, seed, tally))
    });
    let remover = (args.remove > 0).then(|| {
        let seed = rng.next_u64();
        fork(move |_| remover::run(args.remove, seed, tally))
    });

    let mut well = true;
    let mut shown = start;
    let mut counted = BTreeSet::new();
    while !workers.is_empty() && well {
        std::thread::sleep(Duration::from_millis(100));
        workers.retain(|worker| match worker.has_word() {
            false => true,
            true => {
                well &= worker.link().try_receive().is_ok_and(|word| word == 1);
                false
            }
        });
        // Often: a device that comes back counts from zero.
        note_counters(&mut counted);
        if shown.elapsed() >= PROGRESS {
            shown = Instant::now();
            show(start, tally);
        }
    }
    // Dropped, processes are killed.
    drop(pressure);
    if let Some(remover) = remover {
        remover.kill();
        // It may have been about to give one back.
        Slot::all().iter().for_each(Slot::bind);
    }
    drop(workers);
    show(start, tally);
    let load = |counters: &[AtomicU64; Hint::COUNT]| counters.each_ref().map(|c| c.load(Relaxed));
    let figures = Figures {
        sequences: tally.sequences.load(Relaxed),
        cut_short: tally.cut_short.load(Relaxed),
        steps: tally.steps.load(Relaxed),
        given: load(&tally.given),
        taken: load(&tally.taken),
        pressure: (args.pressure > 0).then(|| tally.pressure.load(Relaxed)),
        removals: (args.remove > 0).then(|| tally.removals.load(Relaxed)),
        counted,
    };
    for (i, hint) in Hint::ALL.iter().enumerate() {
        println!("{hint:?}: taken {} of {} times", figures.taken[i], figures.given[i]);
    }
    if well {
        println!("all contents were right");
    }
    let complaints = figures.complaints();
    for complaint in &complaints {
        eprintln!("vxe-stress: {complaint}");
    }
    well &= complaints.is_empty();
    if !well {
        println!("FAILED");
    }
    well
}

/// Notes which of the [`COUNTERS`] any device has that is there now.
fn note_counters(counted: &mut BTreeSet<&'static str>) {
    for stats in Stats::of_all_devices() {
        counted.extend(COUNTERS.iter().filter(|name| stats[**name] > 0));
    }
}

fn show(start: Instant, tally: &Tally) {
    println!(
        "{:6} s  {:6} sequences  {:8} steps  {:4} cut short  {:4} times under pressure  \
         {:4} removals",
        start.elapsed().as_secs(),
        tally.sequences.load(Relaxed),
        tally.steps.load(Relaxed),
        tally.cut_short.load(Relaxed),
        tally.pressure.load(Relaxed),
        tally.removals.load(Relaxed),
    );
}
