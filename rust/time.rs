// SPDX-License-Identifier: GPL-2.0

//! Time.

pub mod jiffies;
