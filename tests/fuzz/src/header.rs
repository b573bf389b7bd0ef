// SPDX-License-Identifier: GPL-2.0

//! What the kernel's headers say about the names in the descriptions; made by the build script.

/// A struct: the name that descriptions give it, its size, and its fields with offset and size.
pub struct Struct {
    pub name: &'static str,
    pub size: u64,
    pub fields: &'static [(&'static str, u64, u64)],
}

include!(concat!(env!("OUT_DIR"), "/header.rs"));
