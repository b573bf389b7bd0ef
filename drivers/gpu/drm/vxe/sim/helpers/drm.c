// SPDX-License-Identifier: GPL-2.0

#include <linux/kconfig.h>

#include <linux/mm.h>

#if IS_BUILTIN(CONFIG_DRM)
#include <linux/dma-buf.h>
#include <linux/idr.h>
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>
#include <drm/drm_device.h>
#include <drm/drm_drv.h>
#include <drm/drm_file.h>
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
 * Gives a device that is not registered yet a copy of its driver, to be modified. The copy is managed
 * memory of the device; the driver before it is restored before that is freed.
 */
static struct drm_driver *vxesim_driver_copy(struct drm_device *drm)
{
	struct vxesim_driver *own;
	int err;

	if (drm->registered)
		return ERR_PTR(-EBUSY);
	own = drmm_kzalloc(drm, sizeof(*own), GFP_KERNEL);
	if (!own)
		return ERR_PTR(-ENOMEM);
	own->before = drm->driver;
	own->driver = *drm->driver;
	drm->driver = &own->driver;
	/* Managed actions run in reverse order, so this one runs before @own is freed. */
	err = drmm_add_action_or_reset(drm, vxesim_driver_restore, own);
	return err ? ERR_PTR(err) : &own->driver;
}

/* Makes a device that is not registered yet use @import for dma-bufs of other devices. */
int vxesim_drm_import_by(struct drm_device *drm,
		       struct drm_gem_object *(*import)(struct drm_device *, struct dma_buf *))
{
	struct drm_driver *driver = vxesim_driver_copy(drm);

	if (IS_ERR(driver))
		return PTR_ERR(driver);
	driver->gem_prime_import = import;
	return 0;
}

/*
 * Makes a device that is not registered yet use @show for the fdinfo of its files, whose operations
 * become @fops. An open file keeps the module that owns these, but uses them after it may have put
 * the device: they are not the device's memory.
 */
int vxesim_drm_fdinfo_by(struct drm_device *drm,
		       void (*show)(struct drm_printer *p, struct drm_file *file),
		       const struct file_operations *fops)
{
	struct drm_driver *driver = vxesim_driver_copy(drm);

	if (IS_ERR(driver))
		return PTR_ERR(driver);
	driver->show_fdinfo = show;
	driver->fops = fops;
	return 0;
}

/* Gives the driver of a device that is not registered yet the name @name, which outlives the device. */
int vxesim_drm_name_by(struct drm_device *drm, const char *name)
{
	struct drm_driver *driver = vxesim_driver_copy(drm);

	if (IS_ERR(driver))
		return PTR_ERR(driver);
	driver->name = (char *)name;
	return 0;
}

/* Prints Rust's fmt::Arguments. */
void vxesim_drm_print(struct drm_printer *p, const void *args)
{
	drm_printf(p, "%pA", args);
}

/* Returns how much memory an object has, or -1 if it does not count. */
static s64 vxesim_drm_resident(struct drm_gem_object *obj, const struct drm_gem_object_funcs *shmem,
			     const struct drm_gem_object_funcs *own, bool of_device)
{
	if (drm_gem_is_imported(obj))
		return of_device ? -1 : 0;
	if (obj->funcs == own) {
		if (!!obj->funcs->rss(obj) != of_device)
			return -1;
		return obj->funcs->status(obj) & DRM_GEM_OBJECT_RESIDENT ? obj->size : 0;
	}
	if (obj->funcs != shmem || of_device)
		return -1;
	return (s64)READ_ONCE(obj->filp->f_mapping->nrpages) << PAGE_SHIFT;
}

static void vxesim_drm_add_memory(struct drm_file *file, const struct drm_gem_object_funcs *shmem,
				const struct drm_gem_object_funcs *own, bool of_device,
				struct drm_memory_stats *stats)
{
	struct drm_gem_object *obj;
	s64 resident;
	int id;

	spin_lock(&file->table_lock);
	idr_for_each_entry(&file->object_idr, obj, id) {
		resident = vxesim_drm_resident(obj, shmem, own, of_device);
		if (resident < 0)
			continue;
		if (drm_gem_object_is_shared_for_memory_stats(obj))
			stats->shared += obj->size;
		else
			stats->private += obj->size;
		stats->resident += resident;
	}
	spin_unlock(&file->table_lock);
}

/*
 * Prints the sizes of the objects with a handle in @file whose functions are @shmem or @own, as those
 * of memory region @region; of none if these are NULL. @of_device: those with memory of the device;
 * else the others. Imports of other devices' memory count with these.
 */
void vxesim_drm_print_memory(struct drm_printer *p, struct drm_file *file,
			   const struct drm_gem_object_funcs *shmem,
			   const struct drm_gem_object_funcs *own, bool of_device,
			   const char *region)
{
	struct drm_memory_stats stats = {};

	if (own)
		vxesim_drm_add_memory(file, shmem, own, of_device, &stats);
	drm_print_memory_stats(p, &stats,
			       DRM_GEM_OBJECT_ACTIVE | DRM_GEM_OBJECT_RESIDENT |
			       DRM_GEM_OBJECT_PURGEABLE, region);
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

/* Takes a reference to a dma-buf. */
void vxesim_dma_buf_get_ref(struct dma_buf *dma_buf)
{
	get_dma_buf(dma_buf);
}

/* Takes a reference to an object, unless the last one was dropped. */
bool vxesim_gem_get_unless_zero(struct drm_gem_object *obj)
{
	return kref_get_unless_zero(&obj->refcount);
}

/* Removes all mappings of an object from the page tables of processes. */
void vxesim_gem_unmap_cpu(struct drm_gem_object *obj)
{
	drm_vma_node_unmap(&obj->vma_node, obj->dev->anon_inode->i_mapping);
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
