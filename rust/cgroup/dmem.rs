// SPDX-License-Identifier: GPL-2.0

//! Charging device memory to cgroups.
//!
//! A driver registers its device's memory as a [`Region`]. A thread that allocates from it charges
//! the cgroup of the *calling thread* (the controller can charge no other), and holds a [`Charge`]
//! until the memory is freed. Without the controller each charge succeeds, and nothing is counted.
//!
//! C header: [`include/linux/cgroup_dmem.h`](srctree/include/linux/cgroup_dmem.h)

use crate::bindings as ext;
use core::{
    ffi::c_void,
    ptr::{null_mut, NonNull}, //
};
use kernel::{
    bindings,
    device::{Bound, Device},
    devres,
    error::{from_err_ptr, to_result},
    ffi::c_int,
    page::PAGE_SIZE,
    prelude::*,
    sync::{new_mutex, Arc, Mutex}, //
};

/// Bytes of a page.
const PAGE: u64 = PAGE_SIZE as u64;

/// How often [`Region::try_charge_pages`] starts again if the thread moves to another cgroup
/// meanwhile.
const MAX_TRIES: u32 = 8;

/// Whether the kernel has the controller.
pub const IS_CONTROLLED: bool = cfg!(CONFIG_CGROUP_DMEM);

/// A device's memory, registered with the controller until its [`Registration`] is dropped.
#[pin_data]
pub struct Region {
    /// The lock is held while memory is charged, so that the region is not unregistered meanwhile.
    #[pin]
    state: Mutex<State>,
}

#[derive(Clone, Copy)]
enum State {
    /// The kernel has no controller.
    Uncontrolled,
    Registered(NonNull<bindings::dmem_cgroup_region>),
    Unregistered,
}

// SAFETY: Regions may be used and unregistered by any thread.
unsafe impl Send for State {}

/// The reason why memory could not be charged.
#[derive(Debug)]
pub enum Refused {
    /// The limit of this pool, that of the cgroup or of an ancestor, was hit.
    Limit(Pool),
    /// Another error.
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

impl Region {
    /// Returns a region that is not registered yet.
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                state <- new_mutex!(State::Uncontrolled, "dmem::Region"),
            }),
            GFP_KERNEL,
        )
    }

    /// Unregisters the region, if it is registered, and waits for calls of [`Reclaim`]. Sleeps.
    fn unregister(&self) {
        let state = core::mem::replace(&mut *self.state.lock(), State::Unregistered);
        if let State::Registered(region) = state {
            // SAFETY: The region was registered, and with the state changed no thread charges it
            // any more. The call waits for `reclaim()` calls that run.
            unsafe { ext::dmem_cgroup_unregister_region(region.as_ptr()) }
        }
    }

    /// Charges `bytes` to the cgroup of the calling thread. Sleeps.
    ///
    /// Fails with `ENODEV` for a region that is not registered any more, and with `ENOMEM`.
    pub fn try_charge(&self, bytes: u64) -> Result<Charge, Refused> {
        let state = self.state.lock();
        Self::charge_locked(&state, bytes)
    }

    /// Like [`try_charge`](Self::try_charge), for a number of pages. Any part of the charge can be
    /// [taken](Charge::take), and uncharged separately. Fails with `EAGAIN`, too, if the thread
    /// moves between cgroups too often.
    ///
    /// The controller uncharges exactly the amounts that were charged. So this makes separate
    /// charges of 1, 2, 4 pages and so on, and one of the rest.
    pub fn try_charge_pages(&self, pages: u32) -> Result<Charge, Refused> {
        let state = self.state.lock();
        for _ in 0..MAX_TRIES {
            match Self::charge_pages_locked(&state, pages) {
                Err(Refused::Failed(EAGAIN)) => {}
                done => return done,
            }
        }
        Err(EAGAIN.into())
    }

    /// Like [`try_charge_pages`](Self::try_charge_pages), with the lock held and without retries.
    /// Fails with `EAGAIN` if the thread moves to another cgroup between two charges.
    fn charge_pages_locked(state: &State, pages: u32) -> Result<Charge, Refused> {
        let units = pages.max(1).ilog2();
        let rest = pages - ((1 << units) - 1);
        let mut charge = Self::charge_locked(state, u64::from(rest) * PAGE)?;
        for unit in (0..units).rev() {
            let mut more = Self::charge_locked(state, PAGE << unit)?;
            if more.pool != charge.pool {
                return Err(EAGAIN.into());
            }
            // INVARIANT: `charge` takes over the amount that `more` has charged.
            more.rest = 0;
            charge.units |= 1 << unit;
        }
        Ok(charge)
    }

    fn charge_locked(state: &State, bytes: u64) -> Result<Charge, Refused> {
        let region = match *state {
            State::Uncontrolled => return Ok(Charge::new(None, bytes)),
            State::Registered(region) => region,
            State::Unregistered => return Err(ENODEV.into()),
        };
        if bytes == 0 {
            return Ok(Charge::new(None, 0));
        }
        let (mut pool, mut limit) = (null_mut(), null_mut());
        // SAFETY: The region is registered, and stays so as long as the lock is held.
        let charged = to_result(unsafe {
            ext::dmem_cgroup_try_charge(region.as_ptr(), bytes, &mut pool, &mut limit)
        });
        match (charged, NonNull::new(limit)) {
            // INVARIANT: `bytes` were charged at once.
            (Ok(()), _) => Ok(Charge::new(NonNull::new(pool), bytes)),
            // INVARIANT: `dmem_cgroup_try_charge()` returns the limiting pool with references.
            (Err(_), Some(limit)) => Err(Refused::Limit(Pool(limit))),
            (Err(e), None) => Err(e.into()),
        }
    }
}

