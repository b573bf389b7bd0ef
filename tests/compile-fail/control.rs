// ok
// SPDX-License-Identifier: GPL-2.0

//! All of it as it is meant: this compiles, and so what fails elsewhere fails for its own reason.

mod common;

use common::{Mirror, CONFIG};
use gpusvm::{
    pagemap::{cache::Lookup as Cached, Cache, Member, PagemapRef, Shrinker},
    Access, Ctx, DmaDevice, DrmDevice, Guard, LockedRange, Retry, Stale, Svm,
};
use kernel::{
    device::{Bound, Device},
    mm::Mm,
    prelude::*,
    sync::Arc,
};

pub fn devices(dev: &Device<Bound>, drm: &DrmDevice) -> Result<(Arc<DmaDevice>, Arc<Cache>)> {
    let shrinker = Shrinker::new_devm(dev, drm)?;
    Ok((
        DmaDevice::new_devm(dev, drm)?,
        Cache::new_devm(dev, drm, &shrinker)?,
    ))
}

pub fn mirror(mm: &Mm, devices: &[Arc<DmaDevice>]) -> Result<Pin<KBox<Svm<Mirror>>>> {
    KBox::pin_init(Svm::new(mm, CONFIG, devices, ()), GFP_KERNEL)
}

pub fn fault(svm: &Svm<Mirror>, addr: usize, peers: &Member<()>) -> Result<u64> {
    let ctx = Ctx::new(Access::Write).with_owner(Some(peers.owner()));
    let mut guard = svm.lock();
    let mut retry = Retry::bounded();
    while let Some(mut attempt) = retry.next() {
        guard.collect_garbage();
        let mut found = guard.find_or_insert(addr, 0..CONFIG.size, &ctx, &attempt)?;
        match found.get(&ctx, &attempt) {
            Err(EFAULT) if attempt.narrow(addr, found.span()) => continue,
            done => done?,
        }
        match found.commit(|view, range| {
            (
                view.segments().map(|segment| segment.addr).min(),
                range.size(),
            )
        }) {
            Ok((first, _)) => return first.ok_or(EINVAL),
            Err(Stale) => continue,
        }
    }
    Err(Retry::spent())
}

pub fn one_after_the_other(guard: &mut Guard<'_, Mirror>) {
    if let Some(found) = guard.find(0) {
        found.remove();
    }
    let found: Option<LockedRange<'_, '_, Mirror>> = guard.find(4096);
    drop(found);
    guard.remove_all(0..CONFIG.size);
}

pub fn fill(cache: &Arc<Cache>, make: impl FnOnce() -> Result<PagemapRef>) -> Result {
    match cache.lookup()? {
        Cached::Pagemap(pagemap) => drop(pagemap),
        Cached::Vacant(vacant) => vacant.fill(&make()?)?,
    }
    Ok(())
}
