// SPDX-License-Identifier: GPL-2.0

//! Charging device memory to cgroups.
//!
//! A device registers a [`Region`]; who allocates from it charges the cgroup of the *calling thread*,
//! there is no other, and has a [`Charge`] until the memory is given back. On a kernel without the
//! controller all is allowed, and nothing counted.
//!
//! C header: [`include/linux/cgroup_dmem.h`](srctree/include/linux/cgroup_dmem.h)

use crate::bindings as ext;
use core::{
    ffi::c_void,
    ptr::{null_mut, NonNull}, //
};
use kernel::{
    bindings,
    error::{from_err_ptr, to_result},
    ffi::c_int,
    page::PAGE_SIZE,
    prelude::*,
    sync::{new_mutex, Arc, Mutex}, //
};

/// Bytes of a page.
const PAGE: u64 = PAGE_SIZE as u64;

/// How often a charge in parts is begun anew since the thread has moved to another cgroup.
const MOVES: u32 = 8;

/// Whether there is a controller.
pub const IS_CONTROLLED: bool = cfg!(CONFIG_CGROUP_DMEM);

/// A device's memory, as the controller knows it; until its [`Registration`] ends.
#[pin_data]
pub struct Region {
    /// The lock is held to charge: what is registered is not unregistered meanwhile.
    #[pin]
    state: Mutex<State>,
}

#[derive(Clone, Copy)]
enum State {
    /// There is no controller.
    Free,
    Registered(NonNull<bindings::dmem_cgroup_region>),
    Gone,
}

// SAFETY: Regions may be used and unregistered by any thread.
unsafe impl Send for State {}

/// Why there is no charge.
#[derive(Debug)]
pub enum Refused {
    /// A limit was hit: that of the cgroup that this is of.
    Limit(Pool),
    /// Something else.
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

impl Region {
    /// One that is not registered yet.
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                state <- new_mutex!(State::Free, "dmem::Region"),
            }),
            GFP_KERNEL,
        )
    }

    /// Charges the cgroup of the calling thread. Sleeps.
    ///
    /// Fails with `ENODEV` for a region that is not registered any more, and `ENOMEM`.
    pub fn try_charge(&self, bytes: u64) -> Result<Charge, Refused> {
        let state = self.state.lock();
        Self::charge_locked(&state, bytes)
    }

    /// As [`try_charge`](Self::try_charge), for a number of pages, of which any part can be
    /// [taken](Charge::take) and given back by itself.
    ///
    /// The controller gives back just what was charged at once. So what is charged are 1, 2, 4 pages and so
    /// on, and the rest.
    pub fn try_charge_pages(&self, pages: u32) -> Result<Charge, Refused> {
        let state = self.state.lock();
        for _ in 0..MOVES {
            match Self::charge_pages_locked(&state, pages) {
                Err(Refused::Failed(EAGAIN)) => {}
                done => return done,
            }
        }
        Err(EAGAIN.into())
    }

    /// As [`try_charge_pages`](Self::try_charge_pages), with the lock held. Fails with `EAGAIN` if the thread
    /// moves to another cgroup in the middle of it.
    fn charge_pages_locked(state: &State, pages: u32) -> Result<Charge, Refused> {
        let units = pages.max(1).ilog2();
        let rest = pages - ((1 << units) - 1);
        let mut charge = Self::charge_locked(state, u64::from(rest) * PAGE)?;
        for unit in (0..units).rev() {
            let mut more = Self::charge_locked(state, PAGE << unit)?;
            if more.pool != charge.pool {
                return Err(EAGAIN.into());
            }
            // INVARIANT: What is charged by `more` is handed over.
            more.rest = 0;
            charge.units |= 1 << unit;
        }
        Ok(charge)
    }

    fn charge_locked(state: &State, bytes: u64) -> Result<Charge, Refused> {
        let region = match *state {
            State::Free => return Ok(Charge::new(None, bytes)),
            State::Registered(region) => region,
            State::Gone => return Err(ENODEV.into()),
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
            // INVARIANT: Just charged.
            (Ok(()), _) => Ok(Charge::new(NonNull::new(pool), bytes)),
            // INVARIANT: The reference was handed over.
            (Err(_), Some(limit)) => Err(Refused::Limit(Pool(limit))),
            (Err(e), None) => Err(e.into()),
        }
    }
}

