// SPDX-License-Identifier: GPL-2.0

//! Counts the instructions of single operations of the core, for the program in `tests/bench`.
//!
//! The program prepares memory of its own, and asks by an ioctl on `/dev/gpusvm_bench` for one
//! operation on it ([`abi`]): a fault served, a range looked up, the notifier's callback called.
//! The module does that with a driver that does nothing itself ([`driver`]), and says what it
//! cost. What the core calls for it (HMM, the DMA API) is measured alone, on memory that is just
//! alike, and never inside the core: nothing is added to what is measured.

#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

use kernel::{
    fs::File,
    ioctl::_IOWR,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    prelude::*,
    sync::{
        new_mutex,
        Mutex, //
    },
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::UserSlice, //
};

pub mod abi;
mod callees;
mod clock;
mod driver;
mod memory;
mod ops;

module! {
    type: BenchModule,
    name: "gpusvm_bench",
    authors: ["The gpusvm authors"],
    description: "Benchmarks of gpusvm",
    license: "GPL",
}

#[pin_data]
struct BenchModule {
    #[pin]
    _misc: MiscDeviceRegistration<Session>,
}

impl kernel::InPlaceModule for BenchModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _misc <- MiscDeviceRegistration::register(MiscDeviceOptions { name: abi::DEVICE }),
        })
    }
}

// SAFETY: All of it is integers, without padding.
unsafe impl FromBytes for abi::Request {}
// SAFETY: As above.
unsafe impl AsBytes for abi::Request {}

/// An open file.
#[pin_data]
struct Session {
    #[pin]
    state: Mutex<ops::State>,
}

#[vtable]
impl MiscDevice for Session {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        let state = ops::State::new()?;
        KBox::pin_init(
            pin_init!(Self {
                state <- new_mutex!(state, "gpusvm_bench"),
            }),
            GFP_KERNEL,
        )
    }

    fn ioctl(me: Pin<&Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        if cmd != _IOWR::<abi::Request>(abi::IOCTL.0, abi::IOCTL.1) {
            return Err(ENOTTY);
        }
        let (mut reader, mut writer) =
            UserSlice::new(UserPtr::from_addr(arg), size_of::<abi::Request>()).reader_writer();
        let mut request: abi::Request = reader.read()?;
        me.state.lock().run(&mut request)?;
        writer.write(&request)?;
        Ok(0)
    }
}
