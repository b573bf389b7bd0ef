// SPDX-License-Identifier: GPL-2.0

//! Tests of the devices that are accepted, and of unbinding the device of an SVM.

use crate::{
    fixture::{
        device::Device,
        dma,
        driver::{alive, fault, Mirror, Vm},
        mm::{self, Prot},
        pages,
        with_device,
        with_devices,
        Env,
        BASE,
        CONFIG,
        MIDDLE, //
    },
    LocalModule, //
};
use gpusvm::{Access, Ctx, DmaDevice, Retry, Stale, Svm};
use kernel::{
    bindings,
    module::this_module,
    prelude::*,
    sync::Arc, //
};

/// Returns an SVM whose ranges are mapped for `devices`.
fn svm_for(env: &Env, devices: &[&Device]) -> Result<Pin<KBox<Svm<Mirror>>>> {
    let mut all: KVec<Arc<DmaDevice>> = KVec::new();
    for device in devices {
        all.push(device.dma().clone(), GFP_KERNEL)?;
    }
    KBox::pin_init(
        Svm::<Mirror>::new(&env.mm, CONFIG, &all, Vm::new()?),
        GFP_KERNEL,
    )
}

/// Returns the number of references to this module.
fn module_refs() -> i32 {
    // SAFETY: This is code of the module, which is loaded.
    unsafe { bindings::module_refcount(this_module::<LocalModule>().as_ptr()) }
}

#[kunit_tests(gpusvm_dma_device)]
mod tests {
    use super::*;

    #[test]
    fn unbinding_unmaps_what_a_live_svm_has() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let unbound = Device::new(1)?;
            let svm = svm_for(env, &[env.device(), &unbound])?;
            // SAFETY: `Vm` takes the notifier lock by `down_read_trylock()` only, and releases it
            // at once.
            svm.vm().attach(unsafe { svm.core() });
            fault(&svm, BASE, Access::Write)?;
            ensure_eq!(dma::mapped(), 2 * MIDDLE as i64);

            // Unbinding the device shuts the SVM.
            let dma = unbound.dma().clone();
            drop(unbound);
            ensure_eq!(dma::mapped(), 0);
            ensure_eq!(
                (svm.vm().invalidations(), svm.vm().last().locked),
                (1, true)
            );
            {
                // The range still exists, but cannot be mapped.
                let mut guard = svm.lock();
                let mut found = guard.find(BASE).ok_or(EINVAL)?;
                ensure_eq!(found.commit(|_, _| ()), Err(Stale));
                let mut retry = Retry::bounded();
                let attempt = retry.next().ok_or(EINVAL)?;
                ensure_eq!(found.get(&Ctx::new(Access::Read), &attempt), Err(EFAULT));
            }
            ensure_eq!(fault(&svm, BASE, Access::Write).err(), Some(EFAULT));
            ensure_eq!(dma::mapped(), 0);
            // A new SVM cannot map for the unbound device either.
            let devices = [env.device().dma().clone(), dma];
            let init = Svm::<Mirror>::new(&env.mm, CONFIG, &devices, Vm::new()?);
            ensure_eq!(KBox::pin_init(init, GFP_KERNEL).err(), Some(ENODEV));
            ensure_eq!(alive().0, 1);
            drop(svm);
            // The other device is still usable.
            fault(&*env.svm()?, BASE, Access::Write)?;
            Ok(())
        })
    }

    #[test]
    fn many_svms_of_a_device_that_goes() -> Result {
        with_devices(0, |env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let unbound = Device::new(0)?;
            let mut svms = KVec::new();
            for _ in 0..8 {
                let svm = svm_for(env, &[&unbound])?;
                fault(&svm, BASE, Access::Write)?;
                svms.push(svm, GFP_KERNEL)?;
            }
            // Two SVMs are dropped before the device is unbound: one from the middle of the list,
            // and the last one.
            drop((svms.remove(3), svms.pop()));
            ensure_eq!(dma::mapped(), 6 * MIDDLE as i64);
            drop(unbound);
            ensure_eq!(dma::mapped(), 0);
            Ok(())
        })
    }

    #[test]
    fn an_svm_keeps_its_drivers_module() -> Result {
        with_device(|env| {
            let before = module_refs();
            let svm = env.svm()?;
            ensure_eq!(module_refs(), before + 1);
            drop(svm);
            ensure_eq!(module_refs(), before);
            Ok(())
        })
    }

    #[test]
    fn a_device_that_does_not_reach_all_memory_is_refused() -> Result {
        with_device(|env| {
            let device = env.device();
            // The guest has memory above 4 GiB.
            device.set_mask(32)?;
            let refused = DmaDevice::new_devm(device.parent()?, device.drm()).err();
            device.set_mask(64)?;
            ensure_eq!(refused, Some(EOPNOTSUPP));
            DmaDevice::new_devm(device.parent()?, device.drm())?;
            Ok(())
        })
    }

    #[test]
    fn a_device_that_sits_on_another_is_refused() -> Result {
        with_devices(2, |env| {
            let dma = DmaDevice::new_devm(env.devices[0].parent()?, env.devices[1].drm());
            ensure_eq!(dma.err(), Some(EINVAL));
            Ok(())
        })
    }
}
