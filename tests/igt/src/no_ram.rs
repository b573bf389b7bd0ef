// SPDX-License-Identifier: GPL-2.0

//! A thread that gets no RAM, however often it asks: the kernel's fault injection.
//!
//! Documentation/fault-injection/fault-injection.rst in the kernel's source has more.

use crate::skip;
use std::fs;

/// The switches in debugfs, and what each is set to: all allocations of pages fail, also those that may wait
/// for memory, but only those of threads that want it so; and without stack dumps.
const SWITCHES: [(&str, &str); 7] = [
    ("task-filter", "Y"),
    ("ignore-gfp-wait", "N"),
    ("ignore-gfp-highmem", "N"),
    ("min-order", "0"),
    ("verbose", "0"),
    ("times", "-1"),
    ("probability", "100"),
];

/// Makes a thread one whose allocations fail.
const SELECT: &str = "/proc/thread-self/make-it-fail";

fn path(switch: &str) -> String {
    format!("/sys/kernel/debug/fail_page_alloc/{switch}")
}

/// Threads may be without RAM, as long as this is there.
pub struct NoRam {
    before: Vec<(&'static str, String)>,
}

impl NoRam {
    /// Prepares the system. Skips the subtest on a kernel that fails no allocations.
    #[track_caller]
    pub fn new() -> Self {
        let mut this = Self { before: Vec::new() };
        for (switch, value) in SWITCHES {
            let path = path(switch);
            match fs::read_to_string(&path) {
                Ok(before) => this.before.push((switch, before.trim().to_owned())),
                Err(e) => skip!("{path}: {e}"),
            }
            fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}"));
        }
        this
    }

    /// Calls `call`, in which no page can be allocated for this thread.
    pub fn during<T>(&self, call: impl FnOnce() -> T) -> T {
        fs::write(SELECT, "1").expect(SELECT);
        let result = call();
        fs::write(SELECT, "0").expect(SELECT);
        result
    }
}

impl Default for NoRam {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for NoRam {
    fn drop(&mut self) {
        let _ = fs::write(SELECT, "0");
        for (switch, before) in self.before.iter().rev() {
            if let Err(e) = fs::write(path(switch), before) {
                eprintln!("{switch} could not be set back: {e}");
            }
        }
    }
}
