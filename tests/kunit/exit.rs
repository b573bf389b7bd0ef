// SPDX-License-Identifier: GPL-2.0

//! The process exits before its SVM goes.

use crate::fixture::{
    dma,
    driver::{alive, fault},
    mm::{self, Prot},
    pages,
    thread::Thread,
    with_device,
    with_devices,
    BASE,
    CONFIG,
    MIDDLE, //
};
use gpusvm::{Access, Ctx, Retry, ScanResult};
use kernel::{bindings, mm::Mm, prelude::*};

/// Says, or says no more, that the OOM killer has chosen the process, as far as its memory tells.
fn choose(mm: &Mm, chosen: bool) {
    let flag = 1 << bindings::MMF_OOM_REAP_QUEUED;
    // SAFETY: The address space is there, and the word one of its own. Nobody else changes flags of
    // a process in which nothing but the test runs.
    unsafe {
        let word = &raw mut (*mm.as_raw()).__bindgen_anon_1.flags.__mm_flags[0];
        if chosen {
            *word |= flag;
        } else {
            *word &= !flag;
        }
    }
}

#[kunit_tests(gpusvm_exit)]
mod tests {
    use super::*;

    #[test]
    fn who_is_being_killed_is_served_no_more() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 64), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Write)?;
            let (mapped, far) = (dma::mapped(), pages(32, 1).start);

            choose(&env.mm, true);
            let walks = kernel_ext::mm::hmm::walks();
            // Neither where a range is, nor where none is.
            for addr in [BASE, far] {
                ensure_eq!(fault(&svm, addr, Access::Write).err(), Some(EFAULT));
            }
            ensure_eq!(svm.find_vma_start(0..usize::MAX), None);
            {
                let mut guard = svm.lock();
                let mut retry = Retry::bounded();
                let attempt = retry.next().ok_or(EINVAL)?;
                let mut found = guard.find(BASE).ok_or(EINVAL)?;
                let ctx = Ctx::new(Access::Write);
                ensure_eq!(found.get(&ctx, &attempt), Err(EFAULT));
                ensure_eq!(found.scan(&attempt), ScanResult::Unpopulated);
                ensure_eq!(found.evict(&attempt), Err(EFAULT));
            }
            // Nobody looked at its page tables, where memory would have come in.
            ensure_eq!(kernel_ext::mm::hmm::walks(), walks);
            ensure_eq!(dma::mapped(), mapped);

            choose(&env.mm, false);
            fault(&svm, far, Access::Write)?;
            ensure!(dma::mapped() > mapped);
            Ok(())
        })
    }

    #[test]
    fn a_process_that_exits_takes_its_memory_from_the_device() -> Result {
        with_devices(2, |env| {
            let process = mm::process()?;
            let span = pages(0, 16);
            Thread::spawn(&process, move || {
                mm::map(&span, Prot::Write)?;
                mm::fill(&span)
            })?
            .join()?;
            let svm = env.svm_of(&process, CONFIG)?;
            fault(&svm, BASE, Access::Write)?;
            ensure_eq!(dma::mapped(), 2 * MIDDLE as i64);

            // The process is gone.
            drop(process);
            ensure_eq!(dma::mapped(), 0);
            ensure_eq!(svm.vm().invalidations(), 1);
            let told = svm.vm().last();
            ensure!(told.locked);
            ensure_eq!(told.bound, 1);

            ensure_eq!(svm.find_vma_start(0..usize::MAX), None);
            let mut guard = svm.lock();
            let mut retry = Retry::bounded();
            let attempt = retry.next().ok_or(EINVAL)?;
            let mut found = guard.find(BASE).ok_or(EINVAL)?;
            ensure_eq!(found.scan(&attempt), ScanResult::Unpopulated);
            ensure_eq!(found.evict(&attempt), Err(EFAULT));
            let got = found.get(&Ctx::new(Access::Read), &attempt);
            // Look again, and see that there is nothing.
            ensure_eq!(got, Err(EAGAIN));
            drop(guard);
            ensure_eq!(fault(&svm, BASE, Access::Write).err(), Some(EFAULT));
            ensure_eq!(
                fault(&svm, pages(100, 1).start, Access::Read).err(),
                Some(EFAULT)
            );
            ensure_eq!(alive(), (1, 0));
            drop(svm);
            ensure_eq!(alive(), (0, 0));
            Ok(())
        })
    }
}
