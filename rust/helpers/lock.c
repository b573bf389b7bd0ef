// SPDX-License-Identifier: GPL-2.0

#include <linux/lockdep.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/sched/mm.h>

/* Teaches lockdep that reclaim takes @sem, before reclaim does so for the first time. */
void kext_rwsem_prime_reclaim(struct rw_semaphore *sem)
{
	fs_reclaim_acquire(GFP_KERNEL);
	might_lock(sem);
	fs_reclaim_release(GFP_KERNEL);
}

void kext_rwsem_assert_held(struct rw_semaphore *sem)
{
	rwsem_assert_held(sem);
}

void kext_rwsem_assert_held_write(struct rw_semaphore *sem)
{
	rwsem_assert_held_write(sem);
}

int kext_mutex_lock_killable(struct mutex *lock)
{
	return mutex_lock_killable(lock);
}

int kext_mutex_lock_interruptible(struct mutex *lock)
{
	return mutex_lock_interruptible(lock);
}

#ifdef CONFIG_LOCKDEP
/* Warns unless the caller holds the lock of @map; does nothing if @map is NULL. */
void kext_lockdep_assert_map_held(struct lockdep_map *map)
{
	if (map)
		lockdep_assert(lock_is_held_type(map, 0));
}
#endif
