// SPDX-License-Identifier: GPL-2.0

#include <linux/list.h>
#include <linux/refcount.h>

void kext_list_del_init(struct list_head *entry)
{
	list_del_init(entry);
}

bool kext_refcount_inc_not_zero(refcount_t *r)
{
	return refcount_inc_not_zero(r);
}
