// SPDX-License-Identifier: GPL-2.0

//! Samples, what they boil down to, and how they are shown.

use std::{fmt, time::Duration};
use vxe_client::monotonic_now;

/// What one thing costs.
pub struct Figure {
    name: String,
    /// How many ranges the VM had, where that matters.
    ranges: Option<usize>,
    median: u64,
    least: u64,
    most: u64,
}

/// All that was measured.
pub struct Figures {
    list: Vec<Figure>,
}

impl Figures {
    /// None yet.
    pub const fn new() -> Self {
        Self { list: Vec::new() }
    }

    /// Adds what the samples say about `name`, and returns their median.
    pub fn add(&mut self, name: &str, ranges: Option<usize>, mut samples: Vec<u64>) -> u64 {
        samples.sort_unstable();
        let (Some(&least), Some(&most)) = (samples.first(), samples.last()) else {
            panic!("{name}: no samples");
        };
        let median = samples[samples.len() / 2];
        self.list.push(Figure { name: name.to_owned(), ranges, median, least, most });
        median
    }

    /// Adds samples of which a constant part is something else.
    pub fn add_less(&mut self, name: &str, ranges: Option<usize>, samples: Vec<u64>, part: u64) {
        let rest = samples.into_iter().map(|s| s.saturating_sub(part)).collect();
        self.add(name, ranges, rest);
    }

    /// All figures for machines.
    pub fn to_json(&self) -> String {
        let entries: Vec<_> = self
            .list
            .iter()
            .map(|f| {
                let ranges = f.ranges.map_or("null".into(), |n| n.to_string());
                format!(
                    "    {{\"name\": \"{}\", \"ranges\": {ranges}, \"median\": {}, \"min\": {}, \"max\": {}}}",
                    f.name, f.median, f.least, f.most
                )
            })
            .collect();
        format!(
            "{{\n  \"unit\": \"ns of CLOCK_MONOTONIC\",\n  \"figures\": [\n{}\n  ]\n}}\n",
            entries.join(",\n")
        )
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.list.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
        writeln!(
            f,
            "{:<width$}  {:>7}  {:>12}  {:>12}  {:>12}",
            "instructions (with -icount) for", "ranges", "median", "least", "most"
        )?;
        for figure in &self.list {
            writeln!(
                f,
                "{:<width$}  {:>7}  {:>12}  {:>12}  {:>12}",
                figure.name,
                figure.ranges.map_or(String::new(), |n| n.to_string()),
                figure.median,
                figure.least,
                figure.most
            )?;
        }
        Ok(())
    }
}

/// What a call takes.
pub fn timed<T>(call: impl FnOnce() -> T) -> u64 {
    let start = monotonic_now();
    let result = call();
    let took: Duration = monotonic_now() - start;
    drop(result);
    took.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let mut figures = Figures::new();
        assert_eq!(figures.add("x", None, vec![5, 1, 9]), 5);
        figures.add_less("y", Some(10), vec![10, 20, 30], 15);
        let json = figures.to_json();
        assert!(json.contains(r#""name": "x", "ranges": null, "median": 5, "min": 1, "max": 9"#));
        assert!(json.contains(r#""name": "y", "ranges": 10, "median": 5, "min": 0, "max": 15"#));
        assert_eq!(figures.to_string().lines().count(), 3);
    }
}
