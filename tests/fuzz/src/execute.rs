// SPDX-License-Identifier: GPL-2.0

//! Runs a program, in a process that is made for it.

use crate::{
    arena::{self, Arena},
    calls, guard,
    id::Id,
    kcov::{Kcov, Modules},
    model::Model,
    program::{Arg, Program},
    regions::{self, Kind},
    tally::Tally,
    watch::log,
};
use std::{
    os::fd::RawFd,
    sync::atomic::{AtomicI32, AtomicU64, AtomicU8, Ordering},
    time::{Duration, Instant},
};
use vxe_client::{request, sys, Bind};
use vxe_uapi::Rng;

/// How long a call waits for what it needs from another thread.
const WAIT: Duration = Duration::from_millis(250);

/// What a slot has.
struct Slot {
    /// 0: nothing yet, 1: a value, 2: the call that fills it has failed.
    state: AtomicU8,
    value: AtomicU64,
}

/// What all threads of a program need.
pub struct Execution<'a> {
    pub model: &'a Model,
    pub program: &'a Program,
    pub tally: &'static Tally,
    pub modules: &'a Modules,
    /// Where descriptors are sent to, and received from, by all processes.
    pub mailbox: (RawFd, RawFd),
    /// Counts what this program was the first to reach.
    pub fresh: &'a AtomicU64,
    pub children: [AtomicI32; 16],
    arena: Arena,
    slots: Vec<Slot>,
    /// The file and the number of a VM that is likely to be there.
    vm: (AtomicI32, AtomicU64),
}

/// The result of a call: its value, or the errno.
pub type Outcome = Result<u64, i32>;

