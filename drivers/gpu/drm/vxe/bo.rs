// SPDX-License-Identifier: GPL-2.0

//! Buffer objects: GEM_CREATE and GEM_MMAP_OFFSET.
//!
//! An object is shmem. Its pages are got, and mapped for the device, when it is first bound, and then
//! stay until the object goes. They are charged to the memory cgroup of who binds it, or touches it first,
//! and only what there is of them counts in the region. The CPU's caches are coherent with a GPU that runs
//! on the CPU, so that both kinds of CPU caching work the same here; they differ in what the object may be
//! bound with.

use crate::{
    check::ensure,
    driver::{
        Data,
        Device,
        DrmFile,
        RegisteredDevice,
        VxeDriver, //
    },
    gpu::{
        Run,
        Target, //
    },
    ioctl::Ioctl,
    objects::{
        Counted,
        Kind, //
    },
    region::{
        self,
        Region,
        Reservation,
        System, //
    },
    uapi,
    vm::{
        Vm,
        VmIdentity, //
    },
    vram::{
        Allocation,
        Extent, //
    }, //
};
use kernel::{
    device::Bound,
    drm::gem::{
        shmem,
        BaseObject,
        DriverObject, //
    },
    page::{
        Page,
        PAGE_SIZE, //
    },
    platform,
    prelude::*,
    sizes::SZ_2M,
    sync::{
        aref::ARef,
        new_mutex,
        Arc,
        Mutex,
        SetOnce, //
    }, //
};
use kernel_ext::{
    cgroup::dmem::Charge,
    sched,
    sync::mutex, //
};
use vxe_sim::gem::{self, CpuPages, GemKind, Pages};

/// A buffer object.
pub(crate) type Bo = shmem::Object<BoData>;

/// A contiguous piece of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where in the object it begins, in bytes.
    offset: u64,
    /// Where the device reaches it.
    pub(crate) target: Target,
    /// In bytes; whole pages.
    pub(crate) len: u64,
}

impl Segment {
    /// Where in the object it ends. Does not overflow: objects are in memory.
    fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// What the driver keeps with an object.
#[pin_data]
pub(crate) struct BoData {
    /// Which regions the object may be in: a bit for each.
    placement: u32,
    /// The CPU maps it write-back.
    cpu_cached: bool,
    /// The GPU may compress it.
    compressible: bool,
    /// The VM that the object was made for, and can be bound in alone.
    vm: Option<VmIdentity>,
    /// The object's part of its region.
    memory: Backing,
    /// Where its memory is, from when it was first asked for.
    segments: SetOnce<KVVec<Segment>>,
    /// What its pages take of the system's memory, from when it has all of them. Held to get them, and to
    /// fill `segments`.
    #[pin]
    filling: Mutex<Option<Reservation>>,
    _counted: Counted,
}

/// What an object has of its region.
enum Backing {
    /// What it uses of the system's.
    System(Arc<System>),
    /// A part of the device's, charged to the cgroup of who made the object.
    Vram(
        Allocation,
        #[expect(dead_code, reason = "only dropped")] Charge,
    ),
}

/// What an object is made of.
pub(crate) struct BoArgs {
    placement: u32,
    cpu_cached: bool,
    compressible: bool,
    vm: Option<VmIdentity>,
    memory: Backing,
}

impl DriverObject for BoData {
    type Driver = VxeDriver;
    type Args = BoArgs;

    fn new(dev: &Device, _size: usize, args: BoArgs) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            placement: args.placement,
            cpu_cached: args.cpu_cached,
            compressible: args.compressible,
            vm: args.vm,
            memory: args.memory,
            segments: SetOnce::new(),
            filling <- new_mutex!(None, "BoData::filling"),
            _counted: dev.objects.count(Kind::Buffer),
        })
    }
}

impl BoData {
    /// Which regions the object may be in: a bit for each.
    pub(crate) fn placement(&self) -> u32 {
        self.placement
    }

    /// Whether the CPU's caches may have what memory has not: only a GPU that snoops them may then
    /// use it.
    pub(crate) fn is_cpu_cached(&self) -> bool {
        self.cpu_cached
    }

