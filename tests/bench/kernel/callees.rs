// SPDX-License-Identifier: GPL-2.0

//! What the core calls, measured alone.
//!
//! A fault is, but for the core's own share, a walk by HMM and calls of the DMA API. Both are done
//! here as the core does them, on memory that the program made just alike, and nothing else.

use crate::{
    abi::{callee, service, FIGURES},
    clock,
    ops::Operation, //
};
use core::ptr;
use gpusvm::Access;
use kernel::{
    bindings::{self, dma_data_direction},
    current,
    error::to_result,
    ffi::c_ulong,
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
    sync::static_lock_class, //
};
use kernel_ext::{
    bindings as ext,
    dma::{
        self,
        IovaState,
        MAPPING_ERROR, //
    },
    mm::hmm::{
        Blocks,
        Pfn, //
    },
    sync::rwsem::RwSemaphore, //
};

/// A block of pages that is mapped.
struct Mapped {
    size: usize,
    dir: dma_data_direction,
    addr: u64,
}

/// Walks, maps and unmaps the span of `op`; see [`callee`].
pub(crate) fn measure(op: &Operation<'_>) -> Result<[u64; FIGURES]> {
    let mut figures = [0; FIGURES];
    let mut pfns = KVVec::new();
    pfns.resize(
        op.size >> PAGE_SHIFT,
        Pfn::from_parts(0, 0, false, false),
        GFP_KERNEL,
    )?;
    for figure in [callee::HMM, callee::HMM_AGAIN] {
        pfns.fill(Pfn::from_parts(0, 0, false, false));
        figures[figure] = walk(op, &mut pfns)?;
    }

    let dev = op.dev;
    let mut state = IovaState::default();
    // SAFETY: The device is bound, and the state is empty.
    let (cost, iova) = clock::cost(|| unsafe { dma::iova_try_alloc(dev, &mut state, 0, op.size) });
    if iova {
        // SAFETY: Nothing is linked.
        unsafe { dma::iova_free(dev, &mut state) };
        return Err(EOPNOTSUPP);
    }
    figures[callee::MAP] = op.clock.net(cost, 0);

    let mut mapped = KVVec::with_capacity(pfns.len(), GFP_KERNEL)?;
    for block in Blocks::of(&pfns) {
        let dir = match block.pfn.is_writable() {
            true => dma_data_direction::DMA_BIDIRECTIONAL,
            false => dma_data_direction::DMA_TO_DEVICE,
        };
        let (page, size) = (block.pfn.page(), PAGE_SIZE << block.order);
        // SAFETY: The device has a DMA mask. The process has the pages mapped, and its only thread
        // is here, so that they stay allocated.
        let (cost, addr) = clock::cost(|| unsafe { ext::dma_map_page(dev, page, 0, size, dir) });
        figures[callee::MAP] += op.clock.net(cost, 0);
        if addr == MAPPING_ERROR {
            return Err(EFAULT);
        }
        mapped.push_within_capacity(Mapped { size, dir, addr })?;
    }
    // SAFETY: The device is valid, and everything is mapped.
    let (cost, need_unmap) = clock::cost(|| unsafe { dma::need_unmap(dev) });
    figures[callee::UNMAP] = op.clock.net(cost, 0);
    for block in mapped.iter().filter(|_| need_unmap) {
        let (cost, ()) = clock::cost(|| {
            // SAFETY: It was mapped just so.
            unsafe { ext::dma_unmap_page(dev, block.addr, block.size, block.dir) }
        });
        figures[callee::UNMAP] += op.clock.net(cost, 0);
    }
    figures[callee::SEGMENTS] = mapped.len() as u64;
    Ok(figures)
}

/// The cost of HMM's walk of the span of `op`.
fn walk(op: &Operation<'_>, pfns: &mut [Pfn]) -> Result<u64> {
    let span = op.span()?;
    // Keeps the notifier.
    let _guard = op.svm.lock();
    // SAFETY: The SVM lock is held, here and below.
    let notifier = unsafe { op.svm.core().notifier_find(span.clone()) }.ok_or(ENOENT)?;
    let mut range = ext::hmm_range {
        // SAFETY: As above.
        notifier: unsafe { notifier.as_ref() }.mmu().as_raw(),
        notifier_seq: 0,
        start: span.start as c_ulong,
        end: span.end as c_ulong,
        hmm_pfns: pfns.as_mut_ptr().cast(),
        default_flags: match op.access {
            Access::Read => ext::hmm_pfn_flags_HMM_PFN_REQ_FAULT as c_ulong,
            Access::Write => {
                ext::hmm_pfn_flags_HMM_PFN_REQ_FAULT as c_ulong
                    | ext::hmm_pfn_flags_HMM_PFN_REQ_WRITE as c_ulong
            }
        },
        pfn_flags_mask: 0,
        dev_private_owner: ptr::null_mut(),
    };
    // SAFETY: The notifier is inserted, of the caller's mm, which has users, and the array has an
    // entry for each page.
    let (cost, result) = clock::cost(|| unsafe {
        ext::hmm_range_fault_unlocked_timeout(&raw mut range, bindings::HZ as c_ulong)
    });
    to_result(result)?;
    Ok(op.clock.net(cost, 0))
}

/// What the kernel takes for the rest of what the core asks of it; see [`service`].
pub(crate) fn services(op: &Operation<'_>) -> Result<[u64; FIGURES]> {
    let mut figures = [0; FIGURES];
    let mut put = |figure: usize, cost: u64| figures[figure] = op.clock.net(cost, 0);

    let sem = KBox::pin_init(
        RwSemaphore::new(c"gpusvm_bench", static_lock_class!()),
        GFP_KERNEL,
    )?;
    put(service::RWSEM_READ, clock::cost(|| drop(sem.read())).0);
    put(service::RWSEM_WRITE, clock::cost(|| drop(sem.write())).0);
    put(service::SVM_LOCK, clock::cost(|| drop(op.svm.lock())).0);

    let mm = op.svm.mm().ok_or(EINVAL)?;
    put(service::MMGET, clock::cost(|| drop(mm.mmget_not_zero())).0);
    let current = current!();
    let mm = current.mm().ok_or(EINVAL)?;
    let (cost, found) = clock::cost(|| mm.mmap_read_lock().vma_lookup(op.addr).is_some());
    if !found {
        return Err(ENOENT);
    }
    put(service::VMA_LOOKUP, cost);

    let (cost, done) = clock::cost(|| KVVec::<u8>::with_capacity(op.size, GFP_KERNEL).map(drop));
    done?;
    put(service::ALLOC, cost);
    Ok(figures)
}
