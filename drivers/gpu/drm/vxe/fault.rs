// SPDX-License-Identifier: GPL-2.0

//! GPU page faults: from the engine to the fault queue of the VM, to a worker, and back.
//!
//! An execution with a fault leaves its engine and waits in the fault queue of its VM. The VM's
//! work item, on the client's work queue (`client.rs`), services the fault, and its answer makes
//! the execution runnable again. So
//!
//! - no thread waits for a fault except the one that services it;
//! - one worker at a time services the faults of a VM, one after the other. Any number of faulting
//!   queues, and any duration of a fault (userfaultfd, a slow file system), occupies one worker and
//!   delays only this VM;
//! - a client has a fixed number of workers. If all of them wait for pages, the client's other VMs
//!   wait, too, but no other client does. The work item of a VM with many faults is requeued after
//!   [`FAULTS_PER_RUN`] of them, so that other VMs get the worker;
//! - one service answers all faults that it resolves, for example of other queues in the same
//!   chunk;
//! - each fault is answered once. From the fault to its answer, the fault queue owns the execution,
//!   and nothing is allocated for it: so no fault fails for lack of memory, is lost, or is answered
//!   twice.
//!
//! When a VM is closed its pending faults fail at once, including the one in service. The worker
//! stops waiting for pages (`vm/workers.rs`), and tears the VM down afterwards, so that close()
//! need not wait for the worker.
//!
//! Lock order: the lock of a fault queue is a leaf. Faults are answered without it.

use crate::{
    exec_queue::Execution,
    fifo::{
        Fifo,
        FifoNode, //
    },
    gpu::Access,
    vm::{
        vma::Span,
        Vm, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_mutex,
        Arc,
        Mutex, //
    }, //
};

#[cfg(CONFIG_KUNIT = "y")]
mod tests;

/// How many faults of a VM are serviced before its work item is requeued behind other VMs of the
/// client.
const FAULTS_PER_RUN: u32 = 16;

/// An access that is not mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// The GPU address.
    pub(crate) addr: u64,
    /// The access that the engine needs.
    pub(crate) access: Access,
}

/// The mapping that the service of a fault made.
#[derive(Clone, Debug)]
pub(crate) struct Serviced {
    /// The addresses that are mapped now.
    pub(crate) span: Span,
    /// The strongest access that the whole span allows.
    pub(crate) access: Access,
}

impl Serviced {
    /// Returns whether the mapping allows the access of `fault`.
    pub(crate) fn resolves(&self, fault: &Fault) -> bool {
        self.span.contains(&fault.addr) && strength(fault.access) <= strength(self.access)
    }
}

/// Returns the rank of an access; each access includes those of lower rank.
fn strength(access: Access) -> u8 {
    match access {
        Access::Read => 0,
        Access::Write => 1,
        Access::Atomic => 2,
    }
}

/// A context that can have faults.
pub(crate) trait Faulting: Sized {
    /// Returns the fault that the context waits for.
    fn fault(&self) -> Fault;

    /// Passes on the context in `node` after its fault was serviced or has failed. May take locks;
    /// must not sleep for long.
    fn answer(node: KBox<FifoNode<Self>>, result: Result);
}

/// The state of the VM's fault service.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No fault is in service.
    Idle,
    /// A fault is in service.
    Serving,
    /// A fault is in service, and its worker tears the VM down.
    Closing,
    /// No further fault is serviced.
    Closed,
}

/// Pending faults. Those left when it is dropped fail.
struct Pending<T: Faulting>(Fifo<T>);

impl<T: Faulting> Pending<T> {
    fn answer(mut self, result: Result) {
        while let Some(node) = self.0.pop_front() {
            T::answer(node, result);
        }
    }
}

impl<T: Faulting> Drop for Pending<T> {
    fn drop(&mut self) {
        while let Some(node) = self.0.pop_front() {
            T::answer(node, Err(EIO));
        }
    }
}

struct State<T: Faulting> {
    phase: Phase,
    pending: Pending<T>,
    /// The context whose fault is in service. The thread that takes it out answers the fault.
    serving: Option<KBox<FifoNode<T>>>,
}

/// Counts of faults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// Serviced with success.
    pub(crate) served: u64,
    /// Answered with the service of another fault.
    pub(crate) coalesced: u64,
    /// Failed in their service.
    pub(crate) failed: u64,
}

/// The faults of a VM.
#[pin_data]
pub(crate) struct FaultQueue<T: Faulting> {
    #[pin]
    state: Mutex<State<T>>,
    served: Atomic<u64>,
    coalesced: Atomic<u64>,
    failed: Atomic<u64>,
}

/// Which thread has to tear the VM down.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TearDown {
    /// The caller, now.
    Caller,
    /// Another thread, or none any more.
    Other,
}

