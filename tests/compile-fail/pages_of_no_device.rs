// error: E0603
// SPDX-License-Identifier: GPL-2.0

//! The pages of a range for no device.

use gpusvm::pages::PageSet;
use kernel::alloc::KVec;

pub fn make() -> PageSet {
    PageSet::Many(KVec::new())
}
