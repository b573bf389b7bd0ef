// SPDX-License-Identifier: GPL-2.0

//! Charging of the device's memory to `dmem` cgroups.
//!
//! The region is named as xe's, `drm/<device>/vram0`. When the limit of a cgroup is lowered below
//! its usage, buffers of that cgroup whose contents nobody needs are purged, and then blocks and
//! buffers are evicted.

use super::{
    Policy,
    Victims,
    Want, //
};
use crate::{
    driver::Device,
    vram::Vram, //
};
use kernel::{
    device::{
        self,
        Bound, //
    },
    prelude::*,
    sync::aref::ARef, //
};
use kernel_ext::{
    cgroup::dmem::{
        Pool,
        Reclaim,
        Registration, //
    },
    sched, //
};

/// Frees memory above a limit. Holds a reference to the device until it is unregistered.
pub(super) struct Limits(ARef<Device>);

impl Reclaim for Limits {
    fn reclaim(&self, limit: &Pool, bytes: u64) -> Result<bool> {
        let mut victims = Victims::new(&self.0, &Policy::RECLAIM);
        let mut freed = 0;
        while freed < bytes && sched::check_killed().is_ok() {
            match victims.free_next(Want::Limit(limit)) {
                Some(Ok(bytes)) => freed += bytes,
                // Without system memory no block can be evicted; after any other error the next one
                // may be.
                Some(Err(e)) if e == ENOMEM && freed == 0 => return Err(e),
                Some(Err(e)) if e == ENOMEM => break,
                Some(Err(_)) => {}
                None => break,
            }
        }
        Ok(freed != 0)
    }
}

/// Registers the memory with the dmem controller. Fails with `ENOMEM`.
pub(super) fn register(
    parent: &device::Device<Bound>,
    dev: &Device,
    vram: &Vram,
) -> Result<Registration<Limits>> {
    Registration::new_devm(parent, c"vram0", vram.size(), Limits(dev.into()))
}
