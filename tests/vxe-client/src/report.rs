// SPDX-License-Identifier: GPL-2.0

//! What debugfs tells about the VMs of a process.

use crate::{stats::debugfs_directory, Device};
use std::{fs, io, ops::Range};

/// A stretch of memory that the GPU knows, as the driver keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirroredRange {
    /// Its addresses.
    pub span: Range<u64>,
    /// Its state in the driver's words: `mapped`, for instance.
    pub state: String,
    /// How much of it the GPU has mapped in a device's memory, in bytes.
    pub device: u64,
    /// What else the driver says, as it says it.
    pub details: String,
}

impl MirroredRange {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        let span = hex(start)?..hex(end)?;
        let size = words.next()?.strip_suffix('K')?.parse::<u64>().ok()?;
        if span.start + size * 1024 != span.end {
            return None;
        }
        let state = words.next()?.to_owned();
        let details: Vec<_> = words.collect();
        let device = details
            .iter()
            .find_map(|word| word.strip_prefix("device=")?.strip_suffix('K')?.parse::<u64>().ok());
        let (device, details) = (device.unwrap_or(0) * 1024, details.join(" "));
        Some(Self { span, state, device, details })
    }

    /// Size in bytes.
    pub const fn size(&self) -> u64 {
        self.span.end - self.span.start
    }

    /// Whether the GPU has it mapped.
    pub fn is_mapped(&self) -> bool {
        self.state == "mapped"
    }
}

/// The VMs of one process together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How faults went, by the driver's own names: `served`, `coalesced`…
    pub faults: Vec<(String, u64)>,
    /// All ranges.
    pub ranges: Vec<MirroredRange>,
}

impl Report {
    /// Reads what there is about this process.
    ///
    /// # Errors
    ///
    /// If debugfs is not mounted, or not for the caller to read.
    pub fn read(device: &Device) -> io::Result<Self> {
        let text = fs::read_to_string(debugfs_directory(device)?.join("vms"))?;
        Ok(Self::parse(&text, std::process::id()))
    }

    /// Parses the driver's list of VMs; skips those of other processes, and lines that it does not
    /// know.
    pub fn parse(text: &str, pid: u32) -> Self {
        let (mut report, mut ours) = (Self::default(), false);
        for line in text.lines() {
            if let Some(owner) = line.strip_prefix("vm of process ") {
                ours = owner.trim().parse() == Ok(pid);
            } else if !ours {
                continue;
            } else if let Some(counts) = line.trim().strip_prefix("faults:") {
                for pair in counts.split_whitespace() {
                    if let Some((name, value)) = pair.split_once('=') {
                        report.count(name, value.parse().unwrap_or(0));
                    }
                }
            } else {
                report.ranges.extend(MirroredRange::parse(line));
            }
        }
        report
    }

    fn count(&mut self, name: &str, value: u64) {
        match self.faults.iter_mut().find(|(known, _)| known == name) {
            Some((_, total)) => *total += value,
            None => self.faults.push((name.to_owned(), value)),
        }
    }

    /// The ranges that overlap some addresses.
    pub fn within(&self, span: Range<u64>) -> impl Iterator<Item = &MirroredRange> {
        self.ranges.iter().filter(move |r| r.span.start < span.end && span.start < r.span.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
vm of process 7
  maps on fault
  faults: served=3 coalesced=1 failed=0
  vmas:
    0x000000000000-0x1000000000000 mirror
  ranges:
    0x00007f0000010000-0x00007f0000020000    64K mapped   rw- segments=16 device=12K
    0x00007f0000200000-0x00007f0000400000  2048K unmapped --- segments=0
vm of process 8
  faults: served=100
  ranges:
    0x00007f0000010000-0x00007f0000011000     4K mapped   r-- segments=1
vm of process 7
  faults: served=2 coalesced=0 failed=1
";

    #[test]
    fn the_vms_of_a_process_are_added_up() {
        let report = Report::parse(TEXT, 7);
        let counts: Vec<_> = report.faults.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        assert_eq!(counts, [("served", 5), ("coalesced", 1), ("failed", 1)]);
        assert_eq!(report.ranges.len(), 2);
        let first = &report.ranges[0];
        assert_eq!((first.size(), first.is_mapped()), (64 << 10, true));
        assert_eq!(first.details, "rw- segments=16 device=12K");
        assert_eq!((first.device, report.ranges[1].device), (12 << 10, 0));
        assert!(!report.ranges[1].is_mapped());
        assert_eq!(report.within(0x7f00_0001_f000..0x7f00_0020_0000).count(), 1);
        assert_eq!(Report::parse(TEXT, 9), Report::default());
    }

    #[test]
    fn lines_of_another_form_are_no_ranges() {
        for line in ["0x10-0x20", "0x1000-0x2000 8K mapped", "hello", "0x1-2 4K mapped"] {
            assert_eq!(MirroredRange::parse(line), None, "{line}");
        }
    }
}
