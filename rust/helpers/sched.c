// SPDX-License-Identifier: GPL-2.0

#include <linux/sched.h>

void kext_cond_resched(void)
{
	cond_resched();
}
