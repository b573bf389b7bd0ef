// SPDX-License-Identifier: GPL-2.0

//! Device memory that is charged before it is known how much of it is needed.
//!
//! To charge a process may be to wait for one of its threads, and that thread may wait for pages that are
//! being moved. So as much as a migration can need is charged before it takes any; what it needs is taken of
//! that, and the rest given back when it is over.

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

/// The advances of all threads that move pages.
#[pin_data]
pub(super) struct Advances {
    /// By thread: each has one at the most.
    #[pin]
    list: Mutex<RBTree<Pid, Charge>>,
}

/// What the calling thread has been advanced. Dropping it gives back what is left.
pub(crate) struct Advance<'a> {
    advances: &'a Advances,
    /// It is of the thread that made it.
    _thread: PhantomData<*mut ()>,
}

impl Advances {
    /// Nobody has any.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- new_mutex!(RBTree::new(), "vxe::Advances"),
        })
    }

    /// Advances the calling thread `charge`. Fails with `ENOMEM`.
    pub(super) fn put(&self, charge: Charge) -> Result<Advance<'_>> {
        let of = kernel::current!().pid();
        let node = RBTreeNode::new(of, charge, GFP_KERNEL_ACCOUNT)?;
        // It had none.
        let _ = self.list.lock().insert(node);
        Ok(Advance {
            advances: self,
            _thread: PhantomData,
        })
    }

    /// So many bytes of what the calling thread has been advanced, if that is enough.
    pub(super) fn take(&self, bytes: u64) -> Option<Charge> {
        let of = kernel::current!().pid();
        let mut list = self.list.lock();
        list.get_mut(&of)?.take(bytes)
    }
}

impl Drop for Advance<'_> {
    fn drop(&mut self) {
        let of = kernel::current!().pid();
        let left = self.advances.list.lock().remove_node(&of);
        drop(left);
    }
}
