// SPDX-License-Identifier: GPL-2.0

//! The hand of the administrator: devices are unbound from their driver and bound again, and a second
//! driver is loaded and removed.

use crate::{gpu::PATIENCE_TIME, skip};
use std::{
    borrow::Cow,
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use vxe_client::Device;

/// The platform devices.
const DEVICES: &str = "/sys/bus/platform/devices";

/// The platform drivers.
const DRIVERS: &str = "/sys/bus/platform/drivers";

/// What is mapped for DMA of all devices: a driver's name, a device's, and more.
const DMA_MAPPINGS: &str = "/sys/kernel/debug/dma-api/dump";

/// The device that tests use if they do not care which.
static FIRST: Slot = Slot::constant("vxe", "vxe.0");

/// What work that is in flight may end with when its device goes: the queue died, was banned before the
/// job came to it, or the file was cut off. The same goes for a new job of who keeps opening the device.
pub fn is_end(e: &vxe_client::Error) -> bool {
    [libc::ENODEV, libc::EIO, libc::ECANCELED, libc::ENOENT].contains(&e.errno())
}

/// A platform device, which is bound again when this goes.
pub struct Slot {
    driver: Cow<'static, str>,
    name: Cow<'static, str>,
}

impl Slot {
    const fn constant(driver: &'static str, name: &'static str) -> Self {
        Self { driver: Cow::Borrowed(driver), name: Cow::Borrowed(name) }
    }

    /// The device of this name, bound or not.
    #[track_caller]
    pub fn named(name: &str) -> Self {
        let driver = name.split('.').next().unwrap_or_default().to_owned();
        let slot = Self { driver: driver.into(), name: name.to_owned().into() };
        assert!(slot.exists(), "there is no device {name:?}");
        slot
    }

    /// All devices of these drivers, bound or not.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir(DEVICES).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter_map(|name| {
                let driver = name.split('.').next()?.to_owned();
                let ours = driver == "vxe" || driver == MODULE;
                ours.then(|| Self { driver: driver.into(), name: name.into() })
            })
            .collect()
    }

    /// The first device, bound. Skips the subtest if there is none, or no right to unbind it.
    #[track_caller]
    pub fn first() -> Self {
        let slot = Self::constant("vxe", "vxe.0");
        if !slot.exists() {
            skip!("there is no device {}", slot.name);
        }
        slot.bind();
        slot
    }

    /// Whether it is for the driver with this name.
    pub fn is_of(&self, driver: &str) -> bool {
        self.driver == driver
    }

    /// Whether the device is there.
    pub fn exists(&self) -> bool {
        Path::new(DEVICES).join(&*self.name).exists()
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new(DRIVERS).join(&*self.driver).join(name)
    }

    /// Whether a driver has it.
    pub fn is_bound(&self) -> bool {
        self.file(&self.name).exists()
    }

    fn write(&self, file: &str) -> io::Result<()> {
        fs::write(self.file(file), &*self.name)
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

    /// What is mapped for DMA of the device, bound or not, a line each. None if the kernel has no list of that
    /// (`CONFIG_DMA_API_DEBUG`).
    #[track_caller]
    pub fn dma_mappings(&self) -> Option<Vec<String>> {
        let text = match fs::read_to_string(DMA_MAPPINGS) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
            text => text.expect("the DMA mappings"),
        };
        let of_it = |line: &&str| line.split(' ').nth(1) == Some(&*self.name);
        Some(text.lines().filter(of_it).map(String::from).collect())
    }

    /// Binds it, unless it is bound.
    #[track_caller]
    pub fn bind(&self) {
        if !self.is_bound() {
            self.write("bind").expect("bind");
        }
    }

    /// Opens the node of the device that is bound.
    #[track_caller]
    pub fn open(&self) -> Device {
        Device::open_path(self.node().expect("a primary node")).expect("the device")
    }

    /// The same, whatever its DRM driver is called.
    #[track_caller]
    pub fn open_any(&self) -> Device {
        let node = self.node().expect("a primary node");
        let file = fs::File::options().read(true).write(true).open(node).expect("the device");
        Device::from_fd(file.into())
    }

    /// The primary node, if it is bound.
    fn node(&self) -> Option<PathBuf> {
        let names = fs::read_dir(Path::new(DEVICES).join(&*self.name).join("drm")).ok()?;
        let card = names
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find(|name| name.starts_with("card"))?;
        Some(Path::new("/dev/dri").join(card))
    }
}

