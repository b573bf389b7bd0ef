// SPDX-License-Identifier: GPL-2.0

//! The memory cgroup that programs enter, and in which they may be killed. Its limits are theirs to change.

use std::{fs, io, path::Path, ptr};

const ROOT: &str = "/sys/fs/cgroup";
const GROUP: &str = "/sys/fs/cgroup/fuzz";

/// Makes the group.
pub fn make() -> io::Result<()> {
    let root = Path::new(ROOT);
    if !root.join("cgroup.controllers").exists() {
        let (to, kind) = (c"/sys/fs/cgroup".as_ptr(), c"cgroup2".as_ptr());
        // SAFETY: the names end with a zero; nothing else is read.
        if unsafe { libc::mount(kind, to, kind, 0, ptr::null()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    fs::write(root.join("cgroup.subtree_control"), "+memory")?;
    match fs::create_dir(GROUP) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// How many processes were killed for want of memory and were not in the group.
pub fn killed_outside() -> u64 {
    let count = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0)
    };
    count("/proc/vmstat").saturating_sub(count(&format!("{GROUP}/memory.events")))
}
