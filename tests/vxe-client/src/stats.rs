// SPDX-License-Identifier: GPL-2.0

//! The driver's counters, as debugfs shows them.

use crate::Device;
use std::{collections::BTreeMap, fs, io, ops::Index, path::PathBuf};

/// Where debugfs is mounted.
const DEBUGFS: &str = "/sys/kernel/debug";

/// The counters of a GT by name; those that the driver does not have are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    counters: BTreeMap<String, u64>,
}

impl Stats {
    /// Reads the counters of the device's first GT.
    ///
    /// # Errors
    ///
    /// If debugfs is not mounted, or not for the caller to read.
    pub fn read(device: &Device) -> io::Result<Self> {
        let path = debugfs_directory(device)?.join("gt0/stats");
        Ok(Self::parse(&fs::read_to_string(path)?))
    }

    /// Reads those of every device that is there: each minor, one after the other. A device that goes
    /// meanwhile is left out.
    pub fn of_all_devices() -> Vec<Self> {
        let directories = fs::read_dir(PathBuf::from(DEBUGFS).join("dri")).into_iter().flatten();
        directories
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("gt0/stats")).ok())
            .map(|text| Self::parse(&text))
            .collect()
    }

    /// Parses lines of `name: value`; skips others.
    pub fn parse(text: &str) -> Self {
        let counters = text
            .lines()
            .filter_map(|line| {
                let (name, value) = line.split_once(':')?;
                Some((name.trim().to_owned(), value.trim().parse().ok()?))
            })
            .collect();
        Self { counters }
    }

    /// A counter, if there is one of that name.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.counters.get(name).copied()
    }

    /// All counters, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counters.iter().map(|(name, &value)| (name.as_str(), value))
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counters = self
            .counters
            .iter()
            .map(|(name, &value)| {
                let before = earlier.get(name).unwrap_or(0);
                (name.clone(), value.saturating_sub(before))
            })
            .collect();
        Self { counters }
    }
}

impl Index<&str> for Stats {
    type Output = u64;

    /// The counter, or 0 where there is none.
    fn index(&self, name: &str) -> &u64 {
        self.counters.get(name).unwrap_or(&0)
    }
}

/// The device's directory in debugfs.
///
/// # Errors
///
/// If the device is closed.
pub fn debugfs_directory(device: &Device) -> io::Result<PathBuf> {
    Ok(PathBuf::from(DEBUGFS).join("dri").join(device.minor()?.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_parsed_and_subtracted() {
        let before = Stats::parse("svm_pagefault_count: 3\ntlb_inval_count: 1\n");
        let after = Stats::parse("svm_pagefault_count: 10\nnot a counter\nsvm_4K_us: 5\n");
        let delta = after.since(&before);
        assert_eq!(delta["svm_pagefault_count"], 7);
        assert_eq!(delta["svm_4K_us"], 5);
        assert_eq!(delta.get("tlb_inval_count"), None);
        assert_eq!(delta["tlb_inval_count"], 0);
        assert_eq!(delta.iter().count(), 2);
    }
}
