// SPDX-License-Identifier: GPL-2.0

//! Whether the devices still do what they should, after all that was done to them.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};
use vxe_client::{Batch, Device, Error, ExecQueue, Vm};

/// How long devices may be gone for a moment.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a small job on a device of each number that there was at the start; says which did not do it.
pub fn check(devices: &[usize]) -> Result<(), String> {
    for device in devices {
        let start = Instant::now();
        loop {
            match job(*device) {
                Ok(42) => break,
                Ok(other) => return Err(format!("device {device} answers {other}, not 42")),
                // It may be unbound just now; by a program that was killed, too.
                Err(e) if start.elapsed() > PATIENCE => {
                    return Err(format!("device {device}: {e}"))
                }
                Err(_) => {
                    crate::calls::bind_all();
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }
    Ok(())
}

/// The numbers of the devices that are there.
pub fn devices() -> usize {
    (0..16).filter(|n| Device::open_path(format!("/dev/dri/card{n}")).is_ok()).count()
}

/// A device that was bound again has another number than before if somebody holds its old node.
fn job(number: usize) -> Result<u32, Error> {
    let all = (0..16).filter_map(|n| Device::open_path(format!("/dev/dri/card{n}")).ok());
    let device = all.into_iter().nth(number).ok_or(Error::new("open of a device", libc::ENODEV))?;
    let queue = ExecQueue::new(&Vm::mirrored(&device)?)?;
    let answer = AtomicU32::new(0);
    let mut batch = Batch::new();
    batch.store(&answer, 41).increment(&answer);
    queue.run(&batch)?;
    Ok(answer.load(Relaxed))
}
