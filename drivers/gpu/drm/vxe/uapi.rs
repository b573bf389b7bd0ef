// SPDX-License-Identifier: GPL-2.0

//! The uAPI of xe: its structures and constants, and a walker for chains of extensions.
//!
//! C header: [`include/uapi/drm/xe_drm.h`](srctree/include/uapi/drm/xe_drm.h)

use crate::{
    check::ensure,
    driver::Device,
    ioctl::Ioctl, //
};
use kernel::prelude::*;

pub(crate) use vxe_sim::bindings::*;

/// The longest chain of extensions that is accepted.
const MAX_EXTENSIONS: usize = 16;

/// Calls `set` with each property of the chain of extensions at `addr`; 0 is an empty chain.
///
/// All extensions of xe's chains set a property. Fails with `EFAULT`, with `EINVAL` for an unknown
/// extension or non-zero padding, with `E2BIG` for more than 16 extensions, and as `set` does.
pub(crate) fn for_each_property(
    ioctl: &mut Ioctl<'_>,
    mut addr: u64,
    mut set: impl FnMut(u32, u64) -> Result,
) -> Result {
    let dev = ioctl.dev();
    // Both chains of the uAPI use the same number for this extension.
    const SET_PROPERTY: u32 = DRM_XE_EXEC_QUEUE_EXTENSION_SET_PROPERTY;
    const _: () = assert!(SET_PROPERTY == DRM_XE_GEM_CREATE_EXTENSION_SET_PROPERTY);

    let mut count = 0;
    while addr != 0 {
        ensure!(dev, count < MAX_EXTENSIONS, E2BIG);
        count += 1;

        let base: drm_xe_user_extension = ioctl.read(addr)?;
        ensure!(dev, base.pad == 0, EINVAL);
        ensure!(dev, base.name == SET_PROPERTY, EINVAL);

        let ext: drm_xe_ext_set_property = ioctl.read(addr)?;
        ensure!(dev, ext.pad == 0 && ext.reserved == [0; 2], EINVAL);
        set(ext.property, ext.value())?;
        addr = base.next_extension;
    }
    Ok(())
}

/// Checks a type of protected content; the device supports none.
///
/// Fails with `ENODEV` for the type that xe has, and with `EINVAL` for others.
pub(crate) fn check_pxp_type(dev: &Device, value: u64) -> Result {
    const NONE: u64 = drm_xe_pxp_session_type_DRM_XE_PXP_TYPE_NONE as u64;
    const HWDRM: u64 = drm_xe_pxp_session_type_DRM_XE_PXP_TYPE_HWDRM as u64;
    if value == NONE {
        return Ok(());
    }
    ensure!(dev, value == HWDRM, EINVAL);
    Err(ENODEV)
}
