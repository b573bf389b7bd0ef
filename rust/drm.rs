// SPDX-License-Identifier: GPL-2.0

//! DRM devices and files of any driver, in Rust or C.

pub mod device;
pub mod file;
