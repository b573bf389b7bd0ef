// error: E0505
// SPDX-License-Identifier: GPL-2.0

//! A range that is only looked at is used after the SVM lock is let go of.

mod common;

use common::Mirror;
use gpusvm::Svm;

pub fn unlock(svm: &Svm<Mirror>) -> usize {
    let guard = svm.lock();
    let range = guard.ranges(0..4096).next();
    drop(guard);
    range.map_or(0, |range| range.size())
}
