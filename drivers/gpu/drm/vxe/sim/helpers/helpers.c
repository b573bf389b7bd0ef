// SPDX-License-Identifier: GPL-2.0
/*
 * Symbols for static inlines and macros that the simulator calls, one file for each topic:
 * `vxesim_foo()` here is `bindings::foo()` in the vxe_sim crate.
 */

#include "debugfs.c"
#include "dma_memory.c"
#include "drm.c"
#include "platform_device.c"
#include "print.c"
#include "sysfs.c"
