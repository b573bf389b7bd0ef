// SPDX-License-Identifier: GPL-2.0

//! What a time slice does: queues of one process, and of two, run in turns that are as long.

use crate::{
    properties::{create_queue, submit},
    set, Restored,
};
use std::{
    thread::available_parallelism,
    time::{Duration, Instant},
};
use vxe_client::{Commands, Vm};
use vxe_uapi::{gpu::device, process::fork, sysfs::Slot, vram::soon, Map, Program, PAGE};

/// A short and a long time slice, in microseconds.
const SHORT: u32 = 5_000;
const LONG: u32 = 400_000;

/// How long to look at the queues.
const WATCH: Duration = Duration::from_secs(4);

/// A queue that waits for its turn does so for longer than this, in ticks of the reference clock: a millisecond.
const WAIT: u32 = 19_200;

/// Registers of the engine: its time-stamp, that of the context, and general purpose registers.
const RING_TIMESTAMP: u32 = 0x2_2358;
const CTX_TIMESTAMP: u32 = 0x2_23a8;
const GPR: [u32; 3] = [0x2_2600, 0x2_2608, 0x2_2610];

/// The engines of the device: as many as there are processors.
fn engines() -> usize {
    available_parallelism().expect("the processors").get()
}

/// A batch to be put at `at`, which does not end. It stores at `clock` how long its queue was on no engine, in
/// ticks: the time-stamp of the engine without that of the context, which stands still meanwhile. Whether the
/// engine's thread has a processor does not matter.
fn waiting_clock(at: u64, clock: u64) -> Commands {
    const LOAD: u32 = 0x1500_0001;
    let mut batch = Commands::new();
    batch
        .raw(&[LOAD, RING_TIMESTAMP, GPR[0]])
        .raw(&[LOAD, CTX_TIMESTAMP, GPR[1]])
        // The third register gets the difference of the first two, which is stored.
        .raw(&[0x0d00_0003, 0x0800_8000, 0x0800_8401, 0x1010_0000, 0x1800_0831])
        .raw(&[0x1200_0002, GPR[2], clock as u32, (clock >> 32) as u32])
        .raw(&[0x1880_0101, at as u32, (at >> 32) as u32]);
    batch
}

/// The clocks of some queues, in memory that the processes of a test share, a page for each.
#[derive(Clone, Copy)]
struct Clocks(Map);

impl Clocks {
    fn new(count: usize) -> Self {
        Self(Map::shared(count * PAGE))
    }

    fn len(self) -> usize {
        self.0.len() / PAGE
    }

    fn at(self, index: usize) -> u64 {
        self.0.at(index * PAGE)
    }

    fn read(self) -> Vec<u32> {
        (0..self.len()).map(|index| self.0.read(index * PAGE)).collect()
    }

    /// Waits until the queues from `first` on have run, then counts how often each queue waited for its turn.
    fn turns(self, first: usize) -> Vec<u32> {
        soon("the queues run", || self.read().iter().skip(first).all(|&clock| clock != 0));
        let mut waited = self.read();
        let mut turns = vec![0; self.len()];
        let start = Instant::now();
        while start.elapsed() < WATCH {
            std::thread::sleep(Duration::from_micros(500));
            for ((clock, waited), turns) in self.read().into_iter().zip(&mut waited).zip(&mut turns)
            {
                // The clock steps back a bit where an interrupt comes between its two readings.
                let step = clock.wrapping_sub(*waited);
                if (WAIT..1 << 31).contains(&step) {
                    *turns += 1;
                    *waited = clock;
                }
            }
        }
        turns
    }
}

/// Starts queues on the same VM, one for each of some clocks, in time slices of their own or in those of the
/// device. They end with its file.
fn queues(vm: &Vm, clocks: Clocks, part: std::ops::Range<usize>, timeslice: Option<u64>) {
    for index in part {
        let queue = create_queue(vm, timeslice).expect("a queue");
        let batch = Map::shared(PAGE);
        batch.write_words(0, waiting_clock(batch.at(0), clocks.at(index)).dwords());
        // SAFETY: batch and clock are shared memory, which stays.
        unsafe { submit(vm.device(), queue, batch.at(0)) };
    }
}

fn sum(turns: &[u32]) -> u32 {
    turns.iter().sum()
}

