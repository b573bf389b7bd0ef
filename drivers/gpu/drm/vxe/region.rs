// SPDX-License-Identifier: GPL-2.0

//! The memory regions of a device: what there is, and how much of it buffer objects use.

use crate::uapi;
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};
use kernel_ext::sysinfo;

/// The number of system memory, in [`Regions`] and in the uAPI.
pub(crate) const SYSTEM: usize = 0;

/// Where a region's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The system's memory.
    System,
}

impl Kind {
    /// The uAPI's class of such a region.
    pub(crate) fn class(self) -> u16 {
        match self {
            // CAST: The uAPI's field has 16 bits for its few classes.
            Kind::System => uapi::drm_xe_memory_class_DRM_XE_MEM_REGION_CLASS_SYSMEM as u16,
        }
    }
}

/// A memory region.
pub(crate) struct Region {
    kind: Kind,
    /// In bytes.
    total: u64,
    /// What buffer objects have reserved, in bytes; not more than `total`.
    used: Atomic<u64>,
}

impl Region {
    /// The system's memory. Objects may reserve three quarters of it, as with xe.
    fn system() -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                kind: Kind::System,
                total: sysinfo::total_ram() / 4 * 3,
                used: Atomic::new(0),
            },
            GFP_KERNEL,
        )?)
    }

    /// Where the memory is.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Its size in bytes.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// How much of it is used, in bytes.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// The smallest unit in which it is given out, in bytes.
    pub(crate) fn min_page_size(&self) -> u32 {
        // CAST: A page is 4 KiB.
        PAGE_SIZE as u32
    }

    /// How much of it the CPU can reach, in bytes; 0 for the system's memory, as with xe.
    pub(crate) fn cpu_visible_size(&self) -> u64 {
        match self.kind {
            Kind::System => 0,
        }
    }

    /// How much of what the CPU can reach is used, in bytes; 0 for the system's memory.
    pub(crate) fn cpu_visible_used(&self) -> u64 {
        match self.kind {
            Kind::System => 0,
        }
    }

    /// Reserves `size` bytes. Fails with `ENOMEM` if so much is not left.
    pub(crate) fn reserve(self: &Arc<Self>, size: u64) -> Result<Reservation> {
        let mut used = self.used.load(Relaxed);
        loop {
            let now = used.checked_add(size).ok_or(ENOMEM)?;
            if now > self.total {
                return Err(ENOMEM);
            }
            match self.used.cmpxchg(used, now, Relaxed) {
                Ok(_) => break,
                Err(other) => used = other,
            }
        }
        Ok(Reservation {
            region: self.clone(),
            size,
        })
    }
}

/// Memory of a region that is spoken for; dropping it gives it back.
pub(crate) struct Reservation {
    region: Arc<Region>,
    size: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // What is given back was reserved, so this does not wrap.
        let _ = self.region.used.fetch_sub(self.size, Relaxed);
    }
}

/// All regions of a device. A region's number is its `instance` in the uAPI, and its bit in a
/// placement mask.
pub(crate) struct Regions(KVec<Arc<Region>>);

impl Regions {
    /// The regions that every device has.
    pub(crate) fn new() -> Result<Self> {
        let mut regions = KVec::new();
        regions.push(Region::system()?, GFP_KERNEL)?;
        Ok(Self(regions))
    }

    /// All of them, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Region>> {
        self.0.iter()
    }

    /// Whether there is memory of the device's own.
    pub(crate) fn has_vram(&self) -> bool {
        self.iter().any(|region| region.kind() != Kind::System)
    }

    /// A bit for each of them.
    pub(crate) fn mask(&self) -> u32 {
        // There are fewer than 32.
        1u32.checked_shl(self.0.len() as u32)
            .map_or(u32::MAX, |bit| bit.wrapping_sub(1))
    }
}
