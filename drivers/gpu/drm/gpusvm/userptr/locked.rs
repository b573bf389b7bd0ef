// SPDX-License-Identifier: GPL-2.0

//! A userptr whose mutex is held: its pages are got and committed.

use super::{Userptr, UserptrDriver};
use crate::{
    ctx::Ctx,
    get_pages::{self, Source},
    retry::Attempt,
    view::View, //
};
use kernel::{
    page::PAGE_SHIFT,
    prelude::*,
    sync::lock, //
};
use kernel_ext::{
    mm::{
        hmm::Walk,
        live_mm,
        zone_device::HUGE_PAGES, //
    },
    sched, //
};

/// A userptr whose mutex is held.
#[must_use = "the mutex is released when this is dropped"]
pub struct LockedUserptr<'a, D: UserptrDriver> {
    pub(super) userptr: &'a Userptr<D>,
    pub(super) _lock: lock::Guard<'a, (), lock::mutex::MutexBackend>,
}

impl<'a, D: UserptrDriver> LockedUserptr<'a, D> {
    /// Maps all pages for all devices, or none. Does nothing if they are mapped for the access
    /// already.
    ///
    /// Fails as [`Source::get`] does, but with `EAGAIN` for `EBUSY` while there is time for another
    /// attempt. `EFAULT` here also means that the process has no memory at one of the addresses.
    /// Pages that are mapped for reading only are revoked first if `ctx` asks for write access.
    pub fn get(&mut self, ctx: &Ctx, attempt: &Attempt<'_>) -> Result {
        let this = self.userptr;
        let core = &this.space.core;
        let upgrade = {
            let _lock = core.read_lock();
            this.is_mapped()
                // SAFETY: The notifier lock is held.
                && !this.pages().iter().all(|pages| unsafe { pages.is_valid_for(ctx.access) })
        };
        if upgrade {
            let _lock = core.notifier_lock().write();
            // SAFETY: The notifier lock is held for writing.
            unsafe { this.revoke_now() };
        }
        let mut walk = Walk::new();
        let result = self.fault_in(ctx, attempt, &mut walk).and_then(|()| {
            let source = Source {
                svm: core,
                mm: &this.mm,
                notifier: &this.notifier,
                span: this.span(),
            };
            // SAFETY: The mutex serializes all that map the pages, and the notifier lock is not
            // held. The notifier is inserted, and its callbacks unmap all pages with the notifier
            // lock held for writing. Pages that were valid for another access were revoked above.
            unsafe { source.get(this.pages(), ctx, attempt, &mut walk) }
        });
        match result {
            Err(EBUSY) if !attempt.is_last() => Err(EAGAIN),
            result => result,
        }
    }

    /// Faults in the pages of a large span, for a kernel thread, with a reference to the users of
    /// the mm for each huge page only; see [`live_mm`].
    fn fault_in(&self, ctx: &Ctx, attempt: &Attempt<'_>, walk: &mut Walk) -> Result {
        let this = self.userptr;
        let step = HUGE_PAGES << PAGE_SHIFT;
        if this.span.len() <= step || !sched::is_kernel_thread() || this.is_mapped() {
            return Ok(());
        }
        let mut at = this.span.start;
        while at < this.span.end {
            // Does not overflow: a quotient by a huge page.
            let end = (at / step + 1).saturating_mul(step).min(this.span.end);
            let mm = live_mm::get(&this.mm, (end - at) >> PAGE_SHIFT)?;
            // SAFETY: The notifier is inserted and includes the span, and the process has users.
            unsafe {
                walk.fault(
                    &this.notifier,
                    &(at..end),
                    ctx.access.into(),
                    ctx.owner(),
                    attempt.timeout(),
                )
            }?;
            drop(mm);
            sched::check_killed()?;
            at = end;
        }
        Ok(())
    }

    /// Calls `f` with the device addresses of the pages, in ascending order, a part of at most
    /// [`BATCH`](get_pages::BATCH) segments at a time, while they are valid. The notifier lock is
    /// held for reading during each call of `f`, and released in between, so that a thread that
    /// changes the CPU's mappings waits for a bounded time.
    ///
    /// Fails with `EAGAIN` if the pages are not valid, or not any more: then
    /// [`UserptrDriver::revoke`] has been called after the last call of `f`. Fails with the error of
    /// `f`; what `f` has mapped before stays mapped. `f` must not do what
    /// [`LockedRange::commit`](crate::LockedRange::commit) forbids.
    pub fn commit(&mut self, mut f: impl FnMut(View<'_>) -> Result) -> Result {
        let this = self.userptr;
        let (mut at, mut first) = (this.span.start, 0);
        while at < this.span.end {
            let lock = this.space.core.read_lock();
            if !this.is_mapped() {
                return Err(EAGAIN);
            }
            let part = first..first + get_pages::BATCH;
            // SAFETY: The notifier lock is held until the view is dropped, and all pages are valid.
            // They are those of the last batch: only the holder of the mutex maps others.
            let view = unsafe { View::part(at, this.pages(), part.clone()) }.ok_or(EAGAIN)?;
            at = view.span().end;
            first = part.end;
            f(view)?;
            drop(lock);
            sched::cond_resched();
        }
        Ok(())
    }

    /// Ends the GPU's use of the pages and unmaps them, as a change of the CPU's mappings does. For
    /// a driver's own reasons, and for tests.
    pub fn invalidate(&mut self) {
        let _lock = self.userptr.space.core.notifier_lock().write();
        // SAFETY: The notifier lock is held for writing.
        unsafe { self.userptr.revoke_now() };
    }

    /// Returns the userptr.
    pub fn userptr(&self) -> &'a Userptr<D> {
        self.userptr
    }
}
