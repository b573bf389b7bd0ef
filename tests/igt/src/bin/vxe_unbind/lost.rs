// SPDX-License-Identifier: GPL-2.0

//! A device is unbound, and there is no RAM for what lives in its memory: after ten seconds that is lost,
//! and the kernel says so.

use crate::works;
use std::{
    time::{Duration, Instant},
};
use vxe_igt::{
    kernel_log::KernelLog,
    klog::{Alarm, Expected},
    no_ram::NoRam,
    process::fork,
    sysfs::Slot,
    vram, Gpu, Map, SZ_2M,
};

/// How long the driver tries.
const PATIENCE: Duration = Duration::from_secs(10);

/// What it says then.
const LOST: &str = "a device goes with pages of processes in its memory";

fn pattern(offset: usize) -> u32 {
    offset as u32 ^ 0x105e_105e
}

/// The process that had it is told by a signal, and the device works again when it is back.
pub fn without_ram() {
    let slot = Slot::first();
    let no_ram = NoRam::new();
    let mut log = KernelLog::from_now();
    let child = fork(|link| {
        let gpu = Gpu::new();
        let map = Map::aligned(SZ_2M, SZ_2M);
        map.fill(pattern);
        vram::bring(&gpu, map);
        drop(gpu);
        link.send(1);
        link.receive();
        // It is lost: this ends here. Or it has come back all the same: then it is right.
        map.expect("after the device", pattern);
        link.send(2);
    });
    child.link().receive();
    let start = Instant::now();
    {
        let _expected = Expected::new(Alarm::LostPages);
        no_ram.during(|| slot.unbind());
    }
    let took = start.elapsed();
    assert!(took >= PATIENCE, "it gave up after {took:?}");
    assert_eq!(log.lines(LOST).len(), 1, "messages");
    child.link().send(1);
    let end = child.link().try_receive();
    assert!(end.is_err(), "what was lost can be read");
    let status = child.wait();
    assert!(
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS,
        "how the process learns of it: status {status:#x}"
    );
    slot.bind();
    works();
}
