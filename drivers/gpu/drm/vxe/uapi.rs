// SPDX-License-Identifier: GPL-2.0

//! The Xe uAPI: its structures, its constants in the types that its structures use, and how to walk
//! a chain of extensions.
//!
//! C header: [`include/uapi/drm/xe_drm.h`](srctree/include/uapi/drm/xe_drm.h)

use crate::{
    check::ensure,
    driver::Device,
    ioctl::Ioctl, //
};
use kernel::prelude::*;

pub(crate) use vxe_sim::bindings::*;

/// The longest chain of extensions that is followed.
const MAX_EXTENSIONS: usize = 16;

/// Calls `set` with each property of the chain of extensions at `addr`, which may be 0 for none.
///
/// Every extension must be one that sets a property, which is what all of Xe's chains consist of.
/// Fails with `EFAULT`, with `EINVAL` for an unknown extension or non-zero padding, with `E2BIG` for
/// more than 16 of them, and with what `set` fails with.
pub(crate) fn for_each_property(
    ioctl: &mut Ioctl<'_>,
    mut addr: u64,
    mut set: impl FnMut(u32, u64) -> Result,
) -> Result {
    let dev = ioctl.dev();
    // Both chains of the uAPI give this the same number.
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

/// Checks a type of protected content, of which there is none here.
///
/// Fails with `ENODEV` for the one that xe knows, with `EINVAL` for others.
pub(crate) fn check_pxp_type(dev: &Device, value: u64) -> Result {
    const NONE: u64 = drm_xe_pxp_session_type_DRM_XE_PXP_TYPE_NONE as u64;
    const HWDRM: u64 = drm_xe_pxp_session_type_DRM_XE_PXP_TYPE_HWDRM as u64;
    if value == NONE {
        return Ok(());
    }
    ensure!(dev, value == HWDRM, EINVAL);
    Err(ENODEV)
}
