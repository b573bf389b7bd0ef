// error: E0308
// SPDX-License-Identifier: GPL-2.0

//! Any pointer as the owner of device-private pages.

use gpusvm::{Access, Ctx};

pub fn forge(driver: *mut core::ffi::c_void) -> Ctx {
    Ctx::new(Access::Read).with_owner(Some(driver))
}