/// Frees memory of a region when a limit is lowered.
pub trait Reclaim: Send + Sync + 'static {
    /// Frees at least `bytes` that are charged to `limit` or below it, if it can; returns whether
    /// it freed any. May sleep.
    fn reclaim(&self, limit: &Pool, bytes: u64) -> Result<bool>;
}

/// Unregisters a region when it is dropped, which devres does when the device is unbound.
struct UnregisterOnUnbind(Arc<Region>);

impl Drop for UnregisterOnUnbind {
    fn drop(&mut self) {
        self.0.unregister();
    }
}

/// The registration of a region, until it is dropped or its device is unbound.
///
/// After that no memory can be charged any more, and no [`reclaim()`](Reclaim::reclaim) runs.
/// Existing charges stay until they are dropped.
///
/// # Invariants
///
/// `_reclaim` is the private data that the region was registered with.
pub struct Registration<R: Reclaim> {
    region: Arc<Region>,
    _reclaim: KBox<R>,
}

impl<R: Reclaim> Registration<R> {
    const OPS: ext::dmem_cgroup_ops = ext::dmem_cgroup_ops {
        reclaim: Some(Self::call),
    };

    /// Registers `size` bytes of `dev` under the name that DRM gives its regions,
    /// `drm/<device>/<name>`. Fails with `ENOMEM`. Sleeps.
    pub fn new_devm(dev: &Device<Bound>, name: &CStr, size: u64, reclaim: R) -> Result<Self> {
        let reclaim = KBox::new(reclaim, GFP_KERNEL)?;
        let region = Region::new()?;
        let data = core::ptr::from_ref(&*reclaim).cast_mut();
        // SAFETY: The names are copied. The operations are constant and take `data`, which lives
        // until the region is unregistered.
        let raw = from_err_ptr(unsafe {
            ext::dmem_cgroup_register_region(
                size,
                &Self::OPS,
                data.cast(),
                dev.name().as_char_ptr(),
                name.as_char_ptr(),
            )
        })?;
        if let Some(raw) = NonNull::new(raw) {
            *region.state.lock() = State::Registered(raw);
        }
        // INVARIANT: The region was registered with `data`, which points into the box.
        let this = Self {
            region: region.clone(),
            _reclaim: reclaim,
        };
        devres::register(dev, UnregisterOnUnbind(region), GFP_KERNEL)?;
        Ok(this)
    }

