// SPDX-License-Identifier: GPL-2.0

#include <linux/cgroup_dmem.h>

/*
 * Registers a region under the name that DRM gives its own regions. Returns NULL without CGROUP_DMEM, as
 * all functions of this file are stubs then.
 */
struct dmem_cgroup_region *kext_dmem_cgroup_register_region(u64 size,
							    const struct dmem_cgroup_ops *ops,
							    void *priv, const char *device,
							    const char *name)
{
	struct dmem_cgroup_init init = {
		.size = size,
		.ops = ops,
		.reclaim_priv = priv,
	};

	return dmem_cgroup_register_region(&init, "drm/%s/%s", device, name);
}

void kext_dmem_cgroup_unregister_region(struct dmem_cgroup_region *region)
{
	dmem_cgroup_unregister_region(region);
}

int kext_dmem_cgroup_try_charge(struct dmem_cgroup_region *region, u64 size,
				struct dmem_cgroup_pool_state **pool,
				struct dmem_cgroup_pool_state **limit_pool)
{
	return dmem_cgroup_try_charge(region, size, pool, limit_pool);
}

void kext_dmem_cgroup_uncharge(struct dmem_cgroup_pool_state *pool, u64 size)
{
	dmem_cgroup_uncharge(pool, size);
}

bool kext_dmem_cgroup_state_evict_valuable(struct dmem_cgroup_pool_state *limit_pool,
					   struct dmem_cgroup_pool_state *test_pool,
					   bool ignore_low, bool *hit_low)
{
	return dmem_cgroup_state_evict_valuable(limit_pool, test_pool, ignore_low, hit_low);
}

bool kext_dmem_cgroup_below_min(struct dmem_cgroup_pool_state *root,
				struct dmem_cgroup_pool_state *test)
{
	return dmem_cgroup_below_min(root, test);
}

bool kext_dmem_cgroup_below_low(struct dmem_cgroup_pool_state *root,
				struct dmem_cgroup_pool_state *test)
{
	return dmem_cgroup_below_low(root, test);
}

struct dmem_cgroup_pool_state *
kext_dmem_cgroup_get_common_ancestor(struct dmem_cgroup_pool_state *a,
				     struct dmem_cgroup_pool_state *b)
{
	return dmem_cgroup_get_common_ancestor(a, b);
}

void kext_dmem_cgroup_pool_state_put(struct dmem_cgroup_pool_state *pool)
{
	dmem_cgroup_pool_state_put(pool);
}
