// SPDX-License-Identifier: GPL-2.0

//! VMAs: parts of a VM's address space and their backing.
//!
//! A VMA is a value. It changes only by being replaced in the [map](super::map) of its VM.

use super::{
    attributes::Attributes,
    userptr::VmUserptr, //
};
use crate::bo::Bo;
use core::ops::Range;
use kernel::{
    fmt,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};

/// GPU virtual addresses, in bytes.
pub(crate) type Span = Range<u64>;

/// Returns the part of `a` that is in `b`. If they do not overlap it is empty, at an unspecified
/// address.
pub(crate) fn intersection(a: &Span, b: &Span) -> Span {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// The backing of a VMA.
#[derive(Clone)]
pub(crate) enum Backing {
    /// The same addresses of the process.
    Mirror,
    /// A buffer, from `offset` bytes on. The VMA holds a reference to it.
    Bo {
        /// The buffer.
        bo: ARef<Bo>,
        /// The offset in the buffer, in bytes.
        offset: u64,
    },
    /// Memory of a process, from `offset` bytes on. The parts of a VMA that was split share it.
    Userptr {
        /// The memory.
        userptr: Arc<VmUserptr>,
        /// The offset in the memory, in bytes.
        offset: u64,
    },
    /// No memory: reads give zeros, and writes have no effect.
    Null,
}

/// A part of a VM's address space with one backing.
#[derive(Clone)]
pub(crate) struct Vma {
    /// The addresses: whole pages, not empty.
    pub(crate) span: Span,
    /// The backing.
    pub(crate) backing: Backing,
    /// The memory attributes.
    pub(crate) attributes: Attributes,
    /// The GPU may not write.
    pub(crate) read_only: bool,
    /// Attributes are reset to their defaults where the CPU unmaps.
    pub(crate) autoreset: bool,
}

impl Vma {
    /// Returns whether the VMA mirrors the process.
    pub(crate) fn is_mirror(&self) -> bool {
        matches!(self.backing, Backing::Mirror)
    }

    /// Returns whether the VMA maps memory of a process at other addresses.
    pub(crate) fn is_userptr(&self) -> bool {
        matches!(self.backing, Backing::Userptr { .. })
    }

    /// Returns the part of the VMA in `span`; none if they do not overlap.
    pub(crate) fn part(&self, span: &Span) -> Option<Self> {
        let span = intersection(&self.span, span);
        if span.is_empty() {
            return None;
        }
        let mut part = self.clone();
        if let Backing::Bo { offset, .. } | Backing::Userptr { offset, .. } = &mut part.backing {
            // Does not overflow: VM_BIND checked that the VMA is inside the buffer or the memory.
            *offset += span.start - self.span.start;
        }
        part.span = span;
        Some(part)
    }

    /// Returns the part before `addr`.
    pub(crate) fn before(&self, addr: u64) -> Option<Self> {
        self.part(&(0..addr))
    }

    /// Returns the part from `addr` on.
    pub(crate) fn after(&self, addr: u64) -> Option<Self> {
        self.part(&(addr..u64::MAX))
    }

    /// Returns whether the two could be joined if they were adjacent: both are mirrors with the
    /// same attributes.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.is_mirror()
            && other.is_mirror()
            && self.attributes == other.attributes
            && self.read_only == other.read_only
            && self.autoreset == other.autoreset
    }
}

/// Prints a line for debugfs, without the newline.
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
            Backing::Null => write!(f, " null"),
            Backing::Bo { offset, .. } => write!(f, " bo+{offset:#x}"),
            Backing::Userptr { userptr, offset } => {
                // Does not overflow: the offset lies in the memory.
                let addr = userptr.span().start as u64 + offset;
                write!(f, " userptr at {addr:#x}")
            }
        }
    }
}
