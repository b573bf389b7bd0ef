// SPDX-License-Identifier: GPL-2.0

//! The [`Owners`] of devices in software: all that are on one [fabric](crate::fabric) reach each
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

/// A device's place on the fabric, in the group of all that have one; with a window to its memory, if
/// it has any.
pub type Port = Member<Option<Window>>;

kernel::sync::global_lock! {
    // SAFETY: `init()` is called when the module is loaded, and nobody joins before.
    unsafe(uninit) static PORTS: Mutex<Option<Arc<Owners<Option<Window>>>>> = None;
}

/// Makes the list ready.
///
/// # Safety
///
/// To be called once, when the module is loaded.
pub(crate) unsafe fn init() {
    // SAFETY: By this function's requirements.
    unsafe { PORTS.init() };
}

/// Gives the list up. To be called when the module is unloaded: nobody has a port any more.
pub(crate) fn exit() {
    let ports = PORTS.lock().take();
    drop(ports);
}

/// Puts a device on the fabric, with its memory if it has any. Sleeps.
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
