// error: E0423
// SPDX-License-Identifier: GPL-2.0

//! An owner of device-private pages that nobody gave out.

use core::{ffi::c_void, ptr::NonNull};
use gpusvm::pagemap::OwnerId;

pub fn forge(driver: NonNull<c_void>) -> OwnerId {
    OwnerId(driver)
}
