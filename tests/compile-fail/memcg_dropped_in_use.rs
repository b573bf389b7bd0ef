// error: E0505
// SPDX-License-Identifier: GPL-2.0

//! A memory cgroup that allocations are charged to after its reference was dropped.

use kernel::{mm::MmWithUser, prelude::*};
use kernel_ext::mm::memcg::Memcg;

pub fn allocate(mm: &MmWithUser) -> Result<KBox<u64>> {
    let memcg = Memcg::of(mm);
    memcg.charge(|| {
        drop(memcg);
        Ok(KBox::new(0, GFP_KERNEL_ACCOUNT)?)
    })
}
