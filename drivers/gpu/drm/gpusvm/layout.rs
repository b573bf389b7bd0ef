// SPDX-License-Identifier: GPL-2.0

//! Compile-time checks that the core's objects have the layout of the C structures.
//!
//! The C interface relies on that: it casts pointers. The checks compare with bindgen's output for
//! the kernel being built. If a field of a structure has moved, the build fails with an error that
//! names the field.

use crate::{
    flags::{PagesFlag, PagesFlags, RangeFlag, RangeFlags},
    notifier::Notifier,
    pagemap::{
        devmem::Devmem,
        owner::{OwnerList, Peer},
        Pagemap,
        PagemapRef, //
    },
    pages::Pages,
    range::SvmRange,
    segment::{Protocol, Segment, SegmentArray},
    svm::GpuSvm, //
};
use core::mem::{align_of, offset_of, size_of};
use kernel_ext::{
    bindings as ext,
    dma::Direction,
    interval_tree::{
        Node,
        Tree, //
    },
    mm::mmu_notifier::MmuIntervalNotifier,
    sync::rwsem::RwSemaphore, //
};

/// Asserts that two types have the same size and alignment, and that the given pairs of fields have
/// the same offsets.
macro_rules! same_layout {
    ($rust:ty, $c:ty $(, $field:ident = $c_field:ident)* $(,)?) => {
        const _: () = {
            assert!(
                size_of::<$rust>() == size_of::<$c>() && align_of::<$rust>() == align_of::<$c>(),
                concat!("size of ", stringify!($rust), " is not that of ", stringify!($c)),
            );
            $(assert!(
                offset_of!($rust, $field) == offset_of!($c, $c_field),
                concat!(stringify!($rust), "::", stringify!($field), " has moved"),
            );)*
        };
    };
}

same_layout!(
    GpuSvm,
    ext::drm_gpusvm,
    name = name,
    mm = mm,
    mm_start = mm_start,
    mm_range = mm_range,
    notifier_size = notifier_size,
    ops = ops,
    chunk_sizes = chunk_sizes,
    num_chunks = num_chunks,
    notifier_lock = notifier_lock,
    notifiers = root,
);
#[cfg(CONFIG_LOCKDEP)]
same_layout!(GpuSvm, ext::drm_gpusvm, lock_dep_map = lock_dep_map);

same_layout!(
    Notifier,
    ext::drm_gpusvm_notifier,
    gpusvm = gpusvm,
    mmu = notifier,
    node = itree,
    ranges = root,
    removed = flags,
);

same_layout!(
    SvmRange,
    ext::drm_gpusvm_range,
    gpusvm = gpusvm,
    notifier = notifier,
    refcount = refcount,
    node = itree,
    flags = flags,
);

same_layout!(
    Pages,
    ext::drm_gpusvm_pages,
    drm = drm,
    segments = dma_addr,
    dpagemap = dpagemap,
    state = state,
    state_offset = state_offset,
    notifier_seq = notifier_seq,
    flags = flags,
);

same_layout!(
    Pagemap,
    ext::drm_pagemap,
    ops = ops,
    refcount = ref_,
    drm = drm,
    pagemap = pagemap,
    dev_hold = dev_hold,
    cache = cache,
    shrink_link = shrink_link,
);

same_layout!(
    Peer,
    ext::drm_pagemap_peer,
    list = list,
    link = link,
    owner = owner,
    private = private,
);

same_layout!(OwnerList, ext::drm_pagemap_owner_list);

same_layout!(
    Devmem,
    ext::drm_pagemap_devmem,
    dev = dev,
    mm = mm,
    detached = detached,
    ops = ops,
    dpagemap = dpagemap,
    size = size,
    timeslice_expiration = timeslice_expiration,
    pre_migrate_fence = pre_migrate_fence,
);

