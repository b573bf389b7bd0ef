// SPDX-License-Identifier: GPL-2.0

//! VM_QUERY_MEM_RANGE_ATTRS: first how many entries there are, then the entries.

use super::{advise, mirrored, span, ADVICE, ALL};
use vxe_client::{request, sys, Vm};
use vxe_uapi::{vmas::vmas, Map, MIDDLE, PAGE, SZ_2M};

const ENTRY: usize = size_of::<sys::drm_xe_mem_range_attr>();

type Query = sys::drm_xe_vm_query_mem_range_attr;

/// What the ioctl makes of a query of everything, with room for so many entries at `to`.
fn ask(vm: &Vm, room: usize, to: Map) -> Result<Query, i32> {
    let mut args = Query { vm_id: vm.id(), start: 0, range: ALL.end, ..Default::default() };
    if room != 0 {
        args.num_mem_ranges = room as u32;
        args.sizeof_mem_range_attr = ENTRY as u64;
        args.vector_of_mem_attr = to.at(0);
    }
    // SAFETY: the kernel writes at most `room` entries to `to`, which is memory of the test's.
    unsafe { vm.device().call(&request::VM_QUERY_MEM_RANGE_ATTRS, &mut args) }
        .map(|()| args)
        .map_err(|e| e.errno())
}

/// Exactly enough room, less, none, and more than enough.
pub fn protocol() {
    const UNTOUCHED: u32 = 0x5a5a_5a5a;
    let vm = mirrored();
    let map = Map::reserve(MIDDLE, SZ_2M);
    for page in [1, 3, 8] {
        advise(&vm, &span(map.part(page * PAGE, PAGE)), ADVICE[0]);
    }
    // What is advised, and what is before, between and after.
    const COUNT: usize = 7;
    let to = Map::anon(PAGE);
    to.fill(|_| UNTOUCHED);

    let counted = ask(&vm, 0, to).expect("the count");
    assert_eq!(counted.num_mem_ranges as usize, COUNT);
    assert_eq!(counted.sizeof_mem_range_attr as usize, ENTRY);
    assert_eq!(counted.vector_of_mem_attr, 0);

    for room in 1..COUNT {
        assert_eq!(ask(&vm, room, to).err(), Some(libc::ENOSPC), "room for {room}");
        to.expect("nothing is written", |_| UNTOUCHED);
    }

    let there = vmas(&vm, ALL);
    assert_eq!(there.len(), COUNT);
    for room in [COUNT, COUNT + 1, COUNT + 3, PAGE / ENTRY, u32::MAX as usize] {
        to.fill(|_| UNTOUCHED);
        let filled = ask(&vm, room, to).unwrap_or_else(|e| panic!("room for {room}: errno {e}"));
        assert_eq!(filled.num_mem_ranges as usize, COUNT, "room for {room}");
        for (i, vma) in there.iter().enumerate() {
            let word = |offset: usize| u64::from(to.read(i * ENTRY + offset));
            let long = |offset: usize| word(offset) | (word(offset + 4) << 32);
            let start = std::mem::offset_of!(sys::drm_xe_mem_range_attr, start);
            let end = std::mem::offset_of!(sys::drm_xe_mem_range_attr, end);
            assert_eq!(long(start)..long(end), vma.span, "entry {i} of room for {room}");
            let reserved = std::mem::offset_of!(sys::drm_xe_mem_range_attr, reserved);
            assert_eq!((long(0), long(reserved), long(reserved + 8)), (0, 0, 0), "entry {i}");
        }
        for offset in (COUNT * ENTRY..PAGE).step_by(4) {
            to.expect_word("beyond the entries", offset, UNTOUCHED);
        }
    }
}

/// A query of a part gives all VMAs that have any of it, whole, and no others.
pub fn part() {
    let vm = mirrored();
    let map = Map::reserve(MIDDLE, SZ_2M);
    let advised = span(map.part(4 * PAGE, 2 * PAGE));
    advise(&vm, &advised, ADVICE[0]);
    let all = vmas(&vm, ALL);
    assert_eq!(all.len(), 3);
    let (start, end) = (advised.start, advised.end);
    for (what, span, wanted) in [
        ("the page before", start - PAGE as u64..start, &all[..1]),
        ("the byte before", start - 1..start, &all[..1]),
        ("the border", start - 1..start + 1, &all[..2]),
        ("the first byte", start..start + 1, &all[1..2]),
        ("the last byte", end - 1..end, &all[1..2]),
        ("what is advised", start..end, &all[1..2]),
        ("and more", start - 1..end + 1, &all[..]),
        ("the byte after", end..end + 1, &all[2..]),
        ("what is beyond the addresses", ALL.end..ALL.end + PAGE as u64, &[]),
    ] {
        assert_eq!(vmas(&vm, span.clone()), wanted, "{what}: {span:#x?}");
    }
    vm.bind(&[vxe_client::Bind::unmap(start, end - start)]).expect("unmap");
    assert_eq!(vmas(&vm, start..end), [], "a hole");
}
