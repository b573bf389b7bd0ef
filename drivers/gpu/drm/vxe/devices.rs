// SPDX-License-Identifier: GPL-2.0

//! The platform devices that the module makes: at its load, and through [`configfs`].
//!
//! Lock order: the lock of the indices is a leaf.
//!
//! [`configfs`]: crate::configfs

use crate::{
    driver::PlatformData,
    queues::Boards, //
};
use kernel::{
    prelude::*,
    sync::{
        new_mutex,
        Arc,
        Mutex, //
    }, //
};
use vxe_sim::{
    platform_device,
    sysinfo, //
};

/// The most devices that are made when the module is loaded.
const MAX_DEVICES: u8 = 8;

/// The most memory of a device, in MiB.
const MAX_VRAM_MB: u32 = 1 << 16;

/// The PCI ID of a Battlemage G21, from which programs conclude that the device has faults and SVM.
pub(crate) const BATTLEMAGE: u16 = 0xe20b;

/// What a user may choose of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    vram_mb: u32,
    device_id: u16,
}

impl Settings {
    /// Fails with `EINVAL`, and logs the reason, for a value that no device can have.
    pub(crate) fn new(vram_mb: u32, device_id: u16) -> Result<Self> {
        if vram_mb > MAX_VRAM_MB || vram_mb % 2 != 0 {
            pr_err!(
                "a device can have up to {MAX_VRAM_MB} MiB of memory, in large pages, not {vram_mb}\n"
            );
            return Err(EINVAL);
        }
        if device_id == 0 {
            pr_err!("no device has the id 0\n");
            return Err(EINVAL);
        }
        Ok(Self { vram_mb, device_id })
    }

    /// The size of the memory in MiB, 0 for none.
    pub(crate) fn vram_mb(&self) -> u32 {
        self.vram_mb
    }

    /// The size of the memory in bytes.
    pub(crate) fn vram(&self) -> u64 {
        u64::from(self.vram_mb) << 20
    }

    /// The PCI ID that the device reports.
    pub(crate) fn device_id(&self) -> u16 {
        self.device_id
    }
}

/// The devices of the module.
#[pin_data]
pub(crate) struct Devices {
    /// The name of the platform driver.
    name: &'static CStr,
    /// A bitmap of the indices of existing platform devices.
    #[pin]
    indices: Mutex<u64>,
    /// Waits, when dropped, for what is left of devices that are gone.
    boards: Boards,
}

impl Devices {
    /// Creates none yet, for the platform driver called `name`. Fails with `ENOMEM`.
    pub(crate) fn new(name: &'static CStr) -> Result<Arc<Self>> {
        let boards = Boards::new()?;
        Arc::pin_init(
            pin_init!(Self {
                name,
                indices <- new_mutex!(0, "Devices::indices"),
                boards,
            }),
            GFP_KERNEL,
        )
    }

    /// Makes a device with the lowest index that is free. The driver core binds it if the driver is
    /// registered.
    ///
    /// Fails with `ENOMEM` if the devices together would have more memory than the machine, or for
    /// want of memory; `ENOSPC` for too many devices.
    pub(crate) fn make(self: &Arc<Self>, settings: Settings) -> Result<MadeDevice> {
        let index = Index::new(self)?;
        let platform_data = PlatformData::new(settings, &self.boards)?;
        Ok(MadeDevice {
            registration: platform_device::Registration::new(self.name, index.id, platform_data)?,
            index,
        })
    }

    /// Makes `count` devices when the module is loaded.
    ///
    /// Fails with `EINVAL` for a bad number of devices, and as [`make`](Self::make) does.
    pub(crate) fn make_all(
        self: &Arc<Self>,
        count: u8,
        settings: Settings,
    ) -> Result<KVec<MadeDevice>> {
        if count > MAX_DEVICES {
            pr_err!("there can be up to {MAX_DEVICES} devices, not {count}\n");
            return Err(EINVAL);
        }
        let (all, ram) = (settings.vram() * u64::from(count), sysinfo::total_ram());
        if all > ram {
            // RAM backs the devices' memory. A program that fills it would take all memory of the
            // machine.
            pr_err!(
                "{count} devices with {} MiB of memory each: the machine has only {} MiB\n",
                settings.vram_mb(),
                ram >> 20
            );
            return Err(ENOMEM);
        }
        let mut devices = KVec::new();
        for _ in 0..count {
            devices.push(self.make(settings)?, GFP_KERNEL)?;
        }
        Ok(devices)
    }
}

/// The index of a platform device, in use until this is dropped.
struct Index {
    devices: Arc<Devices>,
    id: u16,
}

impl Index {
    fn new(devices: &Arc<Devices>) -> Result<Self> {
        let mut indices = devices.indices.lock();
        let id = indices.trailing_ones();
        // CAST: At most 64.
        *indices |= 1u64.checked_shl(id).ok_or(ENOSPC)?;
        drop(indices);
        Ok(Self {
            devices: devices.clone(),
            id: id as u16,
        })
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        let bit = 1u64.checked_shl(self.id.into()).unwrap_or(0);
        *self.devices.indices.lock() &= !bit;
    }
}

/// A device that the module made. Dropping it unbinds and removes the device; open files stay.
pub(crate) struct MadeDevice {
    // Dropped before the index, which the next device may get.
    registration: platform_device::Registration<PlatformData>,
    index: Index,
}

impl MadeDevice {
    /// Returns the name of the platform driver, and the index: the device is called `name.index`.
    pub(crate) fn name(&self) -> (&'static CStr, u16) {
        (self.index.devices.name, self.index.id)
    }

    /// Whether the driver has bound it.
    pub(crate) fn is_bound(&self) -> bool {
        self.registration.is_bound()
    }
}

#[cfg(CONFIG_KUNIT = "y")]
#[kunit_tests(vxe_devices)]
mod tests {
    use super::*;

    fn check(holds: bool) -> Result {
        holds.then_some(()).ok_or(EIO)
    }

    /// More memory than the machine has is refused before any device is registered; so are sizes
    /// that are not a multiple of the large page, and other bad values.
    #[test]
    fn memory_is_the_machines() -> Result {
        let devices = Devices::new(c"vxe-none")?;
        let all = u64::from(MAX_DEVICES) * (u64::from(MAX_VRAM_MB) << 20);
        if all > sysinfo::total_ram() {
            let most = Settings::new(MAX_VRAM_MB, BATTLEMAGE)?;
            check(devices.make_all(MAX_DEVICES, most).err() == Some(ENOMEM))?;
        }
        check(Settings::new(MAX_VRAM_MB + 2, BATTLEMAGE) == Err(EINVAL))?;
        check(Settings::new(3, BATTLEMAGE) == Err(EINVAL))?;
        check(Settings::new(2, 0) == Err(EINVAL))?;
        let small = Settings::new(2, BATTLEMAGE)?;
        check(devices.make_all(MAX_DEVICES + 1, small).err() == Some(EINVAL))
    }

    /// The index of a device that is gone is the next one's.
    #[test]
    fn indices_are_used_again() -> Result {
        let devices = Devices::new(c"vxe-none")?;
        let none = Settings::new(0, BATTLEMAGE)?;
        let (first, second) = (devices.make(none)?, devices.make(none)?);
        check(first.name().1 == 0 && second.name().1 == 1 && !first.is_bound())?;
        drop(first);
        let third = devices.make(none)?;
        check(third.name().1 == 0)?;
        drop(second);
        check(devices.make(none)?.name().1 == 1)
    }
}
