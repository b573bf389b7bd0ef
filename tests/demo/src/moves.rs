// SPDX-License-Identifier: GPL-2.0

//! Memory that moves to the device's own, and back; more of it than there is room for.

use crate::table::{self, Table};
use std::{error::Error, sync::atomic::AtomicU32, time::Instant};
use vxe_client::{
    memory::{fill, first_difference},
    sys, Batch, Bo, Device, ExecQueue, Mapping, Report, Stats,
};

/// What is left of the device's memory: enough for two of the three that want it, and the GPU's
/// commands; and the size of each of the three.
const ROOM: usize = 36 << 20;
const SIZE: usize = 16 << 20;

const NAMES: [&str; 3] = ["A", "B", "C"];

/// A large page, in bytes, and a page, in words.
const LARGE: usize = 2 << 20;
const PAGE: usize = 1024;

/// What came of it.
pub struct Moves {
    pub room: u64,
    pub size: u64,
    pub table: Table,
    pub wrong: Option<String>,
}

/// Three memories, of which the device has room for two.
struct Memories {
    maps: [Mapping; 3],
    /// How often the GPU incremented each.
    added: [u32; 3],
}

impl Memories {
    fn new() -> vxe_client::Result<Self> {
        let map = || {
            let map = Mapping::anonymous(SIZE + LARGE)?;
            map.advise_huge()?;
            Ok::<_, vxe_client::Error>(map)
        };
        Ok(Self { maps: [map()?, map()?, map()?], added: [0; 3] })
    }

    /// Whole large pages.
    fn words(&self, which: usize) -> &[AtomicU32] {
        let map = &self.maps[which];
        let skip = map.address().next_multiple_of(LARGE as u64) - map.address();
        &map.words()[skip as usize / 4..][..SIZE / 4]
    }

    /// Has the GPU increment a word in each page.
    fn work(&mut self, queue: &ExecQueue, which: usize) -> vxe_client::Result<()> {
        let mut batch = Batch::new();
        for page in self.words(which).chunks_exact(PAGE) {
            batch.increment(&page[7]);
        }
        queue.run(&batch)?;
        self.added[which] += 1;
        Ok(())
    }

    /// Has the CPU look at every word; says what is wrong.
    fn check(&self, which: usize) -> Option<String> {
        let added = self.added[which];
        let expected = |i: usize| i as u32 + if i % PAGE == 7 { added } else { 0 };
        first_difference(self.words(which), expected).map(|(i, found)| {
            format!("{}: word {i} is {found:#x} instead of {:#x}", NAMES[which], expected(i))
        })
    }

    /// Where one is: in the device's memory, as far as the GPU has it mapped there.
    fn place(&self, device: &Device, which: usize) -> String {
        let words = self.words(which);
        let at = words.as_ptr() as u64;
        let Ok(report) = Report::read(device) else {
            return "?".into();
        };
        let there: u64 = report.within(at..at + SIZE as u64).map(|range| range.device).sum();
        match there {
            0 => "system".into(),
            all if all == SIZE as u64 => "device".into(),
            some => format!("{} device", table::size(some)),
        }
    }
}

/// Counters of what moved.
#[derive(Default)]
struct Moved {
    to_device: u64,
    to_system: u64,
    evicted: u64,
    us: u64,
}

impl Moved {
    fn of(since: &Stats) -> Option<Self> {
        Some(Self {
            to_device: since.get("svm_device_copy_kb")? << 10,
            to_system: since.get("svm_cpu_copy_kb")? << 10,
            evicted: since.get("svm_evict_kb")? << 10,
            us: since.get("svm_device_copy_us")? + since.get("svm_cpu_copy_us")?,
        })
    }

    fn bandwidth(&self) -> String {
        match (self.to_device + self.to_system, self.us) {
            (0, _) | (_, 0) => String::new(),
            (bytes, us) => format!("{} MB/s", bytes / us),
        }
    }
}

/// Leaves [`ROOM`] of the device's memory; none if it has less. Returns what takes the rest.
fn fill_device(device: &Device) -> Result<Option<Vec<Bo>>, Box<dyn Error>> {
    let class = sys::DRM_XE_MEM_REGION_CLASS_VRAM as u16;
    let regions = device.memory_regions()?;
    let Some(region) = regions.iter().find(|region| region.mem_class == class) else {
        return Ok(None);
    };
    let Some(mut rest) = (region.total_size as usize).checked_sub(ROOM) else {
        return Ok(None);
    };
    let mut buffers = Vec::new();
    while rest > 0 {
        let size = rest.min(ROOM);
        buffers.push(Bo::create(device, size, 1 << region.instance, None)?);
        rest -= size;
    }
    Ok(Some(buffers))
}

/// Goes through it; nothing where the device has no such memory.
pub fn run(queue: &ExecQueue) -> Result<Option<Moves>, Box<dyn Error>> {
    let device = queue.vm().device();
    let Some(_buffers) = fill_device(device)? else {
        return Ok(None);
    };
    let mut memories = Memories::new()?;
    let mut table = Table::new(&[
        "step",
        "A",
        "B",
        "C",
        "to device",
        "to system",
        "evicted",
        "time",
        "copies at",
    ]);
    let mut wrong = None;

    type Step = (&'static str, fn(&mut Memories, &ExecQueue) -> vxe_client::Result<Option<String>>);
    let steps: [Step; 6] = [
        ("the CPU fills all three", |memories, _| {
            for which in 0..NAMES.len() {
                fill(memories.words(which), |i| i as u32);
            }
            Ok(None)
        }),
        ("the GPU works on A", |m, queue| m.work(queue, 0).map(|()| None)),
        ("the GPU works on B", |m, queue| m.work(queue, 1).map(|()| None)),
        ("the GPU works on C", |m, queue| m.work(queue, 2).map(|()| None)),
        ("the CPU checks B", |m, _| Ok(m.check(1))),
        ("the GPU works on A again", |m, queue| m.work(queue, 0).map(|()| None)),
    ];
    for (what, step) in steps {
        let before = Stats::read(device).ok();
        let start = Instant::now();
        let found = step(&mut memories, queue)?;
        let time = start.elapsed();
        wrong = wrong.or(found);
        let moved = before
            .and_then(|before| Moved::of(&Stats::read(device).ok()?.since(&before)))
            .unwrap_or_default();
        let mut row = vec![what.to_owned()];
        row.extend((0..NAMES.len()).map(|which| memories.place(device, which)));
        row.extend([
            table::size(moved.to_device),
            table::size(moved.to_system),
            table::size(moved.evicted),
            table::milliseconds(time),
            moved.bandwidth(),
        ]);
        table.row(row);
    }
    for which in 0..NAMES.len() {
        wrong = wrong.or_else(|| memories.check(which));
    }
    Ok(Some(Moves { room: ROOM as u64, size: SIZE as u64, table, wrong }))
}
