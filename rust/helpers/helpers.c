// SPDX-License-Identifier: GPL-2.0

/*
 * Symbols for static inlines and macros that Rust code calls: one file a topic.
 * `kext_foo()` here is `bindings::foo()` in the kernel_ext crate. The prefix is the
 * project's own, as vmlinux exports `rust_helper_*`.
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
