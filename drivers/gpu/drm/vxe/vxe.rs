// SPDX-License-Identifier: GPL-2.0

//! vxe: a virtual Xe device in software.

#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

use kernel::prelude::*;

module! {
    type: VxeModule,
    name: "vxe",
    authors: ["The gpusvm authors"],
    description: "Virtual Xe device",
    license: "GPL",
}

struct VxeModule;

impl kernel::Module for VxeModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}
