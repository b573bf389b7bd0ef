// SPDX-License-Identifier: GPL-2.0

//! Allocations that fail, one after the other: the kernel's fault injection.
//!
//! `fail-nth` in `/proc` has the n-th slab allocation of a thread fail, but by default none that may
//! wait for memory, so none of those that a driver makes. The switch for that is in debugfs, and
//! holds for the whole system; it does no harm there while nobody else asks for failures.
//!
//! Documentation/fault-injection/fault-injection.rst in the kernel's source has more.

use crate::skip;
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
};
use vxe_client::{Error, Result};

/// More allocations than any call makes.
const MANY: u32 = 2000;

/// The switches in debugfs, and what each is set to.
const SWITCHES: [(&str, &str); 3] = [
    ("/sys/kernel/debug/failslab/ignore-gfp-wait", "N"),
    // Copies from and to user memory are not counted: they would have to come from no code at all.
    ("/sys/kernel/debug/fail_usercopy/require-end", "0"),
    // No stack dumps for what is meant.
    ("/sys/kernel/debug/failslab/verbose", "0"),
];

/// The span of code in which no allocation fails, if the kernel was built to look at that.
const EXEMPT: [&str; 2] =
    ["/sys/kernel/debug/failslab/reject-start", "/sys/kernel/debug/failslab/reject-end"];

/// The functions of the kernel which, when an allocation fails, end the checks of all DMA mappings: the
/// first and the last of a file of its source.
const BOOK_KEEPERS: [&str; 2] = ["debug_dma_map_phys", "debug_dma_map_sg"];

/// The kernel can be told which allocation of this thread is to fail, as long as this is there.
pub struct Failures {
    nth: File,
    before: Vec<(&'static str, String)>,
}

impl Failures {
    /// Prepares the calling thread. Skips the subtest on a kernel that fails no allocations.
    #[track_caller]
    pub fn new() -> Self {
        let path = "/proc/thread-self/fail-nth";
        let nth = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) => skip!("{path}: {e}"),
        };
        let mut this = Self { nth, before: Vec::new() };
        for (switch, value) in SWITCHES {
            if let Err(e) = this.set(switch, value) {
                skip!("{switch}: {e}");
            }
        }
        if let Some(span) = book_keeping() {
            for (switch, value) in EXEMPT.into_iter().zip(span) {
                // Without it a kernel that checks DMA mappings may stop doing so.
                let _ = this.set(switch, &value);
            }
        }
        this
    }

    fn set(&mut self, switch: &'static str, value: &str) -> io::Result<()> {
        let before = fs::read_to_string(switch)?;
        fs::write(switch, value)?;
        self.before.push((switch, before.trim().to_owned()));
        Ok(())
    }

    fn arm(&self, n: u32) {
        self.nth.write_at(n.to_string().as_bytes(), 0).expect("fail-nth is written");
    }

    /// How many allocations are still to be made before the one that fails; 0 if that was made.
    fn left(&self) -> u32 {
        let mut text = [0; 16];
        let length = self.nth.read_at(&mut text, 0).expect("fail-nth is read");
        let text = String::from_utf8_lossy(&text[..length]);
        text.trim().parse().expect("fail-nth is a number")
    }

    /// Calls `call` with allocation number `n` of this thread, from 1, failing; says whether it came
    /// to it.
    fn with_failure<T>(&self, n: u32, call: impl FnOnce() -> T) -> (T, bool) {
        self.arm(n);
        let result = call();
        let left = self.left();
        self.arm(0);
        (result, left == 0)
    }

    /// Calls `call` again and again, each time with a later allocation failing, until none of its
    /// allocations is left to fail: then it must succeed. It should do nothing but make one system
    /// call: the C library does not expect to get no memory.
    ///
    /// Each time `prepare` makes what it works on, and `check` says whether everything is as it was
    /// before, or, where `call` did without that memory, as it should be then.
    ///
    /// Returns how often it failed.
    #[track_caller]
    pub fn each<T>(
        &self,
        mut prepare: impl FnMut() -> T,
        mut call: impl FnMut(&mut T) -> Result<()>,
        mut check: impl FnMut(T, Option<Error>),
    ) -> u32 {
        let mut failures = 0;
        for n in 1..MANY {
            let mut object = prepare();
            let (result, failed) = self.with_failure(n, || call(&mut object));
            if !failed {
                result.expect("the call, with all the memory that it wants");
                check(object, None);
                return failures;
            }
            failures += u32::from(result.is_err());
            check(object, result.err());
        }
        panic!("a call that makes {MANY} allocations");
    }
}

impl Default for Failures {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        self.arm(0);
        for (switch, before) in self.before.iter().rev() {
            if let Err(e) = fs::write(switch, before) {
                eprintln!("{switch} could not be set back: {e}");
            }
        }
    }
}

/// The first address of the [`BOOK_KEEPERS`] and the one after their last, as debugfs takes them.
fn book_keeping() -> Option<[String; 2]> {
    span_of(BOOK_KEEPERS, &fs::read_to_string("/proc/kallsyms").ok()?)
}

/// From the start of the first of two functions to the end of the other.
fn span_of(names: [&str; 2], symbols: &str) -> Option<[String; 2]> {
    let address = |line: &str| u64::from_str_radix(line.split(' ').next()?, 16).ok();
    let start_of = |name| {
        let line = symbols.lines().find(|line| line.split(' ').nth(2) == Some(name))?;
        address(line).filter(|&start| start != 0)
    };
    let [a, b] = names.map(start_of);
    let (start, last) = (a?.min(b?), a?.max(b?));
    let end = symbols.lines().filter_map(address).filter(|&other| other > last).min()?;
    Some([format!("{start:#x}"), format!("{end:#x}")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_ends_where_the_next_begins() {
        let symbols = "ffff10 T a\nffff40 t c\nffff20 T b\nffff80 t d\t[module]\n";
        assert_eq!(span_of(["b", "b"], symbols), Some(["0xffff20".into(), "0xffff40".into()]));
        assert_eq!(span_of(["b", "a"], symbols), Some(["0xffff10".into(), "0xffff40".into()]));
        assert_eq!(span_of(["a", "x"], symbols), None);
        assert_eq!(span_of(["a", "b"], "0 T a\n0 T b\n"), None);
    }
}
