// SPDX-License-Identifier: GPL-2.0

//! Charges of device memory made before a migration.
//!
//! To charge a process may mean to wait for one of its threads, and that thread may wait for pages
//! under migration. So the caller of a migration charges the most that the migration can need
//! before it locks pages. The migration takes its charge from there, and the caller uncharges the
//! rest afterwards.

use core::marker::PhantomData;
use kernel::{
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        new_mutex,
        Mutex, //
    },
    task::Pid, //
};
use kernel_ext::cgroup::dmem::Charge;

/// The precharges of all threads that migrate pages.
#[pin_data]
pub(super) struct Precharges {
    /// By thread. A thread has at most one.
    #[pin]
    list: Mutex<RBTree<Pid, Charge>>,
}

/// The calling thread's precharge. Uncharges what is left of it when dropped.
pub(crate) struct Precharge<'a> {
    precharges: &'a Precharges,
    /// Not `Send`: the list is keyed by the calling thread.
    _thread: PhantomData<*mut ()>,
}

impl Precharges {
    /// Creates an empty list.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- new_mutex!(RBTree::new(), "vxe::Precharges"),
        })
    }

    /// Sets the calling thread's precharge. Fails with `ENOMEM`.
    pub(super) fn put(&self, charge: Charge) -> Result<Precharge<'_>> {
        let of = kernel::current!().pid();
        let node = RBTreeNode::new(of, charge, GFP_KERNEL_ACCOUNT)?;
        // The thread had no precharge, so nothing is replaced.
        let _ = self.list.lock().insert(node);
        Ok(Precharge {
            precharges: self,
            _thread: PhantomData,
        })
    }

    /// Takes `bytes` of the calling thread's precharge, if that is large enough.
    pub(super) fn take(&self, bytes: u64) -> Option<Charge> {
        let of = kernel::current!().pid();
        let mut list = self.list.lock();
        list.get_mut(&of)?.take(bytes)
    }
}

impl Drop for Precharge<'_> {
    fn drop(&mut self) {
        let of = kernel::current!().pid();
        let left = self.precharges.list.lock().remove_node(&of);
        drop(left);
    }
}
