// SPDX-License-Identifier: GPL-2.0

//! Failures on purpose, one after the other: the kernel's fault injection.
//!
//! What a thread does by itself fails by `fail-nth` in `/proc`, which has the n-th of whatever can be made
//! to fail do so, for this thread alone. The switches in debugfs then say what can: of slab allocations,
//! page allocations and copies from and to userspace only the chosen [`Kind`]; and of allocations also those
//! that may wait for memory, which are all that a driver makes. They hold for the whole system, and do no
//! harm there while nobody else asks for failures.
//!
//! What the kernel's own threads do for a process fails by the switches alone: once, for whoever comes there
//! with the driver's code on its stack, after so many have passed.
//!
//! Functions of the driver's that are marked with `ALLOW_ERROR_INJECTION()` fail in the same way.
//!
//! Documentation/fault-injection/fault-injection.rst in the kernel's source has more.

use crate::{env, skip};
use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant},
};
use vxe_client::{Error, Result};

/// More than there is to fail in any call: in bytes, where that is how it is counted.
const MANY: u32 = 8 << 20;

/// How many places in a call fail, evenly spread over it, if there are more. Each takes a call, all that
/// comes before it, and the checks.
const SAMPLE: u32 = 32;

/// How long it takes at most to have the failures of a call come, one after the other. What there is no time
/// for is left out.
const ENOUGH: Duration = Duration::from_secs(9);

/// Where the switches are.
const DEBUGFS: &str = "/sys/kernel/debug";

/// What is made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Allocations of slab memory, as of `kmalloc()`.
    Slab,
    /// Allocations of pages.
    Page,
    /// Copies from userspace and to it.
    Copy,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Slab, Self::Page, Self::Copy];

    /// The name in subtests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Slab => "slab",
            Self::Page => "page",
            Self::Copy => "copy",
        }
    }

    /// Its directory in debugfs.
    const fn directory(self) -> &'static str {
        match self {
            Self::Slab => "failslab",
            Self::Page => "fail_page_alloc",
            Self::Copy => "fail_usercopy",
        }
    }

    /// With what a call fails of which one of these has failed.
    pub const fn errno(self) -> i32 {
        match self {
            Self::Slab | Self::Page => libc::ENOMEM,
            Self::Copy => libc::EFAULT,
        }
    }
}

/// The functions of the kernel which, when an allocation fails, end the checks of all DMA mappings: the
/// first and the last of a file of its source.
const BOOK_KEEPERS: [&str; 2] = ["debug_dma_map_phys", "debug_dma_map_sg"];

/// The function below which everything is that an ioctl does.
const IOCTL: &str =
    if cfg!(target_arch = "aarch64") { "__arm64_sys_ioctl" } else { "__x64_sys_ioctl" };

/// Switches that are set back when this goes.
#[derive(Default)]
struct Switches(Vec<(PathBuf, String)>);

impl Switches {
    fn set(&mut self, switch: &Path, value: &str) -> io::Result<()> {
        let before = fs::read_to_string(switch)?;
        fs::write(switch, value)?;
        self.0.push((switch.to_owned(), before.trim().to_owned()));
        Ok(())
    }

    /// Sets a switch that there must be; skips the subtest on a kernel without it.
    #[track_caller]
    fn need(&mut self, switch: &Path, value: &str) {
        if let Err(e) = self.set(switch, value) {
            skip!("{}: {e}", switch.display());
        }
    }

    /// Has failures of a kind be possible, in code below a span of the kernel's if one is given, and no
    /// others. Skips the subtest on a kernel that has none of the kind.
    #[track_caller]
    fn choose(&mut self, chosen: Kind, below: Option<&Span>) {
        for kind in Kind::ALL {
            let directory = Path::new(DEBUGFS).join(kind.directory());
            if kind != chosen {
                // Below nothing. A kernel without this kind needs nothing of the sort.
                for switch in ["require-start", "require-end"] {
                    let _ = self.set(&directory.join(switch), "0");
                }
                continue;
            }
            // No stack dumps for what is meant.
            self.need(&directory.join("verbose"), "0");
            self.need(&directory.join("stacktrace-depth"), "32");
            let everywhere = Span { start: 0, end: u64::MAX };
            let below = below.unwrap_or(&everywhere);
            self.need(&directory.join("require-start"), &below.start.to_string());
            self.need(&directory.join("require-end"), &below.end.to_string());
            if let Some(span) = book_keeping() {
                // Without it a kernel that checks DMA mappings may stop doing so.
                self.need(&directory.join("reject-start"), &span.start.to_string());
                self.need(&directory.join("reject-end"), &span.end.to_string());
            }
            if kind != Kind::Copy {
                self.need(&directory.join("ignore-gfp-wait"), "N");
            }
            if kind == Kind::Page {
                self.need(&directory.join("ignore-gfp-highmem"), "N");
                self.need(&directory.join("min-order"), "0");
            }
        }
    }
}

