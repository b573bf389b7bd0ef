// SPDX-License-Identifier: GPL-2.0

//! The debugfs files of a device, below `dri/<device>`:
//!
//! - `vms`: the VMs, each with its VMAs, its ranges and their state;
//! - `objects`: the numbers of objects, see [`objects`](crate::objects);
//! - `gt0/stats`: the counters, see [`stats`](crate::stats).

use crate::driver::Device;
use kernel::{
    prelude::*,
    seq_file::SeqFile,
    str::kstrtobool_bytes,
    sync::aref::ARef, //
};
use vxe_sim::debugfs::{Content, DebugfsFiles};

/// Creates the files of `dev`.
pub(crate) fn init(tree: &mut DebugfsFiles, dev: &Device) -> Result {
    tree.file(None, c"vms", Vms(dev.into()))?;
    tree.file(None, c"objects", ObjectsFile(dev.into()))?;
    let gt = tree.dir(c"gt0")?;
    tree.file(Some(gt), c"stats", StatsFile(dev.into()))
}

struct Vms(ARef<Device>);

#[vtable]
impl Content for Vms {
    fn show(&self, m: &SeqFile) -> Result {
        self.0.vms.show(m)
    }
}

struct ObjectsFile(ARef<Device>);

#[vtable]
impl Content for ObjectsFile {
    fn show(&self, m: &SeqFile) -> Result {
        self.0.objects.show(m);
        Ok(())
    }
}

struct StatsFile(ARef<Device>);

#[vtable]
impl Content for StatsFile {
    fn show(&self, m: &SeqFile) -> Result {
        self.0.stats.show(m);
        Ok(())
    }

    fn write(&self, text: &[u8]) -> Result {
        if kstrtobool_bytes(text)? {
            self.0.stats.reset();
        }
        Ok(())
    }
}
