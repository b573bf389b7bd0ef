// SPDX-License-Identifier: GPL-2.0

//! Programs of subtests with IGT's command line, output and exit codes.
//!
//! Each subtest runs in a process of its own, so that a crash, a banned queue or a spoilt address
//! space is that subtest's failure alone. A subtest fails by panicking, by dying of a signal, or by
//! taking too long; it skips through [`skip!`](crate::skip).

mod child;
mod cli;
mod wildcard;

use crate::PAGE;
pub use child::guarded;
use child::Outcome;
use cli::Action;
use std::{process::ExitCode, time::Duration};

/// IGT's exit codes.
pub mod exit {
    /// All subtests that were run passed.
    pub const SUCCESS: u8 = 0;
    /// Nothing could be run.
    pub const SKIP: u8 = 77;
    /// Wrong arguments, or no such subtest.
    pub const INVALID: u8 = 79;
    /// A subtest failed.
    pub const FAILURE: u8 = 98;
}

/// How long a subtest may take, unless `VXE_TIMEOUT` says another number of seconds.
const DEFAULT_TIMEOUT: u64 = 60;

/// The reason that [`skip!`](crate::skip) gives.
pub struct Skip(pub String);

/// Ends the subtest as skipped, for a reason.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {
        ::std::panic::panic_any($crate::harness::Skip(format!($($reason)*)))
    };
}

struct Subtest {
    name: String,
    about: String,
    body: Box<dyn Fn()>,
}

/// A program of subtests.
pub struct Program {
    name: &'static str,
    about: &'static str,
    subtests: Vec<Subtest>,
}

/// The size of the kernel's pages, in bytes.
fn page_size() -> usize {
    // SAFETY: may be called at any time. What there is a limit of is not negative.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

impl Program {
    /// A program without subtests yet.
    pub fn new(name: &'static str, about: &'static str) -> Self {
        Self { name, about, subtests: Vec::new() }
    }

    /// Adds a subtest.
    ///
    /// # Panics
    ///
    /// If there is one of that name, or the name has other characters than IGT's.
    pub fn subtest(
        &mut self,
        name: impl Into<String>,
        about: impl Into<String>,
        body: impl Fn() + 'static,
    ) -> &mut Self {
        let name = name.into();
        assert!(
            !name.is_empty()
                && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_'),
            "bad subtest name {name:?}"
        );
        assert!(self.subtests.iter().all(|s| s.name != name), "two subtests are named {name}");
        self.subtests.push(Subtest { name, about: about.into(), body: Box::new(body) });
        self
    }

    /// Does what the command line asks.
    pub fn main(&self) -> ExitCode {
        ExitCode::from(match cli::parse(std::env::args().skip(1)) {
            Ok(Action::List) => self.list(),
            Ok(Action::Describe(pattern)) => self.describe(pattern.as_deref()),
            Ok(Action::About) => {
                println!("{}", self.about);
                exit::SUCCESS
            }
            Ok(Action::Help) => {
                println!("Usage: {} [OPTIONS]\n{}", self.name, cli::HELP);
                exit::SUCCESS
            }
            Ok(Action::Run(pattern)) => match page_size() {
                PAGE => self.run(pattern.as_deref()),
                other => {
                    eprintln!(
                        "{}: built for pages of {PAGE} bytes; the kernel's have {other}",
                        self.name
                    );
                    exit::FAILURE
                }
            },
            Err(message) => {
                eprintln!("{}: {message}\n{}", self.name, cli::HELP);
                exit::INVALID
            }
        })
    }

    fn matching<'a>(&'a self, pattern: Option<&'a str>) -> impl Iterator<Item = &'a Subtest> {
        self.subtests.iter().filter(move |s| pattern.is_none_or(|p| wildcard::matches(p, &s.name)))
    }

    fn list(&self) -> u8 {
        for subtest in &self.subtests {
            println!("{}", subtest.name);
        }
        exit::SUCCESS
    }

    fn describe(&self, pattern: Option<&str>) -> u8 {
        println!("{}\n", self.about);
        let mut found = false;
        for subtest in self.matching(pattern) {
            println!("SUB {}:\n  {}\n", subtest.name, subtest.about);
            found = true;
        }
        self.verdict_on_pattern(found, pattern)
    }

    fn verdict_on_pattern(&self, found: bool, pattern: Option<&str>) -> u8 {
        match pattern {
            Some(pattern) if !found => {
                eprintln!("Unknown subtest: {pattern}");
                exit::INVALID
            }
            _ => exit::SUCCESS,
        }
    }

    /// Runs the subtests that match, and says which of the exit codes they earned.
    pub fn run(&self, pattern: Option<&str>) -> u8 {
        let timeout = Duration::from_secs(crate::env::number("VXE_TIMEOUT", DEFAULT_TIMEOUT));
        let (mut passed, mut skipped, mut failed) = (0, 0, Vec::new());
        for subtest in self.matching(pattern) {
            println!("Starting subtest: {}", subtest.name);
            let (outcome, took) = child::run(&*subtest.body, timeout);
            match outcome {
                Outcome::Passed => passed += 1,
                Outcome::Skipped => skipped += 1,
                Outcome::Failed | Outcome::Crashed(_) | Outcome::TimedOut { .. } => {
                    failed.push(subtest.name.as_str());
                }
            }
            println!("Subtest {}: {outcome} ({:.3}s)", subtest.name, took.as_secs_f64());
        }
        if !failed.is_empty() {
            eprintln!("{}: failed: {}", self.name, failed.join(", "));
            exit::FAILURE
        } else if passed > 0 {
            exit::SUCCESS
        } else if skipped > 0 {
            exit::SKIP
        } else {
            self.verdict_on_pattern(false, pattern)
        }
    }
}
