// SPDX-License-Identifier: GPL-2.0

//! The [`Owners`] of software devices: all devices on the [fabric](crate::fabric) can access each
//! other's memory, whatever modules drive them.

use crate::{
    device_ram::DeviceRam,
    fabric::Window, //
};
use gpusvm::pagemap::{
    Member,
    Owners, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// A device on the fabric, as a member of the group of all such devices; with the window to its
/// memory, if it has any.
pub type Port = Member<Option<Window>>;

kernel::sync::global_lock! {
    // SAFETY: `init()` is called at module load, before any use.
    unsafe(uninit) static PORTS: Mutex<Option<Arc<Owners<Option<Window>>>>> = None;
}

/// Initialises the list.
///
/// # Safety
///
/// The caller must call this once, at module load.
pub(crate) unsafe fn init() {
    // SAFETY: By this function's requirements.
    unsafe { PORTS.init() };
}

/// Drops the list at module unload, when no device has a port any more.
pub(crate) fn exit() {
    let ports = PORTS.lock().take();
    drop(ports);
}

/// Adds a device to the fabric, with its memory if it has any. Sleeps.
///
/// Fails with `ENOMEM`, and as [`Window::new`] does.
pub fn join(ram: Option<Arc<DeviceRam>>) -> Result<Port> {
    let window = ram.map(Window::new).transpose()?;
    let mut ports = PORTS.lock();
    let ports = match &mut *ports {
        Some(ports) => ports,
        none => none.insert(Owners::new(|_, _| true)?),
    };
    ports.join(window)
}
