// error: E0502
// SPDX-License-Identifier: GPL-2.0

//! What takes the notifier lock is called under it.

mod common;

use common::Mirror;
use gpusvm::{Attempt, LockedRange};

pub fn commit(mut found: LockedRange<'_, '_, Mirror>, attempt: &Attempt<'_>) {
    let _ = found.commit(|_, _| found.evict(attempt));
}
