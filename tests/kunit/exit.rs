// SPDX-License-Identifier: GPL-2.0

//! Tests of an SVM whose process exits.

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

/// Sets or clears the flag by which the OOM killer marks the address space of its victim.
fn set_oom_victim(mm: &Mm, is_victim: bool) {
    let flag = 1 << bindings::MMF_OOM_REAP_QUEUED;
    // SAFETY: The reference keeps the address space. The process runs only the test, so that no
    // other thread changes its flags.
    unsafe {
        let word = &raw mut (*mm.as_raw()).__bindgen_anon_1.flags.__mm_flags[0];
        if is_victim {
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

            set_oom_victim(&env.mm, true);
            let walks = kernel_ext::mm::hmm::walks();
            // A fault fails both at a range and where there is none.
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
            // No walk was made, which would have allocated pages for the process.
            ensure_eq!(kernel_ext::mm::hmm::walks(), walks);
            ensure_eq!(dma::mapped(), mapped);

            set_oom_victim(&env.mm, false);
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

            // The last user is dropped: the address space is freed.
            drop(process);
            ensure_eq!(dma::mapped(), 0);
            ensure_eq!(svm.vm().invalidations(), 1);
            let received = svm.vm().last();
            ensure!(received.locked);
            ensure_eq!(received.bound, 1);

            ensure_eq!(svm.find_vma_start(0..usize::MAX), None);
            let mut guard = svm.lock();
            let mut retry = Retry::bounded();
            let attempt = retry.next().ok_or(EINVAL)?;
            let mut found = guard.find(BASE).ok_or(EINVAL)?;
            ensure_eq!(found.scan(&attempt), ScanResult::Unpopulated);
            ensure_eq!(found.evict(&attempt), Err(EFAULT));
            let got = found.get(&Ctx::new(Access::Read), &attempt);
            // The caller must look up the range again, and finds none.
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