/// The queues of the test have that many turns in time slices of `us`.
#[track_caller]
fn print(what: &str, us: u32, turns: Vec<u32>) -> u32 {
    println!("{what}, in time slices of {us} us: {turns:?} turns");
    sum(&turns)
}

/// Long slices make few turns: not many more than there is time for.
#[track_caller]
fn compare(short: u32, long: u32) {
    assert!(long > 0, "there are no turns");
    assert!(short > 4 * long, "{short} turns in short time slices, {long} in long ones");
}

/// Twice as many queues of one process as there are engines.
fn of_one_process(what: &str, us: u32, timeslice: Option<u64>) -> u32 {
    let vm = Vm::mirrored(&device()).expect("a VM");
    let clocks = Clocks::new(2 * engines());
    queues(&vm, clocks, 0..clocks.len(), timeslice);
    print(what, us, clocks.turns(0))
}

/// The time slice of the device is that of new queues.
fn one_process() {
    let _bound = Slot::first();
    let _restored = Restored;
    let turns = |us| {
        set("timeslice_duration_us", us);
        of_one_process("one process", us, None)
    };
    compare(turns(SHORT), turns(LONG));
}

/// A queue may have another one.
fn of_a_queue() {
    let _bound = Slot::first();
    let turns = |us: u32| of_one_process("queues of their own time slices", us, Some(us.into()));
    compare(turns(SHORT), turns(LONG));
}

/// Two processes, each with as many queues as there are engines.
fn of_two_processes(us: u32, timeslices: [Option<u64>; 2]) -> [u32; 2] {
    let each = engines();
    let clocks = Clocks::new(2 * each);
    let [first, second] = timeslices;
    let other = fork(|link| {
        let vm = Vm::mirrored(&device()).expect("a VM");
        queues(&vm, clocks, each..2 * each, second);
        link.send(1);
        let _ = link.try_receive();
    });
    let vm = Vm::mirrored(&device()).expect("a VM");
    queues(&vm, clocks, 0..each, first);
    assert_eq!(other.link().receive(), 1);
    // A queue of the first process may wait long for another one of it.
    let mut turns = clocks.turns(each);
    other.kill();
    let second = turns.split_off(each);
    [print("one of two processes", us, turns), print("the other", us, second)]
}

/// The time slice of the device is that of processes as well.
fn two_processes() {
    let _bound = Slot::first();
    let _restored = Restored;
    let turns = |us| {
        set("timeslice_duration_us", us);
        of_two_processes(us, [None; 2]).iter().sum()
    };
    compare(turns(SHORT), turns(LONG));
}

/// A process whose queues have a long time slice has no longer turns than others.
fn no_longer_than_others() {
    let _bound = Slot::first();
    let _restored = Restored;
    set("timeslice_duration_us", LONG);
    let [_, long] = of_two_processes(LONG, [Some(10_000_000), None]);
    set("timeslice_duration_us", SHORT);
    let [_, short] = of_two_processes(SHORT, [Some(10_000_000), None]);
    compare(short, long);
}

/// A change takes effect while queues run: a queue that waits gets its turn.
fn while_running() {
    let _bound = Slot::first();
    let _restored = Restored;
    set("timeslice_duration_us", LONG);
    // Those of the queues, so that only that of the processes changes.
    let own = Some(SHORT.into());
    let each = engines();
    let clocks = Clocks::new(2 * each);
    let other = fork(|link| {
        let vm = Vm::mirrored(&device()).expect("a VM");
        queues(&vm, clocks, each..2 * each, own);
        link.send(1);
        let _ = link.try_receive();
    });
    let vm = Vm::mirrored(&device()).expect("a VM");
    queues(&vm, clocks, 0..each, own);
    assert_eq!(other.link().receive(), 1);
    let long = print("two processes", LONG, clocks.turns(0));
    set("timeslice_duration_us", SHORT);
    // The turns that were granted end.
    std::thread::sleep(Duration::from_secs(1));
    let short = print("the same", SHORT, clocks.turns(0));
    other.kill();
    compare(short, long);
}

pub fn subtests(p: &mut Program) {
    p.subtest("one-process", "queues of a process take turns", one_process);
    p.subtest("of-a-queue", "queues with a time slice of their own do", of_a_queue);
    p.subtest("two-processes", "processes take turns", two_processes);
    p.subtest("no-longer-than-others", "long time slices of queues", no_longer_than_others);
    p.subtest("while-running", "a change while queues run", while_running);
}
