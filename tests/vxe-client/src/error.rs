// SPDX-License-Identifier: GPL-2.0

//! Errors that say which call failed and how.

use std::fmt;

/// A failed call into the kernel: which one, and the errno it gave.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error {
    call: &'static str,
    errno: i32,
}

/// The result of a call into the kernel.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `call` with the given errno.
    pub const fn new(call: &'static str, errno: i32) -> Self {
        Self { call, errno }
    }

    /// The error that the C library left in `errno`.
    pub fn last(call: &'static str) -> Self {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        Self { call, errno }
    }

    /// The errno, positive, as in `libc::EINVAL`.
    pub const fn errno(&self) -> i32 {
        self.errno
    }

    /// Name of the call that failed, for instance `DRM_IOCTL_XE_EXEC`.
    pub const fn call(&self) -> &'static str {
        self.call
    }

    /// Whether this says that the queue was banned: -EIO to those who wait for its fences,
    /// -ECANCELED to those who submit more work.
    pub const fn is_queue_banned(&self) -> bool {
        matches!(self.errno, libc::EIO | libc::ECANCELED)
    }
}

/// The symbolic name of an errno that DRM drivers use.
pub fn errno_name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::E2BIG => "E2BIG",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::EINVAL => "EINVAL",
        libc::ENOTTY => "ENOTTY",
        libc::ENOSPC => "ENOSPC",
        libc::ENODATA => "ENODATA",
        libc::ETIME => "ETIME",
        libc::ENOBUFS => "ENOBUFS",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ECANCELED => "ECANCELED",
        libc::ENOLINK => "ENOLINK",
        _ => return None,
    })
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::io::Error::from_raw_os_error(self.errno);
        match errno_name(self.errno) {
            Some(name) => write!(f, "{}: {name}: {text}", self.call),
            None => write!(f, "{}: {text}", self.call),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(e: Error) -> Self {
        std::io::Error::from_raw_os_error(e.errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_call_and_the_errno() {
        let e = Error::new("DRM_IOCTL_XE_EXEC", libc::ECANCELED);
        assert!(e.to_string().starts_with("DRM_IOCTL_XE_EXEC: ECANCELED: "));
        assert!(e.is_queue_banned());
        assert!(!Error::new("x", libc::ETIME).is_queue_banned());
    }
}
