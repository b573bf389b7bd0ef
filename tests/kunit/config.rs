// SPDX-License-Identifier: GPL-2.0

//! Tests of the checks of a configuration.

use crate::fixture::{
    driver::{alive, Mirror, Vm},
    with_device,
    Env,
    CONFIG,
    LARGE,
    MIDDLE, //
};
use gpusvm::{
    svm::{GpuSvm, Ops},
    Config,
    Svm, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

fn refused(env: &Env, config: Config) -> Result {
    ensure_eq!(config.check(), Err(EINVAL));
    ensure_eq!(env.svm_with(config).err(), Some(EINVAL));
    ensure_eq!(alive(), (0, 0));
    Ok(())
}

fn accepted(env: &Env, config: Config) -> Result {
    ensure_eq!(config.check(), Ok(()));
    let svm = env.svm_with(config)?;
    // SAFETY: The test takes no lock of the core.
    let span = unsafe { svm.core() }.span();
    ensure_eq!(span, config.start..config.start + config.size);
    ensure_eq!(alive(), (1, 0));
    Ok(())
}

#[kunit_tests(gpusvm_config)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_together_is_accepted() -> Result {
        with_device(|env| {
            accepted(env, CONFIG)?;
            let page = PAGE_SIZE;
            accepted(
                env,
                Config {
                    start: 7 * page,
                    size: 3 * page,
                    notifier_size: LARGE,
                    ..CONFIG
                },
            )?;
            accepted(
                env,
                Config {
                    notifier_size: page,
                    chunk_sizes: &[PAGE_SIZE],
                    ..CONFIG
                },
            )?;
            // The largest SVM: its end is the largest `usize`.
            accepted(
                env,
                Config {
                    start: 1,
                    size: usize::MAX - 1,
                    ..CONFIG
                },
            )
        })
    }

    #[test]
    fn chunk_sizes_that_do_not_descend_to_a_page_are_refused() -> Result {
        with_device(|env| {
            const BAD: [&[usize]; 7] = [
                &[],
                &[LARGE, MIDDLE],
                &[PAGE_SIZE, MIDDLE],
                &[MIDDLE, MIDDLE, PAGE_SIZE],
                &[MIDDLE + PAGE_SIZE, PAGE_SIZE],
                &[PAGE_SIZE, PAGE_SIZE / 2],
                &[MIDDLE, 0, PAGE_SIZE],
            ];
            for chunk_sizes in BAD {
                refused(
                    env,
                    Config {
                        chunk_sizes,
                        ..CONFIG
                    },
                )?;
            }
            Ok(())
        })
    }

    #[test]
    fn notifiers_that_hold_no_chunk_are_refused() -> Result {
        with_device(|env| {
            for notifier_size in [0, PAGE_SIZE, LARGE / 2, LARGE + PAGE_SIZE, 3 * LARGE] {
                refused(
                    env,
                    Config {
                        notifier_size,
                        ..CONFIG
                    },
                )?;
            }
            Ok(())
        })
    }

    #[test]
    fn address_spaces_that_cannot_be_told_are_refused() -> Result {
        with_device(|env| {
            for (start, size) in [(0, 0), (1, usize::MAX), (usize::MAX, 1), (usize::MAX, 2)] {
                refused(
                    env,
                    Config {
                        start,
                        size,
                        ..CONFIG
                    },
                )?;
            }
            Ok(())
        })
    }

    #[test]
    fn a_driver_that_cannot_let_go_is_refused() -> Result {
        static NO_INVALIDATE: Ops = pin_init::zeroed();
        with_device(|env| {
            let init = GpuSvm::new(c"gpusvm_kunit", &env.mm, CONFIG, &NO_INVALIDATE);
            ensure_eq!(KBox::pin_init(init, GFP_KERNEL).err(), Some(EINVAL));
            Ok(())
        })
    }

    #[test]
    fn no_device_is_refused() -> Result {
        with_device(|env| {
            let init = Svm::<Mirror>::new(&env.mm, CONFIG, &[], Vm::new()?);
            ensure_eq!(KBox::pin_init(init, GFP_KERNEL).err(), Some(EINVAL));
            ensure_eq!(alive(), (0, 0));
            Ok(())
        })
    }
}
