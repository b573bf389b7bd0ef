// SPDX-License-Identifier: GPL-2.0

//! The command line.

use std::time::Duration;

pub const HELP: &str = "\
  --seconds N      how long (120)
  --seed N         what to begin with (the clock)
  --processes N    how many at once (3)
  --pages N        the most pages that a sequence works on (2600); a replay needs the same
  --pressure MIB   memory that one more process takes and gives back all the time (64; 0: none)
  --remove MS      time after which one more process takes a device away, on average (4000; 0: never)
  --replay SEED    only the one sequence that a failure named";

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    pub time: Duration,
    pub seed: u64,
    pub processes: usize,
    pub pages: usize,
    pub pressure: usize,
    pub remove: usize,
    pub replay: Option<u64>,
}

impl Args {
    /// Parses the arguments after the program's name.
    pub fn parse(arguments: impl IntoIterator<Item = String>, clock: u64) -> Result<Self, String> {
        let mut args = Self {
            time: Duration::from_secs(120),
            seed: clock,
            processes: 3,
            pages: 2600,
            pressure: 64,
            remove: 4000,
            replay: None,
        };
        let mut arguments = arguments.into_iter();
        while let Some(option) = arguments.next() {
            let mut value = || {
                let text = arguments.next().ok_or(format!("{option} needs a number"))?;
                number(&text).ok_or(format!("{option} {text}: not a number"))
            };
            match option.as_str() {
                "--seconds" => args.time = Duration::from_secs(value()?),
                "--seed" => args.seed = value()?,
                "--processes" => args.processes = value()?.clamp(1, 64) as usize,
                "--pages" => args.pages = value()?.max(1) as usize,
                "--pressure" => args.pressure = value()? as usize,
                "--remove" => args.remove = value()? as usize,
                "--replay" => args.replay = Some(value()?),
                _ => return Err(format!("unknown option {option}")),
            }
        }
        Ok(args)
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
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
            "--seconds 5 --seed 0x10 --processes 2 --pages 8 --pressure 0 --remove 70 --replay 9";
        let args = parse(all).unwrap();
        assert_eq!((args.time.as_secs(), args.seed, args.processes), (5, 16, 2));
        assert_eq!((args.pages, args.pressure, args.remove, args.replay), (8, 0, 70, Some(9)));
        assert_eq!(parse("").unwrap().seed, 7);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse("--seconds").is_err());
        assert!(parse("--seed x").is_err());
        assert!(parse("-v").is_err());
    }
}
