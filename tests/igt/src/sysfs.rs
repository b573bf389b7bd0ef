// SPDX-License-Identifier: GPL-2.0

//! The hand of the administrator: devices are unbound from their driver and bound again.

use crate::skip;
use std::{fs, io, path::Path};

/// The driver's directory.
const DRIVER: &str = "/sys/bus/platform/drivers/vxe";

/// A platform device, which is bound again when this goes.
pub struct Slot(&'static str);

impl Slot {
    /// The first device, bound. Skips the subtest if there is none, or no right to unbind it.
    #[track_caller]
    pub fn first() -> Self {
        let slot = Self("vxe.0");
        if !Path::new("/sys/bus/platform/devices").join(slot.0).exists() {
            skip!("there is no device {}", slot.0);
        }
        slot.bind();
        slot
    }

    /// Whether a driver has it.
    pub fn is_bound(&self) -> bool {
        Path::new(DRIVER).join(self.0).exists()
    }

    fn write(&self, file: &str) -> io::Result<()> {
        fs::write(Path::new(DRIVER).join(file), self.0)
    }

    /// Unbinds it, and returns when that is done.
    #[track_caller]
    pub fn unbind(&self) {
        match self.write("unbind") {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => skip!("unbind: {e}"),
            Err(e) => panic!("unbind: {e}"),
        }
        assert!(!self.is_bound(), "still bound");
    }

    /// Binds it, unless it is bound.
    #[track_caller]
    pub fn bind(&self) {
        if !self.is_bound() {
            self.write("bind").expect("bind");
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.is_bound() {
            // The next test says so if it fails.
            let _ = self.write("bind");
        }
    }
}