/// Frees memory of a region when a limit is lowered.
pub trait Reclaim: Send + Sync + 'static {
    /// Frees at least `bytes` that are charged below `limit`, as far as that can be; returns whether it
    /// was any. May sleep.
    fn reclaim(&self, limit: &Pool, bytes: u64) -> Result<bool>;
}

/// The registration of a region. When it ends, no memory can be charged any more, and no
/// [`reclaim()`](Reclaim::reclaim) is under way; what is charged stays charged until it is given back.
///
/// # Invariants
///
/// `_reclaim` is what the region was registered with.
pub struct Registration<R: Reclaim> {
    region: Arc<Region>,
    _reclaim: KBox<R>,
}

impl<R: Reclaim> Registration<R> {
    const OPS: ext::dmem_cgroup_ops = ext::dmem_cgroup_ops {
        reclaim: Some(Self::call),
    };

    /// Registers `size` bytes under the name that DRM gives such regions, `drm/<device>/<name>`.
    /// Fails with `ENOMEM`. Sleeps.
    pub fn new(device: &CStr, name: &CStr, size: u64, reclaim: R) -> Result<Self> {
        let reclaim = KBox::new(reclaim, GFP_KERNEL)?;
        let region = Region::new()?;
        let data = core::ptr::from_ref(&*reclaim).cast_mut();
        // SAFETY: The names are copied. The operations are constant, and for `data`, which lives until
        // the region is unregistered.
        let raw = from_err_ptr(unsafe {
            ext::dmem_cgroup_register_region(
                size,
                &Self::OPS,
                data.cast(),
                device.as_char_ptr(),
                name.as_char_ptr(),
            )
        })?;
        if let Some(raw) = NonNull::new(raw) {
            *region.state.lock() = State::Registered(raw);
        }
        Ok(Self {
            region,
            _reclaim: reclaim,
        })
    }

    /// The region.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// # Safety
    ///
    /// To be called by the controller, for a region with these operations.
    unsafe extern "C" fn call(
        pool: *mut ext::dmem_cgroup_pool_state,
        bytes: u64,
        data: *mut c_void,
    ) -> c_int {
        let Some(pool) = NonNull::new(pool) else {
            return EINVAL.to_errno();
        };
        // INVARIANT: No reference is given back, as this is not dropped.
        let limit = core::mem::ManuallyDrop::new(Pool(pool));
        // SAFETY: What the region was registered with; unregistering waits for this call.
        match unsafe { &*data.cast::<R>() }.reclaim(&limit, bytes) {
            Ok(true) => 0,
            Ok(false) => ENOSPC.to_errno(),
            Err(e) => e.to_errno(),
        }
    }
}

impl<R: Reclaim> Drop for Registration<R> {
    fn drop(&mut self) {
        let state = core::mem::replace(&mut *self.region.state.lock(), State::Gone);
        if let State::Registered(region) = state {
            // SAFETY: It was registered, and nobody charges it any more. This waits for calls that are
            // under way.
            unsafe { ext::dmem_cgroup_unregister_region(region.as_ptr()) }
        }
    }
}

/// What a cgroup has of a region, with its limit. A counted reference.
///
/// # Invariants
///
/// This owns a reference to the pool, and one to its cgroup.
#[derive(Debug)]
pub struct Pool(NonNull<ext::dmem_cgroup_pool_state>);

// SAFETY: References to pools may be used and given back by any thread.
unsafe impl Send for Pool {}
// SAFETY: As above.
unsafe impl Sync for Pool {}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { ext::dmem_cgroup_pool_state_put(self.0.as_ptr()) }
    }
}

/// Memory that a cgroup has. Dropping it, in any context, gives it back.
///
/// # Invariants
///
/// If there is a pool, `1 << n` pages were charged to it by themselves for each bit `n` of `units`; and so
/// were `rest` bytes, unless that is 0.
#[derive(Debug)]
#[must_use = "what is dropped is charged no more"]
pub struct Charge {
    pool: Option<NonNull<ext::dmem_cgroup_pool_state>>,
    units: u32,
    rest: u64,
}

