// SPDX-License-Identifier: GPL-2.0

//! The memory regions of a device and their usage.

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

/// The instance of system memory, in [`Regions`] and in the uAPI.
pub(crate) const SYSTEM: usize = 0;

/// The instance of the device's own memory, if it has any, in [`Regions`] and in the uAPI.
pub(crate) const VRAM: usize = 1;

/// The kind of a region's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RegionKind {
    /// The system's memory.
    System,
    /// The device's own memory.
    Vram,
}

impl RegionKind {
    /// Returns the region's class in the uAPI.
    pub(crate) fn class(self) -> u16 {
        match self {
            // CAST: The uAPI's field has 16 bits for its few classes.
            RegionKind::System => uapi::drm_xe_memory_class_DRM_XE_MEM_REGION_CLASS_SYSMEM as u16,
            RegionKind::Vram => uapi::drm_xe_memory_class_DRM_XE_MEM_REGION_CLASS_VRAM as u16,
        }
    }
}

/// A memory region.
pub(crate) enum Region {
    /// The system's memory.
    System(Arc<System>),
    /// The device's own memory.
    Vram(Arc<Vram>),
}

/// The system memory that buffer objects may use.
pub(crate) struct System {
    /// The limit, in bytes.
    total: u64,
    /// The bytes that pages of buffer objects use; at most `total`.
    used: Atomic<u64>,
}

impl Region {
    /// The system memory region: three quarters of RAM, as in xe, in whole pages.
    fn system() -> Result<Self> {
        // CAST: Widens.
        let page = PAGE_SIZE as u64;
        let system = System {
            total: sysinfo::total_ram() / 4 * 3 / page * page,
            used: Atomic::new(0),
        };
        Ok(Self::System(Arc::new(system, GFP_KERNEL)?))
    }

    /// Returns the kind of memory.
    pub(crate) fn kind(&self) -> RegionKind {
        match self {
            Self::System(_) => RegionKind::System,
            Self::Vram(_) => RegionKind::Vram,
        }
    }

    /// Returns the size in bytes.
    pub(crate) fn total(&self) -> u64 {
        match self {
            Self::System(system) => system.total,
            Self::Vram(vram) => vram.size(),
        }
    }

    /// Returns how many bytes are used.
    pub(crate) fn used(&self) -> u64 {
        match self {
            Self::System(system) => system.used.load(Relaxed),
            Self::Vram(vram) => vram.used(),
        }
    }

    /// Returns the unit of allocation, in bytes.
    pub(crate) fn min_page_size(&self) -> u32 {
        // CAST: A page has 64 KiB at most.
        PAGE_SIZE as u32
    }

    /// Returns how many bytes the CPU can map: all of the device's memory; 0 for system memory, as
    /// in xe.
    pub(crate) fn cpu_visible_size(&self) -> u64 {
        match self {
            Self::System(_) => 0,
            Self::Vram(vram) => vram.size(),
        }
    }

    /// Returns how many CPU-visible bytes are used; 0 for system memory.
    pub(crate) fn cpu_visible_used(&self) -> u64 {
        match self {
            Self::System(_) => 0,
            Self::Vram(vram) => vram.used(),
        }
    }
}

impl System {
    /// Returns the limit in bytes.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

/// A reservation of system memory, returned when dropped.
pub(crate) struct Reservation {
    system: Arc<System>,
    size: u64,
}

impl Reservation {
    /// Creates an empty reservation.
    pub(crate) fn new(system: &Arc<System>) -> Self {
        Self {
            system: system.clone(),
            size: 0,
        }
    }

    /// Reserves `size` more bytes. Fails with `ENOMEM` if the region has no room for them.
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
        // Does not overflow: all reservations together are at most `total`.
        self.size += size;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // Does not wrap: `size` bytes were added by `grow()`.
        let _ = self.system.used.fetch_sub(self.size, Relaxed);
    }
}

/// All regions of a device. A region's index is its `instance` in the uAPI and its bit in a
/// placement mask.
pub(crate) struct Regions(KVec<Region>);

impl Regions {
    /// Creates the regions of a device: system memory, and the device's own if it has any. Fails
    /// with `ENOMEM`.
    pub(crate) fn new(vram: Option<Arc<Vram>>) -> Result<Self> {
        let mut regions = KVec::new();
        regions.push(Region::system()?, GFP_KERNEL)?;
        if let Some(vram) = vram {
            regions.push(Region::Vram(vram), GFP_KERNEL)?;
        }
        Ok(Self(regions))
    }

    /// Returns all regions, by instance.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Region> + ExactSizeIterator {
        self.0.iter()
    }

    /// Returns whether the device has memory of its own.
    pub(crate) fn has_vram(&self) -> bool {
        self.iter()
            .any(|region| region.kind() != RegionKind::System)
    }

    /// Returns the placement mask of all regions.
    pub(crate) fn mask(&self) -> u32 {
        // CAST: There are fewer than 32 regions.
        1u32.checked_shl(self.0.len() as u32)
            .map_or(u32::MAX, |bit| bit.wrapping_sub(1))
    }
}
