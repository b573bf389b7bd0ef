// SPDX-License-Identifier: GPL-2.0

//! A table of bad arguments, all derived from a good one.

use vxe_client::{errno_name, Device, Request};
use vxe_uapi::{skip, Map, NONE, PAGE};

/// An address that no user has.
pub const KERNEL: u64 = 0xffff_8880_0000_1000;

/// An address at which the process has nothing.
pub fn nothing() -> u64 {
    Map::anon_prot(PAGE, NONE).at(0)
}

/// Calls of one ioctl that must fail; all of them are made before the subtest fails.
pub struct Cases<'a, T: Copy> {
    device: &'a Device,
    request: &'a Request<T>,
    good: T,
    wrong: Vec<String>,
}

impl<'a, T: Copy> Cases<'a, T> {
    /// Cases derived from `good`.
    pub fn new(device: &'a Device, request: &'a Request<T>, good: T) -> Self {
        Self { device, request, good, wrong: Vec::new() }
    }

    fn call(&self, argument: &mut T) -> Result<(), i32> {
        // SAFETY: the cases are bad in the kernel's eyes, and good ones do what the test wants.
        unsafe { self.device.call(self.request, argument) }.map_err(|e| e.errno())
    }

    /// The good argument must be accepted, or the bad ones prove nothing.
    #[track_caller]
    pub fn accepted(mut self) -> Self {
        self.accept();
        self
    }

    /// The good argument must be accepted now.
    #[track_caller]
    pub fn accept(&mut self) -> &mut Self {
        let mut argument = self.good;
        if let Err(errno) = self.call(&mut argument) {
            panic!("{}: the good one: {}", self.request.name(), name(errno));
        }
        self
    }

    /// The good argument must be accepted; if the driver has no such call, which DRM says by
    /// -EINVAL, the subtest is skipped.
    #[track_caller]
    pub fn accepted_or_skip(self) -> Self {
        let mut argument = self.good;
        match self.call(&mut argument) {
            Err(errno @ (libc::EINVAL | libc::EOPNOTSUPP)) => {
                skip!("{}: {}", self.request.name(), name(errno))
            }
            _ => self.accepted(),
        }
    }

    /// What is bad about this one must be answered with `errno`.
    pub fn reject(&mut self, errno: i32, what: &str, spoil: impl FnOnce(&mut T)) -> &mut Self {
        let mut argument = self.good;
        spoil(&mut argument);
        match self.call(&mut argument) {
            Err(found) if found == errno => {}
            Err(found) => {
                self.wrong.push(format!("{what}: {} instead of {}", name(found), name(errno)));
            }
            Ok(()) => self.wrong.push(format!("{what}: accepted instead of {}", name(errno))),
        }
        self
    }

    /// Fails the subtest if any of the answers was wrong.
    #[track_caller]
    pub fn finish(&mut self) {
        let wrong = std::mem::take(&mut self.wrong);
        assert!(wrong.is_empty(), "{}:\n  {}", self.request.name(), wrong.join("\n  "));
    }
}

fn name(errno: i32) -> String {
    errno_name(errno).map_or_else(|| format!("errno {errno}"), |n| format!("-{n}"))
}