impl Charge {
    /// Of what was charged at once.
    fn new(pool: Option<NonNull<ext::dmem_cgroup_pool_state>>, bytes: u64) -> Self {
        Self {
            pool,
            units: 0,
            rest: bytes,
        }
    }

    /// How much is charged, in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.units) * PAGE + self.rest
    }

    /// Takes so many bytes away, as a charge by themselves; what is left stays.
    ///
    /// Of what was charged [in pages](Region::try_charge_pages) any number can be taken once, and all that is
    /// left. None, with nothing taken, if that cannot be.
    pub fn take(&mut self, bytes: u64) -> Option<Self> {
        let rest = if bytes >= self.rest { self.rest } else { 0 };
        let left = bytes - rest;
        let units = u32::try_from(left / PAGE).ok()?;
        if left % PAGE != 0 || units & !self.units != 0 {
            return None;
        }
        // INVARIANT: What was charged by itself is here or there.
        self.units &= !units;
        self.rest -= rest;
        Some(Self {
            pool: self.pool,
            units,
            rest,
        })
    }
}

// SAFETY: Memory may be given back by any thread.
unsafe impl Send for Charge {}
// SAFETY: Nothing is changed through a shared reference.
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

/// Why others' memory is wanted.
#[derive(Clone, Copy, Debug)]
pub enum Want<'a> {
    /// A limit was hit: some of those below it has to give.
    Limit(&'a Pool),
    /// There is no more of it, and this is charged already.
    Room(&'a Charge),
    /// It is about to be gone.
    All,
}

/// Chooses whose memory makes way, as the limits and protections of the cgroups say.
pub struct Chooser<'a> {
    want: Want<'a>,
    /// Protections that are no guarantee do not count.
    ignore_low: bool,
    /// Somebody was spared for one.
    hit_low: bool,
}

impl<'a> Chooser<'a> {
    /// Spares all who are protected.
    pub fn new(want: Want<'a>) -> Self {
        Self {
            want,
            ignore_low: false,
            hit_low: false,
        }
    }

    /// Whether memory that is charged as `victim` may have to make way. Does not sleep.
    pub fn may_take(&mut self, victim: &Charge) -> bool {
        let Some(victim) = victim.pool else {
            return true;
        };
        match self.want {
            Want::All => true,
            Want::Limit(limit) => self.is_below(limit, victim),
            // Within a cgroup there is nothing to weigh.
            Want::Room(charge) if charge.pool == Some(victim) => true,
            Want::Room(charge) => !self.is_protected(charge, victim),
        }
    }

    /// Whether a victim counts towards a limit, and is not protected from those who do as well.
    fn is_below(&mut self, limit: &Pool, victim: NonNull<ext::dmem_cgroup_pool_state>) -> bool {
        // SAFETY: Both pools are valid, and kept.
        unsafe {
            ext::dmem_cgroup_state_evict_valuable(
                limit.0.as_ptr(),
                victim.as_ptr(),
                self.ignore_low,
                &mut self.hit_low,
            )
        }
    }

    /// Whether a victim is protected from who has `charge`.
    ///
    /// What decides for limits does not do for this: of the root, which is what most have in common, it
    /// takes everybody for unprotected.
    fn is_protected(
        &mut self,
        charge: &Charge,
        victim: NonNull<ext::dmem_cgroup_pool_state>,
    ) -> bool {
        let pool = charge.pool.map_or(null_mut(), NonNull::as_ptr);
        // SAFETY: Both are pools of a region that is registered, or null; each is kept by its charge.
        let ancestor = unsafe { ext::dmem_cgroup_get_common_ancestor(victim.as_ptr(), pool) };
        // SAFETY: The pools are valid, or null for the first, and kept.
        let (min, low) = unsafe {
            (
                ext::dmem_cgroup_below_min(ancestor, victim.as_ptr()),
                ext::dmem_cgroup_below_low(ancestor, victim.as_ptr()),
            )
        };
        // INVARIANT: The reference was handed over.
        drop(NonNull::new(ancestor).map(Pool));
        self.hit_low |= low && !min;
        min || (low && !self.ignore_low)
    }

    /// Nobody could be chosen: whether another try is worth it, which spares less.
    pub fn try_harder(&mut self) -> bool {
        let harder = self.hit_low && !self.ignore_low;
        self.ignore_low |= harder;
        harder
    }
}
