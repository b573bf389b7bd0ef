// error: E0599
// SPDX-License-Identifier: GPL-2.0

//! Delayed work whose queue is dropped before its time comes.

use kernel::{
    new_delayed_work,
    prelude::*,
    sync::Arc,
    workqueue::{impl_has_delayed_work, DelayedWork, WorkItem},
};
use kernel_ext::workqueue::OwnedQueue;

#[pin_data]
pub struct Late {
    #[pin]
    work: DelayedWork<Late>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Late { self.work }
}

impl WorkItem for Late {
    type Pointer = Arc<Self>;

    fn run(_: Arc<Self>) {}
}

pub fn run() -> Result {
    let late = Arc::pin_init(
        pin_init!(Late {
            work <- new_delayed_work!("Late"),
        }),
        GFP_KERNEL,
    )?;
    let queue = OwnedQueue::new_unbound(c"late")?;
    let _ = queue.enqueue_delayed(late, 100);
    Ok(())
}
