// SPDX-License-Identifier: GPL-2.0

//! The command line.

pub const HELP: &str = "\
  --list-subtests            name the subtests
  --run-subtest <pattern>    run those that match: comma-separated, with *, ?, [a-z] and !
  --describe[=<pattern>]     say what the subtests are about
  --help-description         say what the program is about
  --help                     say this
Environment: VXE_SEED (of random sequences), VXE_ITERATIONS (factor of stress loops),
VXE_TIMEOUT (seconds that a subtest may take; then loops do all of their rounds).";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    List,
    Describe(Option<String>),
    About,
    Help,
    Run(Option<String>),
}

pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Action, String> {
    let mut action = Action::Run(None);
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let (option, value) = match argument.split_once('=') {
            Some((option, value)) => (option.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        action = match (option.as_str(), value) {
            ("--list-subtests", None) => Action::List,
            ("--help-description", None) => Action::About,
            ("--help" | "-h", None) => Action::Help,
            ("--describe", value) => Action::Describe(value),
            ("--run-subtest" | "-r", value) => Action::Run(Some(
                value.or_else(|| arguments.next()).ok_or("--run-subtest needs a pattern")?,
            )),
            (option, _) => return Err(format!("unknown option {option}")),
        };
    }
    Ok(action)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Action, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_igts() {
        assert_eq!(parsed(""), Ok(Action::Run(None)));
        assert_eq!(parsed("--list-subtests"), Ok(Action::List));
        assert_eq!(parsed("--help-description"), Ok(Action::About));
        let run = Ok(Action::Run(Some("a-*".into())));
        assert_eq!(parsed("--run-subtest a-*"), run);
        assert_eq!(parsed("--run-subtest=a-*"), run);
        assert_eq!(parsed("--describe"), Ok(Action::Describe(None)));
    }

    #[test]
    fn what_is_wrong_is_an_error() {
        assert!(parsed("--run-subtest").is_err());
        assert!(parsed("--nonesuch").is_err());
        assert!(parsed("stray").is_err());
    }
}