impl Drop for Switches {
    fn drop(&mut self) {
        for (switch, before) in self.0.iter().rev() {
            if let Err(e) = fs::write(switch, before) {
                eprintln!("{} could not be set back: {e}", switch.display());
            }
        }
    }
}

/// How the kernel is told which one is to fail.
enum Trigger {
    /// The n-th of this thread.
    Thread(File),
    /// The first that comes when the sizes of those before it sum up to `n`, whoever it is of.
    Anybody {
        /// The directory of its switches.
        directory: PathBuf,
        /// What to add to a sum to come to the next.
        step: u32,
    },
    /// As `Anybody`, for a function that fails by `inject`.
    Function { directory: PathBuf, name: &'static str },
}

impl Trigger {
    fn arm(&self, n: u32) {
        match self {
            Self::Thread(nth) => {
                nth.write_at(n.to_string().as_bytes(), 0).expect("fail-nth is written");
            }
            Self::Anybody { directory, .. } | Self::Function { directory, .. } => {
                set(&directory.join("space"), n);
                set(&directory.join("times"), 1);
                set(&directory.join("probability"), 100);
            }
        }
    }

    /// Nothing fails any more. Says how much of the number that it was armed with is left: 0 if it came
    /// to a failure.
    fn disarm(&self) -> u32 {
        match self {
            Self::Thread(nth) => {
                let mut text = [0; 16];
                let length = nth.read_at(&mut text, 0).expect("fail-nth is read");
                nth.write_at(b"0", 0).expect("fail-nth is written");
                let text = String::from_utf8_lossy(&text[..length]);
                text.trim().parse().expect("fail-nth is a number")
            }
            Self::Anybody { directory, .. } | Self::Function { directory, .. } => {
                set(&directory.join("probability"), 0);
                if self.has_failed() {
                    0
                } else {
                    get(&directory.join("space"))
                }
            }
        }
    }

    /// Whether it came to it already: not to be asked of [`Trigger::Thread`].
    fn has_failed(&self) -> bool {
        match self {
            Self::Thread(_) => false,
            Self::Anybody { directory, .. } | Self::Function { directory, .. } => {
                get(&directory.join("times")) == 0
            }
        }
    }

    const fn step(&self) -> u32 {
        match self {
            Self::Thread(_) | Self::Function { .. } => 1,
            Self::Anybody { step, .. } => *step,
        }
    }
}

fn set(switch: &Path, value: u32) {
    fs::write(switch, value.to_string()).unwrap_or_else(|e| panic!("{}: {e}", switch.display()));
}

fn get(switch: &Path) -> u32 {
    let text = fs::read_to_string(switch);
    let text = text.unwrap_or_else(|e| panic!("{}: {e}", switch.display()));
    text.trim().parse().expect("a number")
}

impl Drop for Trigger {
    fn drop(&mut self) {
        match self {
            Self::Thread(_) | Self::Anybody { .. } => _ = self.disarm(),
            Self::Function { directory, name } => {
                set(&directory.join("probability"), 0);
                if let Err(e) = fs::write(directory.join("inject"), format!("!{name}")) {
                    eprintln!("{name}: {e}");
                }
            }
        }
    }
}

/// What failed in a call that was made again and again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// How many places failed, one after the other.
    pub failures: u32,
    /// How often the call said so: it can do without what failed in the others.
    pub errors: u32,
}

impl std::ops::AddAssign for Met {
    fn add_assign(&mut self, other: Self) {
        self.failures += other.failures;
        self.errors += other.errors;
    }
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} places failed, and {} calls", self.failures, self.errors)
    }
}

/// The kernel can be told what is to fail, as long as this is there.
pub struct Failures {
    // Before the switches are set back.
    trigger: Trigger,
    _switches: Switches,
}

impl Failures {
    /// Slab allocations of the calling thread. Skips the subtest on a kernel that fails none.
    #[track_caller]
    pub fn new() -> Self {
        Self::of(Kind::Slab)
    }

