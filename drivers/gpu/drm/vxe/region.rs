// SPDX-License-Identifier: GPL-2.0

//! The memory regions of a device: what there is, and how much of it is used.

use crate::{
    uapi,
    vram::Vram, //
};
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
use vxe_sim::sysinfo;

/// The number of system memory, in [`Regions`] and in the uAPI.
pub(crate) const SYSTEM: usize = 0;

/// The number of the device's own memory, in both as well, on a device that has any.
pub(crate) const VRAM: usize = 1;

/// Where a region's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The system's memory.
    System,
    /// The device's own.
    Vram,
}

impl Kind {
    /// The uAPI's class of such a region.
    pub(crate) fn class(self) -> u16 {
        match self {
            // CAST: The uAPI's field has 16 bits for its few classes.
            Kind::System => uapi::drm_xe_memory_class_DRM_XE_MEM_REGION_CLASS_SYSMEM as u16,
            Kind::Vram => uapi::drm_xe_memory_class_DRM_XE_MEM_REGION_CLASS_VRAM as u16,
        }
    }
}

/// A memory region.
pub(crate) enum Region {
    /// The system's memory.
    System(Arc<System>),
    /// The device's own.
    Vram(Arc<Vram>),
}

/// The system's memory, as far as buffer objects use it.
pub(crate) struct System {
    /// In bytes.
    total: u64,
    /// What pages of buffer objects take, in bytes; not more than `total`.
    used: Atomic<u64>,
}

impl Region {
    /// The system's memory. Objects may have three quarters of it, as with xe, in whole pages.
    fn system() -> Result<Self> {
        // CAST: Widens.
        let page = PAGE_SIZE as u64;
        let system = System {
            total: sysinfo::total_ram() / 4 * 3 / page * page,
            used: Atomic::new(0),
        };
        Ok(Self::System(Arc::new(system, GFP_KERNEL)?))
    }

    /// Where the memory is.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::System(_) => Kind::System,
            Self::Vram(_) => Kind::Vram,
        }
    }

    /// Its size in bytes.
    pub(crate) fn total(&self) -> u64 {
        match self {
            Self::System(system) => system.total,
            Self::Vram(vram) => vram.size(),
        }
    }

    /// How much of it is used, in bytes.
    pub(crate) fn used(&self) -> u64 {
        match self {
            Self::System(system) => system.used.load(Relaxed),
            Self::Vram(vram) => vram.used(),
        }
    }

    /// The smallest unit in which it is given out, in bytes.
    pub(crate) fn min_page_size(&self) -> u32 {
        // CAST: A page is 4 KiB.
        PAGE_SIZE as u32
    }

    /// How much of it the CPU can reach, in bytes: all of the device's memory; 0 for the system's, as
    /// with xe.
    pub(crate) fn cpu_visible_size(&self) -> u64 {
        match self {
            Self::System(_) => 0,
            Self::Vram(vram) => vram.size(),
        }
    }

    /// How much of what the CPU can reach is used, in bytes; 0 for the system's memory.
    pub(crate) fn cpu_visible_used(&self) -> u64 {
        match self {
            Self::System(_) => 0,
            Self::Vram(vram) => vram.used(),
        }
    }
}

impl System {
    /// Its size in bytes.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

/// System memory that is used; dropping it gives it back.
pub(crate) struct Reservation {
    system: Arc<System>,
    size: u64,
}

impl Reservation {
    /// Nothing yet.
    pub(crate) fn new(system: &Arc<System>) -> Self {
        Self {
            system: system.clone(),
            size: 0,
        }
    }

    /// Adds `size` bytes. Fails with `ENOMEM` if so much is not left.
    pub(crate) fn grow(&mut self, size: u64) -> Result {
        let mut used = self.system.used.load(Relaxed);
        loop {
            let now = used.checked_add(size).ok_or(ENOMEM)?;
            if now > self.system.total {
                return Err(ENOMEM);
            }
            match self.system.used.cmpxchg(used, now, Relaxed) {
                Ok(_) => break,
                Err(other) => used = other,
            }
        }
        // Does not overflow: the sum of all is not more than the total.
        self.size += size;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // What is given back was reserved, so this does not wrap.
        let _ = self.system.used.fetch_sub(self.size, Relaxed);
    }
}

/// All regions of a device. A region's number is its `instance` in the uAPI, and its bit in a
/// placement mask.
pub(crate) struct Regions(KVec<Region>);

impl Regions {
    /// The regions of a device that has memory of its own, or not.
    pub(crate) fn new(vram: Option<Arc<Vram>>) -> Result<Self> {
        let mut regions = KVec::new();
        regions.push(Region::system()?, GFP_KERNEL)?;
        if let Some(vram) = vram {
            regions.push(Region::Vram(vram), GFP_KERNEL)?;
        }
        Ok(Self(regions))
    }

    /// All of them, by number.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Region> + ExactSizeIterator {
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
