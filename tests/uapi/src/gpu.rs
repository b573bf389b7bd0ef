// SPDX-License-Identifier: GPL-2.0

//! A GPU with a mirrored VM and a queue, as most subtests want it.

use crate::{skip, sysfs, time::expect_prompt, Map, MIDDLE, PAGE};
use std::{
    cell::Cell,
    time::{Duration, Instant},
};
use vxe_client::{sys, Commands, Device, ExecQueue, Fence, Result, Timeout, Vm, Wait, WaitOp};

/// How long a job may take, on the slowest of machines. No job of a test takes a part of it.
pub const PATIENCE: Timeout = Timeout::ms(30_000);

/// The same, for who waits otherwise.
pub const PATIENCE_TIME: Duration = Duration::from_secs(30);

/// How soon a failed access must have reached those who wait.
pub const FAULT_DEADLINE: Duration = Duration::from_secs(1);

/// The whole of the GPU's addresses.
pub const ALL: u64 = 1 << 48;

/// Where buffers may be bound: far from what the process has.
pub const FAR: u64 = 1 << 46;

/// Room for the batches of jobs that are waited for.
const BATCH_AREA: usize = 256 * PAGE;

/// Room for the fences of the queues that replace banned ones.
const FENCE_AREA: usize = 64 * PAGE;

/// A mirrored VM and a queue on it.
pub struct Gpu {
    queue: ExecQueue,
    batches: Map,
    cursor: Cell<usize>,
    fences: Map,
    /// The offset of the page that has the fence of this queue.
    fence: usize,
    submitted: Cell<u64>,
}

/// Opens the device, or skips the subtest if there is none.
pub fn device() -> Device {
    match sysfs::first() {
        Ok(device) => device,
        Err(e) => skip!("{e}"),
    }
}

impl Default for Gpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Gpu {
    /// A device, a VM that mirrors the process, and a queue.
    #[track_caller]
    pub fn new() -> Self {
        Self::on_device(&device())
    }

    /// A VM that mirrors the process, and a queue, on an open device.
    #[track_caller]
    pub fn on_device(device: &Device) -> Self {
        Self::try_on_device(device).expect("a mirrored VM and a queue")
    }

    /// The same, on a device that may be gone.
    pub fn try_on_device(device: &Device) -> Result<Self> {
        Self::try_on_vm(&Vm::mirrored(device)?)
    }

    /// A queue on a VM.
    #[track_caller]
    pub fn on_vm(vm: &Vm) -> Self {
        Self::try_on_vm(vm).expect("a queue")
    }

    fn try_on_vm(vm: &Vm) -> Result<Self> {
        Ok(Self {
            queue: ExecQueue::new(vm)?,
            // Shared memory does not move to the device's, where nobody expects it.
            batches: Map::shared(BATCH_AREA),
            cursor: Cell::new(0),
            fences: Map::shared(FENCE_AREA),
            fence: 0,
            submitted: Cell::new(0),
        })
    }

    /// One more queue on the same VM: for another thread, say.
    #[track_caller]
    pub fn another(&self) -> Self {
        Self::on_vm(self.vm())
    }

    /// The VM.
    pub const fn vm(&self) -> &Vm {
        self.queue.vm()
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.vm().device()
    }

    /// The queue.
    pub const fn queue(&self) -> &ExecQueue {
        &self.queue
    }

    /// Memory that the GPU needs to run jobs: that of the batches, and of the fences. A VM that does
    /// not mirror the process has to map it at the same addresses.
    pub const fn areas(&self) -> [Map; 2] {
        [self.batches, self.fences]
    }

    /// Replaces the queue, which was banned.
    #[track_caller]
    pub fn renew(&mut self) {
        self.try_renew().expect("a queue after a ban");
    }

    /// Replaces the queue, which was banned, if the device is still there.
    pub fn try_renew(&mut self) -> Result<()> {
        self.queue = ExecQueue::new(self.vm())?;
        // A job of the old queue may still write its fence.
        self.fence = (self.fence + PAGE) % FENCE_AREA;
        let page = self.fences.part(self.fence, PAGE);
        page.write_words(0, &[0, 0]);
        self.submitted.set(0);
        Ok(())
    }

    /// Runs commands, with their end added, and waits.
    pub fn try_run(&self, build: impl FnOnce(&mut Commands)) -> Result<()> {
        let mut commands = Commands::new();
        build(&mut commands);
        commands.end();
        let batch = self.write_batch(commands.dwords());
        self.submit_and_wait(batch)
    }

    /// Runs what lies at a GPU address, and waits.
    pub fn submit_and_wait(&self, batch: u64) -> Result<()> {
        let value = self.submitted.get() + 1;
        self.submitted.set(value);
        let address = self.fences.at(self.fence);
        // SAFETY: the fence is the test's memory, and so is all that the tests' batches touch.
        unsafe { self.queue.submit(batch, Some(Fence { address, value })) }?;
        self.queue.wait(&Wait { op: WaitOp::Gte, ..Wait::equal(address, value, PATIENCE) })
    }

    /// Puts a batch where the previous ones, all waited for, are no more needed.
    fn write_batch(&self, dwords: &[u32]) -> u64 {
        let length = (dwords.len() * 4).next_multiple_of(64);
        assert!(length <= BATCH_AREA, "a batch of {length} bytes");
        if self.cursor.get() + length > BATCH_AREA {
            self.cursor.set(0);
        }
        let at = self.cursor.replace(self.cursor.get() + length);
        self.batches.part(at, length).write_words(0, dwords);
        self.batches.at(at)
    }