    /// Returns the region.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The controller's reclaim callback.
    ///
    /// # Safety
    ///
    /// Only the controller may call this, for a region that was registered with these operations.
    unsafe extern "C" fn call(
        pool: *mut ext::dmem_cgroup_pool_state,
        bytes: u64,
        data: *mut c_void,
    ) -> c_int {
        let Some(pool) = NonNull::new(pool) else {
            return EINVAL.to_errno();
        };
        // INVARIANT: The controller holds the references during the call; `ManuallyDrop` keeps
        // `Pool` from dropping them.
        let limit = core::mem::ManuallyDrop::new(Pool(pool));
        // SAFETY: `data` is the `R` that the region was registered with; unregistering waits for
        // this call.
        match unsafe { &*data.cast::<R>() }.reclaim(&limit, bytes) {
            Ok(true) => 0,
            Ok(false) => ENOSPC.to_errno(),
            Err(e) => e.to_errno(),
        }
    }
}

impl<R: Reclaim> Drop for Registration<R> {
    fn drop(&mut self) {
        self.region.unregister();
    }
}

/// The pool of a cgroup: its usage and limits of one region. A counted reference.
///
/// # Invariants
///
/// This owns a reference to the pool, and one to its cgroup.
#[derive(Debug)]
pub struct Pool(NonNull<ext::dmem_cgroup_pool_state>);

// SAFETY: Any thread may use and drop references to pools.
unsafe impl Send for Pool {}
// SAFETY: As above.
unsafe impl Sync for Pool {}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { ext::dmem_cgroup_pool_state_put(self.0.as_ptr()) }
    }
}

/// Memory that is charged to a cgroup. Dropping it, in any context, uncharges the memory.
///
/// # Invariants
///
/// If there is a pool, `1 << n` pages were charged to it separately for each bit `n` that is set in
/// `units`; and so were `rest` bytes, unless that is 0.
#[derive(Debug)]
#[must_use = "the memory is uncharged when this is dropped"]
pub struct Charge {
    pool: Option<NonNull<ext::dmem_cgroup_pool_state>>,
    units: u32,
    rest: u64,
}

impl Charge {
    /// Wraps a single charge of `bytes`.
    fn new(pool: Option<NonNull<ext::dmem_cgroup_pool_state>>, bytes: u64) -> Self {
        Self {
            pool,
            units: 0,
            rest: bytes,
        }
    }

    /// Returns the number of bytes that are charged.
    pub fn bytes(&self) -> u64 {
        u64::from(self.units) * PAGE + self.rest
    }

    /// Splits `bytes` off, as a separate charge.
    ///
    /// A charge [of pages](Region::try_charge_pages) can be split once at any number of pages; all
    /// that is left can always be taken. Returns `None`, and changes nothing, if the charge cannot
    /// be split so.
    pub fn take(&mut self, bytes: u64) -> Option<Self> {
        let rest = if bytes >= self.rest { self.rest } else { 0 };
        let left = bytes - rest;
        let units = u32::try_from(left / PAGE).ok()?;
        if left % PAGE != 0 || units & !self.units != 0 {
            return None;
        }
        // INVARIANT: Each separate charge is either in `self` or in the result.
        self.units &= !units;
        self.rest -= rest;
        Some(Self {
            pool: self.pool,
            units,
            rest,
        })
    }
}

// SAFETY: Any thread may uncharge memory.
unsafe impl Send for Charge {}
// SAFETY: A shared reference allows no changes.
unsafe impl Sync for Charge {}

