// SPDX-License-Identifier: GPL-2.0

//! The uAPI as bindgen makes it from the kernel's `xe_drm.h`.
//!
//! Names are the header's own. They serve tests that say things the safe wrapper refuses to say.

#![allow(
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    dead_code,
    unsafe_op_in_unsafe_fn,
    rustdoc::all,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]

include!(concat!(env!("OUT_DIR"), "/xe_drm.rs"));
