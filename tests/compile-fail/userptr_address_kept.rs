// error: E0521
// SPDX-License-Identifier: GPL-2.0

//! A device address of a userptr is kept beyond the commit.

mod common;

use common::ByAddress;
use gpusvm::LockedUserptr;

pub fn keep(locked: &mut LockedUserptr<'_, ByAddress>) {
    let mut kept = None;
    let _ = locked.commit(|view| {
        kept = view.segments().next();
        Ok(())
    });
}