    /// Failures of a kind, of the calling thread. Skips the subtest on a kernel that has none.
    #[track_caller]
    pub fn of(kind: Kind) -> Self {
        let path = "/proc/thread-self/fail-nth";
        let nth = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) => skip!("{path}: {e}"),
        };
        let mut switches = Switches::default();
        // To read and write fail-nth takes copies as well.
        let ioctl = (kind == Kind::Copy).then(|| ioctl().expect("an ioctl's code"));
        switches.choose(kind, ioctl.as_ref());
        Self { trigger: Trigger::Thread(nth), _switches: switches }
    }

    /// Failures of a kind, of whoever has code of a module on its stack. Skips the subtest as well.
    #[track_caller]
    pub fn below(module: &str, kind: Kind) -> Self {
        let mut switches = Switches::default();
        let code = Span::of_module(module).unwrap_or_else(|| panic!("the code of {module}"));
        switches.choose(kind, Some(&code));
        let directory = Path::new(DEBUGFS).join(kind.directory());
        // Sizes are in bytes, of which eight are the least, in pages, and one for a copy.
        let step = if kind == Kind::Slab { 8 } else { 1 };
        for (switch, value) in [("interval", "1"), ("task-filter", "N"), ("times", "0")] {
            switches.need(&directory.join(switch), value);
        }
        for switch in ["space", "probability"] {
            switches.need(&directory.join(switch), "0");
        }
        Self { trigger: Trigger::Anybody { directory, step }, _switches: switches }
    }

    /// A function that is marked for it returns this instead of doing anything. Skips the subtest on a
    /// kernel that fails no functions.
    #[track_caller]
    pub fn of_function(name: &'static str, value: u64) -> Self {
        let directory = Path::new(DEBUGFS).join("fail_function");
        let mut switches = Switches::default();
        for (switch, value) in [("verbose", "0"), ("interval", "1"), ("task-filter", "N")] {
            switches.need(&directory.join(switch), value);
        }
        for switch in ["times", "space", "probability"] {
            switches.need(&directory.join(switch), "0");
        }
        fs::write(directory.join("inject"), name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let trigger = Trigger::Function { directory: directory.clone(), name };
        fs::write(directory.join(name).join("retval"), format!("{value:#x}")).expect("retval");
        Self { trigger, _switches: switches }
    }

    /// Calls `call` again and again, each time with a later failure, until none is left: then it must
    /// succeed. Where failures are this thread's it should do nothing but make one system call: the C
    /// library does not expect to get no memory. Of many places only some fail, the same in each run and as
    /// many as there is time for, unless `VXE_TIMEOUT` is set: who gives a subtest its time wants all of
    /// them.
    ///
    /// Each time `prepare` makes what it works on, and `check` says whether everything is as it was
    /// before, or, where `call` did without what failed, as it should be then.
    ///
    /// Returns what failed.
    #[track_caller]
    pub fn each<T>(
        &self,
        mut prepare: impl FnMut() -> T,
        mut call: impl FnMut(&mut T) -> Result<()>,
        mut check: impl FnMut(T, Option<Error>),
    ) -> Met {
        // The result with failure number `n`, and what is left of it.
        let mut attempt = |n: u32| {
            let mut object = prepare();
            self.trigger.arm(n);
            let result = call(&mut object);
            let left = self.trigger.disarm();
            if left == 0 {
                let failed = result.is_err();
                check(object, result.err());
                return (left, failed);
            }
            result.expect("the call, without a failure");
            check(object, None);
            (left, false)
        };
        let (left, _) = attempt(MANY);
        assert!(left > 0, "a call with {MANY} failures");
        let all = MANY - left;
        let smallest = self.trigger.step();
        let step = if env::is_thorough() { smallest } else { smallest.max(all.div_ceil(SAMPLE)) };
        let places = all.div_ceil(step);
        if step > smallest {
            println!("{all} in all, of which one in {step} fails");
        }
        // However early the time is over, those that failed are spread.
        let mut order: Vec<u32> = (0..places).collect();
        order.sort_by_key(|place| place.reverse_bits());
        let (mut met, start, enough) = (Met::default(), Instant::now(), env::enough(ENOUGH));
        for (tried, place) in order.into_iter().enumerate() {
            if start.elapsed() > enough {
                println!("there was time for {tried} of {places} places");
                return met;
            }
            let (left, failed) = attempt(1 + place * step);
            met += Met { failures: u32::from(left == 0), errors: failed.into() };
        }
        // There may be more of them than the first time.
        for place in places..MANY / step {
            let (left, failed) = attempt(1 + place * step);
            if left > 0 {
                break;
            }
            met += Met { failures: 1, errors: failed.into() };
        }
        met
    }
}

/// As long as this is there, whoever has code of a module on its stack gets no page.
#[must_use]
pub struct NoPages {
    _switches: Switches,
}

