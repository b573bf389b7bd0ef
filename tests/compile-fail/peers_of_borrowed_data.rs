// error: E0597
// SPDX-License-Identifier: GPL-2.0

//! A member that is leaked, whose data is gone when the next one joins.

use gpusvm::pagemap::Owners;
use kernel::{prelude::*, sync::Arc};

static ONE: u64 = 1;

fn connected(one: &&u64, other: &&u64) -> bool {
    **one == **other
}

pub fn join() -> Result<bool> {
    let longer: Arc<Owners<&'static u64>>;
    {
        let data = KBox::new(7, GFP_KERNEL)?;
        let owners: Arc<Owners<&u64>> = Owners::new(connected)?;
        core::mem::forget(owners.join(&*data)?);
        longer = owners;
    }
    Ok(longer.join(&ONE).is_ok())
}
