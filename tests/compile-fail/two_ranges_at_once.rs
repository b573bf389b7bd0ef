// error: E0499
// SPDX-License-Identifier: GPL-2.0

//! Two ranges are found at a time.

mod common;

use common::Mirror;
use gpusvm::Guard;

pub fn find(guard: &mut Guard<'_, Mirror>) {
    let one = guard.find(0);
    let other = guard.find(4096);
    drop((one, other));
}
