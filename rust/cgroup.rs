// SPDX-License-Identifier: GPL-2.0

//! Control groups.

pub mod dmem;
