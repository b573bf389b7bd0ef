// SPDX-License-Identifier: GPL-2.0

//! The GPU writes into memory that the program got from its ordinary allocator.

use std::sync::atomic::{AtomicU32, Ordering};
use vxe_client::{Batch, Device, ExecQueue, Vm};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::open()?;
    // Every address of this process is now an address of the GPU.
    let vm = Vm::mirrored(&device)?;
    let queue = ExecQueue::new(&vm)?;

    // A plain vector: malloc'ed memory, of which the driver knows nothing.
    let words: Vec<AtomicU32> = (0..1_000_000).map(|_| AtomicU32::new(0)).collect();

    // One store to each 64 KiB of it, and one increment on top.
    let mut batch = Batch::new();
    let touched: Vec<_> = words.iter().step_by(16_384).collect();
    for (i, &word) in touched.iter().enumerate() {
        batch.store(word, 100 * i as u32).increment(word);
    }
    queue.run(&batch)?;

    for (i, word) in touched.iter().enumerate() {
        assert_eq!(word.load(Ordering::Relaxed), 100 * i as u32 + 1);
    }
    println!("the GPU wrote {} words of a Vec", touched.len());
    Ok(())
}
