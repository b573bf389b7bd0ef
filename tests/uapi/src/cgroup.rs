// SPDX-License-Identifier: GPL-2.0

//! Cgroups, and how much memory they are charged: the device's, and the system's.

use crate::{skip, vram::soon};
use std::{
    ffi::CStr,
    fs,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};
use vxe_client::Device;

/// Where the hierarchy is mounted, or is to be.
const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup. It goes when this does, without the processes that may be in it.
pub struct Cgroup {
    path: PathBuf,
}

/// Mounts the hierarchy unless it is, and has groups charged by `controller`; skips the subtest if that
/// cannot be.
#[track_caller]
fn prepare(controller: &str) {
    let root = Path::new(ROOT);
    if !root.join("cgroup.controllers").exists() {
        let (to, kind): (&CStr, &CStr) = (c"/sys/fs/cgroup", c"cgroup2");
        // SAFETY: the names end with a zero; nothing else is read.
        let mounted =
            unsafe { libc::mount(kind.as_ptr(), to.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
        if mounted != 0 {
            skip!("no cgroups: {}", std::io::Error::last_os_error());
        }
    }
    if let Err(e) = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")) {
        skip!("no controller {controller}: {e}");
    }
}

impl Cgroup {
    /// A group, empty. Skips the subtest where there is no controller of device memory.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        Self::with("dmem", name)
    }

    /// A group, empty, that is charged for the system's memory. Skips the subtest where there is no
    /// controller of that.
    #[track_caller]
    pub fn of_memory(name: &str) -> Self {
        Self::with("memory", name)
    }

    /// The same, of one that may have so much of it, in bytes, and no swap.
    #[track_caller]
    pub fn with_memory(name: &str, bytes: usize) -> Self {
        let group = Self::of_memory(name);
        fs::write(group.path.join("memory.max"), bytes.to_string()).expect("memory.max");
        // Without swap there is no such file.
        let _ = fs::write(group.path.join("memory.swap.max"), "0");
        group
    }

    #[track_caller]
    fn with(controller: &str, name: &str) -> Self {
        prepare(controller);
        let path = Path::new(ROOT).join(format!("vxe-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { path }
    }

    /// Puts a process into the group; 0 is the caller.
    #[track_caller]
    pub fn add(&self, pid: libc::pid_t) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).expect("another cgroup");
    }

    /// How much of the system's memory it is charged for, in bytes: a little more than it has, as the kernel
    /// charges in advance.
    #[track_caller]
    pub fn memory(&self) -> u64 {
        self.bytes("memory.current")
    }

    /// How much that was at the most.
    #[track_caller]
    pub fn memory_peak(&self) -> u64 {
        self.bytes("memory.peak")
    }

    #[track_caller]
    fn bytes(&self, file: &str) -> u64 {
        let text = fs::read_to_string(self.path.join(file)).expect(file);
        text.trim().parse().expect("a number of bytes")
    }

    /// A number about a region.
    #[track_caller]
    fn get(&self, file: &str, region: &Region) -> u64 {
        region.find(&self.path.join(file)).unwrap_or_else(|| panic!("nothing about {region:?}"))
    }

    /// How much it has of a region, in bytes.
    #[track_caller]
    pub fn current(&self, region: &Region) -> u64 {
        self.get("dmem.current", region)
    }

    /// How much it had at the most.
    #[track_caller]
    pub fn peak(&self, region: &Region) -> u64 {
        self.get("dmem.peak", region)
    }

    /// How many lines there are about a region.
    #[track_caller]
    pub fn mentions(&self, region: &Region) -> usize {
        let text = fs::read_to_string(self.path.join("dmem.current")).expect("dmem.current");
        text.lines().filter(|line| line.split(' ').next() == Some(&region.0)).count()
    }

    /// How many processes of it were killed for want of memory.
    #[track_caller]
    pub fn oom_kills(&self) -> u64 {
        let text = fs::read_to_string(self.path.join("memory.events")).expect("memory.events");
        number(&text, "oom_kill").expect("oom_kill")
    }

    /// Freezes all that is in it, or has it go on; returns when they are.
    #[track_caller]
    pub fn freeze(&self, frozen: bool) {
        let number_of = u64::from(frozen);
        fs::write(self.path.join("cgroup.freeze"), number_of.to_string()).expect("cgroup.freeze");
        let events = || fs::read_to_string(self.path.join("cgroup.events")).expect("cgroup.events");
        soon("the group is frozen, or not", || number(&events(), "frozen") == Some(number_of));
    }

    /// Sets how much it may have at the most, in bytes.
    #[track_caller]
    pub fn limit(&self, region: &Region, bytes: usize) {
        self.set("dmem.max", region, bytes);
    }

    /// Sets how much others are to leave it, if they can, in bytes.
    #[track_caller]
    pub fn protect(&self, region: &Region, bytes: usize) {
        self.set("dmem.low", region, bytes);
    }

    #[track_caller]
    fn set(&self, file: &str, region: &Region, bytes: usize) {
        fs::write(self.path.join(file), format!("{} {bytes}\n", region.0)).expect("a limit");
    }

    /// Waits until it has nothing of a region.
    #[track_caller]
    pub fn expect_nothing(&self, region: &Region) {
        soon("nothing is charged", || self.current(region) == 0);
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whoever is in it ends with the subtest.
        let _ = fs::write(Path::new(ROOT).join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&self.path);
    }
}

/// A device's memory, as cgroups call it.
#[derive(Clone, Debug)]
pub struct Region(String);

impl Region {
    /// That of a device.
    #[track_caller]
    pub fn of(device: &Device) -> Self {
        let node = fs::metadata(format!("/proc/self/fd/{}", device.as_raw_fd())).expect("a node");
        let (major, minor) = (libc::major(node.rdev()), libc::minor(node.rdev()));
        let parent = fs::read_link(format!("/sys/dev/char/{major}:{minor}/device"));
        let parent = parent.expect("the node's device");
        let name = parent.file_name().expect("a device").to_string_lossy();
        Self(format!("drm/{name}/vram0"))
    }

    /// The number in a file that has a line for each region.
    fn find(&self, path: &Path) -> Option<u64> {
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        number(&text, &self.0)
    }
}

fn number(text: &str, region: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(region)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_of_one_region() {
        let text = "drm/vxe.0/vram0 4096\ndrm/vxe.1/vram0 7\n";
        assert_eq!(number(text, "drm/vxe.1/vram0"), Some(7));
        assert_eq!(number(text, "drm/vxe.0/vram0"), Some(4096));
        assert_eq!(number(text, "drm/vxe.0/vram"), None);
        assert_eq!(number("drm/vxe.0/vram0 max\n", "drm/vxe.0/vram0"), None);
    }
}
