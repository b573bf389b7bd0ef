// error: E0499
// SPDX-License-Identifier: GPL-2.0

//! Garbage is collected while a range is in use.

mod common;

use common::Mirror;
use gpusvm::Guard;

pub fn collect(guard: &mut Guard<'_, Mirror>) {
    let found = guard.find(0);
    guard.collect_garbage();
    drop(found);
}
