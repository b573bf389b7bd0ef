// SPDX-License-Identifier: GPL-2.0

//! A batch that runs until it is told to end: that of IGT's `xe_spin`.

use crate::encode::{gpr, Encode, Op, CTX_TIMESTAMP};
use std::time::{Duration, Instant};
use vxe_client::{Commands, ExecQueue, Fence, Wait};
use vxe_uapi::{gpu::PATIENCE, Map, PAGE};

/// Offsets in a spinner's memory, behind the batch.
const START: usize = 1024;
const END: usize = 1028;
const DELTA: usize = 1032;
const STAMP: usize = 1036;
const FENCE: usize = 1040;
const DONE: u64 = 0x1234_5678_9abc_def0;

/// A spinner, in memory of its own.
pub struct Spinner {
    memory: Map,
}

impl Spinner {
    /// A spinner that writes how long it has run in each round, and ends by itself when that is
    /// more than `ticks` if there are any.
    pub fn new(ticks: Option<u32>) -> Self {
        let memory = Map::shared(PAGE);
        memory.write(END, u32::MAX);
        let mut c = Commands::new();
        if ticks.is_some() {
            c.load_immediate(gpr(0) + 4, 0).load_register(gpr(0), CTX_TIMESTAMP);
        }
        c.store(memory.at(START), 0xc0_ffee);
        let again = memory.at(c.dwords().len() * 4);
        c.arb_check();
        c.load_register(gpr(1), CTX_TIMESTAMP).store_register(memory.at(STAMP), gpr(1));
        if let Some(ticks) = ticks {
            c.load_immediate(gpr(1) + 4, 0).load_register(gpr(1), CTX_TIMESTAMP);
            c.subtract_inverted(1, 1, 0).store_register(memory.at(DELTA), gpr(1));
            c.end_unless(memory.at(DELTA), Op::Greater, !ticks);
        }
        c.end_unless(memory.at(END), Op::Greater, 0).jump(again);
        assert!(c.dwords().len() * 4 <= START);
        memory.write_words(0, c.dwords());
        Self { memory }
    }

    /// Submits it.
    #[track_caller]
    pub fn submit(&self, queue: &ExecQueue) {
        let fence = Fence { address: self.memory.at(FENCE), value: DONE };
        // SAFETY: all is memory of the spinner, which stays.
        unsafe { queue.submit(self.memory.at(0), Some(fence)) }.expect("a spinner");
    }

    /// Waits until it runs.
    #[track_caller]
    pub fn started(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.memory.read(START) == 0 {
            assert!(Instant::now() < end, "the spinner does not start");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// How long it had run in its last round, in ticks.
    pub fn stamp(&self) -> u32 {
        self.memory.read(STAMP)
    }

    /// Tells it to end.
    pub fn end(&self) {
        self.memory.write(END, 0);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&self, queue: &ExecQueue) {
        queue.wait(&Wait::equal(self.memory.at(FENCE), DONE, PATIENCE)).expect("the spinner's end");
    }

    /// Whether it has ended.
    pub fn is_done(&self) -> bool {
        self.memory.read(FENCE) == DONE as u32
    }
}
