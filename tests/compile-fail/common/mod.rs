// SPDX-License-Identifier: GPL-2.0

//! A driver that mirrors and does nothing, for what is to be compiled or not.

use gpusvm::{Config, Driver, Invalidation, Userptr, UserptrDriver};
use kernel::{page::PAGE_SIZE, prelude::*};

/// The module that it would be.
pub struct Module;

impl kernel::ModuleMetadata for Module {
    const NAME: &'static CStr = c"driver";
    // SAFETY: Nobody runs it.
    const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(core::ptr::null_mut()) };
}

/// The driver.
pub struct Mirror;

#[vtable]
impl Driver for Mirror {
    type OwnerModule = Module;
    const NAME: &'static CStr = c"driver";
    type Vm = ();
    type Range = ();

    fn new_range(_: &()) -> Result {
        Ok(())
    }

    fn invalidate(_: &(), _: &Invalidation<'_, Self>) {}

    fn garbage(_: &()) {}
}

/// A driver with userptrs.
pub struct ByAddress;

#[vtable]
impl UserptrDriver for ByAddress {
    type OwnerModule = Module;
    const NAME: &'static CStr = c"driver";
    type Vm = ();
    type Userptr = ();
    type Pending = ();

    fn revoke(_: &(), _: &Userptr<Self>, _: bool) -> Option<()> {
        None
    }

    fn finish(_: &(), _: &Userptr<Self>, _: ()) {}
}

/// What it mirrors.
pub const CONFIG: Config = Config {
    start: 0,
    size: 1 << 47,
    notifier_size: 1 << 29,
    chunk_sizes: &[PAGE_SIZE],
};
