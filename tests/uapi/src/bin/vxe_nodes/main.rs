// SPDX-License-Identifier: GPL-2.0

//! The files of a device in sysfs and in debugfs: what is in them, who may write them, what a write
//! does, and that they go with the device.

mod debugfs;
mod properties;
mod timeslices;
mod unbinding;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};
use vxe_uapi::Program;

/// The properties of the first device's engines.
const CLASS: &str = "/sys/bus/platform/devices/vxe.0/tile0/gt0/engines/bcs";

/// What they are when the device is bound.
const DEFAULTS: &str = ".defaults";

/// A property: its name, those of its limits, its default, and the highest limit. The lowest is 1.
struct Property {
    name: &'static str,
    min: &'static str,
    max: &'static str,
    default: u32,
    highest: u32,
}

const PROPERTIES: [Property; 3] = [
    Property {
        name: "job_timeout_ms",
        min: "job_timeout_min",
        max: "job_timeout_max",
        default: 5_000,
        highest: 10_000,
    },
    Property {
        name: "timeslice_duration_us",
        min: "timeslice_duration_min",
        max: "timeslice_duration_max",
        default: 4_000,
        highest: 10_000_000,
    },
    Property {
        name: "preempt_timeout_us",
        min: "preempt_timeout_min",
        max: "preempt_timeout_max",
        default: 640_000,
        highest: 10_000_000,
    },
];

impl Property {
    /// Its files, with what they have when the device is bound.
    const fn files(&self) -> [(&'static str, u32); 3] {
        [(self.name, self.default), (self.min, 1), (self.max, self.highest)]
    }
}

/// A file of the properties.
fn file(name: &str) -> PathBuf {
    Path::new(CLASS).join(name)
}

#[track_caller]
fn read(name: &str) -> u32 {
    let text = fs::read_to_string(file(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let number = text.strip_suffix('\n').unwrap_or_else(|| panic!("{name}: {text:?}"));
    number.parse().unwrap_or_else(|e| panic!("{name}: {text:?}: {e}"))
}

/// Writes a file, and says what errno that has.
fn write(name: &str, text: &str) -> Result<(), i32> {
    let done = fs::OpenOptions::new()
        .write(true)
        .open(file(name))
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
    done.map_err(|e| e.raw_os_error().unwrap_or(0))
}

#[track_caller]
fn set(name: &str, value: u32) {
    assert_eq!(write(name, &value.to_string()), Ok(()), "{name} = {value}");
    assert_eq!(read(name), value, "{name}");
}

/// Sets all properties to their defaults when it goes.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        for property in PROPERTIES {
            // The limits first: those that are not wide enough would refuse the value. The next test says so
            // if it fails.
            for (name, value) in property.files().into_iter().rev() {
                let _ = write(name, &value.to_string());
            }
        }
    }
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_nodes", "The files of a device in sysfs and debugfs.");
    properties::subtests(&mut p);
    timeslices::subtests(&mut p);
    debugfs::subtests(&mut p);
    unbinding::subtests(&mut p);
    p.main()
}
