// SPDX-License-Identifier: GPL-2.0

//! What shared virtual memory costs, as a program sees it: faults, unmaps, invalidations, and how
//! they grow with the number of ranges that a VM has.
//!
//! Times are those of CLOCK_MONOTONIC. In a guest whose clock counts instructions (QEMU's
//! `-icount shift=0`) a nanosecond is an instruction, and the figures are the same on each machine.

mod faults;
mod figures;
mod growth;
mod unmaps;

use figures::Figures;
use std::{error::Error, path::PathBuf, process::ExitCode};
use vxe_uapi::{vram::keep_out, Gpu};

const HELP: &str = "\
Usage: vxe-bench [--json PATH] [--ranges N]
  --json PATH   write every figure there (default: $BENCH_JSON, if set)
  --ranges N    the largest number of ranges to grow a VM to (default: 100000)";

struct Options {
    json: Option<PathBuf>,
    ranges: usize,
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let json = std::env::var_os("BENCH_JSON").map(PathBuf::from);
    let mut options = Options { json, ranges: 100_000 };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--json" => options.json = Some(value()?.into()),
            "--ranges" => {
                options.ranges = value()?.parse().map_err(|e| format!("--ranges: {e}"))?;
            }
            _ => return Err(format!("unknown option {argument}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(e) => {
            eprintln!("vxe-bench: {e}\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match bench(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vxe-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Lets no other thread preempt this one while it does not wait: a worker of the driver that becomes runnable inside
/// a measured system call would be counted with it in one run, and not in the next.
fn run_first() -> std::io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: The parameters are valid; 0 is this thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn bench(options: &Options) -> Result<(), Box<dyn Error>> {
    run_first().map_err(|e| format!("SCHED_FIFO: {e}"))?;
    let mut figures = Figures::new();
    let gpu = Gpu::on_device(&vxe_client::Device::open()?);
    // What moving memory costs is counted apart.
    keep_out(&gpu);
    faults::measure(&gpu, &mut figures);
    unmaps::measure(&gpu, &mut figures);
    for ranges in [10, 1000, 100_000].into_iter().filter(|&n| n <= options.ranges) {
        growth::measure(ranges, &mut figures)?;
    }
    print!("{figures}");
    if let Some(path) = &options.json {
        std::fs::write(path, figures.to_json()).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_understood() {
        let parsed = |line: &str| options(line.split_whitespace().map(str::to_owned));
        let o = parsed("--json /tmp/x --ranges 7").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((o.json, o.ranges), (Some("/tmp/x".into()), 7));
        assert!(parsed("--json").is_err());
        assert!(parsed("--ranges x").is_err());
        assert!(parsed("more").is_err());
    }
}
