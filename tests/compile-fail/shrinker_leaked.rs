// error: E0603
// SPDX-License-Identifier: GPL-2.0

//! A shrinker that reclaim calls after its module was unloaded.

use kernel::{prelude::*, sync::Arc};
use kernel_ext::mm::shrinker::{Registration, Shrink};

pub struct Objects;

impl Shrink for Objects {
    fn count(&self) -> usize {
        0
    }

    fn scan(&self, _want: usize) -> usize {
        0
    }
}

pub fn init() -> Result {
    let objects = Arc::new(Objects, GFP_KERNEL)?;
    core::mem::forget(Registration::new(c"objects", objects)?);
    Ok(())
}