    /// As [`Gpu::try_run`]; it must succeed.
    #[track_caller]
    pub fn run(&self, build: impl FnOnce(&mut Commands)) {
        self.try_run(build).expect("a job");
    }

    /// Stores a word.
    #[track_caller]
    pub fn store(&self, address: u64, value: u32) {
        self.run(|c| _ = c.store(address, value));
    }

    /// Increments a word.
    #[track_caller]
    pub fn increment(&self, address: u64) {
        self.run(|c| _ = c.increment(address));
    }

    /// Copies a range of 256-byte blocks.
    #[track_caller]
    pub fn copy(&self, from: Map, to: Map) {
        self.run(|c| _ = c.copy(from.at(0), to.at(0), from.len()));
    }

    /// A job must fail for lack of the right to an address: the waiter gets -EIO, in time, and the
    /// queue is banned. Then makes a new queue, which must work.
    #[track_caller]
    pub fn expect_fault(&mut self, what: &str, build: impl FnOnce(&mut Commands)) {
        let start = Instant::now();
        let result = self.try_run(build);
        let took = start.elapsed();
        self.check_ban(what, result, took);
    }

    /// As [`Gpu::expect_fault`], for a batch that lies at a GPU address.
    #[track_caller]
    pub fn expect_batch_fault(&mut self, what: &str, batch: u64) {
        let start = Instant::now();
        let result = self.submit_and_wait(batch);
        let took = start.elapsed();
        self.check_ban(what, result, took);
    }

    #[track_caller]
    fn check_ban(&mut self, what: &str, result: Result<()>, took: Duration) {
        match result {
            Ok(()) => panic!("{what}: the GPU was let"),
            Err(e) => assert_eq!(e.errno(), libc::EIO, "{what}: {e}"),
        }
        expect_prompt(&format!("{what}: -EIO"), took, FAULT_DEADLINE);
        assert_eq!(self.queue.is_banned(), Ok(true), "{what}: banned");
        let again = self.try_run(|c| _ = c.noop());
        assert_eq!(
            again.map_err(|e| (e.call(), e.errno())),
            Err(("DRM_IOCTL_XE_EXEC", libc::ECANCELED)),
            "{what}: the banned queue takes work"
        );
        self.renew();
        self.run(|c| _ = c.noop());
    }

    /// Starts a job and does not wait for it.
    pub fn start(&self, build: impl FnOnce(&mut Commands)) -> Result<Job<'_>> {
        let mut commands = Commands::new();
        build(&mut commands);
        commands.end();
        let length = (commands.dwords().len() * 4).next_multiple_of(PAGE);
        let memory = Map::anon(length + PAGE);
        memory.part(0, length).write_words(0, commands.dwords());
        let job = Job { queue: &self.queue, memory, fence: memory.part(length, PAGE) };
        let fence = Fence { address: job.fence.at(0), value: DONE };
        // SAFETY: batch and fence lie in memory of the job's own, which stays until the fence has
        // signalled; the tests' batches touch the tests' memory.
        unsafe { self.queue.submit(memory.at(0), Some(fence)) }?;
        Ok(job)
    }
}

const DONE: u64 = 0xd0d0_d0d0_cafe_0001;

/// Writes commands, and their end, to memory. Says where the GPU finds them.
#[track_caller]
pub fn write_batch(to: Map, build: impl FnOnce(&mut Commands)) -> u64 {
    let mut commands = Commands::new();
    build(&mut commands);
    commands.end();
    to.write_words(0, commands.dwords());
    to.at(0)
}

/// A device works: the GPU counts in memory of the process, from a new VM on.
#[track_caller]
pub fn works(device: &Device, what: &str) {
    let map = Map::anon(2 * MIDDLE);
    let gpu = Gpu::on_device(device);
    for page in 0..map.len() / PAGE {
        gpu.increment(map.at(page * PAGE));
    }
    for page in 0..map.len() / PAGE {
        map.expect_word(what, page * PAGE, 1);
    }
    map.unmap();
}

/// A job that runs.
#[must_use]
pub struct Job<'gpu> {
    queue: &'gpu ExecQueue,
    memory: Map,
    fence: Map,
}

impl Job<'_> {
    /// Waits for its end.
    pub fn wait(self) -> Result<()> {
        let wait = Wait::equal(self.fence.at(0), DONE, PATIENCE);
        let result = self.queue.wait(&wait);
        if result.is_ok() {
            self.memory.unmap();
        }
        result
    }

    /// Whether its fence has signalled.
    pub fn is_done(&self) -> bool {
        self.fence.read(0) == DONE as u32 && self.fence.read(4) == (DONE >> 32) as u32
    }
}

/// The device's copy engine.
#[track_caller]
pub fn copy_engine(device: &Device) -> sys::drm_xe_engine_class_instance {
    let copy = |e: &sys::drm_xe_engine_class_instance| {
        u32::from(e.engine_class) == sys::DRM_XE_ENGINE_CLASS_COPY
    };
    let engines = device.engines().expect("the engines");
    engines.into_iter().find(copy).expect("a copy engine")
}
