// error: E0308
// SPDX-License-Identifier: GPL-2.0

//! An SVM for a DRM device that nobody has looked at: it may be unbound, or its DMA bounce.

mod common;

use common::{Mirror, CONFIG};
use gpusvm::{DrmDevice, Svm};
use kernel::{mm::Mm, prelude::*};

pub fn mirror(mm: &Mm, drm: &DrmDevice) -> Result<Pin<KBox<Svm<Mirror>>>> {
    KBox::pin_init(Svm::new(mm, CONFIG, &[drm], ()), GFP_KERNEL)
}
