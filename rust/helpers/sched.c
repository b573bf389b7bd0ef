// SPDX-License-Identifier: GPL-2.0

#include <linux/completion.h>
#include <linux/dma-fence.h>
#include <linux/sched.h>

void kext_cond_resched(void)
{
	cond_resched();
}

void kext_init_completion(struct completion *x)
{
	init_completion(x);
}

void kext_dma_fence_put(struct dma_fence *fence)
{
	dma_fence_put(fence);
}

void kext_set_current_running(void)
{
	__set_current_state(TASK_RUNNING);
}
