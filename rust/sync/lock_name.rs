// SPDX-License-Identifier: GPL-2.0

//! Names of locks that several modules initialize.
//!
//! A generic initializer of a lock is compiled into the module that calls it. The lock's class is a
//! static of the crate that defines it, shared by all modules; but lockdep also compares the
//! addresses of the names, and a string literal has one in each module.

/// Returns the name of a lock, at the same address for all modules.
#[macro_export]
macro_rules! lock_name {
    ($name:literal) => {{
        static NAME: &::kernel::str::CStr = $name;
        NAME
    }};
}
