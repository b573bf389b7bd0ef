// SPDX-License-Identifier: GPL-2.0

//! Tests of the summary of several pages' locations: the complete truth table.

use gpusvm::{
    scan::{classify, Location},
    ScanResult, //
};
use kernel::prelude::*;

const WANTED: usize = 0xaaa;
const PLACES: [Location; 5] = [
    Location::Absent,
    Location::System,
    Location::Device(WANTED),
    Location::Device(0xbbb),
    Location::Device(0xccc),
];

/// Returns the result that the documentation of [`ScanResult`] specifies.
fn expected(places: &[Location], wanted: Option<usize>) -> ScanResult {
    if places.is_empty() || places.contains(&Location::Absent) {
        return ScanResult::Unpopulated;
    }
    let devices = |place: &&Location| **place != Location::System;
    if places.iter().all(|place| *place == Location::System) {
        ScanResult::System
    } else if places.contains(&Location::System) {
        ScanResult::Mixed
    } else if places.windows(2).all(|pair| pair[0] == pair[1]) {
        match places.iter().find(devices) {
            Some(Location::Device(provider)) if Some(*provider) == wanted => ScanResult::Equal,
            _ => ScanResult::Other,
        }
    } else {
        ScanResult::MixedDevice
    }
}

#[kunit_tests(gpusvm_scan)]
mod tests {
    use super::*;

    #[test]
    fn all_sequences_of_up_to_five_pages() -> Result {
        for length in 0..=5usize {
            for number in 0..PLACES.len().pow(length as u32) {
                let mut places = [Location::Absent; 5];
                let mut rest = number;
                for place in &mut places[..length] {
                    *place = PLACES[rest % PLACES.len()];
                    rest /= PLACES.len();
                }
                let places = &places[..length];
                for wanted in [None, Some(WANTED), Some(0xddd)] {
                    ensure_eq!(
                        classify(places.iter().copied(), wanted),
                        expected(places, wanted)
                    );
                }
            }
        }
        Ok(())
    }

    #[test]
    fn results_are_cs() -> Result {
        let all = [
            ScanResult::Unpopulated,
            ScanResult::Equal,
            ScanResult::Other,
            ScanResult::System,
            ScanResult::MixedDevice,
            ScanResult::Mixed,
        ];
        // The values are those of `enum drm_gpusvm_scan_result`.
        for (value, result) in all.into_iter().enumerate() {
            ensure_eq!(result as usize, value);
        }
        Ok(())
    }
}
