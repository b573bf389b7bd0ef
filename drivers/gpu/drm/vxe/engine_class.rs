// SPDX-License-Identifier: GPL-2.0

//! The scheduling properties of the class of copy engines, which an administrator can change.
//!
//! As in xe, each has a value and the limits of that. A queue takes the value of the time slice when
//! it is created, or one of its own within the limits; only a caller with `CAP_SYS_NICE` is bound by
//! the hardware's limits instead. The time slice of the class is also that of each client, from its
//! next turn on: so a queue's own time slice decides when other queues of the same client run, and
//! the administrator when other clients do.
//!
//! The two time-outs are kept and shown, and no job reaches them. xe applies the time-out of jobs to
//! no job of a long-running VM, and all VMs here are long-running. The time-out of preemption is how
//! long a job may take to leave the engine; here each job leaves it after at most 32 steps.

use crate::{
    exec_queue::Execution,
    sched::{
        RunList,
        TIMESLICE_NS, //
    }, //
};
use core::ops::RangeInclusive;
use kernel::{
    prelude::*,
    sync::{
        new_mutex,
        Arc,
        Mutex, //
    },
    time::NSEC_PER_USEC, //
};

/// A scheduling property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Property {
    /// How long a job may run, in milliseconds.
    JobTimeout,
    /// How long a queue runs before others do, in microseconds.
    Timeslice,
    /// How long a job may take to leave the engine, in microseconds.
    PreemptTimeout,
}

/// A part of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The value.
    Value,
    /// The lowest value that can be set.
    Min,
    /// The highest value that can be set.
    Max,
}

/// The value of a property, and its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    value: u32,
    min: u32,
    max: u32,
}

impl Property {
    /// The number of properties.
    const COUNT: usize = 3;

    /// Returns the default value, and the limits of the hardware.
    const fn default(self) -> Setting {
        let (value, min, max) = match self {
            Self::JobTimeout => (5_000, 1, 10_000),
            Self::Timeslice => (DEFAULT_TIMESLICE_US, 1, 10_000_000),
            Self::PreemptTimeout => (640_000, 1, 10_000_000),
        };
        Setting { value, min, max }
    }

    /// Returns a part of the default.
    pub(crate) fn default_of(self, part: Part) -> u32 {
        self.default().get(part)
    }
}

/// The default time slice in microseconds.
const DEFAULT_TIMESLICE_US: u32 = {
    let us = TIMESLICE_NS / NANOSECONDS;
    assert!(us * NANOSECONDS == TIMESLICE_NS && us <= u32::MAX as u64);
    us as u32
};

/// The nanoseconds of a microsecond.
const NANOSECONDS: u64 = NSEC_PER_USEC as u64;

impl Setting {
    fn get(&self, part: Part) -> u32 {
        match part {
            Part::Value => self.value,
            Part::Min => self.min,
            Part::Max => self.max,
        }
    }

    /// Sets a part. Fails with `EINVAL` for a value out of its limits, a limit out of those of the
    /// hardware, and a lowest value above the highest.
    fn set(&mut self, part: Part, to: u32, hardware: &Self) -> Result {
        let (allowed, field) = match part {
            Part::Value => (self.min..=self.max, &mut self.value),
            Part::Min => (hardware.min..=self.max, &mut self.min),
            Part::Max => (self.min..=hardware.max, &mut self.max),
        };
        if !allowed.contains(&to) {
            return Err(EINVAL);
        }
        *field = to;
        Ok(())
    }
}

/// The scheduling properties of a device's copy engines while it is bound.
#[pin_data]
pub(crate) struct EngineClass {
    #[pin]
    settings: Mutex<[Setting; Property::COUNT]>,
    /// Of the engines.
    list: Arc<RunList<Execution>>,
}

impl EngineClass {
    /// Sets all properties of the engines with this run list to their defaults. Fails with `ENOMEM`.
    pub(crate) fn new(list: &Arc<RunList<Execution>>) -> Result<Arc<Self>> {
        const DEFAULTS: [Setting; Property::COUNT] = [
            Property::JobTimeout.default(),
            Property::Timeslice.default(),
            Property::PreemptTimeout.default(),
        ];
        list.set_timeslice(TIMESLICE_NS);
        Arc::pin_init(
            pin_init!(Self {
                settings <- new_mutex!(DEFAULTS, "EngineClass::settings"),
                list: list.clone(),
            }),
            GFP_KERNEL,
        )
    }

    fn setting(&self, property: Property) -> Setting {
        let settings = self.settings.lock();
        // The index is in bounds: there is a setting for each property.
        let setting = settings.get(property as usize).copied();
        setting.unwrap_or(property.default())
    }

    /// Returns a part of a property.
    pub(crate) fn get(&self, property: Property, part: Part) -> u32 {
        self.setting(property).get(part)
    }

    /// Sets a part of a property. Fails with `EINVAL` for a value out of its limits, a limit out of
    /// those of the hardware, and a lowest value above the highest.
    pub(crate) fn set(&self, property: Property, part: Part, to: u32) -> Result {
        let mut settings = self.settings.lock();
        let setting = settings.get_mut(property as usize).ok_or(EINVAL)?;
        setting.set(part, to, &property.default())?;
        if (property, part) == (Property::Timeslice, Part::Value) {
            // Under the lock, so that the engines have what the last caller set.
            self.list.set_timeslice(u64::from(to) * NANOSECONDS);
        }
        Ok(())
    }

    /// Returns the time slice that a new queue gets if it has none of its own, in microseconds.
    pub(crate) fn timeslice(&self) -> u32 {
        self.setting(Property::Timeslice).value
    }

    /// Returns the time slices that a queue may have, in microseconds. `privileged`: it is created by
    /// a caller with `CAP_SYS_NICE`.
    pub(crate) fn timeslices(&self, privileged: bool) -> RangeInclusive<u32> {
        let setting = match privileged {
            true => Property::Timeslice.default(),
            false => self.setting(Property::Timeslice),
        };
        setting.min..=setting.max
    }
}

#[kunit_tests(vxe_engine_class)]
mod tests {
    use super::*;

    #[test]
    fn values_are_within_their_limits() {
        let hardware = Property::Timeslice.default();
        let mut setting = hardware;
        for (part, bad) in [
            (Part::Value, 0),
            (Part::Value, hardware.max + 1),
            (Part::Min, 0),
            (Part::Max, hardware.max + 1),
        ] {
            assert_eq!(setting.set(part, bad, &hardware), Err(EINVAL));
        }
        assert_eq!(setting, hardware);
        assert_eq!(setting.set(Part::Min, 100, &hardware), Ok(()));
        assert_eq!(setting.set(Part::Max, 200, &hardware), Ok(()));
        // The value stays until another is set.
        assert_eq!(setting.get(Part::Value), hardware.value);
        for (part, bad) in [
            (Part::Value, 99),
            (Part::Value, 201),
            (Part::Min, 201),
            (Part::Max, 99),
        ] {
            assert_eq!(setting.set(part, bad, &hardware), Err(EINVAL));
        }
        for (part, good) in [
            (Part::Value, 100),
            (Part::Value, 200),
            (Part::Min, 200),
            (Part::Max, 200),
        ] {
            assert_eq!(setting.set(part, good, &hardware), Ok(()));
            assert_eq!(setting.get(part), good);
        }
    }
}
