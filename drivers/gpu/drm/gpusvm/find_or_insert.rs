// SPDX-License-Identifier: GPL-2.0

//! Finds the range for a fault: an existing one that still fits, or a new one.
//!
//! Locks as in [`svm`](crate::svm).
//!
//! C: `drm_gpusvm_range_find_or_insert()`.

use crate::{
    chunk::{self, Bounds},
    ctx::{Access, Ctx},
    notifier::{NewNotifier, Notifier},
    population,
    range::{RangeMemory, SvmRange},
    retry::Attempt,
    svm::{GpuSvm, UNMAP}, //
};
use core::{ops::Range, ptr::NonNull};
use kernel::{
    mm::{
        virt::{flags as vm, VmaRef},
        MmWithUser, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};
use kernel_ext::{
    bindings as ext,
    mm::{
        hmm::Walk,
        live_mm,
        mmap_lock::MmapReadGuard, //
    }, //
};

impl GpuSvm {
    /// Returns the range at `addr`, and inserts a new one if there is none. C: `drm_gpusvm_range_find_or_insert()`.
    ///
    /// `window` is the part of the device's address space that mirrors the CPU's around `addr`. A
    /// new range is the largest chunk that [`chunk`] allows. Takes the mmap lock. If the page tables were walked, the
    /// result stays in `walk`.
    ///
    /// Errors, which change nothing except where noted:
    /// - `EINVAL`: `addr` is outside the SVM or the window;
    /// - `EFAULT`: the process is gone or exiting;
    /// - `ENOENT`: the CPU has no VMA there;
    /// - `EPERM`: a write to a VMA that may not be written;
    /// - `EIO`: the VMA maps device memory (`VM_IO`, `VM_PFNMAP`);
    /// - `EAGAIN`: there is a range, but it was unmapped, or no longer fits the CPU's VMA or the window, or is
    ///   larger than `attempt` allows; or `is_mapped` returns false, and the range is larger than
    ///   `ctx` allows where the CPU has [few pages](Ctx::with_fault_around). The range is invalidated as if it was
    ///   unmapped: the caller lets the garbage collector remove it, and tries again;
    /// - `EINTR`: the thread is being killed;
    /// - `ENOMEM`.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock, during the call and while it uses the result without a
    /// reference.
    pub unsafe fn find_or_insert(
        &self,
        addr: usize,
        window: Range<usize>,
        ctx: &Ctx,
        attempt: &Attempt<'_>,
        walk: &mut Walk,
        is_mapped: impl FnOnce(NonNull<SvmRange>) -> bool,
    ) -> Result<NonNull<SvmRange>> {
        self.assert_driver_lock();
        if !self.span().contains(&addr) || !window.contains(&addr) {
            kernel_ext::debug!("{addr:#x} is outside the address space");
            return Err(EINVAL);
        }
        let mm = live_mm::get(self.mm().ok_or(EFAULT)?, 0)?;

        // SAFETY: The driver's lock is held, here and below.
        let found = unsafe { self.notifier_find(addr..addr + 1) };
        if let Some(notifier) = found {
            // SAFETY: As above.
            if let Some(range) = unsafe { notifier.as_ref().find(addr..addr + 1) } {
                // SAFETY: As above.
                unsafe {
                    self.check_found(range, &mm, addr, &window, ctx, attempt, walk, is_mapped)
                }?;
                return Ok(range);
            }
        }

        // Memory is allocated, and other locks are taken, before the mmap lock.
        let new_notifier = match found {
            Some(_) => None,
            None => Some(NewNotifier::new(self, &mm, addr)?),
        };
        let memory = RangeMemory::new(self)?;
        let notifier = match (found, &new_notifier) {
            (Some(notifier), _) => notifier,
            (None, Some(new)) => new.get(),
            (None, None) => return Err(ENOMEM),
        };

        let mmap = MmapReadGuard::lock_killable(&mm)?;
        let vma = lookup(&mmap, addr, ctx.access)?;
        let bounds = Bounds {
            vma: vma.start()..vma.end(),
            // SAFETY: The driver's lock keeps a notifier that was found; a new one is not shared yet.
            notifier: unsafe { notifier.as_ref() }.span(),
            window,
            svm: self.span(),
            limit: attempt.limit(addr),
        };
        // SAFETY: As above.
        let span = unsafe { self.choose(&mmap, vma, notifier, addr, &bounds, ctx, walk) }?;
        let range = memory.into_range(notifier, span, ctx.devmem_possible && can_migrate(vma));

        let lock = self.notifier_lock.write();
        // SAFETY: The driver's lock and the notifier lock are held. The range overlaps no other, lies in its notifier,
        // is new, pinned, and freed only after its removal; so is the notifier, if new.
        unsafe {
            notifier.as_ref().ranges().insert(range.as_ref().node());
            if let Some(new) = new_notifier {
                self.notifiers.insert(new.into_inner().as_ref().node());
            }
        }
        drop(lock);
        Ok(range)
    }

    /// Checks that the range that was found at the address of a fault still fits. Fails as
    /// [`find_or_insert`](Self::find_or_insert) does.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock.
    #[expect(clippy::too_many_arguments)]
    unsafe fn check_found(
        &self,
        range: NonNull<SvmRange>,
        mm: &MmWithUser,
        addr: usize,
        window: &Range<usize>,
        ctx: &Ctx,
        attempt: &Attempt<'_>,
        walk: &mut Walk,
        is_mapped: impl FnOnce(NonNull<SvmRange>) -> bool,
    ) -> Result {
        // SAFETY: The driver's lock keeps the range.
        let this = unsafe { range.as_ref() };
        if this.has(crate::flags::RangeFlag::Unmapped) {
            return Err(EAGAIN);
        }
        let fits = {
            let mmap = MmapReadGuard::lock_killable(mm)?;
            let vma = lookup(&mmap, addr, ctx.access)?;
            chunk::contains(&(vma.start()..vma.end()), &this.span())
                && chunk::contains(window, &this.span())
                && (!ctx.fault_around().is_exceeded_by(this.size())
                    || is_mapped(range)
                    // SAFETY: The driver's lock keeps the range and its notifier.
                    || unsafe {
                        let notifier = this.notifier().mmu();
                        population::allows(&mmap, vma, notifier, &this.span(), ctx, walk)
                    })
        };
        if !fits || this.size() > attempt.limit(addr) {
            // SAFETY: The driver's lock is held.
            unsafe { self.invalidate_range(this, UNMAP) };
            return Err(EAGAIN);
        }
        Ok(())
    }

    /// Returns the span of a new range.
    ///
    /// # Safety
    ///
    /// The caller must hold the driver's SVM lock; `notifier` must be inserted in `mmap`'s mm.
    #[expect(clippy::too_many_arguments)]
    unsafe fn choose(
        &self,
        mmap: &MmapReadGuard<'_>,
        vma: &VmaRef,
        notifier: NonNull<Notifier>,
        addr: usize,
        bounds: &Bounds,
        ctx: &Ctx,
        walk: &mut Walk,
    ) -> Result<Range<usize>> {
        // SAFETY: As this function requires.
        let notifier = unsafe { notifier.as_ref() };
        for span in chunk::candidates(self.chunk_sizes(), addr, bounds) {
            // SAFETY: The driver's lock is held.
            if unsafe { notifier.find(span.clone()) }.is_some() {
                continue;
            }
            let size = span.end - span.start;
            if size > PAGE_SIZE && size <= ctx.check_pages_threshold {
                // A larger chunk is used only if the CPU has all of its pages. One walk without a retry: if the
                // CPU changes its mappings meanwhile, a smaller chunk is used.
                // SAFETY: The notifier is inserted in this mm, whose mmap lock is held.
                let seen = unsafe { walk.snapshot(mmap, notifier.mmu(), &span, ctx.owner()) };
                if seen.is_err() || walk.pfns().iter().any(|pfn| !pfn.is_valid()) {
                    walk.forget();
                    continue;
                }
            }
            if ctx.fault_around().is_exceeded_by(size)
                // SAFETY: As above.
                && !unsafe { population::allows(mmap, vma, notifier.mmu(), &span, ctx, walk) }
            {
                continue;
            }
            return Ok(span);
        }
        kernel_ext::debug!("no chunk around {addr:#x} fits");
        Err(EINVAL)
    }
}

/// Returns the VMA at `addr`, if a device may mirror it for `access`.
fn lookup<'a>(mmap: &'a MmapReadGuard<'_>, addr: usize, access: Access) -> Result<&'a VmaRef> {
    let vma = mmap.vma_lookup(addr).ok_or(ENOENT)?;
    if access == Access::Write && vma.flags() & vm::WRITE == 0 {
        return Err(EPERM);
    }
    if vma.flags() & (vm::IO | vm::PFNMAP) != 0 {
        return Err(EIO);
    }
    Ok(vma)
}

/// Whether the pages of `vma` can migrate to device memory.
fn can_migrate(vma: &VmaRef) -> bool {
    // SAFETY: A `VmaRef` exists only while the mmap lock is held.
    unsafe { ext::vma_is_anonymous(vma.as_ptr()) && !ext::is_vm_hugetlb_page(vma.as_ptr()) }
}
