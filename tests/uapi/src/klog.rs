// SPDX-License-Identifier: GPL-2.0

//! Messages of the driver that a test causes on purpose.
//!
//! Each message by which the driver reports a bug of its own, or a loss, fails the run in whose log it
//! is; `tools/guest/klog.py` has them. A test that provokes one announces it: the message must then come,
//! and only before the announcement ends.

use std::{fs, io};

/// A message that fails a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// A device goes with contents of pages that nobody else has.
    LostPages,
    /// The kernel's: a process is killed for want of memory.
    OomKill,
}

impl Alarm {
    /// As `klog.py` calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::LostPages => "lost-pages",
            Self::OomKill => "oom-kill",
        }
    }
}

/// As long as this is there, the message is expected in the kernel's log.
#[must_use]
pub struct Expected(Alarm);

impl Expected {
    /// Announces it.
    ///
    /// # Panics
    ///
    /// If the caller may not write to the kernel's log.
    #[track_caller]
    pub fn new(alarm: Alarm) -> Self {
        say("expect", alarm).expect("/dev/kmsg");
        Self(alarm)
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        if let Err(e) = say("end", self.0) {
            eprintln!("/dev/kmsg: {e}");
        }
    }
}

fn say(verb: &str, alarm: Alarm) -> io::Result<()> {
    fs::write("/dev/kmsg", format!("klog: {verb} {}\n", alarm.name()))
}
