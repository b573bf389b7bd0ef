// SPDX-License-Identifier: GPL-2.0

#include <linux/kconfig.h>

#if IS_BUILTIN(CONFIG_DRM)
#include <drm/drm_print.h>

/* Prints Rust's fmt::Arguments if the user asked for driver messages (drm.debug=0x2). */
void kext_drm_dbg(const struct drm_device *drm, const void *args)
{
	drm_dbg(drm, "%pA\n", args);
}
#endif
