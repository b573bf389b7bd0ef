// SPDX-License-Identifier: GPL-2.0

#include <linux/mm.h>
#include <linux/rmap.h>
#include <linux/rwsem.h>

/* Takes a reference to the folio that @page belongs to, unless it is free. */
bool kext_page_folio_try_get(struct page *page)
{
	struct folio *folio = page_folio(page);

	if (!folio_try_get(folio))
		return false;
	if (likely(page_folio(page) == folio))
		return true;
	/* The folio was split meanwhile: the caller tries again. */
	folio_put(folio);
	return false;
}

void kext_page_folio_put(struct page *page)
{
	folio_put(page_folio(page));
}

/*
 * Returns the anon_vma of @page's folio; NULL if the folio is not mapped or not anonymous.
 * The caller holds a reference to the folio. Outside of an RCU read-side critical section
 * the result may be freed memory; inside it may belong to another folio by now.
 */
struct anon_vma *kext_page_anon_vma(const struct page *page)
{
	const struct folio *folio = page_folio(page);
	unsigned long mapping = (unsigned long)READ_ONCE(folio->mapping);

	if ((mapping & FOLIO_MAPPING_FLAGS) != FOLIO_MAPPING_ANON || !folio_mapped(folio))
		return NULL;
	return (struct anon_vma *)(mapping - FOLIO_MAPPING_ANON);
}

bool kext_anon_vma_try_get(struct anon_vma *anon_vma)
{
	return atomic_inc_not_zero(&anon_vma->refcount);
}

bool kext_anon_vma_dec_and_test(struct anon_vma *anon_vma)
{
	return atomic_dec_and_test(&anon_vma->refcount);
}

struct anon_vma *kext_anon_vma_root(const struct anon_vma *anon_vma)
{
	return anon_vma->root;
}

/* Waits for threads that hold the lock of @anon_vma, which they took before its last reference was dropped. */
void kext_anon_vma_synchronize(struct anon_vma *anon_vma)
{
	struct rw_semaphore *lock = &anon_vma->root->rwsem;

	might_sleep();
	if (rwsem_is_locked(lock)) {
		down_write(lock);
		up_write(lock);
	}
}
