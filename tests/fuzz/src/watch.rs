// SPDX-License-Identifier: GPL-2.0

//! Runs programs, each in a process that is made for it, and sees to it that they end.

use crate::{
    args::Args,
    execute::Execution,
    generate,
    id::{Id, MAX_MUTATIONS},
    kcov::Modules,
    model::Model,
    tally::Tally,
};
use std::{
    fs,
    io::Write,
    os::fd::RawFd,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};
use vxe_uapi::{Map, Rng, PAGE};

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, or of a signal that it caused.
    Own,
    /// It was killed, as it was to be or as it took too long.
    Killed,
    /// It was killed, and is still there.
    Hung,
}

/// What it takes to run programs.
pub struct Runner<'a> {
    pub model: &'a Model,
    pub args: &'a Args,
    pub tally: &'static Tally,
    pub modules: Modules,
    pub mailbox: (RawFd, RawFd),
    /// Counts what the present program was the first to reach.
    fresh: &'static AtomicU64,
}

impl<'a> Runner<'a> {
    /// To be made in the process that uses it.
    pub fn new(
        model: &'a Model,
        args: &'a Args,
        tally: &'static Tally,
        mailbox: (RawFd, RawFd),
    ) -> Self {
        // Whose parent is killed comes to this process.
        // SAFETY: the call takes no pointers.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        let memory = Map::shared(PAGE);
        // SAFETY: the page is never unmapped, and holds zeroes, which are a counter.
        let fresh = unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(memory.start()) };
        Self { model, args, tally, modules: Modules::loaded(), mailbox, fresh }
    }

    /// Runs programs until time is over; says whether all ended.
    pub fn run_until(&self, end: Instant, mut rng: Rng) -> bool {
        while Instant::now() < end {
            let id = self.next(&mut rng);
            if self.run(&id) == End::Hung {
                return false;
            }
        }
        true
    }

    /// A new program, or one that reached something new, changed.
    fn next(&self, rng: &mut Rng) -> Id {
        let seed = self.args.seed;
        if rng.one_in(2) {
            if let Some(mut id) = self.tally.any_kept(seed, rng) {
                if id.mutations.len() < MAX_MUTATIONS {
                    id.mutations.push(rng.next_u32());
                    return id;
                }
            }
        }
        Id::new(seed, self.tally.next.fetch_add(1, Relaxed))
    }

    /// Runs one program.
    pub fn run(&self, id: &Id) -> End {
        let mut program = generate::program(self.model, id, &self.args.without);
        if let Some(calls) = &self.args.calls {
            program.keep(calls);
        }
        // The kernel's log is what is left if the kernel dies of it.
        // Programs may die of their cgroup's limit; that nobody else does is checked in the end.
        log(&format!("guest: test fuzz {id}\nklog: expect oom-kill"));
        self.fresh.store(0, Relaxed);
        // SAFETY: this process has one thread.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            confine();
            keep_only(self.mailbox);
            let place = (self.mailbox, self.fresh);
            Execution::new(self.model, &program, id, self.tally, &self.modules, place).run(id);
            // SAFETY: the process ends here, without running its parent's destructors.
            unsafe { libc::_exit(0) };
        }
        if pid < 0 {
            log(&format!("gpusvm-fuzz: fork: {}", std::io::Error::last_os_error()));
            std::thread::sleep(Duration::from_millis(100));
            return End::Own;
        }
        let end = self.wait(pid, program.kill_after);
        self.tally.programs.fetch_add(1, Relaxed);
        if end == End::Hung {
            self.tally.hung.fetch_add(1, Relaxed);
            log(&format!("gpusvm-fuzz: program {id} does not die"));
            eprintln!("gpusvm-fuzz: program {id} does not die");
            show_stacks(pid);
        }
        if self.fresh.load(Relaxed) > 0 {
            self.tally.keep(id);
        }
        end
    }

    /// Waits until the program has ended with all of its processes.
    fn wait(&self, pid: libc::pid_t, kill_after: Option<u32>) -> End {
        let start = Instant::now();
        let kill_after = kill_after.map(|ms| Duration::from_millis(ms.into()));
        let limit = kill_after.unwrap_or(self.args.limit).min(self.args.limit);
        let mut nap = Duration::from_micros(500);
        let mut end = End::Own;
        while !reaped(pid) {
            if start.elapsed() > limit {
                end = End::Killed;
                let counter = match kill_after {
                    Some(_) => &self.tally.killed,
                    None => &self.tally.timed_out,
                };
                counter.fetch_add(1, Relaxed);
                break;
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(5));
        }
        let patience = Instant::now() + self.args.patience;
        loop {
            // SAFETY: the group is the program's.
            unsafe { libc::kill(-pid, libc::SIGKILL) };
            // All that is left of it is this process's by now, or will be.
            if !reap_any() {
                return end;
            }
            if Instant::now() > patience {
                return End::Hung;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether the process has ended; takes note of it.
fn reaped(pid: libc::pid_t) -> bool {
    let mut status = 0;
    // SAFETY: the call writes an int.
    unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) != 0 }
}

/// Takes note of all children that have ended; whether there are others.
fn reap_any() -> bool {
    loop {
        let mut status = 0;
        // SAFETY: the call writes an int.
        match unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } {
            0 => return true,
            -1 => return false,
            _ => {}
        }
    }
}

