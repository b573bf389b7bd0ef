// SPDX-License-Identifier: GPL-2.0

//! Providers: devices whose own memory ranges may live in, as device-private pages.
//!
//! - [`page_map`]: a device's memory as others see it, refcounted;
//! - [`hold`]: what keeps the device and its driver's module until the last reference is gone.

pub mod hold;
pub mod page_map;

pub use page_map::{PageMap, PageMapRef};
