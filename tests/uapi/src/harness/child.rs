// SPDX-License-Identifier: GPL-2.0

//! A subtest's own process.

use super::{exit, Skip};
use std::{
    fmt,
    io::Write,
    panic::{catch_unwind, AssertUnwindSafe},
    time::{Duration, Instant},
};

/// How long a killed process may take to be gone. One that takes longer is stuck in the kernel.
const DEATH_TIMEOUT: Duration = Duration::from_secs(20);

/// How a subtest ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Skipped,
    Failed,
    /// By this signal.
    Crashed(i32),
    /// And whether the kernel would let it be killed.
    TimedOut {
        killable: bool,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => write!(f, "SUCCESS"),
            Self::Skipped => write!(f, "SKIP"),
            Self::Failed => write!(f, "FAIL"),
            Self::Crashed(signal) => write!(f, "CRASH: signal {signal}"),
            Self::TimedOut { killable: true } => write!(f, "TIMEOUT"),
            Self::TimedOut { killable: false } => write!(f, "TIMEOUT: and cannot be killed"),
        }
    }
}

/// Runs a subtest in a child process, and ends all processes that it leaves.
pub fn run(body: &dyn Fn(), timeout: Duration) -> (Outcome, Duration) {
    flush();
    let start = Instant::now();
    // SAFETY: the harness has one thread, so the child is a whole process.
    match unsafe { libc::fork() } {
        -1 => {
            eprintln!("fork: {}", std::io::Error::last_os_error());
            (Outcome::Failed, start.elapsed())
        }
        0 => {
            // SAFETY: no pointers are involved.
            unsafe {
                libc::setpgid(0, 0);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            }
            let code = guarded(body);
            flush();
            // SAFETY: the process ends here, without running the parent's destructors.
            unsafe { libc::_exit(code.into()) }
        }
        pid => {
            // SAFETY: as above. Both set it, so that neither has to wait for the other.
            unsafe { libc::setpgid(pid, pid) };
            let outcome = wait(pid, timeout);
            let took = start.elapsed();
            // SAFETY: signals a group that consists of what the subtest left behind, if anything.
            unsafe { libc::kill(-pid, libc::SIGKILL) };
            (outcome, took)
        }
    }
}

fn flush() {
    // That an output is gone is no business of the subtest.
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
}

/// Calls what may panic or skip, and says which exit code it earned.
pub fn guarded(body: &dyn Fn()) -> u8 {
    let ordinary = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| match info.payload().downcast_ref::<Skip>() {
        Some(Skip(reason)) => println!("Test requirement not met: {reason}"),
        None => ordinary(info),
    }));
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(()) => exit::SUCCESS,
        Err(payload) if payload.is::<Skip>() => exit::SKIP,
        Err(_) => exit::FAILURE,
    }
}

fn wait(pid: libc::pid_t, timeout: Duration) -> Outcome {
    if let Some(outcome) = wait_until(pid, Instant::now() + timeout) {
        return outcome;
    }
    // SAFETY: the child was not waited for yet, so the group is still its own.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
    Outcome::TimedOut { killable: wait_until(pid, Instant::now() + DEATH_TIMEOUT).is_some() }
}

fn wait_until(pid: libc::pid_t, end: Instant) -> Option<Outcome> {
    let mut nap = Duration::from_micros(200);
    loop {
        let mut status = 0;
        // SAFETY: the call writes an int.
        if unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } == pid {
            return Some(outcome_of(status));
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(nap);
        nap = (nap * 2).min(Duration::from_millis(10));
    }
}

fn outcome_of(status: i32) -> Outcome {
    if libc::WIFSIGNALED(status) {
        return Outcome::Crashed(libc::WTERMSIG(status));
    }
    match u8::try_from(libc::WEXITSTATUS(status)) {
        Ok(exit::SUCCESS) => Outcome::Passed,
        Ok(exit::SKIP) => Outcome::Skipped,
        _ => Outcome::Failed,
    }
}