/// The result of [`FaultQueue::serve`].
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ServeResult {
    teardown: TearDown,
    /// Whether more faults are pending.
    more: bool,
}

impl<T: Faulting> FaultQueue<T> {
    /// Creates an open queue.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            state <- new_mutex!(
                State {
                    phase: Phase::Idle,
                    pending: Pending(Fifo::new()),
                    serving: None,
                },
                "vxe_fault_queue"
            ),
            served: Atomic::new(0),
            coalesced: Atomic::new(0),
            failed: Atomic::new(0),
        })
    }

    /// Queues a context with a fault. The caller then makes sure that a worker runs. If the VM is
    /// closed, answers `ENOENT`.
    fn submit(&self, node: KBox<FifoNode<T>>) {
        let mut state = self.state.lock();
        if state.is_closed() {
            drop(state);
            return T::answer(node, Err(ENOENT));
        }
        state.pending.0.push_back(node);
    }

    /// Services the next fault with `service` and answers it. Returns `None` if no fault is
    /// pending.
    ///
    /// Also answers other pending faults: with success those that `service` resolved, and with the
    /// same error those at the same address for the same access. At most one thread may call this
    /// at a time.
    fn serve(&self, service: impl FnOnce(Fault) -> Result<Serviced>) -> Option<ServeResult> {
        let fault = {
            let mut state = self.state.lock();
            if state.phase != Phase::Idle {
                return None;
            }
            let node = state.pending.0.pop_front()?;
            let fault = node.value.fault();
            state.phase = Phase::Serving;
            state.serving = Some(node);
            fault
        };
        let result = service(fault);

        let counter = match &result {
            Ok(_) => &self.served,
            Err(_) => &self.failed,
        };
        counter.add(1, Relaxed);
        let answer = match &result {
            Ok(_) => Ok(()),
            Err(e) => Err(*e),
        };
        let is_resolved = |waiting: &T| {
            let other = waiting.fault();
            match &result {
                Ok(served) => served.resolves(&other),
                Err(_) => other.addr == fault.addr && other.access == fault.access,
            }
        };

        let mut state = self.state.lock();
        let teardown = if state.phase == Phase::Closing {
            state.phase = Phase::Closed;
            TearDown::Caller
        } else {
            state.phase = Phase::Idle;
            TearDown::Other
        };
        let served = state.serving.take();
        let mut resolved = state.pending.0.take_if(is_resolved);
        let more = !state.pending.0.is_empty();
        drop(state);

        if let Some(node) = served {
            T::answer(node, answer);
        }
        while let Some(node) = resolved.pop_front() {
            T::answer(node, answer);
            self.coalesced.add(1, Relaxed);
        }
        Some(ServeResult { teardown, more })
    }

    /// Returns whether the VM is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().is_closed()
    }

    /// Fails all present and future faults, including the one in service.
    pub(crate) fn close(&self) -> TearDown {
        let mut state = self.state.lock();
        let (phase, teardown) = match state.phase {
            Phase::Idle => (Phase::Closed, TearDown::Caller),
            Phase::Serving => (Phase::Closing, TearDown::Other),
            closed @ (Phase::Closing | Phase::Closed) => (closed, TearDown::Other),
        };
        state.phase = phase;
        let pending = core::mem::replace(&mut state.pending, Pending(Fifo::new()));
        let serving = state.serving.take();
        drop(state);

        if let Some(node) = serving {
            T::answer(node, Err(ENOENT));
        }
        pending.answer(Err(ENOENT));
        teardown
    }

    /// Returns the counts.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            served: self.served.load(Relaxed),
            coalesced: self.coalesced.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }
}

impl<T: Faulting> State<T> {
    fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Closed)
    }
}

impl Vm {
    /// Queues the fault that `node` waits for.
    ///
    /// The answer is `ENOENT` if the VM is or gets closed, else the result of its
    /// [service](Self::service).
    pub(crate) fn fault(self: &Arc<Self>, node: KBox<FifoNode<Execution>>) {
        self.faults().submit(node);
        self.queue_service();
    }
}

/// Services the faults of `vm` with `service` until none is pending, or requeues the VM's work item
/// after [`FAULTS_PER_RUN`] faults. Called by that work item.
pub(crate) fn service_faults(vm: &Arc<Vm>, service: impl Fn(Fault) -> Result<Serviced>) {
    let service = |fault: Fault| {
        service(fault).inspect_err(|e| {
            vxe_sim::drm_dbg!(vm.dev(), "{fault:?} failed: {e:?}");
            vm.failed().add(&fault, *e);
        })
    };
    for _ in 0..FAULTS_PER_RUN {
        let Some(done) = vm.faults().serve(service) else {
            return;
        };
        if done.teardown == TearDown::Caller {
            vm.tear_down();
        }
        if !done.more {
            return;
        }
    }
    vm.queue_service();
}
