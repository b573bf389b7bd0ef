// SPDX-License-Identifier: GPL-2.0

//! GPU shared virtual memory: the core.

#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

use kernel::prelude::*;

module! {
    type: GpuSvmModule,
    name: "gpusvm",
    authors: ["The gpusvm authors"],
    description: "GPU shared virtual memory",
    license: "GPL",
}

struct GpuSvmModule;

impl kernel::Module for GpuSvmModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}
