// SPDX-License-Identifier: GPL-2.0

#include <linux/kconfig.h>

#include <linux/mm.h>

#if IS_BUILTIN(CONFIG_DRM)
#include <drm/drm_print.h>

/* Prints Rust's fmt::Arguments if the user asked for driver messages (drm.debug=0x2). */
void kext_drm_dbg(const struct drm_device *drm, const void *args)
{
	drm_dbg(drm, "%pA\n", args);
}

/* Makes a new VMA one of page frames; not for a private mapping that could be written. */
int kext_gem_mmap_pfns(struct vm_area_struct *vma)
{
	if (vma_is_cow_mapping(vma))
		return -EINVAL;
	vm_flags_set(vma, VM_PFNMAP | VM_IO | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_page_prot = vm_get_page_prot(vma->vm_flags);
	return 0;
}
#endif
