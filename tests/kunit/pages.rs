// SPDX-License-Identifier: GPL-2.0

//! Tests of pages objects with a notifier of the driver, without ranges.

use crate::fixture::{
    dma,
    mm::{self, Prot},
    pages,
    with_device,
    with_devices,
    Env,
    LARGE,
    MIDDLE, //
};
use core::ops::Range;
use gpusvm::{
    get_pages::{Source, BATCH},
    pages::Pages,
    svm::GpuSvm,
    Access,
    Ctx,
    PagesFlag,
    Retry, //
};
use kernel::{
    bindings,
    ffi::c_ulong,
    page::PAGE_SIZE,
    prelude::*, //
};
use kernel_ext::{
    bindings as ext,
    dma::Call,
    mm::{
        hmm::{
            self,
            HmmRequest,
            Walk, //
        },
        mmu_notifier::{
            MmuIntervalNotifier,
            Ops, //
        }, //
    }, //
};

/// A driver's notifier, and the pages that it unmaps.
///
/// # Invariants
///
/// The notifier is inserted.
#[repr(C)]
struct Watch {
    mmu: MmuIntervalNotifier,
    span: Range<usize>,
    pages: KVec<Pages>,
    svm: Pin<KBox<GpuSvm>>,
}

static OPS: Ops = Ops {
    invalidate: Some(invalidate),
    ..pin_init::zeroed()
};

impl Watch {
    /// Inserts a notifier for `span`.
    fn new(env: &Env, span: Range<usize>) -> Result<Pin<KBox<Self>>> {
        Self::within(env, span.clone(), span)
    }

    /// Inserts a notifier for `notified`, which includes `span`.
    fn within(env: &Env, span: Range<usize>, notified: Range<usize>) -> Result<Pin<KBox<Self>>> {
        let watch = KBox::new(
            Self {
                mmu: MmuIntervalNotifier::new(),
                span,
                // SAFETY: Tests drop the watch before the devices.
                pages: unsafe { env.pages() }?,
                svm: KBox::pin_init(GpuSvm::pages_only(c"gpusvm_kunit"), GFP_KERNEL)?,
            },
            GFP_KERNEL,
        )?;
        // SAFETY: The notifier does not move, and `drop()` removes it.
        let inserted = unsafe { watch.mmu.insert(&env.mm, notified, &OPS) };
        if let Err(e) = inserted {
            // INVARIANT: The notifier is not inserted: `drop()`, which would remove it, must not
            // run.
            core::mem::forget(watch);
            return Err(e);
        }
        Ok(KBox::into_pin(watch))
    }

    fn pages(&self) -> &[Pages] {
        &self.pages
    }

    fn source<'a>(&'a self, env: &'a Env, span: &Range<usize>) -> Source<'a> {
        Source {
            svm: &self.svm,
            mm: &env.mm,
            notifier: &self.mmu,
            span: span.clone(),
        }
    }

    fn get_with(&self, env: &Env, ctx: &Ctx, walk: &mut Walk) -> Result {
        let mut retry = Retry::bounded();
        let attempt = retry.next().ok_or(EINVAL)?;
        // SAFETY: No other thread gets pages; the notifier is inserted, and its callback unmaps all
        // pages. Each test maps for one kind of access only.
        unsafe {
            self.source(env, &self.span)
                .get(self.pages(), ctx, &attempt, walk)
        }
    }

    fn get(&self, env: &Env) -> Result {
        self.get_with(env, &Ctx::new(Access::Write), &mut Walk::new())
    }

    /// Walks the page table, and faults in all pages.
    fn walk(&self) -> Result<Walk> {
        let mut walk = Walk::new();
        // SAFETY: The notifier is inserted, and the process has users.
        unsafe {
            walk.fault(
                &self.mmu,
                &self.span,
                HmmRequest::Write,
                core::ptr::null_mut(),
                1000,
            )
        }?;
        Ok(walk)
    }

