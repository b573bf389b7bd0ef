// error: E0200
// SPDX-License-Identifier: GPL-2.0

//! Task work that is freed while it is still in the list of the thread.

use kernel::prelude::*;
use kernel_ext::task_work::{TaskWork, TaskWorkItem};

pub struct Early;

impl TaskWorkItem for Early {
    fn run(&self) {}

    fn finish(work: Pin<KBox<TaskWork<Self>>>) {
        drop(work);
    }
}
