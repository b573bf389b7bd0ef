// SPDX-License-Identifier: GPL-2.0

//! Fuzzing: programs of calls that a description tells about, made of a seed, run by several processes
//! at once with what else goes on. It looks for what the kernel reports (in its log, which the host
//! reads), for processes that do not die, and for devices that work no more.

mod arena;
mod args;
mod ast;
mod calls;
mod cgroup;
mod execute;
mod generate;
mod guard;
mod header;
mod health;
mod id;
mod kcov;
mod model;
#[cfg(test)]
mod names;
mod parse;
mod program;
mod regions;
mod tally;
mod watch;

use args::Args;
use model::Model;
use std::{
    fs,
    io::BufWriter,
    os::fd::{IntoRawFd, RawFd},
    os::unix::net::UnixDatagram,
    process::ExitCode,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tally::Tally;
use vxe_uapi::{
    process::{fork, Child},
    Rng,
};
use watch::{End, Runner};

/// How often progress is shown.
const PROGRESS: Duration = Duration::from_secs(10);
/// How often devices are checked.
const CHECKUP: Duration = Duration::from_secs(30);
/// Of a hundred calls of these, so many must not fail, or programs test nothing but checks.
const ENOUGH: u64 = 60;
const MUST_WORK: [&str; 2] = ["ioctl$XE_EXEC", "ioctl$XE_VM_BIND"];

fn main() -> ExitCode {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64);
    let args = match Args::parse(std::env::args().skip(1), clock & 0xffff_ffff) {
        Ok(args) => args,
        Err(e) => {
            eprintln!("gpusvm-fuzz: {e}\nUsage: gpusvm-fuzz [OPTION]...\n{}", args::HELP);
            return ExitCode::from(2);
        }
    };
    let model = match Model::load() {
        Ok(model) => model,
        Err(e) => {
            eprintln!("gpusvm-fuzz: descriptions/{e}");
            return ExitCode::from(2);
        }
    };
    if let Some(call) = model.calls.iter().find(|call| !calls::is_known(call.base())) {
        eprintln!("gpusvm-fuzz: nobody knows how to make {}", call.name);
        return ExitCode::from(2);
    }
    if let Some(id) = &args.show {
        print!("{}", generate::program(&model, id, &args.without).show(&model));
        return ExitCode::SUCCESS;
    }
    if health::devices() == 0 {
        eprintln!("gpusvm-fuzz: there is no xe device");
        return ExitCode::from(77);
    }
    if let Err(e) = cgroup::make() {
        println!("no program has a limit of memory: {e}");
    }
    let tally = Tally::shared();
    let well = match &args.replay {
        Some(_) => replay(&model, &args, tally),
        None => fuzz(&model, &args, tally),
    };
    match well {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// The two ends of the socket in which descriptors of all processes meet: what is sent to the first is
/// received from the second.
fn mailbox() -> (RawFd, RawFd) {
    let (to, from) = UnixDatagram::pair().expect("a socket pair");
    (to.into_raw_fd(), from.into_raw_fd())
}

fn replay(model: &Model, args: &Args, tally: &'static Tally) -> bool {
    let Some(id) = &args.replay else { return false };
    let mut program = generate::program(model, id, &args.without);
    if let Some(calls) = &args.calls {
        program.keep(calls);
    }
    print!("{}", program.show(model));
    let devices: Vec<_> = (0..health::devices()).collect();
    let runner = Runner::new(model, args, tally, mailbox());
    for _ in 0..args.times {
        if runner.run(id) == End::Hung {
            return false;
        }
    }
    show_calls(model, tally);
    write_coverage(args, tally);
    let health = health::check(&devices);
    health.is_ok_or_say() && tally.strange_errors.load(Relaxed) == 0
}

trait Say {
    /// Says what is wrong, if anything is.
    fn is_ok_or_say(&self) -> bool;
}

impl Say for Result<(), String> {
    fn is_ok_or_say(&self) -> bool {
        if let Err(e) = self {
            println!("FAILED: {e}");
        }
        self.is_ok()
    }
}

fn fuzz(model: &Model, args: &Args, tally: &'static Tally) -> bool {
    let start = Instant::now();
    let end = start + args.time;
    let devices: Vec<_> = (0..health::devices()).collect();
    let mailbox = mailbox();
    println!(
        "{} processes on {} device(s) for {} s, --seed {:#x}, {} calls described",
        args.processes,
        devices.len(),
        args.time.as_secs(),
        args.seed,
        model.calls.len()
    );
    let mut rng = Rng::new(args.seed);
    let mut workers: Vec<Child> = (0..args.processes)
        .map(|_| {
            let rng = Rng::new(rng.next_u64());
            fork(move |link| {
                let well = Runner::new(model, args, tally, mailbox).run_until(end, rng);
                link.send(well.into());
            })
        })
        .collect();
    let mut well = true;
    let (mut shown, mut checked) = (start, start);
    while !workers.is_empty() && well {
        std::thread::sleep(Duration::from_millis(200));
        calls::bind_all();
        workers.retain(|worker| match worker.has_word() {
            false => true,
            true => {
                well &= worker.link().try_receive().is_ok_and(|word| word == 1);
                false
            }
        });
        if shown.elapsed() >= PROGRESS {
            shown = Instant::now();
            show(start, model, tally);
        }
        if checked.elapsed() >= CHECKUP {
            checked = Instant::now();
            well &= health::check(&devices).is_ok_or_say();
        }
    }
    // Dropped, processes are killed, and with them their programs.
    drop(workers);
    calls::bind_all();
    well &= health::check(&devices).is_ok_or_say();
    show_calls(model, tally);
    show(start, model, tally);
    write_coverage(args, tally);
    if tally.strange_errors.load(Relaxed) > 0 {
        println!("FAILED: calls returned the kernel's own errors");
        well = false;
    }
    match cgroup::killed_outside() {
        0 => {}
        count => {
            println!("FAILED: {count} processes were killed for want of memory, with no limit");
            well = false;
        }
    }
    for name in MUST_WORK {
        let (all, percent) = share(model, tally, name);
        if percent < ENOUGH {
            println!("FAILED: of {all} calls of {name} only {percent} % did not fail");
            well = false;
        }
    }
    println!("{}", if well { "nothing went wrong" } else { "FAILED" });
    well
}

/// How many calls there were whose name is or begins with that, and how many percent did not fail.
fn share(model: &Model, tally: &Tally, name: &str) -> (u64, u64) {
    let (mut all, mut well) = (0, 0);
    let belongs = |other: &str| match other.strip_prefix(name) {
        Some(rest) => rest.is_empty() || name.ends_with("BIND") && rest.starts_with('_'),
        None => false,
    };
    for (call, made) in model.calls.iter().zip(&tally.calls) {
        if belongs(&call.name) {
            all += made.all.load(Relaxed);
            well += made.well.load(Relaxed);
        }
    }
    (all, (well * 100).checked_div(all).unwrap_or(0))
}

fn show(start: Instant, model: &Model, tally: &Tally) {
    let calls: u64 = tally.calls.iter().map(|made| made.all.load(Relaxed)).sum();
    println!(
        "{:6} s  {:6} programs  {:8} calls  EXEC {:2} %  VM_BIND {:2} %  {:5} killed  {:4} timed out  \
         {:3} rebinds  {:6} places, {:4} kept",
        start.elapsed().as_secs(),
        tally.programs.load(Relaxed),
        calls,
        share(model, tally, MUST_WORK[0]).1,
        share(model, tally, MUST_WORK[1]).1,
        tally.killed.load(Relaxed),
        tally.timed_out.load(Relaxed),
        tally.rebinds.load(Relaxed),
        tally.covered.load(Relaxed),
        tally.kept_count(),
    );
}

/// Each call, how often it was made, how often it did not fail, and how often with which errors.
fn show_calls(model: &Model, tally: &Tally) {
    println!("{:44} {:>8} {:>6}  errors", "call", "made", "well");
    for (call, made) in model.calls.iter().zip(&tally.calls) {
        let (all, well) = (made.all.load(Relaxed), made.well.load(Relaxed));
        if all > 0 {
            let errors = made.errors().into_iter().take(5).map(|(errno, count)| {
                let name = vxe_client::errno_name(errno).map(str::to_owned);
                format!(" {} {count}", name.unwrap_or(errno.to_string()))
            });
            let errors: String = errors.collect();
            println!("{:44} {all:8} {:4} % {errors}", call.name, well * 100 / all);
        }
    }
}

fn write_coverage(args: &Args, tally: &Tally) {
    let Some(path) = &args.coverage else { return };
    if let Some(directory) = path.parent() {
        let _ = fs::create_dir_all(directory);
    }
    let written = fs::File::create(path)
        .and_then(|file| kcov::Modules::loaded().write(tally, &mut BufWriter::new(file)));
    if let Err(e) = written {
        println!("{}: {e}", path.display());
    }
}