    /// Runs `f` with the notifier lock held for writing.
    fn locked<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: The lock is initialized; without ranges it is the driver that takes it for
        // writing.
        unsafe {
            let lock = &raw mut (*self.svm.as_raw()).notifier_lock;
            bindings::down_write(lock);
            let result = f();
            bindings::up_write(lock);
            result
        }
    }

    fn unmap(&self) {
        self.locked(|| {
            for pages in self.pages() {
                // SAFETY: The notifier lock is held for writing, and no device uses the addresses.
                unsafe { pages.unmap() };
            }
        });
    }

    /// Returns the size of the allocation for the addresses of the first device, in bytes; 0 if
    /// there is none.
    fn memory(&self) -> Result<usize> {
        let pages: *const Pages = &raw const self.pages()[0];
        // SAFETY: `Pages` has the layout of the C structure, and the notifier lock is held.
        let array = self.locked(|| unsafe { (*pages.cast::<ext::drm_gpusvm_pages>()).dma_addr });
        // SAFETY: Compares addresses only. Small arrays are from kmalloc(), unless memory is short.
        ensure!(!unsafe { bindings::is_vmalloc_addr(array.cast()) });
        // SAFETY: The pointer is null, or from kmalloc(), and no other thread frees it.
        Ok(unsafe { bindings::ksize(array.cast()) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the notifier is inserted; no lock is held.
        unsafe { self.mmu.remove() };
        self.unmap();
    }
}

/// The `invalidate` callback.
///
/// # Safety
///
/// `mni` must be the `mmu` field of a [`Watch`], and `range` valid.
unsafe extern "C" fn invalidate(
    mni: *mut bindings::mmu_interval_notifier,
    range: *const bindings::mmu_notifier_range,
    seq: c_ulong,
) -> bool {
    // SAFETY: By this function's requirements; `mmu` is the first field.
    let (this, changed) = unsafe { (&*mni.cast::<Watch>(), (*range).start..(*range).end) };
    this.locked(|| {
        // SAFETY: This is the callback, and it holds the lock under which readers call
        // `read_retry()`.
        unsafe { ext::mmu_interval_set_seq(mni, seq) };
        if changed.end <= this.span.start || changed.start >= this.span.end {
            return;
        }
        for pages in this.pages() {
            // SAFETY: The notifier lock is held for writing, and no device uses the addresses.
            unsafe { pages.unmap() };
        }
    });
    true
}

#[kunit_tests(gpusvm_pages)]
mod tests {
    use super::*;

    #[test]
    fn the_life_of_pages() -> Result {
        with_device(|env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            let watch = Watch::new(env, span.clone())?;
            let pages = &watch.pages()[0];
            // New pages.
            ensure!(!pages.is_valid());
            ensure_eq!(watch.memory()?, 0);
            ensure_eq!(pages.notifier_seq(), isize::MAX as usize);
            for flag in [
                PagesFlag::Unmapped,
                PagesFlag::HasDevmemPages,
                PagesFlag::HasDmaMapping,
            ] {
                ensure!(!pages.has(flag));
            }
            for _ in 0..3 {
                // Mapped pages.
                watch.get(env)?;
                ensure!(pages.is_valid());
                ensure!(pages.has(PagesFlag::HasDmaMapping));
                ensure!(!pages.has(PagesFlag::HasDevmemPages));
                ensure_eq!(dma::mapped(), MIDDLE as i64);
                ensure_eq!(watch.memory()?, 16 * 16);
                ensure!(!watch.mmu.read_retry(pages.notifier_seq()));
                // The CPU unmaps them.
                mm::drop_pages(&span)?;
                ensure!(!pages.is_valid());
                ensure_eq!(dma::mapped(), 0);
                ensure!(watch.mmu.read_retry(pages.notifier_seq()));
                // The driver unmaps them.
                watch.get(env)?;
                watch.unmap();
                ensure!(!pages.is_valid());
                ensure_eq!(dma::mapped(), 0);
                watch.unmap();
                ensure_eq!(dma::mapped(), 0);
            }
            Ok(())
        })
    }

    #[test]
    fn a_change_elsewhere_in_the_span_of_the_notifier() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 32), Prot::Write)?;
            mm::fill(&pages(0, 32))?;
            let watch = Watch::within(env, pages(0, 16), pages(0, 32))?;
            let pages_of = &watch.pages()[0];
            watch.get(env)?;
            mm::drop_pages(&pages(20, 1))?;
            ensure!(pages_of.is_valid());
            ensure!(watch.mmu.read_retry(pages_of.notifier_seq()));
            // The pages stay mapped, and are known to be valid at the new number.
            let (walks, maps) = (hmm::walks(), dma::maps());
            watch.get(env)?;
            ensure_eq!((hmm::walks(), dma::maps()), (walks, maps));
            ensure!(!watch.mmu.read_retry(pages_of.notifier_seq()));
            Ok(())
        })
    }

    #[test]
    fn retired_pages_are_not_mapped_again() -> Result {
        with_device(|env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            let watch = Watch::new(env, span)?;
            watch.get(env)?;
            watch.locked(|| watch.pages()[0].set_unmapped());
            // The mapping is still valid, but must not be renewed.
            let walks = hmm::walks();
            ensure_eq!(watch.get(env), Err(EFAULT));
            watch.unmap();
            ensure_eq!(watch.get(env), Err(EFAULT));
            ensure_eq!(hmm::walks(), walks);
            ensure_eq!(dma::mapped(), 0);
            ensure!(watch.pages()[0].has(PagesFlag::Unmapped));
            Ok(())
        })
    }

    #[test]
    fn pages_retired_while_they_are_being_mapped() -> Result {
        with_device(|env| {
            let span = pages(0, 2 * BATCH);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let watch = Watch::new(env, span)?;
            // As a thread does that takes the lock while the mapping has released it between two
            // batches.
            let see = |call| {
                if call == Call::Map {
                    watch.pages()[0].set_unmapped();
                }
                Ok(())
            };
            ensure_eq!(dma::watched(&see, || watch.get(env)), Err(EAGAIN));
            ensure_eq!(dma::maps() as usize, BATCH);
            ensure_eq!(dma::mapped(), 0);
            ensure!(!watch.pages()[0].is_valid());
            ensure_eq!(watch.get(env), Err(EFAULT));
            Ok(())
        })
    }

    #[test]
    fn an_old_look_is_not_trusted() -> Result {
        with_device(|env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let watch = Watch::new(env, span.clone())?;
            let ctx = Ctx::new(Access::Write);
            // A valid result of a walk is used.
            let mut walk = watch.walk()?;
            let walks = hmm::walks();
            watch.get_with(env, &ctx, &mut walk)?;
            ensure_eq!(hmm::walks(), walks);
            watch.unmap();

            // One from before a change is not used, and nothing is mapped.
            let mut walk = watch.walk()?;
            let (walks, maps) = (hmm::walks(), dma::maps());
            mm::drop_pages(&pages(15, 1))?;
            ensure_eq!(watch.get_with(env, &ctx, &mut walk), Err(EAGAIN));
            ensure_eq!(hmm::walks(), walks);
            ensure_eq!(dma::maps(), maps);
            ensure!(!watch.pages()[0].is_valid());
            // The old result is dropped, so that the next attempt walks again.
            watch.get_with(env, &ctx, &mut walk)?;
            ensure_eq!(hmm::walks(), walks + 1);
            ensure!(watch.pages()[0].is_valid());
            Ok(())
        })
    }

    #[test]
    fn a_look_for_something_else_is_not_used() -> Result {
        with_device(|env| {
            let span = pages(0, 32);
            mm::map(&span, Prot::Write)?;
            let watch = Watch::new(env, pages(0, 16))?;
            let ctx = Ctx::new(Access::Write);
            let mut walk = watch.walk()?;
            let no_owner = core::ptr::null_mut();
            ensure!(walk.answers(&pages(0, 16), HmmRequest::Write, no_owner));
            ensure!(walk.answers(&pages(0, 16), HmmRequest::Read, no_owner));
            ensure!(!walk.answers(&pages(0, 8), HmmRequest::Write, no_owner));
            ensure!(!walk.answers(&pages(16, 16), HmmRequest::Write, no_owner));
            let other = (&raw const *watch).cast_mut().cast();
            ensure!(!walk.answers(&pages(0, 16), HmmRequest::Write, other));
            walk.forget();
            ensure!(!walk.answers(&pages(0, 16), HmmRequest::Read, no_owner));
            ensure!(walk.pfns().is_empty());
            watch.get_with(env, &ctx, &mut walk)?;

            // The result of a walk for reading is not used for writing if pages are not writable.
            watch.unmap();
            mm::drop_pages(&span)?;
            let mut walk = Walk::new();
            // SAFETY: The notifier is inserted, and the process has users.
            unsafe { walk.fault(&watch.mmu, &pages(0, 16), HmmRequest::Read, no_owner, 1000) }?;
            ensure!(walk.answers(&pages(0, 16), HmmRequest::Read, no_owner));
            ensure!(!walk.answers(&pages(0, 16), HmmRequest::Write, no_owner));
            watch.get_with(env, &ctx, &mut walk)?;
            Ok(())
        })
    }

    #[test]
    fn a_huge_page_takes_little_memory() -> Result {
        with_device(|env| {
            let span = pages(0, 512);
            mm::map_huge(&span)?;
            mm::fill(&span)?;
            let watch = Watch::new(env, span.clone())?;
            watch.get(env)?;
            ensure_eq!(dma::maps(), 1);
            ensure_eq!(dma::mapped(), LARGE as i64);
            // This is all memory for a device's mapping of 2 MiB.
            ensure!(watch.memory()? + size_of::<Pages>() < 256);

            // The memory is proportional to the segments: 512 pages have an entry each.
            drop(watch);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let watch = Watch::new(env, span)?;
            watch.get(env)?;
            ensure_eq!(watch.memory()?, 512 * 16);
            Ok(())
        })
    }

    #[test]
    fn memory_that_cannot_be_had_maps_nothing() -> Result {
        with_devices(2, |env| {
            let file = mm::File::new(15)?;
            file.map_shared(&pages(0, 16), Prot::Write)?;
            let watch = Watch::new(env, pages(0, 16))?;
            ensure_eq!(watch.get(env), Err(EFAULT));
            ensure_eq!(dma::maps(), 0);
            let (front, back) = (pages(0, 15), pages(15, 1));
            mm::map(&back, Prot::Read)?;
            ensure_eq!(watch.get(env), Err(EPERM));
            mm::unmap(&back)?;
            ensure_eq!(watch.get(env), Err(EFAULT));
            mm::map(&back, Prot::Write)?;
            watch.get(env)?;
            ensure_eq!(dma::mapped(), 2 * MIDDLE as i64);
            ensure_eq!(front.len() + back.len(), 16 * PAGE_SIZE);
            Ok(())
        })
    }
}
