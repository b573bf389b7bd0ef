// SPDX-License-Identifier: GPL-2.0

//! The state of the GPU mapping of a range, and its line in debugfs.

use super::{
    access_wait::AccessWait,
    revisit::Fallback,
    thrashing::Thrashing,
    Mirror, //
};
use crate::gpu::Access;
use gpusvm::RangeFlag;
use kernel::{
    fmt,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// The state of the GPU mapping of a range.
pub(crate) struct RangeState {
    /// The strongest access that the whole range allows: see [`RangeState::access`].
    access: Atomic<u32>,
    /// The number of contiguous segments.
    segments: Atomic<u32>,
    /// The number of bytes in device memory.
    in_device: Atomic<usize>,
    /// The history of migrations.
    pub(super) thrashing: Thrashing,
    /// For how long an invalidation waits for the access that caused the last fault.
    pub(super) access_wait: AccessWait,
    /// Why the range is in system memory instead of its preferred location.
    pub(super) fallback: Fallback,
}

impl RangeState {
    const NOT: u32 = 0;
    const READ: u32 = 1;
    const WRITE: u32 = 2;
    const ATOMIC: u32 = 3;

    pub(super) fn new() -> Self {
        Self {
            access: Atomic::new(Self::NOT),
            segments: Atomic::new(0),
            in_device: Atomic::new(0),
            thrashing: Thrashing::new(),
            access_wait: AccessWait::new(),
            fallback: Fallback::new(),
        }
    }

    /// Returns how many bytes of the mapping are in device memory.
    pub(super) fn in_device(&self) -> usize {
        self.in_device.load(Relaxed)
    }

    /// Returns the strongest access that the whole range allows; `None` if it is not mapped.
    pub(super) fn access(&self) -> Option<Access> {
        match self.access.load(Relaxed) {
            Self::READ => Some(Access::Read),
            Self::WRITE => Some(Access::Write),
            Self::ATOMIC => Some(Access::Atomic),
            _ => None,
        }
    }

    /// Sets the state of the mapping. The notifier lock is held.
    pub(super) fn set(&self, access: Option<Access>, segments: u32, in_device: usize) {
        let access = match access {
            None => Self::NOT,
            Some(Access::Read) => Self::READ,
            Some(Access::Write) => Self::WRITE,
            Some(Access::Atomic) => Self::ATOMIC,
        };
        self.access.store(access, Relaxed);
        self.segments.store(segments, Relaxed);
        self.in_device.store(in_device, Relaxed);
    }
}

/// The line of a range in debugfs, without the newline.
pub(crate) struct Line<'a>(pub(crate) &'a gpusvm::Range<Mirror>);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (range, span, mapping) = (self.0, self.0.span(), self.0.data());
        let state = if range.has(RangeFlag::PartialUnmap) {
            "cut"
        } else if range.has(RangeFlag::Unmapped) {
            "unmapped"
        } else if range.is_mapped() {
            "mapped"
        } else {
            "invalid"
        };
        let access = match mapping.access() {
            None => "---",
            Some(Access::Read) => "r--",
            Some(Access::Write) => "rw-",
            Some(Access::Atomic) => "rwa",
        };
        write!(
            f,
            "{:#018x}-{:#018x} {:>5}K {:<8} {} segments={} device={}K thrashing={}",
            span.start,
            span.end,
            range.size() / 1024,
            state,
            access,
            mapping.segments.load(Relaxed),
            mapping.in_device() / 1024,
            mapping.thrashing.count(),
        )
    }
}
