// SPDX-License-Identifier: GPL-2.0

#include <linux/dma-direct.h>
#include <linux/highmem.h>
#include <linux/iommu.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/printk.h>
#include <linux/string.h>
#include <linux/uaccess.h>

/*
 * Translates a DMA address of @dev to a physical address as the device itself would: with the page
 * table of its IOMMU, if it has one.
 */
int vxesim_dma_resolve(struct device *dev, dma_addr_t addr, phys_addr_t *phys)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(dev);

	if (!domain) {
		*phys = dma_to_phys(dev, addr);
		return 0;
	}
	*phys = iommu_iova_to_phys(domain, addr);
	return *phys ? 0 : -EFAULT;
}

/*
 * A device that firmware does not describe is not coherent with the CPU's caches, on some architectures.
 * Before its DMA mask is set.
 */
void vxesim_dma_set_coherent(struct device *dev)
{
	dev_set_dma_coherent(dev);
}

phys_addr_t vxesim_page_to_phys(struct page *page)
{
	return page_to_phys(page);
}

struct page *vxesim_pfn_to_online_page(unsigned long pfn)
{
	return pfn_to_online_page(pfn);
}

phys_addr_t vxesim_zero_page_phys(void)
{
	return page_to_phys(ZERO_PAGE(0));
}

bool vxesim_is_zero_pfn(unsigned long pfn)
{
	return is_zero_pfn(pfn);
}

/* Returns whether the page is free, or about to be freed: it has no references. */
bool vxesim_page_is_free(struct page *page)
{
	return !folio_ref_count(page_folio(page));
}

/* Returns whether the page is the kernel's own: no driver maps it for a device of user programs. */
bool vxesim_page_is_internal(struct page *page)
{
	struct folio *folio = page_folio(page);

	return folio_test_slab(folio) || folio_test_large_kmalloc(folio) ||
	       folio_test_pgtable(folio);
}

/*
 * Returns whether the page is part of the kernel's image, or was never the page allocator's for
 * another reason. Processes may map it for reading: the vDSO, the zero page.
 */
bool vxesim_page_is_reserved(struct page *page)
{
	return PageReserved(page);
}

/* Returns the physical address of a page of the kernel's code: arm64 leaves the kernel's data out of the linear map. */
phys_addr_t vxesim_kernel_image_phys(void)
{
	return __pa_symbol(dump_stack);
}

/* Returns the physical address of an address in the kernel's linear map. */
phys_addr_t vxesim_linear_phys(const void *addr)
{
	return __pa(addr);
}

/* Returns false for secret memory and poisoned pages, which are not in the kernel's linear map. */
bool vxesim_kernel_can_reach(const void *addr)
{
	char byte;

	return !get_kernel_nofault(byte, (const char *)addr);
}

/* A copy that is opaque to the Rust compiler, and that KASAN checks. */
void vxesim_memcpy(void *to, const void *from, size_t len)
{
	memcpy(to, from, len);
}
