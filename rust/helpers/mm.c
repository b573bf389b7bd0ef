// SPDX-License-Identifier: GPL-2.0

#include <linux/hmm.h>
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>

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
 * and what was given up by MADV_FREE. Other anonymous memory is dirtied by reclaim itself, when
 * it goes to swap.
 */
bool kext_page_keeps_stores(const struct page *page)
{
	const struct folio *folio = page_folio(page);

	return folio_test_dirty(folio) ||
	       (folio_test_anon(folio) && folio_test_swapbacked(folio) &&
		!folio_test_swapcache(folio));
}

void kext_page_mark_dirty(struct page *page)
{
	folio_mark_dirty(page_folio(page));
}
