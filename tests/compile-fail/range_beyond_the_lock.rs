// error: E0505
// SPDX-License-Identifier: GPL-2.0

//! A range is used after the SVM lock is let go of.

mod common;

use common::Mirror;
use gpusvm::Svm;

pub fn unlock(svm: &Svm<Mirror>) -> usize {
    let mut guard = svm.lock();
    let found = guard.find(0);
    drop(guard);
    found.map_or(0, |found| found.size())
}
