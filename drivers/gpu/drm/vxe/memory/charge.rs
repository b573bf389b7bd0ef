// SPDX-License-Identifier: GPL-2.0

//! What the device's memory is charged to: the `dmem` cgroup of whoever has it.
//!
//! The region is called as with xe, `drm/<device>/vram0`. When a limit is lowered below what is in use,
//! blocks of that cgroup make way; buffers stay.

use super::Want;
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

/// Has those who are above a limit give way. It keeps the device, until the registration ends.
pub(super) struct Limits(ARef<Device>);

impl Reclaim for Limits {
    fn reclaim(&self, limit: &Pool, bytes: u64) -> Result<bool> {
        let memory = &self.0.memory;
        let newest = memory.residents.newest();
        let mut freed = 0;
        while freed < bytes && sched::check_killed().is_ok() {
            match memory.evict_next(&self.0, newest, true, Want::Limit(limit)) {
                Some(Ok(evicted)) => freed += evicted,
                // Nothing can go without system memory; else it is the next one's turn.
                Some(Err(e)) if e == ENOMEM && freed == 0 => return Err(e),
                Some(Err(e)) if e == ENOMEM => break,
                Some(Err(_)) => {}
                None => break,
            }
        }
        Ok(freed != 0)
    }
}

/// Makes the controller know the memory. Fails with `ENOMEM`.
pub(super) fn register(
    parent: &device::Device<Bound>,
    dev: &Device,
    vram: &Vram,
) -> Result<Registration<Limits>> {
    Registration::new(parent.name(), c"vram0", vram.size(), Limits(dev.into()))
}
