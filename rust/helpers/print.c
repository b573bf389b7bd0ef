// SPDX-License-Identifier: GPL-2.0

#include <linux/device.h>
#include <linux/printk.h>
#include <linux/ratelimit.h>

/* Prints Rust's fmt::Arguments if dynamic debug says so. */
void kext_debug(const void *args)
{
	pr_debug("%pA\n", args);
}

/* Prints Rust's fmt::Arguments, ten times in five seconds at most. */
void kext_dev_err_ratelimited(const struct device *dev, const void *args)
{
	dev_err_ratelimited(dev, "%pA\n", args);
}
