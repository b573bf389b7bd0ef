// error: E0133
// SPDX-License-Identifier: GPL-2.0

//! The notifier lock is taken, and held while pages are mapped.

mod common;

use common::Mirror;
use gpusvm::{Attempt, Ctx, Svm};
use kernel::prelude::*;

pub fn get(svm: &Svm<Mirror>, ctx: &Ctx, attempt: &Attempt<'_>) -> Result {
    let mut guard = svm.lock();
    let mut found = guard.find(0).ok_or(EINVAL)?;
    let _lock = svm.core().read_lock();
    found.get(ctx, attempt)
}