    /// Whether the GPU may compress it.
    pub(crate) fn is_compressible(&self) -> bool {
        self.compressible
    }

    /// Whether the object was made for one VM, and that is another than `vm`: maybe one that is gone.
    pub(crate) fn is_private_to_other(&self, vm: &Vm) -> bool {
        self.vm.is_some_and(|private| private != vm.identity())
    }
}

impl BoData {
    /// Has all pages of `bo` allocated, so that [`segments`](Self::segments) takes no time. They are charged
    /// to the memory cgroup of the caller.
    ///
    /// Fails with `ENOMEM`, also if the region has no more room, and with `EINTR` for a caller who is
    /// killed. Sleeps, as long as that takes.
    pub(crate) fn populate(bo: &Bo) -> Result {
        let Backing::System(system) = &bo.memory else {
            return Ok(());
        };
        let mut filling = mutex::lock_killable(&bo.filling)?;
        if filling.is_some() {
            return Ok(());
        }
        // Grows with the pages: who gets none has nothing reserved.
        let mut reservation = Reservation::new(system);
        let pages = bo.size() / PAGE_SIZE;
        let mut next = 0;
        while next < pages {
            sched::check_killed()?;
            let end = gem::populate(bo, next)?.min(pages);
            // CAST: Widens.
            reservation.grow(((end - next) * PAGE_SIZE) as u64)?;
            next = end;
        }
        *filling = Some(reservation);
        Ok(())
    }

    /// Gets the segments that `bo` consists of, unless it has them: its pages are mapped for the device
    /// until the object goes. It should have been [populated](Self::populate).
    ///
    /// Fails with `ENOMEM`, and with `EINTR` for a caller who is killed. Sleeps, and takes the object's
    /// reservation lock.
    pub(crate) fn pin_segments(bo: &Bo, dev: &RegisteredDevice) -> Result {
        let _filling = mutex::lock_killable(&bo.filling)?;
        if bo.segments.as_ref().is_some() {
            return Ok(());
        }
        let mut segments = Segments::new();
        match &bo.memory {
            Backing::Vram(allocation, _) => {
                for extent in allocation.extents() {
                    segments.add(extent.target(), extent.len)?;
                }
            }
            Backing::System(_) => {
                let parent: &platform::Device<Bound> = dev.as_ref();
                for entry in bo.sg_table(parent.as_ref())?.iter() {
                    segments.add(Target::System(entry.dma_address()), entry.dma_len())?;
                }
            }
        }
        // Nobody else fills it: that takes the lock.
        bo.segments.populate(segments.list);
        Ok(())
    }

    /// The segments from the one on that has the byte at `offset`, and where in that it is; none of an
    /// object that was never asked for them, or is not so long.
    pub(crate) fn pinned_segments_from(&self, offset: u64) -> (&[Segment], u64) {
        let all = self.segments.as_ref().map_or(&[][..], |all| &**all);
        let first = all.partition_point(|segment| segment.end() <= offset);
        let from = all.get(first..).unwrap_or(&[]);
        let skip = from.first().map_or(0, |segment| offset - segment.offset);
        (from, skip)
    }
}

/// The segments of an object, while they are put together.
struct Segments {
    list: KVVec<Segment>,
    size: u64,
}

impl Segments {
    fn new() -> Self {
        Self {
            list: KVVec::new(),
            size: 0,
        }
    }

    /// Adds what comes next. Fails with `ENOMEM`.
    fn add(&mut self, target: Target, len: u64) -> Result {
        let segment = Segment {
            offset: self.size,
            target,
            len,
        };
        self.list.push(segment, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?;
        // Does not overflow: it is all memory.
        self.size += len;
        Ok(())
    }
}

impl CpuPages for BoData {
    fn page(&self, index: usize) -> Option<&Page> {
        match &self.memory {
            Backing::Vram(allocation, _) => allocation.page(index),
            // Shmem maps these.
            Backing::System(_) => None,
        }
    }

