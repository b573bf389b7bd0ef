// SPDX-License-Identifier: GPL-2.0

//! The files of a device in sysfs: the scheduling properties of its engines, where xe has them.
//!
//! Below the directory of the platform device, `tile0/gt0/engines/bcs` has the properties and their
//! limits, and `.defaults` in it what they are when the device is bound. They are files of a bound
//! device: binding creates them and sets the defaults, unbinding removes them.
//!
//! C file: `drivers/gpu/drm/xe/xe_hw_engine_class_sysfs.c`

use crate::{
    driver::Device,
    engine_class::{
        EngineClass,
        Part,
        Property, //
    },
};
use kernel::{
    prelude::*,
    sync::Arc, //
};
use vxe_sim::sysfs::{
    Number,
    SysfsFiles, //
};

/// The files with the value, the lowest and the highest value of each property.
const FILES: [(Property, [&CStr; 3]); 3] = [
    (
        Property::JobTimeout,
        [c"job_timeout_ms", c"job_timeout_min", c"job_timeout_max"],
    ),
    (
        Property::Timeslice,
        [
            c"timeslice_duration_us",
            c"timeslice_duration_min",
            c"timeslice_duration_max",
        ],
    ),
    (
        Property::PreemptTimeout,
        [
            c"preempt_timeout_us",
            c"preempt_timeout_min",
            c"preempt_timeout_max",
        ],
    ),
];

/// Creates the files of `dev`.
pub(crate) fn init(files: &mut SysfsFiles, dev: &Device) -> Result {
    let tile = files.dir(None, c"tile0")?;
    let gt = files.dir(Some(tile), c"gt0")?;
    let engines = files.dir(Some(gt), c"engines")?;
    let class = files.dir(Some(engines), c"bcs")?;
    let defaults = files.dir(Some(class), c".defaults")?;
    for (property, names) in FILES {
        for (part, name) in [Part::Value, Part::Min, Part::Max].into_iter().zip(names) {
            let current = Current {
                class: dev.engine_class.clone(),
                property,
                part,
            };
            files.file(class, name, current)?;
            files.file(defaults, name, Default { property, part })?;
        }
    }
    Ok(())
}

/// A part of a property, which can be changed.
struct Current {
    class: Arc<EngineClass>,
    property: Property,
    part: Part,
}

#[vtable]
impl Number for Current {
    fn show(&self) -> u32 {
        self.class.get(self.property, self.part)
    }

    fn store(&self, value: u32) -> Result {
        self.class.set(self.property, self.part, value)
    }
}

/// What it is when the device is bound.
struct Default {
    property: Property,
    part: Part,
}

#[vtable]
impl Number for Default {
    fn show(&self) -> u32 {
        self.property.default_of(self.part)
    }
}
