// SPDX-License-Identifier: GPL-2.0

//! Memory attributes that a program sets for parts of a VM, in the encoding of the uAPI.
//!
//! Each type here holds only values that xe accepts; its constructor checks them. Attributes belong
//! to a VMA, so they outlive the SVM ranges in it.

use crate::{
    check::ensure,
    driver::Device,
    uapi, //
};
use gpusvm::pagemap::registry::RegionRef;
use kernel::prelude::*;

/// An index into the page attribute table of the device, which is that of xe's Battlemage.
///
/// # Invariants
///
/// The hardware does not reserve the entry at the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PatIndex(u16);

impl PatIndex {
    /// The number of entries.
    const ENTRIES: u32 = 32;
    /// The reserved entries, one bit each.
    const RESERVED: u32 = 0x000f_0000;
    /// The entries for memory that is coherent with the CPU's caches, one bit each.
    const COHERENT: u32 = 0xccc0_00b6;
    /// The entries for compressed memory, one bit each.
    const COMPRESSED: u32 = 0x2220_de00;

    /// Checks an index. Fails with `EINVAL` for one that is reserved or beyond the table.
    pub(crate) fn new(dev: &Device, index: u32) -> Result<Self> {
        ensure!(dev, index < Self::ENTRIES, EINVAL);
        ensure!(dev, Self::RESERVED & (1 << index) == 0, EINVAL);
        // INVARIANT: Just checked that the entry is not reserved.
        Ok(Self(index as u16))
    }

    /// Returns the index.
    pub(crate) fn get(self) -> u32 {
        self.0.into()
    }

    /// Returns whether the GPU snoops the CPU's caches.
    pub(crate) fn is_coherent(self) -> bool {
        Self::COHERENT & (1 << self.0) != 0
    }

    /// Returns whether memory is compressed.
    pub(crate) fn is_compressed(self) -> bool {
        Self::COMPRESSED & (1 << self.0) != 0
    }
}

/// Which processors may do atomics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Atomics {
    /// No advice; the GPU may.
    Undefined,
    /// The GPU.
    Device,
    /// The GPU and the CPU, each while the other cannot access the memory.
    Global,
    /// The CPU only: an atomic of the GPU fails.
    Cpu,
}

impl Atomics {
    /// Checks a value. Fails with `EINVAL` for one that the uAPI does not define.
    pub(crate) fn new(dev: &Device, value: u32) -> Result<Self> {
        Ok(match value {
            uapi::DRM_XE_ATOMIC_UNDEFINED => Self::Undefined,
            uapi::DRM_XE_ATOMIC_DEVICE => Self::Device,
            uapi::DRM_XE_ATOMIC_GLOBAL => Self::Global,
            uapi::DRM_XE_ATOMIC_CPU => Self::Cpu,
            _ => {
                vxe_sim::drm_dbg!(dev, "unknown atomic mode {value}");
                return Err(EINVAL);
            }
        })
    }

    /// Returns the value in the uAPI.
    pub(crate) fn get(self) -> u32 {
        match self {
            Self::Undefined => uapi::DRM_XE_ATOMIC_UNDEFINED,
            Self::Device => uapi::DRM_XE_ATOMIC_DEVICE,
            Self::Global => uapi::DRM_XE_ATOMIC_GLOBAL,
            Self::Cpu => uapi::DRM_XE_ATOMIC_CPU,
        }
    }

    /// Returns whether the GPU may do atomics, perhaps after a migration.
    pub(crate) fn by_device(self) -> bool {
        self != Self::Cpu
    }

    /// Returns whether the GPU must exclude the CPU, and so does atomics in device memory only, if
    /// its device has any.
    pub(crate) fn are_exclusive(self) -> bool {
        self == Self::Global
    }
}

/// Which pages migrate to the preferred location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MigrationPolicy {
    /// All pages.
    AllPages,
    /// Pages in system memory.
    OnlySystemPages,
}

impl MigrationPolicy {
    /// Checks a value. Fails with `EINVAL` for one that the uAPI does not define.
    pub(crate) fn new(dev: &Device, value: u32) -> Result<Self> {
        Ok(match value {
            uapi::DRM_XE_MIGRATE_ALL_PAGES => Self::AllPages,
            uapi::DRM_XE_MIGRATE_ONLY_SYSTEM_PAGES => Self::OnlySystemPages,
            _ => {
                vxe_sim::drm_dbg!(dev, "unknown migration policy {value}");
                return Err(EINVAL);
            }
        })
    }

    /// Returns the value in the uAPI.
    pub(crate) fn get(self) -> u32 {
        match self {
            Self::AllPages => uapi::DRM_XE_MIGRATE_ALL_PAGES,
            Self::OnlySystemPages => uapi::DRM_XE_MIGRATE_ONLY_SYSTEM_PAGES,
        }
    }
}

/// The preferred location of memory.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// The memory of the device that faults, if it has any.
    FaultingDevice,
    /// System memory.
    System,
    /// The memory of the device that the program named.
    Device {
        /// The descriptor by which the program named it.
        fd: i32,
        /// The memory region, if it still exists.
        place: RegionRef,
    },
}

impl Location {
    /// Looks up `devmem_fd` and `region_instance`.
    ///
    /// Fails as xe does: with `EINVAL` for invalid values, `ENOENT` for a file that is not a device
    /// with such memory, `ENODEV` for a device that is unbound, and `ENOLINK` for one that `dev`
    /// has no fast interconnect with.
    pub(crate) fn new(dev: &Device, devmem_fd: i32, region_instance: u16) -> Result<Self> {
        match devmem_fd {
            0 | -1 if region_instance != 0 => Err(EINVAL),
            0 => Ok(Self::FaultingDevice),
            -1 => Ok(Self::System),
            fd @ 1.. => {
                // CAST: It is positive.
                let place = RegionRef::from_fd(fd as u32, region_instance.into())?;
                let memory = place.open()?;
                ensure!(dev, memory.owner() == Some(dev.memory.owner()), ENOLINK);
                Ok(Self::Device { fd, place })
            }
            _ => Err(EINVAL),
        }
    }

    /// Returns `devmem_fd` of the uAPI.
    pub(crate) fn devmem_fd(&self) -> i32 {
        match self {
            Self::FaultingDevice => 0,
            Self::System => -1,
            Self::Device { fd, .. } => *fd,
        }
    }
}

/// The attributes of a VMA.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// The caching.
    pub(crate) pat: PatIndex,
    /// The caching that the VMA was bound with.
    pub(crate) default_pat: PatIndex,
    /// Which processors may do atomics.
    pub(crate) atomics: Atomics,
    /// The preferred location.
    pub(crate) location: Location,
    /// Which pages migrate there.
    pub(crate) policy: MigrationPolicy,
    /// Whether the contents of a buffer are needed.
    pub(crate) needed: bool,
}

impl Attributes {
    /// Returns the attributes of a new VMA.
    pub(crate) const fn new(pat: PatIndex) -> Self {
        Self {
            pat,
            default_pat: pat,
            atomics: Atomics::Undefined,
            location: Location::FaultingDevice,
            policy: MigrationPolicy::AllPages,
            needed: true,
        }
    }

    /// Returns whether all attributes have their defaults.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::new(self.default_pat)
    }
}