impl NoPages {
    /// From now on. Skips the subtest on a kernel that fails no allocations.
    #[track_caller]
    pub fn below(module: &str) -> Self {
        let mut switches = Switches::default();
        let code = Span::of_module(module).unwrap_or_else(|| panic!("the code of {module}"));
        switches.choose(Kind::Page, Some(&code));
        let directory = Path::new(DEBUGFS).join(Kind::Page.directory());
        for (switch, value) in [
            ("interval", "1"),
            ("task-filter", "N"),
            ("space", "0"),
            ("times", "-1"),
            // The last: from here on they fail.
            ("probability", "100"),
        ] {
            switches.need(&directory.join(switch), value);
        }
        Self { _switches: switches }
    }
}

impl Default for Failures {
    fn default() -> Self {
        Self::new()
    }
}

/// All symbols of the kernel and of its modules, which take it a while to tell.
const SYMBOLS: &str = "/proc/kallsyms";

/// The symbols of the kernel: of the file `VXE_SYMBOLS`, if whoever runs many subtests has them there.
fn symbols() -> Option<&'static str> {
    static KERNEL: OnceLock<Option<String>> = OnceLock::new();
    let read = || {
        let path = std::env::var_os("VXE_SYMBOLS").unwrap_or_else(|| SYMBOLS.into());
        fs::read_to_string(path).ok()
    };
    KERNEL.get_or_init(read).as_deref()
}

/// Some of the kernel's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: u64,
    end: u64,
}

impl Span {
    /// From the start of the first of two functions to the end of the other.
    fn find(names: [&str; 2], symbols: &str) -> Option<Self> {
        let address = |line: &str| u64::from_str_radix(line.split(' ').next()?, 16).ok();
        let start_of = |name| {
            let line = symbols.lines().find(|line| line.split(' ').nth(2) == Some(name))?;
            address(line).filter(|&start| start != 0)
        };
        let [a, b] = names.map(start_of);
        let (start, last) = (a?.min(b?), a?.max(b?));
        let end = symbols.lines().filter_map(address).filter(|&other| other > last).min()?;
        Some(Self { start, end })
    }

    /// All functions of a module.
    fn of_module(name: &str) -> Option<Self> {
        // They are not where they were when the module was loaded the last time.
        Self::find_module(name, &fs::read_to_string(SYMBOLS).ok()?)
    }

    fn find_module(name: &str, symbols: &str) -> Option<Self> {
        let suffix = format!("\t[{name}]");
        let functions = symbols.lines().filter_map(|line| {
            let mut words = line.strip_suffix(&suffix)?.split(' ');
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let kind = words.next()?;
            (matches!(kind, "t" | "T" | "w" | "W") && address != 0).then_some(address)
        });
        // The last one is as long as another byte, at the least.
        let (start, last) = functions.fold((u64::MAX, 0), |(a, b), f| (a.min(f), b.max(f)));
        (start <= last).then(|| Self { start, end: last + 1 })
    }
}

/// The code of the [`BOOK_KEEPERS`].
fn book_keeping() -> Option<Span> {
    static CODE: OnceLock<Option<Span>> = OnceLock::new();
    *CODE.get_or_init(|| Span::find(BOOK_KEEPERS, symbols()?))
}

/// The code of an ioctl.
fn ioctl() -> Option<Span> {
    static CODE: OnceLock<Option<Span>> = OnceLock::new();
    *CODE.get_or_init(|| Span::find([IOCTL, IOCTL], symbols()?))
}

/// Looks for the kernel's code that failures are about, if it has any: a program does so before it forks,
/// so that not each subtest has to.
pub fn learn() {
    if Path::new("/proc/self/fail-nth").exists() {
        _ = (book_keeping(), ioctl());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_ends_where_the_next_begins() {
        let symbols = "ffff10 T a\nffff40 t c\nffff20 T b\nffff80 t d\t[module]\n";
        let span = |a, b, symbols| Span::find([a, b], symbols).map(|s| (s.start, s.end));
        assert_eq!(span("b", "b", symbols), Some((0xffff20, 0xffff40)));
        assert_eq!(span("b", "a", symbols), Some((0xffff10, 0xffff40)));
        assert_eq!(span("a", "x", symbols), None);
        assert_eq!(span("a", "b", "0 T a\n0 T b\n"), None);
    }

    #[test]
    fn the_functions_of_a_module_are_together() {
        let symbols =
            "ff10 T a\nff40 t c\t[vxe]\nff20 T b\t[vxe]\nff01 d e\t[vxe]\nff80 t d\t[vxe2]\n";
        let span = |name, symbols| Span::find_module(name, symbols).map(|s| (s.start, s.end));
        assert_eq!(span("vxe", symbols), Some((0xff20, 0xff41)));
        assert_eq!(span("vx", symbols), None);
        assert_eq!(span("vxe", "0 T a\t[vxe]\n"), None);
    }
}
