// SPDX-License-Identifier: GPL-2.0

//! Providers: devices whose own memory ranges may live in, as device-private pages.
//!
//! - [`page_map`]: a device's memory as others see it, refcounted;
//! - [`hold`]: what keeps the device and its driver's module until the last reference is gone;
//! - [`cache`] and [`shrinker`]: pagemaps that nobody uses now, kept until memory is short;
//! - [`owner`]: groups of devices that reach each other's memory.

pub mod cache;
pub mod hold;
pub mod owner;
pub mod page_map;
pub mod shrinker;

pub use cache::Cache;
pub use owner::{Member, Owners};
pub use page_map::{PageMap, PageMapRef};
pub use shrinker::Shrinker;
