// error: E0499
// SPDX-License-Identifier: GPL-2.0

//! Pages are mapped under the notifier lock that commit() holds.

mod common;

use common::Mirror;
use gpusvm::{Attempt, Ctx, LockedRange};

pub fn commit(mut found: LockedRange<'_, '_, Mirror>, ctx: &Ctx, attempt: &Attempt<'_>) {
    let _ = found.commit(|_, _| found.get(ctx, attempt));
}
