// error: E0451
// SPDX-License-Identifier: GPL-2.0

//! An address that no view gave out.

use core::marker::PhantomData;
use gpusvm::{Mapped, Protocol};

pub fn make() -> Mapped<'static> {
    Mapped {
        va: 0,
        addr: 0,
        len: 4096,
        writable: true,
        proto: Protocol::SYSTEM,
        _view: PhantomData,
    }
}
