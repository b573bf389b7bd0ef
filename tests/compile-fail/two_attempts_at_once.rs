// error: E0499
// SPDX-License-Identifier: GPL-2.0

//! Two attempts at a time: retries would not be bounded in total.

use gpusvm::Retry;

pub fn attempts() {
    let mut retry = Retry::bounded();
    let one = retry.next();
    let other = retry.next();
    drop((one, other));
}
