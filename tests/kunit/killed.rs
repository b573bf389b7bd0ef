// SPDX-License-Identifier: GPL-2.0

//! Tests of workers that wait for a lock of the process, and are killed.

use crate::fixture::{
    driver::{fault, Mirror},
    mm::{self, Prot},
    pages,
    thread::{sleep_ms, Thread},
    with_device,
    BASE,
    MIDDLE, //
};
use gpusvm::{Access, Svm};
use kernel::{
    bindings,
    mm::Mm,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Release},
        Arc, //
    }, //
};
use kernel_ext::sched::Killable;

/// How long a killed worker may take to end, in milliseconds.
const END_MS: u32 = 2000;

/// The mmap lock of a process, held for writing. The holder changes no VMA.
struct WriteLocked<'a>(&'a Mm);

impl<'a> WriteLocked<'a> {
    fn new(mm: &'a Mm) -> Self {
        // SAFETY: The reference keeps the `mm_struct`; the lock is initialized.
        unsafe { bindings::down_write(Self::lock(mm)) };
        Self(mm)
    }

    fn lock(mm: &Mm) -> *mut bindings::rw_semaphore {
        // SAFETY: The reference keeps the `mm_struct`; no reference is made.
        unsafe { &raw mut (*mm.as_raw()).__bindgen_anon_1.mmap_lock }
    }
}

impl Drop for WriteLocked<'_> {
    fn drop(&mut self) {
        // SAFETY: `new()` took the lock, in this thread.
        unsafe { bindings::up_write(Self::lock(self.0)) }
    }
}

/// A worker that serves a fault, and its result.
#[pin_data]
struct Worker {
    svm: Pin<KBox<Svm<Mirror>>>,
    #[pin]
    call: Killable,
    /// The error, or 0.
    result: Atomic<i32>,
    done: Atomic<bool>,
}

#[kunit_tests(gpusvm_killed)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_waits_for_the_mmap_lock() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 64), Prot::Write)?;
            mm::fill(&pages(0, 64))?;
            // Where there is no notifier of the process yet, at a range, and where there is none in a
            // notifier.
            for (addr, is_first) in [(BASE, true), (BASE, false), (BASE + 2 * MIDDLE, false)] {
                let worker = Arc::pin_init(
                    try_pin_init!(Worker {
                        svm: env.svm()?,
                        call <- Killable::new(),
                        result: Atomic::new(0),
                        done: Atomic::new(false),
                    }? Error),
                    GFP_KERNEL,
                )?;
                if !is_first {
                    fault(&worker.svm, BASE, Access::Read)?;
                }
                let locked = WriteLocked::new(&env.mm);
                let at_work = worker.clone();
                let thread = Thread::spawn(&env.mm, move || {
                    let served = at_work.call.run(|| fault(&at_work.svm, addr, Access::Read));
                    let error = served.err().map_or(0, Error::to_errno);
                    at_work.result.store(error, Release);
                    at_work.done.store(true, Release);
                    Ok(())
                })?;
                while !worker.call.is_running() {
                    sleep_ms(1);
                }
                sleep_ms(20);
                let early = worker.done.load(Acquire);
                worker.call.kill();
                for _ in 0..END_MS {
                    if worker.done.load(Acquire) {
                        break;
                    }
                    sleep_ms(1);
                }
                let ended = worker.done.load(Acquire);
                drop(locked);
                thread.join()?;
                ensure!(!early);
                ensure!(ended);
                ensure_eq!(worker.result.load(Acquire), EINTR.to_errno());
            }
            Ok(())
        })
    }
}
