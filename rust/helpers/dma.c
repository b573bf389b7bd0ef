// SPDX-License-Identifier: GPL-2.0

#include <linux/dma-mapping.h>
#include <linux/error-injection.h>
#include <linux/iommu-dma.h>
#include <linux/swiotlb.h>

/*
 * The attributes for mapping pages of processes. Several devices, or one device for
 * several processes, may map the same page at once, which DMA-API debugging must not
 * report. No dma_sync_*() call ever hands a page over between the CPU and a device, so a
 * mapping that needs a bounce buffer, or that is not coherent, must fail.
 */
#define KEXT_DMA_ATTRS (DMA_ATTR_DEBUGGING_IGNORE_CACHELINES | DMA_ATTR_REQUIRE_COHERENT)

/* The test that hmm_dma_map_alloc() makes. */
bool kext_dma_needs_sync(struct device *dev)
{
#ifdef CONFIG_DMA_NEED_SYNC
	return !dev_dma_skip_sync(dev);
#else
	return false;
#endif
}

/* dma_addressing_limited() does not check swiotlb=force. */
bool kext_dma_is_bounced(struct device *dev)
{
	return dma_addressing_limited(dev) ||
	       (!use_dma_iommu(dev) && is_swiotlb_force_bounce(dev));
}

dma_addr_t kext_dma_map_page(struct device *dev, struct page *page, size_t offset,
			     size_t size, enum dma_data_direction dir)
{
	dma_addr_t addr = dma_map_page_attrs(dev, page, offset, size, dir, KEXT_DMA_ATTRS);

	/* DMA-API debugging wants to be asked. */
	return dma_mapping_error(dev, addr) ? DMA_MAPPING_ERROR : addr;
}
/* Tests inject -1, which is DMA_MAPPING_ERROR. */
ALLOW_ERROR_INJECTION(kext_dma_map_page, ERRNO);

void kext_dma_unmap_page(struct device *dev, dma_addr_t addr, size_t size,
			 enum dma_data_direction dir)
{
	dma_unmap_page_attrs(dev, addr, size, dir, KEXT_DMA_ATTRS);
}

bool kext_dma_need_unmap(struct device *dev)
{
	/* Without DMA_NEED_SYNC dma_need_unmap() returns false also for devices behind an IOMMU. */
	if (IS_ENABLED(CONFIG_IOMMU_DMA) && !IS_ENABLED(CONFIG_DMA_NEED_SYNC))
		return true;
	return dma_need_unmap(dev);
}

/* The IOVA functions are inline stubs without IOMMU_DMA, and exported functions with it. */
bool kext_dma_iova_try_alloc(struct device *dev, struct dma_iova_state *state,
			     phys_addr_t phys, size_t size)
{
	return dma_iova_try_alloc(dev, state, phys, size);
}
/* Tests inject 0: the IOVA space is exhausted. */
ALLOW_ERROR_INJECTION(kext_dma_iova_try_alloc, NULL);

bool kext_dma_use_iova(struct dma_iova_state *state)
{
	return dma_use_iova(state);
}

int kext_dma_iova_link(struct device *dev, struct dma_iova_state *state, phys_addr_t phys,
		       size_t offset, size_t size, enum dma_data_direction dir)
{
	return dma_iova_link(dev, state, phys, offset, size, dir, KEXT_DMA_ATTRS);
}

int kext_dma_iova_sync(struct device *dev, struct dma_iova_state *state, size_t offset,
		       size_t size)
{
	return dma_iova_sync(dev, state, offset, size);
}

void kext_dma_iova_unlink(struct device *dev, struct dma_iova_state *state, size_t offset,
			  size_t size, enum dma_data_direction dir)
{
	dma_iova_unlink(dev, state, offset, size, dir, KEXT_DMA_ATTRS);
}

void kext_dma_iova_free(struct device *dev, struct dma_iova_state *state)
{
	dma_iova_free(dev, state);
}
