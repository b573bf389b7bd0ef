// SPDX-License-Identifier: GPL-2.0

//! The debugfs files of a device, below `dri/<device>`, under the names of xe where it has such:
//!
//! - `vms`: the VMs, each with its VMAs, its ranges and their state;
//! - `objects`: the numbers of objects, see [`objects`](crate::objects);
//! - `info`: what the device is;
//! - `gtt_mm`, `tile0/vram_mm`: the memory regions;
//! - `forcewake_all`: to be held open by those who need the device awake;
//! - `tile0/gt0/stats`: the counters, see [`stats`](crate::stats);
//! - `tile0/gt0/hw_engines`: the engines;
//! - `tile0/gt0/pat_sw_config`: the page attribute table, see [`pat`](crate::pat).

use crate::{
    driver::{
        Device,
        REVISION,
        VA_BITS, //
    },
    gpu::timestamp,
    pat,
    query::IP_VERSION,
    region::{
        Region,
        RegionKind, //
    }, //
};
use kernel::{
    prelude::*,
    seq_file::{
        seq_print,
        SeqFile, //
    },
    str::kstrtobool_bytes,
    sync::aref::ARef, //
};
use vxe_sim::debugfs::{Content, DebugfsFiles};

/// Creates the files of `dev`.
pub(crate) fn init(tree: &mut DebugfsFiles, dev: &Device) -> Result {
    let text = |show| Text {
        dev: dev.into(),
        show,
    };
    tree.file(None, c"vms", text(|dev, m| dev.vms.show(m)))?;
    tree.file(None, c"objects", text(objects))?;
    tree.file(None, c"info", text(info))?;
    tree.file(None, c"gtt_mm", text(system_memory))?;
    tree.file(None, c"forcewake_all", text(forcewake))?;
    let tile = tree.dir(None, c"tile0")?;
    if dev.regions.has_vram() {
        tree.file(Some(tile), c"vram_mm", text(device_memory))?;
    }
    let gt = tree.dir(Some(tile), c"gt0")?;
    tree.file(Some(gt), c"stats", StatsFile(dev.into()))?;
    tree.file(Some(gt), c"hw_engines", text(engines))?;
    tree.file(Some(gt), c"pat_sw_config", text(page_attributes))?;
    // Programs that were written for older versions of xe look for it there.
    tree.link(c"gt0", c"tile0/gt0")
}

/// A file that is only read.
struct Text {
    dev: ARef<Device>,
    show: fn(&Device, &SeqFile) -> Result,
}

#[vtable]
impl Content for Text {
    fn show(&self, m: &SeqFile) -> Result {
        (self.show)(&self.dev, m)
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

fn objects(dev: &Device, m: &SeqFile) -> Result {
    dev.objects.show(m);
    Ok(())
}

/// Prints what the device is, a key of xe and its value on each line. xe's other keys are about
/// firmware, power management, and numbers of its own for platforms.
fn info(dev: &Device, m: &SeqFile) -> Result {
    let yes_no = |is| if is { "yes" } else { "no" };
    let (major, minor, _) = IP_VERSION;
    seq_print!(m, "graphics_verx100 {}\n", major * 100 + minor);
    // There are no media engines.
    seq_print!(m, "media_verx100 0\n");
    seq_print!(m, "is_dgfx {}\n", yes_no(dev.regions.has_vram()));
    seq_print!(m, "devid {:#x}\n", dev.device_id);
    seq_print!(m, "revid {REVISION}\n");
    seq_print!(m, "tile_count 1\n");
    // A table of each level translates 9 bits, and those of level 0 pages of 12 bits.
    seq_print!(m, "vm_max_level {}\n", (VA_BITS - 12) / 9 - 1);
    seq_print!(m, "has_flat_ccs {}\n", yes_no(false));
    // Faults.
    seq_print!(m, "has_usm {}\n", yes_no(true));
    // A queue runs on one engine at a time, and there are no groups of queues.
    seq_print!(m, "multi_lrc_engine_classes none\n");
    seq_print!(m, "gt0 engines bcs0\n");
    seq_print!(m, "gt0 multi_queue_engine_classes none\n");
    Ok(())
}

fn system_memory(dev: &Device, m: &SeqFile) -> Result {
    memory(dev, m, RegionKind::System)
}

fn device_memory(dev: &Device, m: &SeqFile) -> Result {
    memory(dev, m, RegionKind::Vram)
}

/// Prints the size and the usage of memory regions, in bytes.
fn memory(dev: &Device, m: &SeqFile, kind: RegionKind) -> Result {
    let of_kind = |region: &&Region| region.kind() == kind;
    for region in dev.regions.iter().filter(of_kind) {
        seq_print!(m, "  size: {}\n", region.total());
        seq_print!(m, "  usage: {}\n", region.used());
    }
    Ok(())
}

fn forcewake(_: &Device, m: &SeqFile) -> Result {
    // Those who hold the file open have what they ask for.
    seq_print!(m, "the device is always awake\n");
    Ok(())
}

/// Prints the one engine that programs see, and the engines that run its queues.
fn engines(dev: &Device, m: &SeqFile) -> Result {
    let engines = &dev.queues.engines;
    seq_print!(m, "bcs0 (physical), logical instance=0\n");
    seq_print!(m, "\tengines: {}\n", engines.count());
    seq_print!(m, "\tidle: {}\n", engines.list().idle());
    seq_print!(m, "\tRING_TIMESTAMP: {:#x}\n", timestamp());
    Ok(())
}

fn page_attributes(_: &Device, m: &SeqFile) -> Result {
    pat::show(m);
    Ok(())
}
