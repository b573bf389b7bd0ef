// SPDX-License-Identifier: GPL-2.0

//! C declarations that `kernel::bindings` lacks.
//!
//! The build generates them for the kernel being built, from `bindings_helper.h` and
//! `helpers/`. Types that the kernel crate binds, too, are imported from it, so that pointers of
//! both crates have the same type.

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

    include!(concat!(env!("EXT_OBJ"), "/rust/bindings_generated.rs"));
}

mod helpers {
    use super::generated::*;
    use kernel::{bindings::*, ffi};

    include!(concat!(env!("EXT_OBJ"), "/rust/helpers_generated.rs"));
}

pub use generated::*;
pub use helpers::*;
