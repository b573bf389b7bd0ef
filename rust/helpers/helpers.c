// SPDX-License-Identifier: GPL-2.0

/*
 * Symbols for static inline functions and macros that Rust code calls, one file per
 * topic. `kext_foo()` here is `bindings::foo()` in the kernel_ext crate. The prefix
 * differs from `rust_helper_`, as vmlinux exports symbols with that prefix.
 */

#include "cgroup.c"
#include "dma.c"
#include "list.c"
#include "lock.c"
#include "migrate.c"
#include "mm.c"
#include "print.c"
#include "rmap.c"
#include "sched.c"
