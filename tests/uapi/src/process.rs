// SPDX-License-Identifier: GPL-2.0

//! Child processes of a subtest, and how to meet with them.

use crate::harness::{exit, guarded};
use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

/// How long to wait for a child that should be done.
const CHILD_TIMEOUT: Duration = Duration::from_secs(50);

/// A child process. Dropping it kills it.
#[must_use]
pub struct Child {
    pid: libc::pid_t,
    link: Link,
    reaped: bool,
}

/// Bytes between a parent and its child: what the other side does not send is waited for.
pub struct Link(UnixStream);

impl Link {
    /// Two ends.
    #[track_caller]
    pub fn pair() -> (Self, Self) {
        let (a, b) = UnixStream::pair().expect("a socket pair");
        for end in [&a, &b] {
            end.set_read_timeout(Some(CHILD_TIMEOUT)).expect("a time-out");
        }
        (Self(a), Self(b))
    }

    /// Tells a number.
    #[track_caller]
    pub fn send(&self, value: u64) {
        (&self.0).write_all(&value.to_ne_bytes()).expect("send to the other process");
    }

    /// Waits for a number; an error if the other side is gone.
    pub fn try_receive(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        (&self.0).read_exact(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Waits for a number.
    #[track_caller]
    pub fn receive(&self) -> u64 {
        self.try_receive().expect("receive from the other process")
    }

    /// Whether there is something to receive, or the other side is gone.
    pub fn has_word(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the call writes to the one entry.
        unsafe { libc::poll(&mut poll, 1, 0) > 0 }
    }

    /// The socket.
    pub const fn socket(&self) -> &UnixStream {
        &self.0
    }
}

/// Forks; the child calls `body` and ends. A panic in it is an exit code that
/// [`Child::expect_success`] sees.
#[track_caller]
pub fn fork(body: impl FnOnce(&Link)) -> Child {
    let (ours, theirs) = Link::pair();
    let _ = io::stdout().flush();
    // SAFETY: subtests fork while theirs is the only thread that takes locks of this library, or do in
    // the child only what needs no locks of threads that are gone: system calls and volatile accesses.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", io::Error::last_os_error()),
        0 => {
            drop(ours);
            let body = std::cell::Cell::new(Some(body));
            let code = guarded(&|| {
                if let Some(body) = body.take() {
                    body(&theirs);
                }
            });
            let _ = io::stdout().flush();
            // SAFETY: the process ends here, without running the parent's destructors.
            unsafe { libc::_exit(code.into()) }
        }
        pid => Child { pid, link: ours, reaped: false },
    }
}

impl Child {
    /// The link to it.
    pub const fn link(&self) -> &Link {
        &self.link
    }

    /// Its process number.
    pub const fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// A descriptor of the child's, as one of this process: what it is open for then outlives the
    /// child.
    #[track_caller]
    pub fn take_fd(&self, fd: RawFd) -> OwnedFd {
        let own = |result: libc::c_long| {
            assert!(result >= 0, "a descriptor of a child: {}", io::Error::last_os_error());
            // SAFETY: the descriptor is new and ours.
            unsafe { OwnedFd::from_raw_fd(result as RawFd) }
        };
        // SAFETY: the call takes no pointers.
        let pidfd = own(unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) });
        // SAFETY: as above.
        own(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
    }

    /// Whether its main thread sleeps in the kernel so that only its end would wake it.
    pub fn is_blocked(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // The name before it, in parentheses, may have anything in it.
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('D'))
    }

    /// Whether it has sent something that was not received yet, or is gone.
    pub fn has_word(&self) -> bool {
        self.link.has_word()
    }

    /// Whether it has ended, and was not waited for yet.
    pub fn is_over(&self) -> bool {
        // SAFETY: all zeroes are such a structure, which the call fills.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: the call writes the structure.
        let result = unsafe { libc::waitid(libc::P_PID, self.pid as libc::id_t, &mut info, how) };
        // SAFETY: the call has filled it, or left zeroes.
        result == 0 && unsafe { info.si_pid() } == self.pid
    }

    /// Waits for its end; what `waitpid(2)` says.
    #[track_caller]
    pub fn wait(self) -> i32 {
        self.wait_within(CHILD_TIMEOUT)
    }

    /// The same, of one that takes longer.
    #[track_caller]
    pub fn wait_within(mut self, limit: Duration) -> i32 {
        self.reap(limit)
    }

    /// Waits for its end, which must be a good one.
    #[track_caller]
    pub fn expect_success(mut self) {
        let status = self.reap(CHILD_TIMEOUT);
        assert!(
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == i32::from(exit::SUCCESS),
            "a child process failed: status {status:#x}"
        );
    }

    /// Kills it, and waits until it is gone.
    #[track_caller]
    pub fn kill(mut self) {
        self.signal(libc::SIGKILL);
        let status = self.reap(CHILD_TIMEOUT);
        assert!(
            libc::WIFSIGNALED(status),
            "the child was over before it was killed: status {status:#x}"
        );
    }

    /// Stops it, and returns when it is.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let mut status = 0;
        // SAFETY: the call writes an int.
        let pid = unsafe { libc::waitpid(self.pid, &mut status, libc::WUNTRACED) };
        assert!(pid == self.pid && libc::WIFSTOPPED(status), "not stopped: status {status:#x}");
    }

    /// Has it go on after a [stop](Self::stop).
    pub fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: it was not waited for yet, so the number is still its own.
        unsafe { libc::kill(self.pid, signal) };
    }

    #[track_caller]
    fn reap(&mut self, limit: Duration) -> i32 {
        let end = Instant::now() + limit;
        let mut nap = Duration::from_micros(200);
        loop {
            let mut status = 0;
            // SAFETY: the call writes an int.
            match unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) } {
                0 => assert!(Instant::now() < end, "a child process does not end"),
                pid if pid == self.pid => {
                    self.reaped = true;
                    return status;
                }
                _ => panic!("waitpid: {}", io::Error::last_os_error()),
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(5));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.signal(libc::SIGKILL);
        }
    }
}
