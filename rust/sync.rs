// SPDX-License-Identifier: GPL-2.0

//! Synchronisation.

pub mod completion;
pub mod lock_name;
pub mod mutex;
pub mod rwsem;
