// SPDX-License-Identifier: GPL-2.0

//! What a program may say about a piece of a VM: memory attributes, as the uAPI encodes them.
//!
//! Every type here can hold only what xe would accept; the check is its constructor. Attributes
//! belong to a VMA, so that they outlive the SVM ranges in it.

use crate::{
    check::ensure,
    driver::Device,
    uapi, //
};
use gpusvm::pagemap::registry::RegionRef;
use kernel::prelude::*;

/// An index into the page attribute table of the device, the one of xe's Battlemage.
///
/// # Invariants
///
/// The index is of an entry that the hardware does not reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PatIndex(u16);

impl PatIndex {
    /// Entries of the table.
    const ENTRIES: u32 = 32;
    /// Reserved entries, a bit each.
    const RESERVED: u32 = 0x000f_0000;
    /// Entries for memory that the GPU keeps coherent with the CPU's caches, a bit each.
    const COHERENT: u32 = 0xccc0_00b6;
    /// Entries that compress, a bit each.
    const COMPRESSED: u32 = 0x2220_de00;

    /// Fails with `EINVAL` for an index that is reserved or beyond the table.
    pub(crate) fn new(dev: &Device, index: u32) -> Result<Self> {
        ensure!(dev, index < Self::ENTRIES, EINVAL);
        ensure!(dev, Self::RESERVED & (1 << index) == 0, EINVAL);
        // INVARIANT: Just checked.
        Ok(Self(index as u16))
    }

    /// The index.
    pub(crate) fn get(self) -> u32 {
        self.0.into()
    }

    /// Whether the GPU snoops the CPU's caches.
    pub(crate) fn is_coherent(self) -> bool {
        Self::COHERENT & (1 << self.0) != 0
    }

    /// Whether memory is compressed.
    pub(crate) fn is_compressed(self) -> bool {
        Self::COMPRESSED & (1 << self.0) != 0
    }
}

/// Who may do atomics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Atomics {
    /// Nobody said; the GPU may.
    Undefined,
    /// The GPU.
    Device,
    /// The GPU and the CPU, each while it has the memory for itself.
    Global,
    /// The CPU only: an atomic of the GPU is an error.
    Cpu,
}

impl Atomics {
    /// Fails with `EINVAL` for a value that the uAPI does not know.
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

    /// The value in the uAPI.
    pub(crate) fn get(self) -> u32 {
        match self {
            Self::Undefined => uapi::DRM_XE_ATOMIC_UNDEFINED,
            Self::Device => uapi::DRM_XE_ATOMIC_DEVICE,
            Self::Global => uapi::DRM_XE_ATOMIC_GLOBAL,
            Self::Cpu => uapi::DRM_XE_ATOMIC_CPU,
        }
    }

    /// Whether the GPU may do them, be it elsewhere than where the memory is now.
    pub(crate) fn by_device(self) -> bool {
        self != Self::Cpu
    }

    /// Whether the GPU of a device with memory of its own does them in device memory only: where the
    /// CPU cannot at the same time.
    pub(crate) fn are_exclusive(self) -> bool {
        self == Self::Global
    }
}

/// Which pages move when memory moves to its preferred place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MigrationPolicy {
    /// All.
    AllPages,
    /// Those that are in system memory.
    OnlySystemPages,
}

impl MigrationPolicy {
    /// Fails with `EINVAL` for a value that the uAPI does not know.
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

    /// The value in the uAPI.
    pub(crate) fn get(self) -> u32 {
        match self {
            Self::AllPages => uapi::DRM_XE_MIGRATE_ALL_PAGES,
            Self::OnlySystemPages => uapi::DRM_XE_MIGRATE_ONLY_SYSTEM_PAGES,
        }
    }
}

/// Where memory should live.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// In the memory of the device that faults, if it has any.
    FaultingDevice,
    /// In system memory.
    System,
    /// In the memory of a certain device.
    Device {
        /// The descriptor by which a program named it.
        fd: i32,
        /// The memory, if it is still there.
        place: RegionRef,
    },
}

impl Location {
    /// From `devmem_fd` and `region_instance`.
    ///
    /// Fails as xe does: with `EINVAL` for values that mean nothing, `ENOENT` for a file that is no
    /// device with such memory, `ENODEV` for a device that is gone, and `ENOLINK` for one that `dev`
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

    /// `devmem_fd` in the uAPI.
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
    /// Caching.
    pub(crate) pat: PatIndex,
    /// The caching that the VMA was bound with.
    pub(crate) default_pat: PatIndex,
    /// Who may do atomics.
    pub(crate) atomics: Atomics,
    /// Where memory should live.
    pub(crate) location: Location,
    /// Which pages move there.
    pub(crate) policy: MigrationPolicy,
}

impl Attributes {
    /// Those of a new VMA.
    pub(crate) const fn new(pat: PatIndex) -> Self {
        Self {
            pat,
            default_pat: pat,
            atomics: Atomics::Undefined,
            location: Location::FaultingDevice,
            policy: MigrationPolicy::AllPages,
        }
    }

    /// Whether nothing was ever advised.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::new(self.default_pat)
    }
}
