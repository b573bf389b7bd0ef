// SPDX-License-Identifier: GPL-2.0

//! GPU page faults: from the engine that has one, through the queue of its VM, to a worker and back.
//!
//! What has a fault leaves its engine, and waits in the queue of its VM for the VM's work item, which
//! runs on the client's work queue (`client.rs`). The answer has it run again. So
//!
//! - no thread waits for a fault but the one that services it;
//! - the faults of one VM are serviced one after the other, by one worker at a time: however many
//!   queues fault, and however long one fault takes (userfaultfd, a slow file system), it occupies
//!   one worker and delays its own VM only;
//! - a client has a few workers. When so many of its VMs wait for pages, the others of its VMs do, too,
//!   but no other client. A VM that faults on and on lets others have its worker after some faults;
//! - faults that the service of another one has settled (other queues in the same chunk) are
//!   answered with it;
//! - every fault is answered once. What faults belongs to the fault queue from the fault to the answer,
//!   and nothing is allocated for it: none can fail for that, be forgotten, or be answered twice.
//!
//! When a VM is closed its waiting faults fail at once, also the one that is being serviced; who
//! services it need not wait for its page any more (`vm/workers.rs`), and tears the VM down afterwards, so
//! that closing waits for nobody.
//!
//! Lock order: a queue's lock is a leaf. Answers are given without it.

use crate::{
    exec_queue::Execution,
    fifo::{
        Fifo,
        Node, //
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

/// How many faults of one VM are serviced before it is the turn of other VMs of the client.
const FAULTS_A_TURN: u32 = 16;

/// An access that is not mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// The GPU address.
    pub(crate) addr: u64,
    /// What the engine wants to do there.
    pub(crate) access: Access,
}

/// What the service of a fault made possible.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    /// The addresses that are mapped now.
    pub(crate) span: Span,
    /// The strongest access that works on all of them.
    pub(crate) access: Access,
}

impl Served {
    /// Whether `fault` needs no service any more.
    pub(crate) fn settles(&self, fault: &Fault) -> bool {
        self.span.contains(&fault.addr) && strength(fault.access) <= strength(self.access)
    }
}

/// Each access includes those that are weaker.
fn strength(access: Access) -> u8 {
    match access {
        Access::Read => 0,
        Access::Write => 1,
        Access::Atomic => 2,
    }
}

/// What has faults.
pub(crate) trait Faulting: Sized {
    /// The fault that it waits for.
    fn fault(&self) -> Fault;

    /// The fault is serviced, or failed; `node` has what it waited for. May take locks, but sleeps for
    /// a short time only.
    fn answer(node: KBox<Node<Self>>, result: Result);
}

/// What goes on with a queue's VM.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No fault is being serviced.
    Idle,
    /// One is.
    Serving,
    /// One is, and who services it tears the VM down.
    Closing,
    /// No fault will be serviced any more.
    Closed,
}

/// Faults that wait. What is forgotten has failed.
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
    /// What waits for the fault that is being serviced. Who takes it out answers.
    serving: Option<KBox<Node<T>>>,
}

/// Counts of a queue's faults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// Serviced with success.
    pub(crate) served: u64,
    /// Answered with the service of another.
    pub(crate) coalesced: u64,
    /// Answered with an error by their service.
    pub(crate) failed: u64,
}

/// The faults of one VM.
#[pin_data]
pub(crate) struct FaultQueue<T: Faulting> {
    #[pin]
    state: Mutex<State<T>>,
    served: Atomic<u64>,
    coalesced: Atomic<u64>,
    failed: Atomic<u64>,
}

/// Who has to tear a VM down.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TearDown {
    /// The caller, now.
    Yours,
    /// Somebody else, or nobody any more.
    NotYours,
}

/// What [`FaultQueue::serve`] did.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Serve {
    whose: TearDown,
    /// Whether there are more faults.
    more: bool,
}

impl<T: Faulting> FaultQueue<T> {
    /// An open queue.
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

    /// Puts what has a fault into the queue; the caller then makes sure that a worker looks at it. If
    /// the VM is closed, answers `ENOENT`.
    fn submit(&self, node: KBox<Node<T>>) {
        let mut state = self.state.lock();
        if state.is_closed() {
            drop(state);
            return T::answer(node, Err(ENOENT));
        }
        state.pending.0.push_back(node);
    }

    /// Has the next fault serviced and answers it. Returns none if there was none.
    ///
    /// The answer also goes to all other faults that it settles: success to those that work now, an
    /// error to those that are the same. The caller must be the only one who services.
    fn serve(&self, service: impl FnOnce(Fault) -> Result<Served>) -> Option<Serve> {
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
        let is_settled = |waiting: &T| {
            let other = waiting.fault();
            match &result {
                Ok(served) => served.settles(&other),
                Err(_) => other.addr == fault.addr && other.access == fault.access,
            }
        };

        let mut state = self.state.lock();
        let whose = if state.phase == Phase::Closing {
            state.phase = Phase::Closed;
            TearDown::Yours
        } else {
            state.phase = Phase::Idle;
            TearDown::NotYours
        };
        let served = state.serving.take();
        let mut settled = state.pending.0.take_if(is_settled);
        let more = !state.pending.0.is_empty();
        drop(state);

        if let Some(node) = served {
            T::answer(node, answer);
        }
        while let Some(node) = settled.pop_front() {
            T::answer(node, answer);
            self.coalesced.add(1, Relaxed);
        }
        Some(Serve { whose, more })
    }

    /// Whether the VM is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().is_closed()
    }

    /// Fails all faults, present and future, also the one that is being serviced.
    pub(crate) fn close(&self) -> TearDown {
        let mut state = self.state.lock();
        let (phase, whose) = match state.phase {
            Phase::Idle => (Phase::Closed, TearDown::Yours),
            Phase::Serving => (Phase::Closing, TearDown::NotYours),
            closed @ (Phase::Closing | Phase::Closed) => (closed, TearDown::NotYours),
        };
        state.phase = phase;
        let pending = core::mem::replace(&mut state.pending, Pending(Fifo::new()));
        let serving = state.serving.take();
        drop(state);

        if let Some(node) = serving {
            T::answer(node, Err(ENOENT));
        }
        pending.answer(Err(ENOENT));
        whose
    }

    /// What happened so far.
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
    /// Has the fault serviced that `node` waits for, soon, and answered.
    ///
    /// The answer is `ENOENT` if the VM is or gets closed, or what its [service](Self::service) says.
    pub(crate) fn fault(self: &Arc<Self>, node: KBox<Node<Execution>>) {
        self.faults().submit(node);
        self.queue_service();
    }
}

/// Services the faults of `vm`, by `service`, until there are none, or others have waited for long enough: what
/// its work item does.
pub(crate) fn work(vm: &Arc<Vm>, service: impl Fn(Fault) -> Result<Served>) {
    let service = |fault: Fault| {
        service(fault).inspect_err(|e| {
            vxe_sim::drm_dbg!(vm.dev(), "{fault:?} failed: {e:?}");
            vm.failed().add(&fault, *e);
        })
    };
    for _ in 0..FAULTS_A_TURN {
        let Some(done) = vm.faults().serve(service) else {
            return;
        };
        if done.whose == TearDown::Yours {
            vm.tear_down();
        }
        if !done.more {
            return;
        }
    }
    vm.queue_service();
}
