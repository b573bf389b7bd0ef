// SPDX-License-Identifier: GPL-2.0

//! What is known of the GPU's mapping of a range, and how debugfs shows it.

use super::{
    revisit::Fallback,
    thrashing::Thrashing,
    timeslice::Timeslice,
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

/// What is known of the GPU's mapping of a range.
pub(crate) struct Bound {
    /// The strongest access that works on all of it: see [`Bound::access`].
    access: Atomic<u32>,
    /// How many pieces it consists of.
    segments: Atomic<u32>,
    /// How many of its bytes are in device memory.
    in_device: Atomic<usize>,
    /// What is known of its migrations.
    pub(super) thrashing: Thrashing,
    /// For how long it stays mapped after its last fault.
    pub(super) timeslice: Timeslice,
    /// Why it is in system memory, if that is not its preferred location.
    pub(super) fallback: Fallback,
}

impl Bound {
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
            timeslice: Timeslice::new(),
            fallback: Fallback::new(),
        }
    }

    /// How many bytes of the mapping are in device memory.
    pub(super) fn in_device(&self) -> usize {
        self.in_device.load(Relaxed)
    }

    /// The strongest access that works on all of the range; none if it is not mapped.
    pub(super) fn access(&self) -> Option<Access> {
        match self.access.load(Relaxed) {
            Self::READ => Some(Access::Read),
            Self::WRITE => Some(Access::Write),
            Self::ATOMIC => Some(Access::Atomic),
            _ => None,
        }
    }

    /// Notes what is mapped now. The notifier lock is held.
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

/// A line for debugfs about a range, without its end.
pub(crate) struct Line<'a>(pub(crate) &'a gpusvm::Range<Mirror>);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (range, span, bound) = (self.0, self.0.span(), self.0.data());
        let state = if range.has(RangeFlag::PartialUnmap) {
            "cut"
        } else if range.has(RangeFlag::Unmapped) {
            "unmapped"
        } else if range.is_mapped() {
            "mapped"
        } else {
            "invalid"
        };
        let access = match bound.access() {
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
            bound.segments.load(Relaxed),
            bound.in_device() / 1024,
            bound.thrashing.count(),
        )
    }
}
