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

/* Log2 of the number of pages of the folio that @page belongs to. */
unsigned int kext_page_folio_order(const struct page *page)
{
	return folio_order(page_folio(page));
}

/* The frame of the first page of the folio that @page belongs to. */
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

/* Gives a new folio back that nobody but its maker knows, and that is locked. */
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

/* Makes @page and those behind it a folio in use: locked, with one reference. */
void kext_zone_device_folio_init(struct page *page, struct dev_pagemap *pgmap,
				 unsigned int order)
{
	zone_device_folio_init((struct folio *)page, pgmap, order);
}

/*
 * A folio of device memory that is free now is not locked any more. Memory of a locked VMA is counted as
 * such where it is put into page tables, and not any more where it is taken from them; munlock() passes by
 * what is on a device.
 */
void kext_folio_forget_mlock(struct folio *folio)
{
	if (folio_test_clear_mlocked(folio))
		zone_stat_mod_folio(folio, NR_MLOCK, -folio_nr_pages(folio));
}

/*
 * Whether another process has, or had pages of the anonymous memory of @vma, and lives: its parent or a
 * child. The mmap lock is held, so that it does not fork just now.
 */
bool kext_vma_has_relatives(struct vm_area_struct *vma)
{
	const struct anon_vma *anon_vma = READ_ONCE(vma->anon_vma);

	/* The root of a family counts as a child of its own. */
	return anon_vma && (!list_is_singular(&vma->anon_vma_chain) || anon_vma->num_children > 1);
}

/*
 * Whether KSM has a page that @mm maps between @start and @end: 1, 0, or an error. @pfns has room for all of
 * them. The mmap lock is held; nothing is faulted in. That KSM gets one meanwhile is not excluded.
 */
int kext_mm_maps_ksm(struct mm_struct *mm, unsigned long start, unsigned long end,
		     unsigned long *pfns)
{
	/* Nobody is told of changes, nor has to be. */
	struct mmu_interval_notifier nobody = { .mm = mm };
	struct hmm_range range = {
		.notifier = &nobody,
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
		/* What is mapped by a larger entry is none of KSM's. */
		if (!(pfns[i] & HMM_PFN_VALID) || hmm_pfn_to_map_order(pfns[i]))
			continue;
		if (folio_test_ksm(page_folio(hmm_pfn_to_page(pfns[i]))))
			return 1;
	}
	return 0;
}

/* A folio that is split off another belongs to the same device. */
void kext_folio_share_pgmap(struct folio *to, const struct folio *from)
{
	to->pgmap = from->pgmap;
}

/*
 * A folio of RAM, locked: where the policy of a process wants it that has @addr in @vma, or,
 * without @vma, where that of the running thread does.
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
