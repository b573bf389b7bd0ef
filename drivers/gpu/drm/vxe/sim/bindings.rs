// SPDX-License-Identifier: GPL-2.0

//! C declarations that `kernel::bindings` lacks.
//!
//! Generated for the kernel being built from `bindings_helper.h` and `helpers/`. Types that both
//! crates bind are the kernel crate's, so that pointers are compatible.

#![allow(
    clippy::all,
    clippy::as_underscore,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    unsafe_op_in_unsafe_fn,
    unused_imports,
    unreachable_pub
)]

mod generated {
    use kernel::{bindings::*, ffi};
    use pin_init::{MaybeZeroable, Zeroable};

    include!(concat!(
        env!("EXT_OBJ"),
        "/drivers/gpu/drm/vxe/sim/bindings_generated.rs"
    ));
}

mod helpers {
    use super::generated::*;
    use kernel::{bindings::*, ffi};

    include!(concat!(
        env!("EXT_OBJ"),
        "/drivers/gpu/drm/vxe/sim/helpers_generated.rs"
    ));
}

pub use generated::*;
pub use helpers::*;
