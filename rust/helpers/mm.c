// SPDX-License-Identifier: GPL-2.0

#include <linux/hmm.h>
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/slab.h>

bool kext_mmu_interval_read_retry(struct mmu_interval_notifier *mni, unsigned long seq)
{
	return mmu_interval_read_retry(mni, seq);
}

void kext_mmu_interval_set_seq(struct mmu_interval_notifier *mni, unsigned long seq)
{
	mmu_interval_set_seq(mni, seq);
}

bool kext_mmu_notifier_range_blockable(const struct mmu_notifier_range *range)
{
	return mmu_notifier_range_blockable(range);
}

struct page *kext_hmm_pfn_to_page(unsigned long hmm_pfn)
{
	return hmm_pfn_to_page(hmm_pfn);
}

phys_addr_t kext_hmm_pfn_to_phys(unsigned long hmm_pfn)
{
	return hmm_pfn_to_phys(hmm_pfn);
}

bool kext_is_zone_device_page(const struct page *page)
{
	return is_zone_device_page(page);
}

void *kext_kvmalloc_array(size_t n, size_t size)
{
	return kvmalloc_array(n, size, GFP_KERNEL_ACCOUNT);
}

bool kext_vma_is_anonymous(struct vm_area_struct *vma)
{
	return vma_is_anonymous(vma);
}

bool kext_is_vm_hugetlb_page(struct vm_area_struct *vma)
{
	return is_vm_hugetlb_page(vma);
}

/* The provider of a page of device memory; NULL for system memory. */
struct dev_pagemap *kext_device_page_pgmap(const struct page *page)
{
	if (is_device_private_page(page) || is_device_coherent_page(page))
		return page_pgmap(page);
	return NULL;
}

/*
 * Whether a store to @page through a mapping of a device is kept though the CPU's page tables
 * do not say that the page was written: reclaim drops a clean copy of what swap or a file has,
 * and what was given up by MADV_FREE (which may be on its way to the page still, so that
 * the page does not tell). If @write, or if it makes no file dirty, it is made so.
 */
bool kext_page_keep_stores(struct page *page, bool write)
{
	struct folio *folio = page_folio(page);

	if (folio_test_dirty(folio))
		return true;
	if (!write && !folio_test_anon(folio))
		return false;
	folio_mark_dirty(folio);
	return true;
}
