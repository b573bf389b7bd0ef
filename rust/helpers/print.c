// SPDX-License-Identifier: GPL-2.0

#include <linux/printk.h>

/* Prints Rust's fmt::Arguments, if dynamic debug has enabled the message. */
void kext_debug(const void *args)
{
	pr_debug("%pA\n", args);
}
