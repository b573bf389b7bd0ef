// SPDX-License-Identifier: GPL-2.0

//! How many objects of each kind a device has, for debugfs: from when one is made until it is freed,
//! whoever knows of it. What leaks is counted for ever.

use kernel::{
    prelude::*,
    seq_file::{
        seq_print,
        SeqFile, //
    },
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// VMs.
    Vm,
    /// Exec queues.
    Queue,
    /// Buffers.
    Buffer,
}

/// The numbers of a device's objects.
pub(crate) struct Objects {
    vms: Atomic<usize>,
    queues: Atomic<usize>,
    buffers: Atomic<usize>,
}

impl Objects {
    /// None of any kind. Fails with `ENOMEM`.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let none = Self {
            vms: Atomic::new(0),
            queues: Atomic::new(0),
            buffers: Atomic::new(0),
        };
        Ok(Arc::new(none, GFP_KERNEL)?)
    }

    fn of(&self, kind: Kind) -> &Atomic<usize> {
        match kind {
            Kind::Vm => &self.vms,
            Kind::Queue => &self.queues,
            Kind::Buffer => &self.buffers,
        }
    }

    /// One more object, which keeps the result.
    pub(crate) fn count(self: &Arc<Self>, kind: Kind) -> Counted {
        self.of(kind).add(1, Relaxed);
        Counted {
            objects: self.clone(),
            kind,
        }
    }

    /// Prints a line for each kind.
    pub(crate) fn show(&self, m: &SeqFile) {
        seq_print!(m, "vms: {}\n", self.vms.load(Relaxed));
        seq_print!(m, "queues: {}\n", self.queues.load(Relaxed));
        seq_print!(m, "buffers: {}\n", self.buffers.load(Relaxed));
    }
}

/// An object that is counted; dropped, it is not any more.
pub(crate) struct Counted {
    objects: Arc<Objects>,
    kind: Kind,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let _ = self.objects.of(self.kind).fetch_sub(1, Relaxed);
    }
}
