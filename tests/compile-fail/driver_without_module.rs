// error: E0046
// SPDX-License-Identifier: GPL-2.0

//! A driver that does not say whose code its callbacks are.

use gpusvm::{Driver, Invalidation};
use kernel::prelude::*;

pub struct Nobody;

impl Driver for Nobody {
    const NAME: &'static CStr = c"nobody";
    type Vm = ();
    type Range = ();

    fn new_range(_: &()) -> Result {
        Ok(())
    }

    fn invalidate(_: &(), _: &Invalidation<'_, Self>) {}

    fn garbage(_: &()) {}
}
