/* SPDX-License-Identifier: GPL-2.0 */

/*
 * Headers whose declarations the kernel crate's bindings lack. What of them becomes
 * Rust is named in bindgen_allowlist; types that the kernel crate binds already are
 * taken from there, so that both are the same type.
 */

#include <drm/drm_prime.h>
#include <uapi/drm/xe_drm.h>
