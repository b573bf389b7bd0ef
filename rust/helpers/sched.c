// SPDX-License-Identifier: GPL-2.0

#include <linux/completion.h>
#include <linux/dma-fence.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>

void kext_cond_resched(void)
{
	cond_resched();
}

/* Whether the running thread got a signal that it does not survive. */
bool kext_is_killed(void)
{
	return fatal_signal_pending(current);
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
