// error: E0500, E0501
// SPDX-License-Identifier: GPL-2.0

//! The pages of a userptr are got while they are committed: that would take the notifier lock again.

mod common;

use common::ByAddress;
use gpusvm::{Attempt, Ctx, LockedUserptr};

pub fn get(locked: &mut LockedUserptr<'_, ByAddress>, ctx: &Ctx, attempt: &Attempt<'_>) {
    let _ = locked.commit(|_| locked.get(ctx, attempt));
}