    /// What was made for one VM stays there, as with xe.
    fn may_export(&self) -> Result {
        self.vm.map_or(Ok(()), |_| Err(EPERM))
    }

    fn populate(bo: &Bo) -> Result {
        Self::populate(bo)
    }

    fn kind(data: &Data) -> Option<&BoKind> {
        data.bo_kind.as_ref()
    }
}

/// What tells an object of this driver from others that a file may have handles of.
pub(crate) type BoKind = GemKind<Bo>;

/// Learns the kind of this driver's objects, from one that is made for it.
pub(crate) fn kind(dev: &Device) -> Result<BoKind> {
    let args = BoArgs {
        placement: 1 << region::SYSTEM,
        vm: None,
        cpu_cached: true,
        compressible: false,
        memory: place(dev, 1 << region::SYSTEM, PAGE_SIZE as u64)?,
    };
    let bo = Bo::new(dev, PAGE_SIZE, shmem::ObjectConfig::default(), args)?;
    GemKind::of(&*bo)
}

/// The object that `handle` names in `file`, if it is one of this driver's. Fails with `ENOENT`, and with
/// `EOPNOTSUPP` for what was imported from another device, which vxe cannot use.
pub(crate) fn lookup(dev: &Device, file: &DrmFile, handle: u32) -> Result<ARef<Bo>> {
    let kind = dev.bo_kind.as_ref().ok_or(ENOENT)?;
    kind.lookup(file, handle).inspect_err(|e| {
        let why = match *e {
            EOPNOTSUPP => "imported from another device",
            _ => "none of this driver's",
        };
        vxe_sim::drm_dbg!(dev, "buffer {handle}: {why}");
    })
}

/// Gets memory in a region of `placement` that has enough: the device's own, if it may be there, as
/// with xe; what processes have there makes room, and what processes of the caller's cgroup have if
/// that is at its limit. Of the system's memory nothing is taken until pages are allocated. Fails with
/// `ENOMEM`.
fn place(dev: &Device, placement: u32, size: u64) -> Result<Backing> {
    let memory = &dev.memory;
    let regions = dev.regions.iter().enumerate().rev();
    let mut allowed = regions.filter(|(instance, _)| placement >> instance & 1 != 0);
    allowed
        .find_map(|(_, region)| match region {
            Region::System(system) => {
                (size <= system.total()).then(|| Backing::System(system.clone()))
            }
            Region::Vram(vram) => {
                let charge = memory.charge(dev, true, |region| region.try_charge(size));
                let both = charge.and_then(|charge| {
                    let allocation = memory.make_room(dev, true, &charge, || {
                        vram.allocate(size, GFP_KERNEL_ACCOUNT)
                    });
                    Ok(Backing::Vram(allocation?, charge))
                });
                both.inspect_err(|e| {
                    vxe_sim::drm_dbg!(
                        dev,
                        "process {}: no room for a buffer of {} KiB: {e:?}",
                        kernel::current!().group_leader().pid(),
                        size / 1024
                    );
                })
                .ok()
            }
        })
        .ok_or(ENOMEM)
}

/// A piece of memory as pieces that do not take long to clear.
fn pieces(extent: &Extent) -> impl Iterator<Item = Extent> {
    const PIECE: u64 = SZ_2M as u64;
    let (mut start, end) = (extent.start, extent.end());
    core::iter::from_fn(move || {
        let len = PIECE.min(end - start);
        let piece = Extent { start, len };
        start += len;
        (len != 0).then_some(piece)
    })
}

/// Makes an object, all zeros. Fails with `ENOMEM`, with `ENODEV` if the device is gone, and with `EINTR`
/// for a caller who is killed.
fn create(dev: &Device, size: usize, args: BoArgs) -> Result<ARef<Bo>> {
    let Backing::Vram(allocation, _) = &args.memory else {
        return GemKind::create(dev, size, args, Pages::Shmem);
    };
    // Whoever had the memory before is nobody's business.
    for piece in allocation.extents().iter().flat_map(pieces) {
        sched::check_killed()?;
        dev.copies.run([Run {
            from: None,
            to: piece.target(),
            len: piece.len,
        }])?;
    }
    GemKind::create(dev, size, args, Pages::Own)
}

/// `DRM_IOCTL_XE_GEM_CREATE`.
///
/// Fails with `EINVAL`, with `ENOENT` for a VM that is none, with what
/// [`for_each_property`](uapi::for_each_property) fails with, with `ENODEV` for protected content,
/// and with `ENOMEM`.
pub(crate) fn create_ioctl(
    ioctl: &mut Ioctl<'_>,
    args: &mut uapi::drm_xe_gem_create,
) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    const FLAGS: u32 = uapi::DRM_XE_GEM_CREATE_FLAG_DEFER_BACKING
        | uapi::DRM_XE_GEM_CREATE_FLAG_SCANOUT
        | uapi::DRM_XE_GEM_CREATE_FLAG_NEEDS_VISIBLE_VRAM
        | uapi::DRM_XE_GEM_CREATE_FLAG_NO_COMPRESSION;
    const WB: u32 = uapi::DRM_XE_GEM_CPU_CACHING_WB;
    const WC: u32 = uapi::DRM_XE_GEM_CPU_CACHING_WC;