impl<'a> Execution<'a> {
    /// Everything that is there before the first call.
    pub fn new(
        model: &'a Model,
        program: &'a Program,
        id: &Id,
        tally: &'static Tally,
        modules: &'a Modules,
        (mailbox, fresh): ((RawFd, RawFd), &'a AtomicU64),
    ) -> Self {
        guard::install();
        // Nobody waits for what no call makes any more.
        let slot = |made| Slot {
            state: AtomicU8::new(if made { 0 } else { 2 }),
            value: AtomicU64::new(0),
        };
        Self {
            model,
            program,
            tally,
            modules,
            mailbox,
            fresh,
            children: [const { AtomicI32::new(0) }; 16],
            arena: Arena::map(id.index as usize % 2),
            slots: program.made().into_iter().map(slot).collect(),
            vm: (AtomicI32::new(-1), AtomicU64::new(0)),
        }
    }

    /// Runs all of it.
    pub fn run(&self, id: &Id) {
        let faults = Rng::new(id.first() ^ 1);
        std::thread::scope(|scope| {
            // It never ends; the process does.
            std::thread::Builder::new()
                .spawn(move || arena::answer_faults(faults))
                .expect("a thread for faults");
            self.run_calls((0..self.program.setup).filter(|i| self.is_own(*i)));
            let threads: Vec<_> = (0..self.program.threads)
                .map(|thread| {
                    scope.spawn(move || {
                        let of_thread =
                            |i: &usize| self.program.calls[*i].thread == thread && self.is_own(*i);
                        let count = self.program.calls.len();
                        self.run_calls((self.program.setup..count).filter(of_thread));
                    })
                })
                .collect();
            for thread in threads {
                let _ = thread.join();
            }
        });
    }

    fn is_own(&self, number: usize) -> bool {
        self.program.calls[number].child_of.is_none()
    }

    fn run_calls(&self, numbers: impl Iterator<Item = usize>) {
        let kcov = Kcov::start();
        for number in numbers {
            self.run_call(number);
            if let Some(kcov) = &kcov {
                let new = kcov.collect(self.modules, self.tally);
                self.fresh.fetch_add(new, Ordering::Relaxed);
            }
        }
    }

    /// What the child of the call `fork` does.
    pub fn run_child(&self, fork: usize) {
        let count = self.program.calls.len();
        let calls = &self.program.calls;
        self.run_calls((fork + 1..count).filter(|i| calls[*i].child_of == Some(fork)));
    }

    fn run_call(&self, number: usize) {
        let call = &self.program.calls[number];
        self.wait_for(&call.slots_used());

        let mut values = [0; 6];
        for (value, arg) in values.iter_mut().zip(&call.args) {
            *value = self.pass(arg);
        }
        let mut on_device = Vec::new();
        for arg in &call.args {
            arg.visit(&mut |arg| match arg {
                Arg::Pointer { address, to: Some(to) }
                    if regions::of(*address).is_some_and(|r| r.kind == Kind::Device) =>
                {
                    on_device.push((*address, to.size()));
                }
                _ => {}
            });
        }
        self.move_to_device(&on_device);

        let outcome = calls::make(self, number, &values);
        let made = &self.tally.calls[call.index];
        made.all.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Ok(_) => {
                made.well.fetch_add(1, Ordering::Relaxed);
            }
            // ERESTARTSYS and its kin are the kernel's own.
            Err(errno) if errno >= 512 => {
                self.tally.strange_errors.fetch_add(1, Ordering::Relaxed);
                let name = &self.model.calls[call.index].name;
                log(&format!("gpusvm-fuzz: {name} failed with the kernel's own error {errno}"));
            }
            Err(errno) => {
                if let Some(count) = made.errors.get(errno as usize) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        self.take_results(number, outcome);
    }

    /// Waits until slots are filled, for a while.
    fn wait_for(&self, slots: &[usize]) {
        let start = Instant::now();
        for slot in slots {
            while self.slots[*slot].state.load(Ordering::Acquire) == 0 && start.elapsed() < WAIT {
                std::thread::sleep(Duration::from_micros(300));
            }
        }
    }

    fn slot_value(&self, slot: usize, default: u64) -> u64 {
        let slot = &self.slots[slot];
        match slot.state.load(Ordering::Acquire) {
            1 => slot.value.load(Ordering::Relaxed),
            _ => default,
        }
    }

    fn fill_slot(&self, slot: usize, value: Option<u64>) {
        let slot = &self.slots[slot];
        slot.value.store(value.unwrap_or(0), Ordering::Relaxed);
        slot.state.store(if value.is_some() { 1 } else { 2 }, Ordering::Release);
    }

    /// What goes into the register for an argument; what it points to is put there.
    fn pass(&self, arg: &Arg) -> u64 {
        match arg {
            Arg::Int { value, .. } => *value,
            Arg::In { slot, default, .. } => self.slot_value(*slot, *default),
            Arg::Out { .. } => 0,
            Arg::Pointer { address, to: None } => *address,
            Arg::Pointer { address, to: Some(to) } => {
                let mut bytes = vec![0; to.size()];
                self.serialise(to, &mut bytes);
                self.arena.put(*address, &bytes);
                *address
            }
            Arg::Group { .. } | Arg::Bytes(_) => 0,
        }
    }

    fn serialise(&self, arg: &Arg, bytes: &mut [u8]) {
        match arg {
            Arg::Group { items, .. } => {
                for (offset, item) in items {
                    self.serialise(item, &mut bytes[*offset..*offset + item.size()]);
                }
            }
            Arg::Bytes(from) => bytes.copy_from_slice(from),
            Arg::Int { size, .. } | Arg::In { size, .. } | Arg::Out { size, .. } => {
                bytes.copy_from_slice(&self.pass(arg).to_le_bytes()[..*size]);
            }
            Arg::Pointer { .. } => bytes.copy_from_slice(&self.pass(arg).to_le_bytes()),
        }
    }

    /// Takes what the kernel left in memory, and the call's own result.
    fn take_results(&self, number: usize, outcome: Outcome) {
        let call = &self.program.calls[number];
        for arg in &call.args {
            if let Arg::Pointer { address, to: Some(to) } = arg {
                self.take_from(to, *address, outcome.is_ok());
            }
        }
        if let Some(slot) = call.result {
            self.fill_slot(slot, outcome.ok());
        }
        // The kernel's number of the VM is behind the flags in its struct.
        let name = &self.model.calls[call.index].name;
        if let (true, true) = (outcome.is_ok(), name == "ioctl$XE_VM_CREATE") {
            if let (Some(fd), Some(Arg::Pointer { address, .. })) =
                (call.args.first(), call.args.get(2))
            {
                let mut id = [0; 4];
                let at = std::mem::offset_of!(sys::drm_xe_vm_create, vm_id) as u64;
                if guard::read(address + at, &mut id) {
                    self.vm.1.store(u32::from_ne_bytes(id).into(), Ordering::Relaxed);
                    self.vm.0.store(self.pass(fd) as i32, Ordering::Relaxed);
                }
            }
        }
    }

    fn take_from(&self, arg: &Arg, address: u64, well: bool) {
        match arg {
            Arg::Group { items, .. } => {
                for (offset, item) in items {
                    self.take_from(item, address + *offset as u64, well);
                }
            }
            Arg::Out { slot, size } => {
                let mut bytes = [0; 8];
                let there = well && guard::read(address, &mut bytes[..*size]);
                self.fill_slot(*slot, there.then(|| u64::from_le_bytes(bytes)));
            }
            Arg::Pointer { address, to: Some(to) } => self.take_from(to, *address, well),
            _ => {}
        }
    }

    /// Has memory with arguments live on the device.
    fn move_to_device(&self, places: &[(u64, usize)]) {
        let fd = self.vm.0.load(Ordering::Relaxed);
        if fd < 0 || places.is_empty() {
            return;
        }
        let mut bind = sys::drm_xe_vm_bind {
            vm_id: self.vm.1.load(Ordering::Relaxed) as u32,
            num_binds: 1,
            ..Default::default()
        };
        for (address, size) in places {
            let start = address & !0xffff;
            let length = (address + *size as u64 - start).next_multiple_of(0x1_0000);
            bind.__bindgen_anon_1.bind = *Bind::prefetch(start, length, 1).as_raw();
            // SAFETY: the argument is a live struct of the request's; it moves memory, and changes none.
            unsafe { libc::ioctl(fd, request::VM_BIND.number(), &raw mut bind) };
        }
    }
}
