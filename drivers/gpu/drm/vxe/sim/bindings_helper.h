/* SPDX-License-Identifier: GPL-2.0 */

/*
 * Headers with declarations that the kernel crate's bindings lack. bindgen_allowlist names the
 * declarations to bind. Types that the kernel crate binds already are taken from there, so that
 * both crates have the same type.
 */

#include <linux/gfp.h>
#include <drm/drm_prime.h>
#include <uapi/drm/xe_drm.h>

const gfp_t VXESIM_GFP_RETRY_MAYFAIL = __GFP_RETRY_MAYFAIL;