same_layout!(Segment, ext::drm_pagemap_addr);
same_layout!(Option<SegmentArray>, *mut ext::drm_pagemap_addr);
same_layout!(Option<PagemapRef>, *mut ext::drm_pagemap);
same_layout!(RangeFlags, ext::drm_gpusvm_range_flags);
same_layout!(PagesFlags, ext::drm_gpusvm_pages_flags);
same_layout!(RwSemaphore, kernel::bindings::rw_semaphore);
same_layout!(MmuIntervalNotifier, kernel::bindings::mmu_interval_notifier);

// A `Node` is an interval tree node followed by a list entry; a `Tree` is a root followed by a list
// head.
const _: () = {
    assert!(
        size_of::<Node>()
            == offset_of!(ext::drm_gpusvm_range, entry) - offset_of!(ext::drm_gpusvm_range, itree)
                + size_of::<kernel::bindings::list_head>()
    );
    assert!(
        offset_of!(ext::drm_gpusvm_notifier, entry) - offset_of!(ext::drm_gpusvm_notifier, itree)
            == offset_of!(ext::drm_gpusvm_range, entry) - offset_of!(ext::drm_gpusvm_range, itree)
    );
    assert!(
        size_of::<Tree>()
            == offset_of!(ext::drm_gpusvm, notifier_list) - offset_of!(ext::drm_gpusvm, root)
                + size_of::<kernel::bindings::list_head>()
    );
    assert!(
        offset_of!(ext::drm_gpusvm_notifier, range_list)
            - offset_of!(ext::drm_gpusvm_notifier, root)
            == offset_of!(ext::drm_gpusvm, notifier_list) - offset_of!(ext::drm_gpusvm, root)
    );
};

/// Checks that C's bit-fields agree with the flags and segments of this crate. bindgen's accessors
/// are not `const`, so that no constant expression can check it; the KUnit suite `gpusvm_layout`
/// calls this.
///
/// Returns the name of the first field that disagrees.
pub fn check_bit_fields() -> Result<(), &'static str> {
    fn test(ok: bool, name: &'static str) -> Result<(), &'static str> {
        ok.then_some(()).ok_or(name)
    }
    fn range(flag: RangeFlag) -> ext::drm_gpusvm_range_flags {
        let word = RangeFlags::new();
        word.update(&[flag], &[]);
        // SAFETY: Both types are two bytes, in which every value is valid.
        unsafe { core::mem::transmute::<RangeFlags, ext::drm_gpusvm_range_flags>(word) }
    }
    fn pages(flag: PagesFlag) -> ext::drm_gpusvm_pages_flags {
        let word = PagesFlags::new();
        word.update(&[flag], &[]);
        // SAFETY: Both types are two bytes, in which every value is valid.
        unsafe { core::mem::transmute::<PagesFlags, ext::drm_gpusvm_pages_flags>(word) }
    }
    macro_rules! bit {
        ($make:ident, $flag:expr, $bit:ident) => {{
            let flags = $make($flag);
            // SAFETY: All fields of the union are integers.
            let bits = unsafe { flags.__bindgen_anon_1.__bindgen_anon_1.as_ref() };
            test(bits.$bit() == 1, stringify!($make.$bit))?;
        }};
    }
    bit!(range, RangeFlag::MigrateDevmem, migrate_devmem);
    bit!(range, RangeFlag::Unmapped, unmapped);
    bit!(range, RangeFlag::PartialUnmap, partial_unmap);
    bit!(pages, PagesFlag::Unmapped, unmapped);
    bit!(pages, PagesFlag::HasDevmemPages, has_devmem_pages);
    bit!(pages, PagesFlag::HasDmaMapping, has_dma_mapping);
    for dir in [Direction::Bidirectional, Direction::ToDevice] {
        let segment = Segment::new(0x1234_5000, Protocol::SYSTEM, 9, dir);
        // SAFETY: Both types are 16 bytes of integers.
        let c = unsafe { core::mem::transmute::<Segment, ext::drm_pagemap_addr>(segment) };
        test(c.addr == 0x1234_5000, "addr")?;
        test(c.proto() == 0, "proto")?;
        test(c.order() == 9, "order")?;
        test(i64::from(dir.raw()) == c.dir() as i64, "dir")?;
    }
    Ok(())
}
