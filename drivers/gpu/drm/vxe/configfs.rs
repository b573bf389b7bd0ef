// SPDX-License-Identifier: GPL-2.0

//! Devices that users make and remove at run time, in `/sys/kernel/config/<module>`.
//!
//! `mkdir` makes a [`Configuration`]. Its attributes say what its device is to be, and `enabled`
//! makes and removes that: the user interface of vkms. The other attributes are refused with
//! `EBUSY` while there is the device. `rmdir` removes the device, too.
//!
//! Lock order: the lock of a configuration is taken before all locks of its device, and held while
//! the device is made or removed. configfs holds locks of the item's file meanwhile: `rmdir` waits
//! for a writer, and can be killed.

use crate::devices::{
    Devices,
    MadeDevice,
    Settings, //
};
use kernel::{
    fmt::{
        self,
        Write as _, //
    },
    prelude::*,
    str::{
        kstrtobool_bytes,
        parse_int::ParseInt,
        BStr,
        CString,
        Formatter, //
    },
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_mutex,
        Arc,
        Mutex, //
    }, //
};
use vxe_sim::configfs::{
    attribute,
    Attribute,
    Item,
    RawAttribute, //
};

/// The most configurations of the module.
const MAX_CONFIGURATIONS: usize = 64;

/// The data of the subsystem.
pub(crate) struct Root {
    devices: Arc<Devices>,
    /// Those of a new configuration: what the module's parameters say.
    settings: Settings,
    count: Arc<Atomic<usize>>,
}

impl Root {
    /// Fails with `ENOMEM`.
    pub(crate) fn new(devices: &Arc<Devices>, settings: Settings) -> Result<Self> {
        Ok(Self {
            devices: devices.clone(),
            settings,
            count: Arc::new(Atomic::new(0), GFP_KERNEL)?,
        })
    }
}

/// One that is counted until this is dropped.
struct Counted(Arc<Atomic<usize>>);

impl Counted {
    /// Fails with `ENOSPC` for one too many. Calls do not overlap.
    fn new(count: &Arc<Atomic<usize>>) -> Result<Self> {
        if count.load(Relaxed) >= MAX_CONFIGURATIONS {
            return Err(ENOSPC);
        }
        count.add(1, Relaxed);
        Ok(Self(count.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let _ = self.0.fetch_sub(1, Relaxed);
    }
}

/// A directory that a user made.
#[pin_data]
pub(crate) struct Configuration {
    name: CString,
    devices: Arc<Devices>,
    _counted: Counted,
    #[pin]
    state: Mutex<State>,
}

struct State {
    settings: Settings,
    /// The device while it is enabled.
    device: Option<MadeDevice>,
}

#[vtable]
impl Item for Configuration {
    type Root = Root;

    const ATTRIBUTES: &'static [Option<&'static RawAttribute<Self>>] = &[
        attribute::<Enabled>(),
        attribute::<VramMb>(),
        attribute::<DeviceId>(),
        attribute::<DeviceName>(),
        None,
    ];

    /// Fails with `ENOSPC` for the 65th, and `ENOMEM`.
    fn make(root: &Root, name: &CStr) -> Result<impl PinInit<Self, Error>> {
        let counted = Counted::new(&root.count)?;
        let name = CString::try_from(name)?;
        let (devices, settings) = (root.devices.clone(), root.settings);
        Ok(try_pin_init!(Self {
            name,
            devices,
            _counted: counted,
            state <- new_mutex!(
                State {
                    settings,
                    device: None,
                },
                "Configuration::state"
            ),
        }))
    }
}

impl Configuration {
    /// Makes the device, or removes it; nothing if that is done.
    ///
    /// Fails as [`Devices::make`] does, and with `ENODEV` if the driver core does not bind the
    /// device, whose probe logs the reason; then there is no device.
    fn enable(&self, enabled: bool) -> Result {
        let mut state = self.state.lock();
        if !enabled {
            // Dropped under the lock: the next writer finds no trace of it.
            state.device = None;
        } else if state.device.is_none() {
            let refused = |e: &Error| {
                let mb = state.settings.vram_mb();
                pr_err!(
                    "{}: no device with {mb} MiB of memory: {e:?}\n",
                    &*self.name
                );
            };
            let device = self.devices.make(state.settings).inspect_err(refused)?;
            if !device.is_bound() {
                pr_err!("{}: the driver does not work on the device\n", &*self.name);
                return Err(ENODEV);
            }
            state.device = Some(device);
        }
        Ok(())
    }

    /// Changes the settings of the next device. Fails with `EBUSY` while there is one, and as
    /// `change` does.
    fn set(&self, change: impl FnOnce(Settings) -> Result<Settings>) -> Result {
        let mut state = self.state.lock();
        let settings = change(state.settings)?;
        if state.device.is_some() {
            return Err(EBUSY);
        }
        state.settings = settings;
        Ok(())
    }
}

/// Prints a line to a file.
fn print(to: &mut Formatter<'_>, args: fmt::Arguments<'_>) -> Result {
    to.write_fmt(args).map_err(|_| EOVERFLOW)
}

/// `enabled`: whether there is the device.
struct Enabled;

#[vtable]
impl Attribute for Enabled {
    type Item = Configuration;

    const NAME: &'static CStr = c"enabled";

    fn show(item: &Configuration, to: &mut Formatter<'_>) -> Result {
        let enabled = item.state.lock().device.is_some();
        print(to, fmt!("{}\n", u8::from(enabled)))
    }

    fn store(item: &Configuration, text: &[u8]) -> Result {
        item.enable(kstrtobool_bytes(text)?)
    }
}

/// `vram_mb`: the device's memory in MiB.
struct VramMb;

#[vtable]
impl Attribute for VramMb {
    type Item = Configuration;

    const NAME: &'static CStr = c"vram_mb";

    fn show(item: &Configuration, to: &mut Formatter<'_>) -> Result {
        let settings = item.state.lock().settings;
        print(to, fmt!("{}\n", settings.vram_mb()))
    }

    fn store(item: &Configuration, text: &[u8]) -> Result {
        let vram_mb = number(text)?;
        item.set(|settings| Settings::new(vram_mb, settings.device_id()))
    }
}

/// `device_id`: the PCI ID that the device reports.
struct DeviceId;

#[vtable]
impl Attribute for DeviceId {
    type Item = Configuration;

    const NAME: &'static CStr = c"device_id";

    fn show(item: &Configuration, to: &mut Formatter<'_>) -> Result {
        let settings = item.state.lock().settings;
        print(to, fmt!("{:#06x}\n", settings.device_id()))
    }

    fn store(item: &Configuration, text: &[u8]) -> Result {
        let device_id = number(text)?;
        item.set(|settings| Settings::new(settings.vram_mb(), device_id))
    }
}

/// `device`: the name of the platform device, of which there is none while it is not enabled.
struct DeviceName;

#[vtable]
impl Attribute for DeviceName {
    type Item = Configuration;

    const NAME: &'static CStr = c"device";

    fn show(item: &Configuration, to: &mut Formatter<'_>) -> Result {
        match item.state.lock().device.as_ref().map(MadeDevice::name) {
            Some((name, index)) => print(to, fmt!("{name}.{index}\n")),
            None => Ok(()),
        }
    }
}

/// Parses a number: decimal, or hexadecimal after `0x`. Fails with `EINVAL`, also if a `T` cannot
/// be that large.
fn number<T: ParseInt>(text: &[u8]) -> Result<T> {
    T::from_str(BStr::from_bytes(text)).map_err(|_| EINVAL)
}
