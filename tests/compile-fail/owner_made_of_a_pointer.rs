// error: E0133
// SPDX-License-Identifier: GPL-2.0

//! The same, by the function for who knows what the pointer is.

use core::{ffi::c_void, ptr::NonNull};
use gpusvm::pagemap::OwnerId;

pub fn forge(driver: NonNull<c_void>) -> OwnerId {
    OwnerId::from_raw(driver)
}
