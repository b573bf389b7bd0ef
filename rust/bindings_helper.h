/* SPDX-License-Identifier: GPL-2.0 */

/*
 * Headers whose declarations the kernel crate's bindings lack. What of them becomes
 * Rust is named in bindgen_allowlist; types that the kernel crate binds already are
 * taken from there, so that both are the same type.
 */

#include <linux/hmm.h>
#include <linux/interval_tree.h>
#include <linux/migrate.h>
#include <linux/mmu_context.h>
#include <linux/mmu_notifier.h>
#include <linux/rwsem.h>
#include <drm/drm_gpusvm.h>
#include <drm/drm_pagemap.h>
#include <drm/drm_pagemap_util.h>
#include <uapi/drm/xe_drm.h>
