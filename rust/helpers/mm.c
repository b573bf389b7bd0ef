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
#include <linux/workqueue.h>

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

/*
 * Allocates the state of @mm for MMU interval notifiers, which the first mmu_interval_notifier_insert() would do with
 * an mmap_write_lock() that cannot be killed. (It still takes the lock if @mm has notifiers of the other kind only.)
 */
int kext_mmu_interval_notifiers_init(struct mm_struct *mm)
{
	int ret;

	if (mm_has_notifiers(mm))
		return 0;
	ret = mmap_write_lock_killable(mm);
	if (ret)
		return ret;
	ret = __mmu_notifier_register(NULL, mm);
	mmap_write_unlock(mm);
	return ret;
}

/* Returns whether pages may still be faulted in: the OOM reaper has not begun to reap @mm. */
bool kext_is_stable_address_space(struct mm_struct *mm)
{
	return !check_stable_address_space(mm);
}

/*
 * Faults in the pages from @addr to @end, at most to the end of the VMA at @addr, for reading or for writing,
 * as hmm_do_fault() does for a caller that allows mmap_lock to be dropped. The caller holds mmap_lock for
 * reading. If a fault drops it, this sets *@locked to false and returns at once.
 *
 * @pfns has HMM's entries of these pages. @unusable says that HMM found memory at @addr that it cannot use. In an anonymous VMA that is a huge page of
 * another device, which the fault migrates to system memory; in any other VMA a fault does not help.
 */
