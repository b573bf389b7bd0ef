// SPDX-License-Identifier: GPL-2.0

#include <linux/device.h>
#include <linux/ratelimit.h>

/* Prints Rust's fmt::Arguments, at most ten times in five seconds. */
void vxesim_dev_err_ratelimited(const struct device *dev, const void *args)
{
	dev_err_ratelimited(dev, "%pA\n", args);
}