/// Opens the first device of the first driver, whatever number its node has: the device may have been
/// bound again while the node that it had before was still in use. Where there is none, the first node
/// of the driver whose uAPI that is.
pub fn first() -> vxe_client::Result<Device> {
    match FIRST.node() {
        Some(node) => Device::open_path(node),
        None => Device::open(),
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.exists() && !self.is_bound() {
            // The next test says so if it fails.
            let _ = self.write("bind");
        }
    }
}

/// A driver in a module of its own, with one device; it is removed when this goes.
pub struct Provider {
    loaded: bool,
}

/// The module.
const MODULE: &str = "vxe2";

/// The module's device.
static SECOND: Slot = Slot::constant(MODULE, "vxe2.0");

/// What it stands on.
const CORE: &str = "gpusvm";

impl Provider {
    /// Loads it, with as much memory on the device. Skips the subtest if there is no such module, or
    /// no right to load it.
    #[track_caller]
    pub fn load(vram_mb: usize) -> Self {
        Self::load_with(vram_mb, "")
    }

    /// The same, with one more parameter of the module.
    #[track_caller]
    pub fn load_with(vram_mb: usize, parameter: &str) -> Self {
        Self::try_load(1, vram_mb, parameter).unwrap_or_else(|e| panic!("modprobe: {e}"))
    }

    /// Loads it, with so many devices, each with as much memory. The error is what modprobe says. Skips
    /// the subtest if there is no such module, or no right to load it.
    #[track_caller]
    pub fn try_load(devices: usize, vram_mb: usize, parameter: &str) -> Result<Self, String> {
        let output = Command::new("modprobe")
            .args([MODULE, &format!("devices={devices}"), &format!("vram_mb={vram_mb}")])
            .args((!parameter.is_empty()).then_some(parameter))
            .output();
        match output {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let error = String::from_utf8_lossy(&output.stderr);
                if error.contains("not found") || error.contains("not permitted") {
                    skip!("modprobe: {error}");
                }
                return Err(error.into_owned());
            }
            Err(e) => skip!("modprobe: {e}"),
        }
        assert!(devices == 0 || SECOND.is_bound(), "the new device is not bound");
        Ok(Self { loaded: true })
    }

    /// All its devices, bound or not.
    pub fn slots(&self) -> Vec<Slot> {
        Slot::all().into_iter().filter(|slot| slot.driver == MODULE).collect()
    }

    /// Its device.
    pub const fn slot(&self) -> &'static Slot {
        &SECOND
    }

    /// Who uses the module: open files, and memory that is in use.
    pub fn references(&self) -> usize {
        references(MODULE)
    }

    /// Removes the module, if nobody uses it: else `EAGAIN`, and nothing is changed.
    pub fn try_remove(&mut self) -> io::Result<()> {
        let name = CString::new(MODULE).expect("a name");
        // SAFETY: the name ends with a zero.
        let result =
            unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        self.loaded = false;
        Ok(())
    }

    /// Removes the module, which nobody uses any more: what was in use is given up soon. Says how
    /// long that took.
    #[track_caller]
    pub fn remove(mut self) -> Duration {
        let start = Instant::now();
        loop {
            match self.try_remove() {
                Ok(()) => break,
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(e) => panic!("the module cannot be removed: {e}"),
            }
            let left = self.references();
            assert!(start.elapsed() < PATIENCE_TIME, "{left} references to the module are left");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!SECOND.exists(), "a device without its module");
        start.elapsed()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if self.loaded {
            // The next test says so if it fails.
            let _ = self.try_remove();
        }
    }
}

/// How many references there are to the module on which all drivers stand.
pub fn core_references() -> usize {
    references(CORE)
}

fn references(module: &str) -> usize {
    let path = Path::new("/sys/module").join(module).join("refcnt");
    let count = fs::read_to_string(path).unwrap_or_default();
    count.trim().parse().unwrap_or(0)
}

/// Has the kernel not wait for grace periods in its own time, as long as this is there: they are most
/// of what it takes to remove a module.
pub struct Expedited(Option<String>);

const EXPEDITED: &str = "/sys/kernel/rcu_expedited";

impl Expedited {
    /// From now on, on kernels that can.
    pub fn now() -> Self {
        let before = fs::read_to_string(EXPEDITED).ok();
        Self(before.filter(|_| fs::write(EXPEDITED, "1").is_ok()))
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = fs::write(EXPEDITED, before.trim());
        }
    }
}

/// Frees all memory that is easy to free, as an administrator would: `what` is 2 for what shrinkers
/// have, 3 for files' contents as well.
pub fn drop_caches(what: u32) {
    fs::write("/proc/sys/vm/drop_caches", what.to_string()).expect("drop_caches");
}
