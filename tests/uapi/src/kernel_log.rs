// SPDX-License-Identifier: GPL-2.0

//! What the kernel says meanwhile.

use crate::skip;
use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
};

/// The kernel's log from a moment on.
pub struct KernelLog(File);

impl KernelLog {
    /// From now on. Skips the subtest without the right to read it.
    #[track_caller]
    pub fn from_now() -> Self {
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
        let mut file = match opened {
            Ok(file) => file,
            Err(e) => skip!("/dev/kmsg: {e}"),
        };
        file.seek(SeekFrom::End(0)).expect("the end of the log");
        Self(file)
    }

    /// What was said since that has `text` in it, and since the last call.
    #[track_caller]
    pub fn lines(&mut self, text: &str) -> Vec<String> {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(length) => {
                    let line = String::from_utf8_lossy(&record[..length]);
                    if line.contains(text) {
                        lines.push(line.trim_end().to_owned());
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return lines,
                // Records were overwritten before they were read.
                Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {}
                Err(e) => panic!("/dev/kmsg: {e}"),
            }
        }
    }
}
