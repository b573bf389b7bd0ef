// SPDX-License-Identifier: GPL-2.0

//! The smallest driver that mirrors a process.

#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

use kernel::prelude::*;

module! {
    type: MirrorModule,
    name: "gpusvm_mirror",
    authors: ["The gpusvm authors"],
    description: "Mirrors a process: gpusvm sample",
    license: "GPL",
}

struct MirrorModule;

impl kernel::Module for MirrorModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}
