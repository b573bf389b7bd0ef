// SPDX-License-Identifier: GPL-2.0

//! Checks of what userspace passes in.

/// Returns `$errno` unless `$cond` holds, and says so to whom `drm.debug=0x2` asks.
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
