// error: E0382
// SPDX-License-Identifier: GPL-2.0

//! A second pagemap is put into a cache over the first.

use gpusvm::pagemap::{cache::Vacant, PagemapRef};
use kernel::prelude::*;

pub fn fill(vacant: Vacant<'_>, one: &PagemapRef, other: &PagemapRef) -> Result {
    vacant.fill(one)?;
    vacant.fill(other)
}