/// Leaves the process of a program no file of the fuzzer but the mailbox: a call with a wrong number in place of a
/// file would truncate the fuzzer's output, or write to what its processes talk by.
fn keep_only(mailbox: (RawFd, RawFd)) {
    let (low, high) = (mailbox.0.min(mailbox.1), mailbox.0.max(mailbox.1));
    assert!(low > 2, "the mailbox is not among the standard files");
    let between = |first: RawFd, last: libc::c_uint| {
        let first = first.unsigned_abs();
        if first <= last {
            // SAFETY: no object of this process owns any of these files.
            unsafe { libc::close_range(first, last, 0) };
        }
    };
    between(3, low.unsigned_abs() - 1);
    between(low + 1, high.unsigned_abs() - 1);
    between(high + 1, libc::c_uint::MAX);
    // SAFETY: the path is a string of C; the standard files may be anything.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        for standard in 0..3 {
            libc::dup2(null, standard);
        }
        libc::close(null);
    }
}

/// Bounds what the process of a program can do to the others.
fn confine() {
    let limits = [
        (libc::RLIMIT_AS, 1 << 30),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_FSIZE, 16 << 20),
        (libc::RLIMIT_NOFILE, 256),
    ];
    // SAFETY: the calls take no pointers but to the limit.
    unsafe {
        libc::setpgid(0, 0);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        for (resource, limit) in limits {
            let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
            libc::setrlimit(resource, &limit);
        }
    }
}

/// Writes a line to the kernel's log.
pub fn log(line: &str) {
    if let Ok(mut kmsg) = fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = kmsg.write_all(format!("<6>{line}").as_bytes());
    }
}

/// Where the threads of a process are, and those of its children.
fn show_stacks(pid: libc::pid_t) {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.filter(|p| belongs_to(&p.path().join("stat"), pid)) {
        let tasks = fs::read_dir(process.path().join("task")).into_iter().flatten().flatten();
        for task in tasks {
            let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let state = read("status");
            let state = state.lines().find(|l| l.starts_with("State")).unwrap_or("gone").to_owned();
            let stack = read("stack");
            let name = task.path();
            eprintln!("{} {state} {}", name.display(), read("wchan"));
            log(&format!("gpusvm-fuzz: {} {state}", name.display()));
            for line in stack.lines() {
                eprintln!("  {line}");
                log(&format!("gpusvm-fuzz:   {line}"));
            }
        }
    }
}

/// Whether a process is in that group.
fn belongs_to(stat: &std::path::Path, group: libc::pid_t) -> bool {
    let stat = fs::read_to_string(stat).unwrap_or_default();
    // The name before it, in parentheses, may have anything in it. State, parent, group follow.
    let mut words = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    words.nth(2).and_then(|word| word.parse().ok()) == Some(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_in_its_group() {
        // SAFETY: the call takes no pointers.
        let group = unsafe { libc::getpgid(0) };
        let stat = std::path::Path::new("/proc/self/stat");
        assert!(belongs_to(stat, group) && !belongs_to(stat, group + 1));
    }
}
