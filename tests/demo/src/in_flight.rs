// SPDX-License-Identifier: GPL-2.0

//! Memory that goes away while the GPU works next to it.

use std::{
    error::Error,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};
use vxe_client::{
    memory::fill, Advice, Batch, Commands, Device, ExecQueue, Fence, Location, Mapping, Migrate,
    Stats, Timeout, Vm, Wait,
};

/// Half of what is mapped.
const HALF: usize = 1 << 20;
/// Increments in a batch.
const INCREMENTS: u32 = 4000;
/// Batches, at most, until the CPU has been quick enough once.
const ATTEMPTS: u32 = 20;

/// The GPU counts in one half of a mapping while the CPU unmaps the other. What came of it.
pub fn run(vm: &Vm) -> Result<Vec<String>, Box<dyn Error>> {
    let queue = ExecQueue::new(vm)?;
    let before = Stats::read(vm.device()).ok();
    for _ in 0..ATTEMPTS {
        let (kept, goes) = Mapping::anonymous(2 * HALF)?.split(HALF);
        let hole = goes.address();
        // Both look at it all the time: nothing is to move.
        let advice = Advice::Preferred(Location::System, Migrate::AllPages);
        vm.madvise(kept.address(), 2 * HALF as u64, advice)?;
        let Some(at) = unmap_under_gpu(&queue, &kept, goes)? else {
            continue;
        };
        let mut lines = vec![
            format!(
                "it unmapped {} KiB after {at} of {INCREMENTS} increments in the {} KiB before",
                HALF >> 10,
                HALF >> 10
            ),
            format!("all {INCREMENTS} increments arrived"),
        ];
        lines.extend(invalidations(vm.device(), before.as_ref()));
        lines.push(refused(vm, &kept, hole)?);
        return Ok(lines);
    }
    Err("the GPU was always done before the CPU could unmap anything".into())
}

/// Says after how many increments the other half was gone; nothing if that was after the last.
fn unmap_under_gpu(
    queue: &ExecQueue,
    kept: &Mapping,
    goes: Mapping,
) -> Result<Option<u32>, Box<dyn Error>> {
    // Have the GPU map both, for there to be something to take away.
    let mut touch = Batch::new();
    touch.store(&kept.words()[0], 0).store(&goes.words()[0], 1);
    queue.run(&touch)?;

    let counter = &kept.words()[HALF / 4 - 1];
    let at = thread::scope(|scope| -> Result<u32, Box<dyn Error>> {
        let gpu = scope.spawn(|| {
            let mut batch = Batch::new();
            for _ in 0..INCREMENTS {
                batch.increment(counter);
            }
            queue.run(&batch)
        });
        while counter.load(Ordering::Relaxed) == 0 && !gpu.is_finished() {
            thread::yield_now();
        }
        drop(goes);
        let at = counter.load(Ordering::Relaxed);
        gpu.join().map_err(|_| "the GPU's thread panicked")??;
        Ok(at)
    })?;
    let count = counter.load(Ordering::Relaxed);
    if count != INCREMENTS {
        return Err(format!("{count} of {INCREMENTS} increments arrived").into());
    }
    Ok((at < INCREMENTS).then_some(at))
}

fn invalidations(device: &Device, before: Option<&Stats>) -> Option<String> {
    let now = Stats::read(device).ok()?;
    let count = now.since(before?).get("svm_tlb_inval_count")?;
    let times = match count {
        1 => "once".into(),
        n => format!("{n} times"),
    };
    Some(format!("for that, the GPU had to forget translations {times}"))
}

/// A GPU that writes where nothing is any more is stopped, and only that.
fn refused(vm: &Vm, kept: &Mapping, hole: u64) -> Result<String, Box<dyn Error>> {
    let doomed = ExecQueue::new(vm)?;
    let words = kept.words();
    let mut commands = Commands::new();
    commands.store(hole, 1).end();
    fill(&words[..commands.dwords().len()], |i| commands.dwords()[i]);
    let fence = Fence { address: kept.address() + 4096, value: 1 };
    let start = Instant::now();
    // SAFETY: batch and fence lie in `kept`, which outlives the wait. What the batch writes to is
    // not mapped; even if it were again, it would be memory that nobody has been given yet.
    unsafe { doomed.submit(kept.address(), Some(fence)) }?;
    let wait = Wait::equal(fence.address, 1, Timeout::Relative(Duration::from_secs(10)));
    match doomed.wait(&wait) {
        Err(e) if e.is_queue_banned() => Ok(format!(
            "a store to what is gone was refused after {:.1} ms, with {}",
            start.elapsed().as_secs_f64() * 1e3,
            vxe_client::errno_name(e.errno()).unwrap_or("an error")
        )),
        Err(e) => Err(e.into()),
        Ok(()) => Err("the GPU wrote to memory that was gone".into()),
    }
}
