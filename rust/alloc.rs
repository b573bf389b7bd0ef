// SPDX-License-Identifier: GPL-2.0

//! Memory allocation.

pub mod thin_array;
