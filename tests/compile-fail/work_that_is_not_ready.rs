// error: E0133
// SPDX-License-Identifier: GPL-2.0

//! A work item that may be scheduled before it was made ready.

use kernel_ext::workqueue::StaticWork;

fn run() {}

pub static WORK: StaticWork = StaticWork::new(run);
