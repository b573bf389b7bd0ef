// error: E0382
// SPDX-License-Identifier: GPL-2.0

//! A range is used after it was removed.

mod common;

use common::Mirror;
use gpusvm::LockedRange;

pub fn remove(found: LockedRange<'_, '_, Mirror>) -> usize {
    found.remove();
    found.size()
}
