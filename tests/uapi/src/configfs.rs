// SPDX-License-Identifier: GPL-2.0

//! The devices that a user makes at run time, in configfs.

use crate::{skip, sysfs::Slot};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use vxe_client::Device;

/// Where configfs is mounted.
const ROOT: &str = "/sys/kernel/config";

/// The directory in which a module's configurations are, with configfs mounted. Skips the subtest without
/// configfs, or the right to mount it.
#[track_caller]
pub fn subsystem(module: &str) -> PathBuf {
    let path = Path::new(ROOT).join(module);
    if !path.exists() {
        // SAFETY: all arguments are C strings.
        let result = unsafe {
            let (kind, at) = (c"configfs".as_ptr(), c"/sys/kernel/config".as_ptr());
            libc::mount(kind, at, kind, 0, std::ptr::null())
        };
        // Another subtest may have mounted it meanwhile.
        let error = io::Error::last_os_error();
        if result != 0 && error.raw_os_error() != Some(libc::EBUSY) {
            skip!("configfs: {error}");
        }
    }
    if !path.exists() {
        skip!("there is no {}", path.display());
    }
    path
}

/// A configuration: the directory goes with this, and its device with that.
pub struct Configuration {
    path: PathBuf,
    is_there: bool,
}

impl Configuration {
    /// Makes one of the first driver.
    #[track_caller]
    pub fn make(name: &str) -> Self {
        Self::make_of("vxe", name)
    }

    /// Makes one of a module.
    #[track_caller]
    pub fn make_of(module: &str, name: &str) -> Self {
        Self::try_make_of(module, name).unwrap_or_else(|e| panic!("mkdir {name}: {e}"))
    }

    /// The same, which may fail.
    #[track_caller]
    pub fn try_make_of(module: &str, name: &str) -> io::Result<Self> {
        let path = subsystem(module).join(name);
        fs::create_dir(&path)?;
        Ok(Self { path, is_there: true })
    }

    /// One with a device of this memory, in MiB.
    #[track_caller]
    pub fn with_device(name: &str, vram_mb: usize) -> Self {
        let config = Self::make(name);
        config.set("vram_mb", vram_mb);
        config.enable();
        config
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What an attribute says, without the newline.
    #[track_caller]
    pub fn get(&self, attribute: &str) -> String {
        self.try_get(attribute).unwrap_or_else(|e| panic!("{attribute}: {e}"))
    }

    /// The same, which may fail.
    pub fn try_get(&self, attribute: &str) -> io::Result<String> {
        let text = fs::read_to_string(self.path.join(attribute))?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// Writes to an attribute.
    #[track_caller]
    pub fn set(&self, attribute: &str, value: impl ToString) {
        let value = value.to_string();
        self.try_set(attribute, &value).unwrap_or_else(|e| panic!("{attribute}={value}: {e}"));
    }

    /// The same, which may fail.
    pub fn try_set(&self, attribute: &str, value: &str) -> io::Result<()> {
        fs::write(self.path.join(attribute), value)
    }

    /// With which error a write is refused.
    #[track_caller]
    pub fn refusal(&self, attribute: &str, value: &str) -> i32 {
        let error = self.try_set(attribute, value).expect_err(&format!("{attribute}={value:?}"));
        error.raw_os_error().expect("an error of the system's")
    }

    /// Makes the device.
    #[track_caller]
    pub fn enable(&self) {
        self.set("enabled", 1);
    }

    /// Removes the device.
    #[track_caller]
    pub fn disable(&self) {
        self.set("enabled", 0);
    }

    /// Whether there is the device.
    #[track_caller]
    pub fn is_enabled(&self) -> bool {
        match &*self.get("enabled") {
            "0" => false,
            "1" => true,
            other => panic!("enabled={other:?}"),
        }
    }

    /// The platform device, which there must be.
    #[track_caller]
    pub fn slot(&self) -> Slot {
        Slot::named(&self.get("device"))
    }

    /// Opens the device.
    #[track_caller]
    pub fn open(&self) -> Device {
        self.slot().open()
    }

    /// Removes the directory.
    pub fn try_remove(&mut self) -> io::Result<()> {
        fs::remove_dir(&self.path)?;
        self.is_there = false;
        Ok(())
    }

    /// The same, which must be done.
    #[track_caller]
    pub fn remove(mut self) {
        self.try_remove().unwrap_or_else(|e| panic!("rmdir: {e}"));
    }
}

impl Drop for Configuration {
    fn drop(&mut self) {
        if self.is_there {
            // Another thread may have removed it.
            let _ = fs::remove_dir(&self.path);
        }
    }
}
