/* SPDX-License-Identifier: GPL-2.0 */

/*
 * Headers with declarations that the kernel crate's bindings lack. bindgen_allowlist
 * names the declarations to bind. Types that the kernel crate binds are imported from
 * there, so that both crates use the same type.
 */

#include <kunit/static_stub.h>
#include <linux/cgroup_dmem.h>
#include <linux/gfp.h>
#include <linux/hmm.h>
#include <linux/huge_mm.h>
#include <linux/interval_tree.h>
#include <linux/migrate.h>
#include <linux/mmu_context.h>
#include <linux/mmu_notifier.h>
#include <linux/rcupdate_wait.h>
#include <linux/rwsem.h>
#include <linux/task_work.h>
#include <drm/drm_gpusvm.h>
#include <drm/drm_pagemap.h>
#include <drm/drm_pagemap_util.h>

/* Values of macros that bindgen cannot evaluate. */
const gfp_t KEXT_GFP_HIGHUSER_MOVABLE = GFP_HIGHUSER_MOVABLE;
const gfp_t KEXT_GFP_MOVABLE = __GFP_MOVABLE;
const gfp_t KEXT_GFP_NOWARN = __GFP_NOWARN;
const gfp_t KEXT_GFP_RETRY_MAYFAIL = __GFP_RETRY_MAYFAIL;
const vm_flags_t KEXT_VM_LOCKED = VM_LOCKED;
const vm_flags_t KEXT_VM_MTE = VM_MTE;
const unsigned int KEXT_HPAGE_PMD_ORDER = HPAGE_PMD_ORDER;
