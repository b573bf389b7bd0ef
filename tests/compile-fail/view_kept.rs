// error: E0521
// SPDX-License-Identifier: GPL-2.0

//! The view is kept beyond the commit.

mod common;

use common::Mirror;
use gpusvm::LockedRange;

pub fn keep(found: &mut LockedRange<'_, '_, Mirror>) {
    let mut kept = None;
    let _ = found.commit(|view, _| kept = Some(view));
}
