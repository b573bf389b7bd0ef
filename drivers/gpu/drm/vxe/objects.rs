// SPDX-License-Identifier: GPL-2.0

//! Counts of a device's objects, for debugfs. An object is counted from its creation until it is
//! freed, so a leak shows as a count that never goes down.

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

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    /// VMs.
    Vm,
    /// Exec queues.
    Queue,
    /// Buffers.
    Buffer,
}

/// Counts the objects of a device.
pub(crate) struct Objects {
    vms: Atomic<usize>,
    queues: Atomic<usize>,
    buffers: Atomic<usize>,
}

impl Objects {
    /// Creates counters that are zero. Fails with `ENOMEM`.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let none = Self {
            vms: Atomic::new(0),
            queues: Atomic::new(0),
            buffers: Atomic::new(0),
        };
        Ok(Arc::new(none, GFP_KERNEL)?)
    }

    fn of(&self, kind: ObjectKind) -> &Atomic<usize> {
        match kind {
            ObjectKind::Vm => &self.vms,
            ObjectKind::Queue => &self.queues,
            ObjectKind::Buffer => &self.buffers,
        }
    }

    /// Counts one more object, until the result is dropped.
    pub(crate) fn count(self: &Arc<Self>, kind: ObjectKind) -> Counted {
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

/// Counts one object until it is dropped.
pub(crate) struct Counted {
    objects: Arc<Objects>,
    kind: ObjectKind,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let _ = self.objects.of(self.kind).fetch_sub(1, Relaxed);
    }
}
