// error: E0599
// SPDX-License-Identifier: GPL-2.0

//! A dmem region that, if its registration is leaked, outlives the module whose code it has.

use kernel::prelude::*;
use kernel_ext::cgroup::dmem::{Reclaim, Registration};

pub fn register<R: Reclaim>(reclaim: R) -> Result<Registration<R>> {
    Registration::new(c"device", c"vram0", 1 << 20, reclaim)
}
