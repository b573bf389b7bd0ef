// SPDX-License-Identifier: GPL-2.0

#include <linux/hmm.h>
#include <linux/hugetlb.h>
#include <linux/jiffies.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/oom.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/semaphore.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/userfaultfd_k.h>

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

int kext_mmap_read_lock_killable(struct mm_struct *mm)
{
	return mmap_read_lock_killable(mm);
}

/* Whether memory of @mm may still be faulted in: the OOM reaper has not begun to take it. */
bool kext_is_stable_address_space(struct mm_struct *mm)
{
	return !check_stable_address_space(mm);
}

/*
 * Faults in what of @addr to @end lies in the VMA at @addr, for reading or for writing, as hmm_do_fault() does
 * for a caller that lets the mmap lock be dropped. The caller holds that lock for reading; *@locked is set to
 * false where a fault has dropped it, and nothing is done after that.
 *
 * If @unusable, HMM found memory there that it cannot use. In anonymous memory that is a huge page of another
 * device's, which comes back to RAM; anywhere else it stays so.
 */
int kext_fault_in(struct mm_struct *mm, unsigned long addr, unsigned long end, bool write, bool unusable,
		  bool *locked)
{
	unsigned int flags = FAULT_FLAG_REMOTE | FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE;
	struct vm_area_struct *vma = vma_lookup(mm, addr);

	/* What hmm_vma_walk_test() has. */
	if (!vma || vma->vm_flags & (VM_IO | VM_PFNMAP) || !(vma->vm_flags & VM_READ))
		return -EFAULT;
	if (unusable && !vma_is_anonymous(vma))
		return -EFAULT;
	if (write) {
		if (!(vma->vm_flags & VM_WRITE))
			return -EPERM;
		flags |= FAULT_FLAG_WRITE;
	}
	for (end = min(end, vma->vm_end); addr < end; addr += PAGE_SIZE) {
		vm_fault_t ret = handle_mm_fault(vma, addr, flags, NULL);

		if (unlikely(ret & (VM_FAULT_COMPLETED | VM_FAULT_RETRY | VM_FAULT_ERROR))) {
			if (!(ret & (VM_FAULT_COMPLETED | VM_FAULT_RETRY)))
				return vm_fault_to_errno(ret, 0) ?: -EFAULT;
			*locked = false;
			return fatal_signal_pending(current) ? -EINTR : 0;
		}
		if (fatal_signal_pending(current))
			return -EINTR;
	}
	return 0;
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

/*
 * Whether somebody is told by userfaultfd, or asks PAGEMAP_SCAN, which pages of @vma are written, or
 * accessed at all. The page tables say so, but not for pages in the memory of a device.
 */
bool kext_vma_is_tracked(struct vm_area_struct *vma)
{
	return userfaultfd_wp(vma) || userfaultfd_rwp(vma);
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
static bool page_keep_stores(struct page *page, bool write)
{
	struct folio *folio = page_folio(page);

	if (folio_test_dirty(folio))
		return true;
	if (!write && !folio_test_anon(folio))
		return false;
	folio_mark_dirty(folio);
	return true;
}

/*
 * The page of an entry of HMM's; with bit 0 if it is memory of a device, and bit 1 if the CPU may write it and
 * page_keep_stores() says so. One call, which is made for each page that a device maps.
 */
unsigned long kext_hmm_pfn_resolve(unsigned long hmm_pfn, bool write)
{
	struct page *page = hmm_pfn_to_page(hmm_pfn);
	unsigned long resolved = (unsigned long)page;

	BUILD_BUG_ON(__alignof__(struct page) < 4);
	if (is_zone_device_page(page))
		resolved |= 1;
	if ((hmm_pfn & HMM_PFN_WRITE) && page_keep_stores(page, write))
		resolved |= 2;
	return resolved;
}

/*
 * Whether the process that @mm is of is exiting. SIGNAL_GROUP_EXIT is set with the first fatal signal, long
 * before the threads have noticed; MMF_OOM_REAP_QUEUED when the OOM killer has chosen it, MMF_UNSTABLE when
 * memory is being taken from it. mm->owner is NULL when no process is left that uses it.
 */
bool kext_mm_is_exiting(struct mm_struct *mm)
{
	bool exiting = mm_flags_test(MMF_OOM_REAP_QUEUED, mm) || mm_flags_test(MMF_UNSTABLE, mm);

#ifdef CONFIG_MEMCG
	if (!exiting) {
		struct task_struct *owner;

		rcu_read_lock();
		owner = rcu_dereference(mm->owner);
		exiting = !owner || (!mm_flags_test(MMF_MULTIPROCESS, mm) &&
				     READ_ONCE(owner->signal->flags) & SIGNAL_GROUP_EXIT);
		rcu_read_unlock();
	}
#endif
	return exiting;
}

/* The memory cgroup of @mm, with a reference; struct mem_cgroup is opaque to Rust. */
void *kext_get_mem_cgroup_from_mm(struct mm_struct *mm)
{
	return get_mem_cgroup_from_mm(mm);
}

void kext_mem_cgroup_put(void *memcg)
{
	mem_cgroup_put(memcg);
}

void *kext_set_active_memcg(void *memcg)
{
	return set_active_memcg(memcg);
}

/*
 * Whether the kernel might have to kill somebody for @pages more pages: next to none are free or could be
 * reclaimed.
 */
bool kext_memory_is_short(unsigned long pages)
{
	return si_mem_available() < (long)(totalram_pages() / 64 + pages);
}

/* Whether a memory cgroup that @mm is in has room for less than @pages more pages. */
bool kext_memcg_is_short(struct mm_struct *mm, unsigned long pages)
{
	bool is_short = false;
#ifdef CONFIG_MEMCG
	struct mem_cgroup *memcg, *at;

	memcg = get_mem_cgroup_from_mm(mm);
	for (at = memcg; at && !is_short; at = parent_mem_cgroup(at))
		is_short = page_counter_read(&at->memory) + pages > READ_ONCE(at->memory.max);
	mem_cgroup_put(memcg);
#endif
	return is_short;
}

/* Allocates @count pages and frees them; whether there were so many. Never takes them from the reserves. */
static bool kext_try_pages(unsigned long count, gfp_t gfp)
{
	struct page *page, *next;
	LIST_HEAD(pages);

	for (; count; count--) {
		page = alloc_page(gfp | __GFP_HIGHMEM | __GFP_NOWARN | __GFP_NOMEMALLOC);
		if (!page)
			break;
		list_add(&page->lru, &pages);
		cond_resched();
	}
	list_for_each_entry_safe(page, next, &pages, lru) {
		list_del(&page->lru);
		__free_page(page);
	}
	return !count;
}

/* One thread at a time makes room: each has that much for a moment, which many have not together. */
static DEFINE_SEMAPHORE(kext_room, 1);

/*
 * Has the kernel make room for @count pages; whether there is. It makes some more: what is freed goes to the lists
 * of a CPU first, and is not counted there by those who look whether memory is left, and kill somebody if not.
 * These lists may hold more than that: see kext_memalloc_noreclaim_save().
 */
bool kext_make_room(unsigned long count)
{
	bool is_there;

	if (down_killable(&kext_room))
		return false;
	is_there = !kext_memory_is_short(count) ||
		   kext_try_pages(count + min(totalram_pages() / 64, SZ_16M >> PAGE_SHIFT), GFP_KERNEL);
	up(&kext_room);
	return is_there;
}

/* How many threads may use the reserves at once. What each takes is a part of what is in them. */
static DEFINE_SEMAPHORE(kext_reserves, 2);

/* Waits for @ms milliseconds to be one of these; whether the caller is. */
bool kext_reserves_get(unsigned int ms)
{
	return down_timeout(&kext_reserves, msecs_to_jiffies(ms)) == 0;
}

void kext_reserves_put(void)
{
	up(&kext_reserves);
}

unsigned int kext_memalloc_noreclaim_save(void)
{
	return memalloc_noreclaim_save();
}

void kext_memalloc_noreclaim_restore(unsigned int flags)
{
	memalloc_noreclaim_restore(flags);
}

/* Has the memory cgroup that the caller charges make room for @count pages; whether there is. */
bool kext_memcg_make_room(unsigned long count)
{
	return kext_try_pages(count, GFP_KERNEL_ACCOUNT);
}