    ensure!(dev, args.pad == [0; 3] && args.reserved == [0; 2], EINVAL);
    ensure!(dev, args.placement != 0, EINVAL);
    ensure!(dev, args.placement & !dev.regions.mask() == 0, EINVAL);
    ensure!(dev, args.flags & !FLAGS == 0, EINVAL);
    ensure!(dev, args.handle == 0, EINVAL);
    ensure!(dev, args.size != 0, EINVAL);
    ensure!(dev, args.size % PAGE_SIZE as u64 == 0, EINVAL);
    let size = usize::try_from(args.size)?;

    let vram = args.placement & !(1 << region::SYSTEM) != 0;
    let visible = args.flags & uapi::DRM_XE_GEM_CREATE_FLAG_NEEDS_VISIBLE_VRAM != 0;
    ensure!(dev, vram || !visible, EINVAL);

    let caching = u32::from(args.cpu_caching);
    ensure!(dev, caching == WB || caching == WC, EINVAL);
    ensure!(dev, !vram || caching == WC, EINVAL);
    let scanout = args.flags & uapi::DRM_XE_GEM_CREATE_FLAG_SCANOUT != 0;
    ensure!(dev, !scanout || caching == WC, EINVAL);

    let vm = match args.vm_id {
        0 => None,
        id => Some(file.inner().vm(id)?.identity()),
    };
    uapi::for_each_property(ioctl, args.extensions, |property, value| {
        ensure!(
            dev,
            property == uapi::DRM_XE_GEM_CREATE_SET_PROPERTY_PXP_TYPE,
            EINVAL
        );
        uapi::check_pxp_type(dev, value)
    })?;

    let _registered = ioctl.registered()?;
    let bo_args = BoArgs {
        placement: args.placement,
        cpu_cached: caching == WB,
        compressible: args.flags & uapi::DRM_XE_GEM_CREATE_FLAG_NO_COMPRESSION == 0,
        vm,
        memory: place(dev, args.placement, args.size)?,
    };
    let bo = create(dev, size, bo_args)?;
    args.handle = bo.create_handle(file)?;
    Ok(0)
}

/// `DRM_IOCTL_XE_GEM_MMAP_OFFSET`.
///
/// Fails with `EINVAL`, and with `ENOENT` for a handle that is none. A PCI memory barrier is not to
/// be had, as on any integrated GPU: `EINVAL`.
pub(crate) fn mmap_offset_ioctl(
    ioctl: &mut Ioctl<'_>,
    args: &mut uapi::drm_xe_gem_mmap_offset,
) -> Result<u32> {
    let (dev, file) = (ioctl.dev(), ioctl.file());
    ensure!(dev, args.extensions == 0, EINVAL);
    ensure!(dev, args.reserved == [0; 2], EINVAL);
    ensure!(dev, args.flags == 0, EINVAL);
    args.offset = lookup(dev, file, args.handle)?.create_mmap_offset()?;
    Ok(0)
}
