// SPDX-License-Identifier: GPL-2.0

//! What the GPU does to each kind of memory, and how it is checked.

use std::{
    error::Error,
    ops::Range,
    sync::atomic::AtomicU32,
    time::{Duration, Instant},
};
use vxe_client::{
    memory::{fill, first_difference},
    Batch, Device, ExecQueue, Report, Stats,
};

/// Words in a page.
const PAGE: usize = 1024;

/// What came of it.
pub struct Done {
    pub name: &'static str,
    pub span: Range<u64>,
    pub faults: Option<u64>,
    pub mapped: Mapped,
    pub time: Duration,
    pub wrong: Option<String>,
}

/// What the GPU has mapped of some memory, in words.
pub struct Mapped {
    pub chunks: String,
    pub pages: String,
    /// How many of the pages are in the device's memory.
    pub device: String,
}

/// The part of some memory that is whole pages: copies need it aligned.
pub fn whole_pages(words: &[AtomicU32]) -> &[AtomicU32] {
    let misaligned = words.as_ptr() as usize / 4 % PAGE;
    let skip = (PAGE - misaligned) % PAGE;
    let length = words.len().saturating_sub(skip) / PAGE * PAGE;
    &words[skip..skip + length]
}

/// The CPU fills the memory. The GPU stores a word in each page of its first half, increments
/// another, and copies the half onto the second. The CPU checks every byte.
pub fn work(
    name: &'static str,
    queue: &ExecQueue,
    memory: &[AtomicU32],
) -> Result<Done, Box<dyn Error>> {
    let device = queue.vm().device();
    let (first, second) = memory.split_at(memory.len() / 2);
    fill(memory, filled);

    let mut batch = Batch::new();
    for page in (0..first.len()).step_by(PAGE) {
        batch.store(&first[page], page as u32).increment(&first[page + PAGE - 1]);
    }
    batch.copy(first, second);

    let before = Stats::read(device).ok();
    let start = Instant::now();
    queue.run(&batch)?;
    let time = start.elapsed();
    let faults = before.and_then(|before| {
        let now = Stats::read(device).ok()?;
        now.since(&before).get("svm_pagefault_count")
    });

    let at = memory.as_ptr() as u64;
    let span = at..at + size_of_val(memory) as u64;
    // Before the CPU takes some of it back by looking.
    let mapped = ranges(device, &span);

    let half = first.len();
    let wrong = first_difference(memory, |i| expected(i % half)).map(|(i, found)| {
        let wanted = expected(i % half);
        format!("{name}: word {i} is {found:#x} instead of {wanted:#x}")
    });
    Ok(Done { name, span, faults, mapped, time, wrong })
}

fn filled(i: usize) -> u32 {
    (i as u32).wrapping_mul(0x9e37_79b9)
}

/// A word of either half afterwards.
fn expected(i: usize) -> u32 {
    match i % PAGE {
        0 => i as u32,
        last if last == PAGE - 1 => filled(i).wrapping_add(1),
        _ => filled(i),
    }
}

/// The sizes of the ranges in which the GPU has the memory now, how many of its pages, and where.
fn ranges(device: &Device, span: &Range<u64>) -> Mapped {
    let Ok(report) = Report::read(device) else {
        return Mapped { chunks: "?".into(), pages: "?".into(), device: "?".into() };
    };
    let (mut counts, mut bytes, mut in_device) = ([0; 3], 0, 0);
    for range in report.within(span.clone()).filter(|r| r.is_mapped()) {
        counts[match range.size() {
            0..=0xffff => 0,
            0x1_0000..=0x1f_ffff => 1,
            _ => 2,
        }] += 1;
        in_device += range.device;
        bytes += range.span.end.min(span.end) - range.span.start.max(span.start);
    }
    let names = ["4K", "64K", "2M"].iter().zip(counts);
    let chunks: Vec<_> = names
        .filter(|&(_, count)| count > 0)
        .map(|(name, count)| format!("{count} of {name}"))
        .collect();
    let all = (span.end - span.start) / 4096;
    Mapped {
        chunks: chunks.join(", "),
        pages: format!("{} of {all}", bytes / 4096),
        device: (in_device / 4096).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_whole() {
        let memory: Vec<AtomicU32> = (0..5 * PAGE as u32).map(AtomicU32::new).collect();
        let pages = whole_pages(&memory);
        assert_eq!(pages.as_ptr() as usize % 4096, 0);
        assert!(pages.len() % PAGE == 0 && pages.len() >= 4 * PAGE);
        assert!(whole_pages(&pages[1..PAGE]).is_empty());
    }

    #[test]
    fn what_the_gpu_changes_is_expected() {
        assert_eq!(expected(PAGE), PAGE as u32);
        assert_eq!(expected(PAGE - 1), filled(PAGE - 1).wrapping_add(1));
        assert_eq!(expected(5), filled(5));
    }
}
