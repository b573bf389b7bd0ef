// SPDX-License-Identifier: GPL-2.0

#include <linux/completion.h>
#include <linux/dma-fence.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/signal.h>

/*
 * Lets other tasks run, also those that wait for an RCU tasks grace period: a kernel thread that works without ever
 * sleeping would block synchronize_rcu_tasks() otherwise.
 */
void kext_cond_resched(void)
{
	cond_resched_tasks_rcu_qs();
}

/* Returns whether the calling thread has a fatal signal pending. */
bool kext_is_killed(void)
{
	return fatal_signal_pending(current);
}

/* Makes the calling kernel thread killable: from now on SIGKILL ends its killable waits. */
void kext_allow_kill(void)
{
	allow_kernel_signal(SIGKILL);
}

/* Undoes kext_allow_kill(), and discards a pending SIGKILL. */
void kext_disallow_kill(void)
{
	disallow_signal(SIGKILL);
}

void kext_kill_thread(struct task_struct *thread)
{
	send_sig(SIGKILL, thread, 1);
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

bool kext_task_is_runnable(struct task_struct *task)
{
	return READ_ONCE(task->__state) == TASK_RUNNING;
}

/*
 * Returns the @nth thread, counted from 0, of those threads of @process that use @mm and are runnable; with a
 * reference. NULL if there are fewer.
 */
struct task_struct *kext_find_runnable_thread(struct task_struct *process, struct mm_struct *mm,
					      unsigned int nth)
{
	struct task_struct *thread, *found = NULL;

	rcu_read_lock();
	for_each_thread(process, thread) {
		if (!kext_task_is_runnable(thread) || READ_ONCE(thread->mm) != mm ||
		    thread->flags & (PF_EXITING | PF_USER_WORKER))
			continue;
		if (nth--)
			continue;
		found = get_task_struct(thread);
		break;
	}
	rcu_read_unlock();
	return found;
}
