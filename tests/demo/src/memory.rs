// SPDX-License-Identifier: GPL-2.0

//! The kinds of memory that the GPU is shown.

use crate::work::{whole_pages, work, Done};
use std::{
    error::Error,
    fs::OpenOptions,
    os::fd::AsFd,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU32, Ordering},
};
use vxe_client::{ExecQueue, Mapping};

type Result = std::result::Result<Done, Box<dyn Error>>;

const MIB: usize = 1 << 20;

/// What the allocator gives for a vector.
pub fn malloc(queue: &ExecQueue) -> Result {
    let words: Vec<AtomicU32> = (0..MIB / 4 + 1024).map(|_| AtomicU32::new(0)).collect();
    work("malloc", queue, whole_pages(&words))
}

/// A mapping.
pub fn mapped(queue: &ExecQueue) -> Result {
    let memory = Mapping::anonymous(MIB)?;
    work("mmap", queue, memory.words())
}

/// A mapping that the kernel may make of huge pages.
pub fn huge(queue: &ExecQueue) -> Result {
    const HUGE: usize = 2 * MIB;
    let memory = Mapping::anonymous(3 * HUGE)?;
    memory.advise_huge()?;
    let skip = memory.address().next_multiple_of(HUGE as u64) - memory.address();
    let start = skip as usize / 4;
    work("huge pages", queue, &memory.words()[start..start + 2 * HUGE / 4])
}

/// Variables of this function.
pub fn stack(queue: &ExecQueue) -> Result {
    let words = [const { AtomicU32::new(0) }; 17 * 1024];
    work("stack", queue, whole_pages(&words))
}

/// A file, which must have it all in the end.
pub fn file(queue: &ExecQueue) -> Result {
    let path = std::env::temp_dir().join(format!("vxe-demo-{}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    file.set_len(MIB as u64 / 2)?;
    let memory = Mapping::file(MIB / 2, file.as_fd())?;
    let mut done = work("file", queue, memory.words())?;

    let mut bytes = vec![0; memory.len()];
    file.read_exact_at(&mut bytes, 0)?;
    let mut words = memory.words().iter().zip(bytes.chunks_exact(4));
    if !words.all(|(word, bytes)| word.load(Ordering::Relaxed).to_ne_bytes() == bytes) {
        done.wrong = Some("file: its mapping shows other bytes than the file".into());
    }
    Ok(done)
}
