// SPDX-License-Identifier: GPL-2.0

//! GPU page faults: from the engine that has one, through the queue of its VM, to a worker and back.
//!
//! An engine whose access is not mapped calls [`FaultHandler::fault`] and sleeps. The fault waits in
//! the queue of its VM for the VM's work item, which runs on an unbound work queue of the device that
//! gets threads as it needs them. So
//!
//! - the faults of one VM are serviced one after the other, by one worker at a time: however many
//!   engines fault, and however long one fault takes (userfaultfd, a slow file system), it occupies
//!   one worker and delays its own VM only;
//! - faults that the service of another one has settled (other engines in the same chunk) are
//!   answered with it;
//! - every fault is answered once. It is a [`Ticket`] from the queue to the answer, and a ticket
//!   that is dropped answers with an error: none can be forgotten, and none is answered with
//!   success by accident.
//!
//! When a VM is closed its waiting faults fail at once, also the one that is being serviced; who
//! services it tears the VM down afterwards, so that closing waits for nobody.
//!
//! Lock order: a queue's lock, then a waiter's, which is a leaf. No other lock is taken inside them.

use crate::{
    gpu::{
        Access,
        FaultHandler, //
    },
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
        new_condvar,
        new_mutex,
        new_spinlock,
        Arc,
        CondVar,
        Mutex,
        SpinLock, //
    }, //
};

#[cfg(CONFIG_KUNIT = "y")]
mod tests;

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

/// Where an engine waits for the answer.
#[pin_data]
pub(crate) struct Waiter {
    #[pin]
    answer: SpinLock<Option<Result>>,
    #[pin]
    answered: CondVar,
}

impl Waiter {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                answer <- new_spinlock!(None, "vxe_fault_answer"),
                answered <- new_condvar!("vxe_fault_answered"),
            }),
            GFP_KERNEL,
        )
    }

    /// Sleeps until the fault is answered. Fails with its error, and with `EINTR` for a thread
    /// that gets a signal.
    pub(crate) fn wait(&self) -> Result {
        let mut answer = self.answer.lock();
        loop {
            if let Some(answer) = *answer {
                return answer;
            }
            if self.answered.wait_interruptible(&mut answer) {
                return Err(EINTR);
            }
        }
    }

    /// The first answer counts.
    fn answer(&self, result: Result) {
        self.answer.lock().get_or_insert(result);
        self.answered.notify_all();
    }
}

/// A fault that has to be answered.
#[must_use = "a ticket that is dropped answers with an error"]
struct Ticket {
    fault: Fault,
    waiter: Arc<Waiter>,
}

impl Ticket {
    fn answer(self, result: Result) {
        self.waiter.answer(result);
    }
}

impl Drop for Ticket {
    /// Nothing happens if there was an answer.
    fn drop(&mut self) {
        self.waiter.answer(Err(EIO));
    }
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

struct State {
    phase: Phase,
    pending: KVec<Ticket>,
    /// Who waits for the fault that is being serviced.
    serving: Option<Arc<Waiter>>,
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
pub(crate) struct FaultQueue {
    #[pin]
    state: Mutex<State>,
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

impl FaultQueue {
    /// An open queue.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            state <- new_mutex!(
                State {
                    phase: Phase::Idle,
                    pending: KVec::new(),
                    serving: None,
                },
                "vxe_fault_queue"
            ),
            served: Atomic::new(0),
            coalesced: Atomic::new(0),
            failed: Atomic::new(0),
        })
    }

    /// Puts a fault into the queue; the caller then makes sure that a worker looks at it.
    ///
    /// Fails with `ENOENT` if the VM is closed, and `ENOMEM`.
    fn submit(&self, fault: Fault) -> Result<Arc<Waiter>> {
        let waiter = Waiter::new()?;
        let ticket = Ticket {
            fault,
            waiter: waiter.clone(),
        };
        let mut state = self.state.lock();
        if state.is_closed() {
            return Err(ENOENT);
        }
        state.pending.push(ticket, GFP_KERNEL)?;
        Ok(waiter)
    }

    /// Takes the next fault, has it serviced and answers it. Returns none if there was none, and
    /// otherwise who has to tear the VM down.
    ///
    /// The answer also goes to all other faults that it settles: success to those that work now, an
    /// error to those that are the same. The caller must be the only one who services.
    fn serve(&self, service: impl FnOnce(Fault) -> Result<Served>) -> Option<TearDown> {
        let ticket = {
            let mut state = self.state.lock();
            if state.phase != Phase::Idle {
                return None;
            }
            let ticket = state.pending.remove(0).ok()?;
            state.phase = Phase::Serving;
            state.serving = Some(ticket.waiter.clone());
            ticket
        };
        let fault = ticket.fault;
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
        let is_settled = |other: &Fault| match &result {
            Ok(served) => served.settles(other),
            Err(_) => other.addr == fault.addr && other.access == fault.access,
        };

        let mut state = self.state.lock();
        let whose = if state.phase == Phase::Closing {
            state.phase = Phase::Closed;
            TearDown::Yours
        } else {
            state.phase = Phase::Idle;
            TearDown::NotYours
        };
        state.serving = None;
        // Answers are given under the lock, so that no memory is needed to put them aside.
        state.pending.retain(|other| {
            let settled = is_settled(&other.fault);
            if settled {
                other.waiter.answer(answer);
                self.coalesced.add(1, Relaxed);
            }
            !settled
        });
        drop(state);
        ticket.answer(answer);
        Some(whose)
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
        let pending = core::mem::replace(&mut state.pending, KVec::new());
        let serving = state.serving.take();
        drop(state);

        for ticket in pending {
            ticket.answer(Err(ENOENT));
        }
        if let Some(waiter) = serving {
            waiter.answer(Err(ENOENT));
        }
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

impl State {
    fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Closed)
    }
}

impl FaultHandler for Arc<Vm> {
    /// Hands the fault to the VM's worker and sleeps until it is answered.
    ///
    /// Fails with `ENOENT` if the VM is or gets closed, `EINTR` for a thread that gets a signal,
    /// `ENOMEM`, and with what its [service](Vm::service) says.
    fn fault(&self, addr: u64, access: Access) -> Result {
        let waiter = self.faults().submit(Fault { addr, access })?;
        self.queue_service();
        waiter.wait()
    }
}

/// Services the faults of `vm` until there are none: what its work item does.
pub(crate) fn work(vm: &Vm) {
    let service = |fault: Fault| {
        vm.service(fault).inspect_err(|e| {
            kernel_ext::drm_dbg!(vm.dev(), "{fault:?} failed: {e:?}");
            vm.failed().add(&fault, *e);
        })
    };
    while let Some(whose) = vm.faults().serve(service) {
        if whose == TearDown::Yours {
            vm.tear_down();
        }
    }
}
