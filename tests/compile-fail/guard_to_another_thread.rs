// error: E0277
// SPDX-License-Identifier: GPL-2.0

//! The SVM lock is let go of by another thread.

mod common;

use common::Mirror;
use gpusvm::Svm;

fn send<T: Send>(_: T) {}

pub fn lock(svm: &Svm<Mirror>) {
    send(svm.lock());
}
