// SPDX-License-Identifier: GPL-2.0

//! Checks of arguments from userspace.

/// Returns `$errno` from the calling function unless `$cond` holds, with a debug message
/// (`drm.debug=0x2`).
///
/// `$dev` is a reference to the DRM device.
macro_rules! ensure {
    ($dev:expr, $cond:expr, $errno:expr) => {
        if !$cond {
            vxe_sim::drm_dbg!(
                $dev,
                "{}:{}: argument check failed: {}",
                module_path!(),
                line!(),
                stringify!($cond)
            );
            return Err($errno);
        }
    };
}
pub(crate) use ensure;
