// SPDX-License-Identifier: GPL-2.0

#include <kunit/static_stub.h>
#include <linux/gfp.h>
#include <linux/hmm.h>
#include <linux/huge_mm.h>
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/mmap_lock.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/vmstat.h>

unsigned long kext_page_to_pfn(const struct page *page)
{
	return page_to_pfn(page);
}

struct page *kext_pfn_to_page(unsigned long pfn)
{
	return pfn_to_page(pfn);
}

/* Returns the order of the folio that @page belongs to. */
unsigned int kext_page_folio_order(const struct page *page)
{
	return folio_order(page_folio(page));
}

/* Returns the PFN of the first page of the folio that @page belongs to. */
unsigned long kext_page_folio_pfn(const struct page *page)
{
	return folio_pfn(page_folio(page));
}

bool kext_page_folio_is_free(const struct page *page)
{
	return !folio_ref_count(page_folio(page));
}

void kext_page_folio_lock(struct page *page)
{
	folio_lock(page_folio(page));
}

void kext_page_folio_unlock(struct page *page)
{
	folio_unlock(page_folio(page));
}

/* Unlocks and frees a new folio, to which only the caller has a reference. */
void kext_page_folio_unlock_put(struct page *page)
{
	struct folio *folio = page_folio(page);

	folio_unlock(folio);
	folio_put(folio);
}

bool kext_is_device_private_page(const struct page *page)
{
	return is_device_private_page(page);
}

void *kext_page_zone_device_data(const struct page *page)
{
	return folio_zone_device_data(page_folio(page));
}

void kext_page_set_zone_device_data(struct page *page, void *data)
{
	folio_set_zone_device_data(page_folio(page), data);
}

/* Turns @page and the pages behind it into a folio of @order, locked and with one reference. */
void kext_zone_device_folio_init(struct page *page, struct dev_pagemap *pgmap,
				 unsigned int order)
{
	zone_device_folio_init((struct folio *)page, pgmap, order);
}

/*
 * Clears the mlocked flag of a folio of device memory that is being freed, and corrects NR_MLOCK. The kernel
 * sets the flag when it maps the folio in a VM_LOCKED VMA, but munlock() does not clear it for device memory.
 */
void kext_folio_forget_mlock(struct folio *folio)
{
	if (folio_test_clear_mlocked(folio))
		zone_stat_mod_folio(folio, NR_MLOCK, -folio_nr_pages(folio));
}

/*
 * Returns whether another process, a parent or a child of this one, may share anonymous pages of @vma since
 * a fork(). The caller holds mmap_lock, so that the process does not fork meanwhile.
 */
bool kext_vma_has_relatives(struct vm_area_struct *vma)
{
	const struct anon_vma *anon_vma = READ_ONCE(vma->anon_vma);

	/* A root anon_vma counts as a child of itself. */
	return anon_vma && (!list_is_singular(&vma->anon_vma_chain) || anon_vma->num_children > 1);
}

/*
 * Returns 1 if @mm maps a KSM page between @start and @end, 0 if not, or an error. @pfns has one entry for
 * each page of the span. The caller holds mmap_lock; no page is faulted in. KSM may still merge a page of the
 * span after the check.
 */
int kext_mm_maps_ksm(struct mm_struct *mm, unsigned long start, unsigned long end,
		     unsigned long *pfns)
{
	/* The notifier is not registered: the result is only a hint, and may be outdated. */
	struct mmu_interval_notifier notifier = { .mm = mm };
	struct hmm_range range = {
		.notifier = &notifier,
		.start = start,
		.end = end,
		.hmm_pfns = pfns,
	};
	unsigned long i, pages = (end - start) >> PAGE_SHIFT;
	int ret;

	memset(pfns, 0, pages * sizeof(*pfns));
	ret = hmm_range_fault(&range);
	if (ret)
		return ret;
	for (i = 0; i < pages; i++) {
		/* KSM pages are mapped by PTEs only. */
		if (!(pfns[i] & HMM_PFN_VALID) || hmm_pfn_to_map_order(pfns[i]))
			continue;
		if (folio_test_ksm(page_folio(hmm_pfn_to_page(pfns[i]))))
			return 1;
	}
	return 0;
}

/* Sets the pagemap of a folio that was split off @from. */
void kext_folio_share_pgmap(struct folio *to, const struct folio *from)
{
	to->pgmap = from->pgmap;
}

/*
 * Allocates a folio of system memory and locks it. The memory policy is that of @addr in @vma, or that of
 * the calling thread if @vma is NULL. Returns the folio's first page, or NULL.
 */
struct page *kext_ram_folio_alloc(gfp_t gfp, unsigned int order, struct vm_area_struct *vma,
				  unsigned long addr)
{
	struct folio *folio;

	KUNIT_STATIC_STUB_REDIRECT(kext_ram_folio_alloc, gfp, order, vma, addr);
	folio = vma ? vma_alloc_folio(gfp, order, vma, addr) : folio_alloc(gfp, order);
	if (!folio)
		return NULL;
	folio_lock(folio);
	return folio_page(folio, 0);
}

int kext_lock_device_pfns(unsigned long *src_pfns, unsigned long npages)
{
	KUNIT_STATIC_STUB_REDIRECT(kext_lock_device_pfns, src_pfns, npages);
	return migrate_device_pfns(src_pfns, npages);
}

void kext_mmap_read_unlock(struct mm_struct *mm)
{
	mmap_read_unlock(mm);
}
