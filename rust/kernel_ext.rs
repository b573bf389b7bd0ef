// SPDX-License-Identifier: GPL-2.0

//! What the kernel crate lacks: bindings, helpers for static inlines, and safe wrappers.
//!
//! Everything here is a candidate for the `kernel` crate, and follows its conventions: a module
//! wraps one C facility, names it as C does, and says which C header it stands for.

#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

mod anon_vma;
pub mod bindings;
pub mod completion;
pub mod dev_pagemap;
pub mod device_ram;
pub mod dma;
pub mod dmem;
#[cfg(CONFIG_DRM = "y")]
pub mod drm_debugfs;
pub mod drm_device;
pub mod drm_file;
#[cfg(CONFIG_DRM = "y")]
pub mod drm_platform;
#[cfg(CONFIG_DRM = "y")]
pub mod drm_print;
pub mod fabric;
pub mod faux_dma;
pub mod folio;
#[cfg(CONFIG_DRM = "y")]
pub mod gem_kind;
#[cfg(CONFIG_DRM = "y")]
mod gem_mapping;
pub mod hmm;
pub mod interval_tree;
pub mod jiffies;
pub mod list_head;
pub mod live_mm;
pub mod llist;
pub mod lock_name;
pub mod memcg;
pub mod migrate;
pub mod mmu_interval;
pub mod module_ref;
pub mod mutex;
pub mod phys;
pub mod platform_device;
pub mod print;
pub mod rwsem;
pub mod sched;
pub mod shrinker;
pub mod sysinfo;
pub mod task_work;
pub mod thin_array;
pub mod use_mm;
pub mod workqueue;
pub mod xe_drm;
pub mod zone_device;
