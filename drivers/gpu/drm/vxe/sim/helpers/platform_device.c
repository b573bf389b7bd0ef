// SPDX-License-Identifier: GPL-2.0

#include <linux/device.h>

/* Returns whether a driver has bound @dev. Waits for one that is being bound or unbound. */
bool vxesim_device_is_bound(struct device *dev)
{
	bool bound;

	device_lock(dev);
	bound = device_is_bound(dev);
	device_unlock(dev);
	return bound;
}
