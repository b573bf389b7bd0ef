// SPDX-License-Identifier: GPL-2.0

//! Extensions of the kernel crate: bindings, helpers for static inline functions, and safe
//! wrappers.
//!
//! Everything here is a candidate for the `kernel` crate, and follows its conventions: a module
//! wraps one C facility, has its C name, and names the C header. Its path is the one that it would
//! have in that crate.

#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

pub mod alloc;
pub mod bindings;
pub mod cgroup;
pub mod dma;
pub mod drm;
pub mod interval_tree;
pub mod list;
pub mod mm;
pub mod module;
pub mod print;
pub mod sched;
pub mod sync;
pub mod task_work;
pub mod time;
pub mod workqueue;
