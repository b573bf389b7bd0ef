// SPDX-License-Identifier: GPL-2.0

//! KUnit suites of the project.

#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

use kernel::prelude::*;

module! {
    type: GpuSvmTests,
    name: "gpusvm_kunit",
    authors: ["The gpusvm authors"],
    description: "KUnit suites of gpusvm",
    license: "GPL",
}

struct GpuSvmTests;

impl kernel::Module for GpuSvmTests {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}
