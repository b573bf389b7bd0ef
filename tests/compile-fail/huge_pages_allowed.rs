// error: E0133
// SPDX-License-Identifier: GPL-2.0

//! Huge pages that the kernel frees while they are being migrated.

pub fn init() {
    gpusvm::pagemap::to_device::allow_huge_pages(true);
}