int kext_fault_in(struct mm_struct *mm, unsigned long addr, unsigned long end, const unsigned long *pfns,
		  bool write, bool unusable, bool *locked)
{
	const vm_fault_t no_page = VM_FAULT_COMPLETED | VM_FAULT_RETRY | VM_FAULT_ERROR;
	unsigned int flags = FAULT_FLAG_REMOTE | FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE;
	struct vm_area_struct *vma = vma_lookup(mm, addr);

	/* The conditions of hmm_vma_walk_test(). */
	if (!vma || vma->vm_flags & (VM_IO | VM_PFNMAP) || !(vma->vm_flags & VM_READ))
		return -EFAULT;
	if (unusable && !vma_is_anonymous(vma))
		return -EFAULT;
	if (write) {
		if (!(vma->vm_flags & VM_WRITE))
			return -EPERM;
		flags |= FAULT_FLAG_WRITE;
	}
	for (end = min(end, vma->vm_end); addr < end; addr += PAGE_SIZE, pfns++) {
		vm_fault_t ret = 0;

		/*
		 * The write fault on a page whose writes are tracked asynchronously keeps the page's accessed flag. On arm64 the
		 * kernel warns if that is not set: before a CPU writes such a page it takes a fault that sets it.
		 */
		if (write && (*pfns & HMM_PFN_VALID) && userfaultfd_wp(vma))
			ret = handle_mm_fault(vma, addr, flags & ~FAULT_FLAG_WRITE, NULL);
		if (likely(!(ret & no_page)))
			ret = handle_mm_fault(vma, addr, flags, NULL);
		if (unlikely(ret & no_page)) {
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
	return kvmalloc_array(n, size, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
}

bool kext_vma_is_anonymous(struct vm_area_struct *vma)
{
	return vma_is_anonymous(vma);
}

/*
 * Returns whether userfaultfd or PAGEMAP_SCAN tracks writes or accesses to pages of @vma. They rely on bits
 * in the page tables, which device-private entries do not have.
 */
bool kext_vma_is_tracked(struct vm_area_struct *vma)
{
	return userfaultfd_wp(vma) || userfaultfd_rwp(vma);
}

bool kext_is_vm_hugetlb_page(struct vm_area_struct *vma)
{
	return is_vm_hugetlb_page(vma);
}

/* Returns the pagemap of a page of device memory; NULL for system memory. */
struct dev_pagemap *kext_device_page_pgmap(const struct page *page)
{
	if (is_device_private_page(page) || is_device_coherent_page(page))
		return page_pgmap(page);
	return NULL;
}

/*
 * Returns whether a device's stores to @page survive reclaim. A device's store sets no dirty bit in the CPU's
 * page tables, and reclaim drops a clean page whose contents are in swap or in a file, or that MADV_FREE has
 * freed (which may not have marked the folio yet). So this marks the folio dirty, if @write is set or the
 * folio is anonymous, so that no file gets dirty.
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
 * Returns the page of an HMM entry; with bit 0 set if it is device memory, and bit 1 if the CPU may write it and
 * page_keep_stores() is true. This is one call because it is made for each page that a device maps.
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
 * Returns whether the process of @mm is exiting. SIGNAL_GROUP_EXIT is set with the first fatal signal, before
 * the threads exit; MMF_OOM_REAP_QUEUED when the OOM killer has selected the process; MMF_UNSTABLE when the
 * OOM reaper frees its memory. mm->owner is NULL when no process uses @mm any more.
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

/* Returns the memory cgroup of @mm, with a reference. struct mem_cgroup is opaque to Rust. */
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
 * Returns whether an allocation of @pages pages might invoke the OOM killer: almost no page is free or could
 * be reclaimed.
 */
bool kext_memory_is_short(unsigned long pages)
{
	return si_mem_available() < (long)(totalram_pages() / 64 + pages);
}

/* Returns whether @pages more pages would exceed the limit of the memory cgroup of @mm or of a parent. */
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

#define KEXT_GFP_TRY	(__GFP_HIGHMEM | __GFP_NOWARN | __GFP_NOMEMALLOC)

/*
 * Allocates @count pages and frees them again; returns whether it got them all. Never uses the reserves. When there
 * are no more, and before it frees those that it has, it calls @short_of, unless that is NULL, with @data.
 */
static bool kext_try_pages(unsigned long count, gfp_t gfp, void (*short_of)(void *data), void *data)
{
	struct page *page, *next;
	LIST_HEAD(pages);

	for (; count; count--) {
		page = alloc_page(gfp | KEXT_GFP_TRY);
		if (!page)
			break;
		list_add(&page->lru, &pages);
		cond_resched();
	}
	if (count && short_of)
		short_of(data);
	list_for_each_entry_safe(page, next, &pages, lru) {
		list_del(&page->lru);
		__free_page(page);
	}
	return !count;
}

/* Serializes kext_make_room(): several threads could not allocate their pages at the same time. */
static DEFINE_SEMAPHORE(kext_room, 1);

/*
 * Makes the kernel reclaim, or kill a process, until @count pages are free; returns whether they are. This
 * allocates some more pages than @count: freed pages go to the per-CPU lists first, where the check before an
 * OOM kill does not count them. The lists may hold even more pages, which is why the caller may use the
 * reserves afterwards, see kext_memalloc_noreclaim_save().
 */
bool kext_make_room(unsigned long count)
{
	bool is_there;

	if (down_killable(&kext_room))
		return false;
	is_there = !kext_memory_is_short(count) ||
		   kext_try_pages(count + min(totalram_pages() / 64, SZ_16M >> PAGE_SHIFT), GFP_KERNEL,
				  NULL, NULL);
	up(&kext_room);
	return is_there;
}

/* Limits the threads that use the memory reserves at the same time, each of which takes a part of them. */
static DEFINE_SEMAPHORE(kext_reserves, 2);

/* Waits up to @ms milliseconds for a use of the reserves; returns whether the caller got one. */
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

/* Makes the active memory cgroup reclaim until it can charge @count pages; returns whether it can. Kills nobody. */
bool kext_memcg_make_room(unsigned long count)
{
	return kext_try_pages(count, GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL, NULL, NULL);
}

/* Serializes the OOM kills in memory cgroups, each until the memory of its victim is free. */
static DEFINE_SEMAPHORE(kext_kills, 1);

/* Waits up to @ms milliseconds for the turn to call kext_memcg_kill(); returns whether the caller got it. */
bool kext_memcg_kill_begin(unsigned int ms)
{
	return down_timeout(&kext_kills, msecs_to_jiffies(ms)) == 0;
}

void kext_memcg_kill_end(void)
{
	up(&kext_kills);
}

/* Returns a number that grows with each OOM kill that may free memory for @memcg. */
unsigned long kext_memcg_kills(void *memcg)
{
	unsigned long kills = 0;
#ifdef CONFIG_MEMCG
	struct mem_cgroup *at;

	/* The kills in a parent without a limit may all be in other children. */
	for (at = memcg; at; at = parent_mem_cgroup(at))
		if (READ_ONCE(at->memory.max) != PAGE_COUNTER_MAX)
			kills += atomic_long_read(&at->memory_events[MEMCG_OOM_KILL]);
#endif
	return kills;
}

struct kext_memcg_kill {
	struct work_struct work;
	struct mem_cgroup *memcg;
	unsigned long count;
	unsigned long kills;
	bool has_room;
};

/* Charges one page, with an OOM kill if necessary, unless somebody was killed already. */
static void kext_memcg_kill_once(void *data)
{
	struct kext_memcg_kill *kill = data;
	struct page *page;

	if (kext_memcg_kills(kill->memcg) != kill->kills)
		return;
	page = alloc_page(GFP_KERNEL_ACCOUNT | KEXT_GFP_TRY);
	if (page)
		__free_page(page);
}

static void kext_memcg_kill_work(struct work_struct *work)
{
	struct kext_memcg_kill *kill = container_of(work, struct kext_memcg_kill, work);
	struct mem_cgroup *before = set_active_memcg(kill->memcg);

	allow_kernel_signal(SIGKILL);
	send_sig(SIGKILL, current, 1);
	/* The kill comes while the pages that could be charged are: without these one more could be. */
	kill->has_room = kext_try_pages(kill->count, GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL,
					kext_memcg_kill_once, kill);
	disallow_signal(SIGKILL);
	set_active_memcg(before);
}

/*
 * Makes @memcg reclaim until it can charge @count pages; returns whether it can. If it cannot, invokes the OOM killer at
 * most once, unless kext_memcg_kills() is not @kills any more: then the memory of a victim is about to be free.
 *
 * try_charge_memcg() repeats the OOM kill until the charge succeeds or the calling thread is dying. A thread with a
 * pending SIGKILL is: its charge fails after the first kill. The pending signal does not prevent that kill, as
 * mutex_lock_killable() first tries to take oom_lock, and task_will_free_mem() is false for a kernel thread. So a
 * worker with a pending SIGKILL makes the charge of one page with a kill, and discards the signal. (The charge of
 * a second one might find that the victim has freed only a part of its memory, and have another process killed.) The
 * caller's thread would discard a SIGKILL from kext_kill_thread() with it.
 */
bool kext_memcg_kill(void *memcg, unsigned long count, unsigned long kills)
{
	struct kext_memcg_kill kill = { .memcg = memcg, .count = count, .kills = kills };

	INIT_WORK_ONSTACK(&kill.work, kext_memcg_kill_work);
	queue_work(system_dfl_wq, &kill.work);
	flush_work(&kill.work);
	destroy_work_on_stack(&kill.work);
	return kill.has_room;
}
