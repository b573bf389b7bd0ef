// SPDX-License-Identifier: GPL-2.0

//! Arguments that are not all there, and ioctls that are none.

use super::cases::KERNEL;
use std::os::fd::AsRawFd;
use vxe_client::{request, Device, Request};
use vxe_uapi::{gpu::device, Map, PAGE, RO, RW};

/// The errno of an ioctl on an address.
fn errno_of(device: &Device, number: libc::c_ulong, address: u64) -> Option<i32> {
    // SAFETY: the kernel finds nothing at the address, or no ioctl of that number.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), number, address) };
    (result != 0).then(|| std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// Where arguments can be that are not there, or of which the end is not.
struct Places {
    edge: Map,
    read_only: Map,
}

fn check<T>(device: &Device, places: &Places, wrong: &mut Vec<String>, request: &Request<T>) {
    let fault = Some(libc::EFAULT);
    let cut = places.edge.at(PAGE - size_of::<T>().next_multiple_of(8) + 8);
    let mut addresses = vec![
        ("nothing", places.edge.at(PAGE)),
        ("null", 0),
        ("the kernel's", KERNEL),
        ("cut off", cut),
    ];
    // What the kernel gives back has nowhere to go.
    if request.number() >> 30 == 3 {
        addresses.push(("read-only", places.read_only.at(0)));
    }
    for (what, address) in addresses {
        let found = errno_of(device, request.number(), address);
        if found != fault {
            wrong.push(format!("{} on {what}: {found:?}", request.name()));
        }
    }
}

pub fn arguments() {
    let device = device();
    let room = Map::reserve(2 * PAGE, PAGE);
    room.part(0, PAGE).replace_anon(RW);
    let places = Places { edge: room, read_only: Map::anon_prot(PAGE, RO) };
    let mut wrong = Vec::new();
    let w = &mut wrong;
    check(&device, &places, w, &request::DEVICE_QUERY);
    check(&device, &places, w, &request::GEM_CREATE);
    check(&device, &places, w, &request::GEM_MMAP_OFFSET);
    check(&device, &places, w, &request::VM_CREATE);
    check(&device, &places, w, &request::VM_DESTROY);
    check(&device, &places, w, &request::VM_BIND);
    check(&device, &places, w, &request::EXEC_QUEUE_CREATE);
    check(&device, &places, w, &request::EXEC_QUEUE_DESTROY);
    check(&device, &places, w, &request::EXEC_QUEUE_GET_PROPERTY);
    check(&device, &places, w, &request::EXEC);
    check(&device, &places, w, &request::WAIT_USER_FENCE);
    check(&device, &places, w, &request::GEM_CLOSE);
    assert!(wrong.is_empty(), "not -EFAULT:\n  {}", wrong.join("\n  "));
}

pub fn unknown() {
    let device = device();
    let memory = Map::anon(PAGE);
    let number = |direction: u64, kind: u8, nr: u64, size: u64| {
        (direction << 30) | (size << 16) | (u64::from(kind) << 8) | nr
    };
    for nr in [0x50, 0x70, 0x9f] {
        let found = errno_of(&device, number(3, b'd', nr, 64), memory.at(0));
        assert_eq!(found, Some(libc::EINVAL), "ioctl {nr:#x} of no driver");
    }
    let found = errno_of(&device, number(3, b'T', 0x43, 64), memory.at(0));
    assert_eq!(found, Some(libc::ENOTTY), "another kind of device's ioctl");
}
