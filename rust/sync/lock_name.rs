// SPDX-License-Identifier: GPL-2.0

//! Names of locks that several modules make.
//!
//! What initializes a lock in place is generic, and so compiled into the module that makes it. The
//! lock's class is a static of the crate that defines it, and one for all; but lockdep also compares
//! the addresses of names, and a literal has one in each module.

/// A lock's name, at one address for all modules.
#[macro_export]
macro_rules! lock_name {
    ($name:literal) => {{
        static NAME: &::kernel::str::CStr = $name;
        NAME
    }};
}
