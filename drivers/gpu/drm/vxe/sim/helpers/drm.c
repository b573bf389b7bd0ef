// SPDX-License-Identifier: GPL-2.0

#include <linux/kconfig.h>

#include <linux/mm.h>

#if IS_BUILTIN(CONFIG_DRM)
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>
#include <drm/drm_device.h>
#include <drm/drm_drv.h>
#include <drm/drm_gem.h>
#include <drm/drm_managed.h>
#include <drm/drm_print.h>
#include <drm/drm_vma_manager.h>

/* Prints Rust's fmt::Arguments if driver messages are enabled (drm.debug=0x2). */
void vxesim_drm_dbg(const struct drm_device *drm, const void *args)
{
	drm_dbg(drm, "%pA\n", args);
}

/*
 * Enlarges the range of mmap offsets of a device without objects to what mmap() can address on
 * 64-bit machines. Each object takes its size of that range at its creation, so objects without any
 * page could exhaust DRM's default of a terabyte.
 */
void vxesim_drm_widen_offsets(struct drm_device *drm)
{
#ifdef CONFIG_64BIT
	drm_vma_offset_manager_destroy(drm->vma_offset_manager);
	drm_vma_offset_manager_init(drm->vma_offset_manager, DRM_FILE_PAGE_OFFSET_START, 1UL << 50);
#endif
}

/* A modified copy of a device's driver, and the original. */
struct vxesim_driver {
	struct drm_driver driver;
	const struct drm_driver *before;
};

static void vxesim_driver_restore(struct drm_device *drm, void *data)
{
	struct vxesim_driver *own = data;

	drm->driver = own->before;
}

/*
 * Makes a device that is not registered yet use @import for dma-bufs of other devices. The copy of
 * the driver is managed memory of the device; the original driver is restored before that is freed.
 */
int vxesim_drm_import_by(struct drm_device *drm,
		       struct drm_gem_object *(*import)(struct drm_device *, struct dma_buf *))
{
	struct vxesim_driver *own;

	if (drm->registered)
		return -EBUSY;
	own = drmm_kzalloc(drm, sizeof(*own), GFP_KERNEL);
	if (!own)
		return -ENOMEM;
	own->before = drm->driver;
	own->driver = *drm->driver;
	own->driver.gem_prime_import = import;
	drm->driver = &own->driver;
	/* Managed actions run in reverse order, so this one runs before @own is freed. */
	return drmm_add_action_or_reset(drm, vxesim_driver_restore, own);
}

/*
 * Allocates the page at @index of a shmem object, unless there is one. Returns the index of the
 * first page after its folio.
 */
long vxesim_gem_populate(struct drm_gem_object *obj, unsigned long index)
{
	struct folio *folio = shmem_read_folio(obj->filp->f_mapping, index);
	unsigned long next;

	if (IS_ERR(folio))
		return PTR_ERR(folio);
	next = folio_next_index(folio);
	folio_put(folio);
	return next;
}

/* Makes a new VMA a VM_PFNMAP one. Fails for a private mapping that could become writable. */
int vxesim_gem_mmap_pfns(struct vm_area_struct *vma)
{
	if (vma_is_cow_mapping(vma))
		return -EINVAL;
	vm_flags_set(vma, VM_PFNMAP | VM_IO | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_page_prot = vm_get_page_prot(vma->vm_flags);
	return 0;
}
#endif
