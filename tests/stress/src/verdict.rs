// SPDX-License-Identifier: GPL-2.0

//! Whether a run did what it is for. That nothing was wrong says little if next to nothing was done.

use std::collections::BTreeSet;
use vxe_uapi::random::Hint;

/// So much of anything shows how often it succeeds.
const ENOUGH: u64 = 40;

/// What the devices must have counted: faults were serviced, memory went to the device's and came back,
/// and the CPU took back what a GPU had mapped.
pub const COUNTERS: [&str; 4] =
    ["svm_pagefault_count", "svm_device_copy_kb", "svm_cpu_copy_kb", "svm_tlb_inval_count"];

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Sequences that ended well, and those of them that their device left early.
    pub sequences: u64,
    pub cut_short: u64,
    /// Steps in all of them.
    pub steps: u64,
    /// How often each advice was given and taken.
    pub given: [u64; Hint::COUNT],
    pub taken: [u64; Hint::COUNT],
    /// How often memory was taken by the process that takes it; none if there is no such process.
    pub pressure: Option<u64>,
    /// How often a device was taken away; none if nobody was to.
    pub removals: Option<u64>,
    /// The [`COUNTERS`] that were not zero on any device at some time.
    pub counted: BTreeSet<&'static str>,
}

impl Figures {
    /// What was not done, or too seldom. Of a run of a few sequences, only what none may lack.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut need = |holds: bool, what: String| (!holds).then(|| complaints.push(what));
        let whole = self.sequences - self.cut_short;
        need(whole > 0, format!("none of {} sequences was done to its end", self.sequences));
        need(self.steps > 0, "no step was done".to_owned());
        if self.sequences < ENOUGH {
            return complaints;
        }
        need(
            whole * 4 >= self.sequences,
            format!("{} of {} sequences were cut short", self.cut_short, self.sequences),
        );
        for (hint, (&given, &taken)) in Hint::ALL.iter().zip(self.given.iter().zip(&self.taken)) {
            need(given > 0, format!("{hint:?} was never advised"));
            need(
                given < ENOUGH || taken * 2 >= given,
                format!("{hint:?} was taken {taken} of {given} times"),
            );
        }
        need(self.pressure != Some(0), "there was no memory pressure".to_owned());
        need(self.removals != Some(0), "no device was taken away".to_owned());
        for name in COUNTERS {
            need(self.counted.contains(name), format!("{name} is 0 on all devices"));
        }
        complaints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Figures {
        Figures {
            sequences: 100,
            cut_short: 30,
            steps: 4000,
            given: [50; Hint::COUNT],
            taken: [40; Hint::COUNT],
            pressure: Some(9),
            removals: Some(20),
            counted: COUNTERS.into(),
        }
    }

    /// What is said of a run of which one thing was otherwise.
    fn otherwise(change: impl FnOnce(&mut Figures)) -> Vec<String> {
        let mut figures = good();
        change(&mut figures);
        figures.complaints()
    }

    #[test]
    fn a_good_run_is_good() {
        assert_eq!(good().complaints(), [""; 0]);
        assert_eq!(otherwise(|f| (f.pressure, f.removals) = (None, None)), [""; 0]);
    }

    #[test]
    fn sequences_must_come_to_their_end() {
        let all = otherwise(|f| f.cut_short = f.sequences);
        assert!(all.contains(&"none of 100 sequences was done to its end".to_owned()), "{all:?}");
        assert_eq!(otherwise(|f| f.cut_short = 76), ["76 of 100 sequences were cut short"]);
        assert_eq!(otherwise(|f| f.steps = 0), ["no step was done"]);
        let none = Figures::default().complaints();
        assert_eq!(none, ["none of 0 sequences was done to its end", "no step was done"]);
    }

    #[test]
    fn advice_must_be_taken() {
        let refused = |f: &mut Figures| f.taken[Hint::PrefetchDevice as usize] = 24;
        assert_eq!(otherwise(refused), ["PrefetchDevice was taken 24 of 50 times"]);
        let ignored = otherwise(|f| f.taken = [0; Hint::COUNT]);
        assert_eq!(ignored.len(), Hint::COUNT);
        let unheard = |f: &mut Figures| (f.given[0], f.taken[0]) = (0, 0);
        assert_eq!(otherwise(unheard), ["Prefetch was never advised"]);
    }

    #[test]
    fn there_must_be_trouble() {
        assert_eq!(otherwise(|f| f.pressure = Some(0)), ["there was no memory pressure"]);
        assert_eq!(otherwise(|f| f.removals = Some(0)), ["no device was taken away"]);
    }

    #[test]
    fn the_devices_must_have_worked() {
        let idle = otherwise(|f| f.counted.clear());
        assert_eq!(idle.len(), COUNTERS.len());
    }

    #[test]
    fn of_a_short_run_little_is_asked() {
        let short = Figures { sequences: 2, cut_short: 1, steps: 30, ..Figures::default() };
        assert_eq!(short.complaints(), [""; 0]);
    }
}