impl Drop for Charge {
    fn drop(&mut self) {
        let Some(pool) = self.pool else { return };
        if self.rest != 0 {
            // SAFETY: By the type invariants.
            unsafe { ext::dmem_cgroup_uncharge(pool.as_ptr(), self.rest) }
        }
        while self.units != 0 {
            let unit = self.units.trailing_zeros();
            self.units &= self.units - 1;
            // SAFETY: By the type invariants.
            unsafe { ext::dmem_cgroup_uncharge(pool.as_ptr(), PAGE << unit) }
        }
    }
}

/// The reason for evicting memory.
#[derive(Clone, Copy, Debug)]
pub enum Want<'a> {
    /// The limit of this pool was hit: memory that is charged to it or below it must be freed.
    Limit(&'a Pool),
    /// The device has no free memory for this charge, which was made already.
    Room(&'a Charge),
    /// The device is going away: all of its memory is evicted.
    All,
}

/// Selects memory to evict, according to the limits and protections of the cgroups.
pub struct Chooser<'a> {
    want: Want<'a>,
    /// Ignore the `low` protections, which are best effort.
    ignore_low: bool,
    /// A victim was spared because of its `low` protection.
    hit_low: bool,
}

impl<'a> Chooser<'a> {
    /// Returns a chooser that respects all protections.
    pub fn new(want: Want<'a>) -> Self {
        Self {
            want,
            ignore_low: false,
            hit_low: false,
        }
    }

    /// Returns whether memory that is charged as `victim` may be evicted. Does not sleep.
    pub fn may_take(&mut self, victim: &Charge) -> bool {
        let Some(victim) = victim.pool else {
            return true;
        };
        match self.want {
            Want::All => true,
            Want::Limit(limit) => self.is_below(limit, victim),
            // Protections do not apply within one cgroup.
            Want::Room(charge) if charge.pool == Some(victim) => true,
            Want::Room(charge) => !self.is_protected(charge, victim),
        }
    }

    /// Returns whether `victim` counts towards the limit of `limit`, and is not protected from the
    /// other cgroups below it.
    fn is_below(&mut self, limit: &Pool, victim: NonNull<ext::dmem_cgroup_pool_state>) -> bool {
        // SAFETY: Both pools are valid; their references are held.
        unsafe {
            ext::dmem_cgroup_state_evict_valuable(
                limit.0.as_ptr(),
                victim.as_ptr(),
                self.ignore_low,
                &mut self.hit_low,
            )
        }
    }

    /// Returns whether `victim` is protected from the cgroup of `charge`.
    ///
    /// `dmem_cgroup_state_evict_valuable()` does not help here: it considers no cgroup protected if
    /// the common ancestor is the root, as it mostly is.
    fn is_protected(
        &mut self,
        charge: &Charge,
        victim: NonNull<ext::dmem_cgroup_pool_state>,
    ) -> bool {
        let pool = charge.pool.map_or(null_mut(), NonNull::as_ptr);
        // SAFETY: Both are pools of a registered region, or null; the charges hold references to
        // them.
        let ancestor = unsafe { ext::dmem_cgroup_get_common_ancestor(victim.as_ptr(), pool) };
        // SAFETY: The pools are valid, or null for the ancestor, and referenced.
        let (min, low) = unsafe {
            (
                ext::dmem_cgroup_below_min(ancestor, victim.as_ptr()),
                ext::dmem_cgroup_below_low(ancestor, victim.as_ptr()),
            )
        };
        // INVARIANT: `dmem_cgroup_get_common_ancestor()` returned the pool with references.
        drop(NonNull::new(ancestor).map(Pool));
        self.hit_low |= low && !min;
        min || (low && !self.ignore_low)
    }

    /// Returns whether the caller, which found no victim, should try again with the `low`
    /// protections ignored.
    pub fn try_harder(&mut self) -> bool {
        let harder = self.hit_low && !self.ignore_low;
        self.ignore_low |= harder;
        harder
    }
}
