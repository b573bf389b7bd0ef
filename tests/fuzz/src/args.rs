// SPDX-License-Identifier: GPL-2.0

//! The command line.

use crate::{
    generate::Without,
    id::{number, Id},
};
use std::{path::PathBuf, time::Duration};

pub const HELP: &str = "\
  --seconds N        how long (120)
  --seed N           what to begin with (the clock)
  --processes N      programs that run at once (3)
  --limit MS         how long a program may take before it is killed (4000)
  --patience S       how long a program may take to die (60)
  --without A,B,…    leaves out groups of calls: thp, fork, unbind, many-binds, cgroup; combinations: fork-thp (a
                     fork with huge pages), huge-arrays (counts in the millions), places (arguments in
                     memory that is not simple)
  --replay ID        shows and runs one program, SEED:INDEX as a report names it, with its changes
  --calls N,N,…      of that program only these calls
  --times N          how often it is run (1)
  --show ID          shows one program
  --coverage PATH    where to write what was reached of the modules";

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Args {
    pub time: Duration,
    pub seed: u64,
    pub processes: usize,
    pub limit: Duration,
    pub patience: Duration,
    pub without: Without,
    pub replay: Option<Id>,
    pub calls: Option<Vec<usize>>,
    pub times: u64,
    pub show: Option<Id>,
    pub coverage: Option<PathBuf>,
}

impl Args {
    /// Parses the arguments after the program's name.
    pub fn parse(arguments: impl IntoIterator<Item = String>, clock: u64) -> Result<Self, String> {
        let mut args = Self {
            time: Duration::from_secs(120),
            seed: clock,
            processes: 3,
            limit: Duration::from_millis(4000),
            patience: Duration::from_secs(60),
            without: Without::default(),
            replay: None,
            calls: None,
            times: 1,
            show: None,
            coverage: None,
        };
        let mut arguments = arguments.into_iter();
        while let Some(option) = arguments.next() {
            let text = arguments.next().ok_or(format!("{option} needs a value"))?;
            let bad = || format!("{option} {text}: what is that?");
            let value = || number(&text).ok_or_else(bad);
            match option.as_str() {
                "--seconds" => args.time = Duration::from_secs(value()?),
                "--seed" => args.seed = value()?,
                "--processes" => args.processes = value()?.clamp(1, 32) as usize,
                "--limit" => args.limit = Duration::from_millis(value()?),
                "--patience" => args.patience = Duration::from_secs(value()?),
                "--without" => {
                    args.without = Without(
                        text.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect(),
                    );
                }
                "--replay" => args.replay = Some(Id::parse(&text).ok_or_else(bad)?),
                "--show" => args.show = Some(Id::parse(&text).ok_or_else(bad)?),
                "--calls" => {
                    let calls = text.split(',').map(|n| number(n).map(|n| n as usize));
                    args.calls = Some(calls.collect::<Option<_>>().ok_or_else(bad)?);
                }
                "--times" => args.times = value()?,
                "--coverage" => args.coverage = Some(text.into()),
                _ => return Err(format!("unknown option {option}")),
            }
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Args, String> {
        Args::parse(text.split_whitespace().map(String::from), 7)
    }

    #[test]
    fn all_options_are_understood() {
        let all =
            "--seconds 5 --seed 0x10 --processes 2 --limit 9 --patience 3 --without thp,unbind \
                   --replay 1:2+3 --calls 0,4 --times 8 --coverage /x";
        let args = parse(all).unwrap();
        assert_eq!((args.time.as_secs(), args.seed, args.processes), (5, 16, 2));
        assert_eq!((args.limit.as_millis(), args.patience.as_secs(), args.times), (9, 3, 8));
        assert!(args.without.0.contains("thp") && args.without.0.contains("unbind"));
        assert_eq!(args.replay.unwrap().mutations, [3]);
        assert_eq!(args.calls.unwrap(), [0, 4]);
        assert_eq!(parse("").unwrap().seed, 7);
        assert_eq!(parse("--show 1:2").unwrap().show, Some(Id::new(1, 2)));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse("--seconds").is_err());
        assert!(parse("--seed x").is_err());
        assert!(parse("--replay 7").is_err());
        assert!(parse("--calls 1,x").is_err());
        assert!(parse("-v 1").is_err());
    }
}
