// SPDX-License-Identifier: GPL-2.0

//! Memory management: address spaces, folios, and the migration of pages between folios.

mod anon_vma;
pub mod folio;
pub mod hmm;
pub mod live_mm;
pub mod memcg;
pub mod memremap;
pub mod migrate;
pub mod mmap_lock;
pub mod mmu_notifier;
pub mod shrinker;
pub mod zone_device;
