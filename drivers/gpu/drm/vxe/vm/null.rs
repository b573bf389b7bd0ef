// SPDX-License-Identifier: GPL-2.0

//! Null bindings: addresses without memory, where reads give zeros and writes have no effect.
//!
//! As in xe, such an address is mapped like any other, to nothing. A program may bind the whole
//! address space so, for sparse resources, so VM_BIND writes no page table for it. A fault maps one
//! large page at most.

use super::{
    vma::{
        intersection,
        Vma, //
    },
    SPAN, //
};
use crate::{
    fault::Serviced,
    gpu::{
        StaleSpan,
        Target, //
    },
    stats::Stat,
    svm::{
        end_of_chunk,
        pte_flags,
        Context, //
    }, //
};
use kernel::{
    prelude::*,
    sizes::SZ_2M, //
};

/// Services a fault at `addr` in `vma`, by mapping the large page around `addr`, as far as it lies
/// in the VMA. The SVM lock is held.
///
/// Fails with `ENOMEM`.
pub(super) fn fault(vm: &Context, vma: &Vma, addr: u64) -> Result<Serviced> {
    let end = end_of_chunk(addr);
    // Does not underflow: the end of a large page is not less than its size.
    let chunk = end - SZ_2M as u64..end.min(SPAN.end);
    let span = intersection(&vma.span, &chunk);
    let size = span.end - span.start;
    vm.dev.stats.inc(Stat::VmaPagefaultCount);
    vm.dev.stats.add(Stat::VmaPagefaultKb, size / 1024);

    let flags = pte_flags(vma, true, true);
    let mut staged = vm.aspace.stage(span.start, size)?;
    let mut stale = StaleSpan::new();
    stale.map(
        &vm.aspace,
        &mut staged,
        span.start,
        size,
        Target::NULL,
        flags,
    )?;
    stale.flush(&vm.aspace, &vm.dev.stats);
    Ok(Serviced {
        span,
        access: flags.strongest_access(),
    })
}
