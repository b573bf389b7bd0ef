// SPDX-License-Identifier: GPL-2.0

//! Repeated measurements of one thing.

use crate::session::Measured;

/// Measurements, of which the mean counts: what happens in one of many (a list of free pages that is
/// filled up, a batch of pages that is handed on) is part of the cost of each.
///
/// One that a timer tick fell into counts only if there is none without.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    good: Vec<u64>,
    disturbed: Vec<u64>,
}

impl Samples {
    /// Adds a measurement.
    pub fn push(&mut self, value: u64, disturbed: bool) {
        if disturbed { &mut self.disturbed } else { &mut self.good }.push(value);
    }

    fn values(&self) -> &[u64] {
        if self.good.is_empty() {
            &self.disturbed
        } else {
            &self.good
        }
    }

    /// What came of it; zeroes if nothing was measured.
    pub fn summary(&self) -> Summary {
        let mut values = self.values().to_vec();
        values.sort_unstable();
        let count = values.len().max(1) as u64;
        Summary {
            mean: (values.iter().sum::<u64>() + count / 2) / count,
            median: values.get(values.len() / 2).copied().unwrap_or(0),
            least: values.first().copied().unwrap_or(0),
            most: values.last().copied().unwrap_or(0),
            samples: values.len(),
        }
    }
}

/// What came of repeated measurements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The mean, rounded.
    pub mean: u64,
    /// Half of the measurements are not above.
    pub median: u64,
    /// The smallest.
    pub least: u64,
    /// The largest.
    pub most: u64,
    /// How many there were.
    pub samples: usize,
}

/// The measurements of all figures of an operation of the kernel's.
#[derive(Clone, Debug, Default)]
pub struct Figures(Vec<Samples>);

impl Figures {
    /// Adds a measurement.
    pub fn push(&mut self, measured: &Measured) {
        self.0.resize(measured.figures.len(), Samples::default());
        for (samples, figure) in self.0.iter_mut().zip(measured.figures) {
            samples.push(figure, measured.disturbed);
        }
    }

    /// What came of one of the figures.
    pub fn get(&self, figure: usize) -> Summary {
        self.0.get(figure).map(Samples::summary).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_undisturbed_measurements_count() {
        let mut s = Samples::default();
        for (value, disturbed) in [(8, false), (1000, true), (3, false), (4, false)] {
            s.push(value, disturbed);
        }
        assert_eq!(s.summary(), Summary { mean: 5, median: 4, least: 3, most: 8, samples: 3 });
    }

    #[test]
    fn disturbed_measurements_are_better_than_none() {
        let mut s = Samples::default();
        s.push(7, true);
        assert_eq!(s.summary(), Summary { mean: 7, median: 7, least: 7, most: 7, samples: 1 });
        assert_eq!(Samples::default().summary(), Summary::default());
    }
}
