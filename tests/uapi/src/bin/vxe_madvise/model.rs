// SPDX-License-Identifier: GPL-2.0

//! What the VMAs of a VM should be, after xe's rules.

use std::ops::Range;
use vxe_client::{sys, Advice, AtomicAccess, Location};
use vxe_uapi::vmas::{Attributes, Vma};

/// What is behind a VMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    Mirror,
    Buffer,
}

#[derive(Clone, Debug)]
struct Piece {
    vma: Vma,
    backing: Backing,
    /// What it was bound with.
    pat: u32,
}

impl Piece {
    fn is_like(&self, other: &Self) -> bool {
        self.backing == Backing::Mirror
            && other.backing == Backing::Mirror
            && self.vma.attributes == other.vma.attributes
            && self.pat == other.pat
    }
}

/// The entries of the page attribute table by which the GPU snoops the CPU's caches, a bit each.
const COHERENT: u32 = 0xccc0_00b6;

/// The VMAs, in ascending order.
#[derive(Clone, Default)]
pub struct Model(Vec<Piece>);

/// `attributes`, after `advice` on what is behind them.
pub fn follow(advice: Advice, attributes: Attributes, backing: Backing) -> Attributes {
    match (advice, backing) {
        (Advice::Preferred(location, migrate), Backing::Mirror) => Attributes {
            location: match location {
                Location::System => sys::DRM_XE_PREFERRED_LOC_DEFAULT_SYSTEM,
                Location::Local => sys::DRM_XE_PREFERRED_LOC_DEFAULT_DEVICE as i32,
                Location::Device { fd, .. } => fd,
            },
            migration: migrate as u32,
            ..attributes
        },
        // Where a buffer lives was said when it was made.
        (Advice::Preferred(..), Backing::Buffer) => attributes,
        (Advice::Atomic(access), _) => Attributes { atomic: access as u32, ..attributes },
        (Advice::Pat(pat), _) => Attributes { pat, ..attributes },
    }
}

impl Model {
    /// A VM that mirrors all of `span`, as nobody advised.
    pub fn mirrored(span: Range<u64>) -> Self {
        let mut this = Self::default();
        this.bind(span, Backing::Mirror, 0);
        this
    }

    /// The VMAs as the kernel should tell them.
    pub fn vmas(&self) -> Vec<Vma> {
        self.0.iter().map(|piece| piece.vma.clone()).collect()
    }

    fn split(&mut self, at: u64, which: impl Fn(&Piece) -> bool) {
        let inside = |p: &Piece| p.vma.span.start < at && at < p.vma.span.end && which(p);
        if let Some(i) = self.0.iter().position(inside) {
            let mut second = self.0[i].clone();
            self.0[i].vma.span.end = at;
            second.vma.span.start = at;
            self.0.insert(i + 1, second);
        }
    }

    /// Advice on `span`; an errno if it is refused, and then nothing changes. Mirrors are split
    /// where it begins and ends, buffers are advised as a whole, and nothing is merged.
    pub fn advise(&mut self, span: Range<u64>, advice: Advice) -> Result<(), i32> {
        let overlaps = |p: &Piece| p.vma.span.start < span.end && span.start < p.vma.span.end;
        // A buffer in system memory can bear atomics of one side only, and one that the CPU caches no access
        // past its caches.
        let refused = match advice {
            Advice::Atomic(access) => access == AtomicAccess::Global,
            Advice::Pat(index) => (COHERENT >> index) & 1 == 0,
            Advice::Preferred(..) => false,
        };
        let bad = |p: &Piece| overlaps(p) && p.backing == Backing::Buffer;
        if refused && self.0.iter().any(bad) {
            return Err(libc::EINVAL);
        }
        for at in [span.start, span.end] {
            self.split(at, |p| p.backing == Backing::Mirror);
        }
        for piece in self.0.iter_mut().filter(|p| overlaps(p)) {
            piece.vma.attributes = follow(advice, piece.vma.attributes, piece.backing);
        }
        Ok(())
    }

    /// Takes everything out of `span`.
    pub fn unmap(&mut self, span: Range<u64>) {
        for at in [span.start, span.end] {
            self.split(at, |_| true);
        }
        self.0.retain(|p| p.vma.span.end <= span.start || span.end <= p.vma.span.start);
    }

    /// Binds something in `span`. A mirror becomes one with mirrors beside it that are like it.
    pub fn bind(&mut self, span: Range<u64>, backing: Backing, pat: u32) {
        self.unmap(span.clone());
        let vma = Vma { span, attributes: Attributes::bound_with(pat) };
        let mut new = Piece { vma, backing, pat };
        let mut at = self.0.partition_point(|p| p.vma.span.end <= new.vma.span.start);
        if at > 0
            && self.0[at - 1].vma.span.end == new.vma.span.start
            && self.0[at - 1].is_like(&new)
        {
            at -= 1;
            new.vma.span.start = self.0.remove(at).vma.span.start;
        }
        if self.0.get(at).is_some_and(|p| p.vma.span.start == new.vma.span.end && p.is_like(&new)) {
            new.vma.span.end = self.0.remove(at).vma.span.end;
        }
        self.0.insert(at, new);
    }
}
