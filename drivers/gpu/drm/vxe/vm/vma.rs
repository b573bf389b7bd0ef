// SPDX-License-Identifier: GPL-2.0

//! VMAs: pieces of a VM's address space, and what is behind them.
//!
//! A VMA is a value. It changes only by being replaced in the [map](super::map) of its VM.

use super::attributes::Attributes;
use crate::bo::Bo;
use core::ops::Range;
use kernel::{
    fmt,
    sync::aref::ARef, //
};

/// GPU virtual addresses, in bytes.
pub(crate) type Span = Range<u64>;

/// The part of `a` that is in `b`; empty, and then perhaps not at a useful place, if there is none.
pub(crate) fn intersection(a: &Span, b: &Span) -> Span {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// What is behind the addresses of a VMA.
#[derive(Clone)]
pub(crate) enum Backing {
    /// The same addresses of the process.
    Mirror,
    /// A buffer, from `offset` bytes on. The VMA keeps it alive.
    Bo {
        /// The buffer.
        bo: ARef<Bo>,
        /// Where in it the VMA begins, in bytes.
        offset: u64,
    },
}

/// A piece of a VM's address space.
#[derive(Clone)]
pub(crate) struct Vma {
    /// Its addresses: whole pages, not empty.
    pub(crate) span: Span,
    /// What is behind them.
    pub(crate) backing: Backing,
    /// Memory attributes.
    pub(crate) attributes: Attributes,
    /// The GPU may not write.
    pub(crate) read_only: bool,
    /// Attributes go back to their defaults where the CPU unmaps.
    pub(crate) autoreset: bool,
}

impl Vma {
    /// Whether the VMA mirrors the process.
    pub(crate) fn is_mirror(&self) -> bool {
        matches!(self.backing, Backing::Mirror)
    }

    /// The part of the VMA in `span`; none if they do not overlap.
    pub(crate) fn part(&self, span: &Span) -> Option<Self> {
        let span = intersection(&self.span, span);
        if span.is_empty() {
            return None;
        }
        let mut part = self.clone();
        if let Backing::Bo { offset, .. } = &mut part.backing {
            // Does not overflow: both are inside the buffer, as was checked when it was bound.
            *offset += span.start - self.span.start;
        }
        part.span = span;
        Some(part)
    }

    /// The part before `addr`.
    pub(crate) fn before(&self, addr: u64) -> Option<Self> {
        self.part(&(0..addr))
    }

    /// The part from `addr` on.
    pub(crate) fn after(&self, addr: u64) -> Option<Self> {
        self.part(&(addr..u64::MAX))
    }

    /// Whether the two could be one, if they were neighbours: both mirror, and alike.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.is_mirror()
            && other.is_mirror()
            && self.attributes == other.attributes
            && self.read_only == other.read_only
            && self.autoreset == other.autoreset
    }
}

/// A line for debugfs, without its end.
impl fmt::Display for Vma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:#018x}-{:#018x} {} pat={:<2} atomics={:<9} location={:<2}",
            self.span.start,
            self.span.end,
            if self.read_only { "r-" } else { "rw" },
            self.attributes.pat.get(),
            match self.attributes.atomics {
                super::attributes::Atomics::Undefined => "undefined",
                super::attributes::Atomics::Device => "device",
                super::attributes::Atomics::Global => "global",
                super::attributes::Atomics::Cpu => "cpu",
            },
            self.attributes.location.devmem_fd(),
        )?;
        match &self.backing {
            Backing::Mirror => write!(f, " mirror"),
            Backing::Bo { offset, .. } => write!(f, " bo+{offset:#x}"),
        }
    }
}
