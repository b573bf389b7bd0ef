// SPDX-License-Identifier: GPL-2.0

//! Buffer objects: GEM_CREATE and GEM_MMAP_OFFSET.
//!
//! A buffer in system memory is a shmem object. Its pages are allocated, and mapped for the device,
//! at its first bind, and stay until the object is freed. They are charged to the memory cgroup of
//! the task that binds the buffer, or touches a page first, and only allocated pages count in the
//! region. The CPU's caches are coherent with a GPU that runs on the CPU, so both CPU caching modes
//! work the same; they differ in the PAT indices that a bind may use.
//!
//! The memory of an imported dma-buf of another device is mapped at its first bind, until the object
//! is freed. The CPU maps it by the exporter's dma-buf only, as in xe.
//!
//! A buffer in device memory has its memory from its creation on, until it is freed or
//! [purged](retention).

mod retention;

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
        CopyRun,
        Target, //
    },
    ioctl::Ioctl,
    objects::{
        Counted,
        ObjectKind, //
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
        lock::{
            mutex::MutexBackend,
            Guard, //
        },
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
pub(crate) use retention::Hold;
use retention::Retention;
use vxe_sim::{
    gem::{self, CpuPages, GemKind, Pages},
    gem_import::{
        DmaBuf,
        DmaBufMapping, //
    }, //
};

/// A buffer object.
pub(crate) type Bo = shmem::Object<BoData>;

/// A contiguous piece of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// The offset in the buffer, in bytes.
    offset: u64,
    /// The bus target.
    pub(crate) target: Target,
    /// The length in bytes, a multiple of the page size.
    pub(crate) len: u64,
}

impl Segment {
    /// Returns the end offset. Does not overflow: buffers are in memory.
    fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// The driver's data of a buffer.
#[pin_data]
pub(crate) struct BoData {
    /// A bitmap of the regions that the buffer may be in.
    placement: u32,
    /// Whether the CPU maps the buffer write-back.
    cpu_cached: bool,
    /// Whether the GPU may compress the buffer.
    compressible: bool,
    /// The VM that the buffer is private to, if it is.
    vm: Option<VmIdentity>,
    /// Where the buffer's memory comes from.
    source: Source,
    /// The buffer's device memory, unless it is in system memory or was purged. The lock is held
    /// while the memory is mapped for the GPU or the CPU.
    #[pin]
    vram: Mutex<Option<VramMemory>>,
    /// Whether the contents are needed.
    #[pin]
    retention: Retention,
    /// The location of the memory, set by the first bind.
    segments: SetOnce<KVVec<Segment>>,
    /// The lock is held to allocate the pages and to fill `segments`.
    #[pin]
    filling: Mutex<Filling>,
    _counted: Counted,
}

/// Where the memory of a buffer comes from.
enum Source {
    /// Pages of shmem, counted in this region.
    System(Arc<System>),
    /// Device memory.
    Vram,
    /// Another device.
    Import(DmaBuf),
}

/// What a buffer has for its `segments`.
struct Filling {
    /// The share of the system region that the pages use, once all are allocated.
    reservation: Option<Reservation>,
    /// The mapping of an import.
    import: Option<DmaBufMapping>,
}

/// The memory that backs a new buffer.
enum BoMemory {
    /// Pages of system memory, counted in this region.
    System(Arc<System>),
    /// Device memory.
    Vram(VramMemory),
    /// The memory of another device's dma-buf.
    Import(DmaBuf),
}

/// The device memory of a buffer.
struct VramMemory {
    allocation: Allocation,
    /// Charged to the cgroup of the task that created the buffer. Uncharged after the memory is
    /// freed.
    charge: Charge,
}

/// The lock of a buffer's device memory, held: the buffer keeps its memory meanwhile.
pub(crate) struct MemoryGuard<'a>(
    #[expect(dead_code, reason = "only dropped")]
    Option<Guard<'a, Option<VramMemory>, MutexBackend>>,
);

/// The arguments of a new buffer.
pub(crate) struct BoArgs {
    placement: u32,
    cpu_cached: bool,
    compressible: bool,
    vm: Option<VmIdentity>,
    memory: BoMemory,
}

impl DriverObject for BoData {
    type Driver = VxeDriver;
    type Args = BoArgs;

    fn new(dev: &Device, _size: usize, args: BoArgs) -> impl PinInit<Self, Error> {
        let (source, vram) = match args.memory {
            BoMemory::System(system) => (Source::System(system), None),
            BoMemory::Vram(memory) => (Source::Vram, Some(memory)),
            BoMemory::Import(source) => (Source::Import(source), None),
        };
        try_pin_init!(Self {
            placement: args.placement,
            cpu_cached: args.cpu_cached,
            compressible: args.compressible,
            vm: args.vm,
            source,
            vram <- new_mutex!(vram, "BoData::vram"),
            retention <- Retention::new(),
            segments: SetOnce::new(),
            filling <- new_mutex!(
                Filling {
                    reservation: None,
                    import: None,
                },
                "BoData::filling"
            ),
            _counted: dev.objects.count(ObjectKind::Buffer),
        })
    }
}

impl BoData {
    /// Returns a bitmap of the regions that the buffer may be in.
    pub(crate) fn placement(&self) -> u32 {
        self.placement
    }

    /// Returns whether the CPU's caches may hold newer data than memory does: only a GPU mapping
    /// that snoops them may then use the buffer.
    pub(crate) fn is_cpu_cached(&self) -> bool {
        self.cpu_cached
    }

    /// Returns whether the GPU may compress the buffer.
    pub(crate) fn is_compressible(&self) -> bool {
        self.compressible
    }

    /// Returns whether the buffer is, or was until it was purged, in device memory.
    fn is_in_vram(&self) -> bool {
        matches!(self.source, Source::Vram)
    }

    /// Keeps the buffer's memory until the result is dropped. Fails with `EACCES` if the buffer was
    /// purged. The caller must not wait for others meanwhile.
    pub(crate) fn hold_memory(&self) -> Result<MemoryGuard<'_>> {
        if !self.is_in_vram() {
            return Ok(MemoryGuard(None));
        }
        let memory = self.vram.lock();
        if memory.is_none() {
            return Err(EACCES);
        }
        Ok(MemoryGuard(Some(memory)))
    }

    /// Returns whether the buffer is private to another VM than `vm`, which may no longer exist.
    pub(crate) fn is_private_to_other(&self, vm: &Vm) -> bool {
        self.vm.is_some_and(|private| private != vm.identity())
    }
}

impl BoData {
    /// Allocates all pages of `bo`, so that [`pin_segments`](Self::pin_segments) is fast. They are
    /// charged to the memory cgroup of the caller.
    ///
    /// Fails with `ENOMEM`, also if the region is full, and with `EINTR` if the caller is killed.
    /// Sleeps.
    pub(crate) fn populate(bo: &Bo) -> Result {
        let Source::System(system) = &bo.source else {
            return Ok(());
        };
        let mut filling = mutex::lock_killable(&bo.filling)?;
        if filling.reservation.is_some() {
            return Ok(());
        }
        // Grows with the pages, so that a failure leaves nothing reserved.
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
        filling.reservation = Some(reservation);
        Ok(())
    }

    /// Fills in the segments of `bo`, unless that is done: maps its pages for the device until the
    /// object is freed. The caller should have [populated](Self::populate) the buffer.
    ///
    /// Fails with `EINVAL` if the buffer was purged, `ENOMEM`, with `EINTR` if the caller is killed,
    /// and as [`DmaBuf::map`] does. Sleeps, and takes the object's reservation lock.
    pub(crate) fn pin_segments(bo: &Bo, dev: &RegisteredDevice) -> Result {
        let mut filling = mutex::lock_killable(&bo.filling)?;
        if bo.segments.as_ref().is_some() {
            return Ok(());
        }
        let mut segments = Segments::new();
        let parent: &platform::Device<Bound> = dev.as_ref();
        match &bo.source {
            Source::Vram => {
                let memory = bo.vram.lock();
                for extent in memory.as_ref().ok_or(EINVAL)?.allocation.extents() {
                    segments.add(extent.target(), extent.len)?;
                }
            }
            Source::System(_) => {
                for entry in bo.sg_table(parent.as_ref())?.iter() {
                    segments.add(Target::System(entry.dma_address()), entry.dma_len())?;
                }
            }
            Source::Import(source) => {
                let mapping = source.map(parent.as_ref())?;
                mapping.for_each(parent.as_ref(), |addr, len| {
                    segments.add(Target::System(addr), len)
                })?;
                filling.import = Some(mapping);
            }
        }
        // Cannot be set already: all writers hold `filling`.
        bo.segments.populate(segments.list);
        Ok(())
    }

    /// Returns the segments from the one with the byte at `offset`, and the offset in that segment.
    /// Empty if the segments were never filled in, or end before `offset`.
    pub(crate) fn pinned_segments_from(&self, offset: u64) -> (&[Segment], u64) {
        let all = self.segments.as_ref().map_or(&[][..], |all| &**all);
        let first = all.partition_point(|segment| segment.end() <= offset);
        let from = all.get(first..).unwrap_or(&[]);
        let skip = from.first().map_or(0, |segment| offset - segment.offset);
        (from, skip)
    }
}

/// The list of segments under construction.
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

    /// Adds the next segment. Fails with `ENOMEM`.
    fn add(&mut self, target: Target, len: u64) -> Result {
        let segment = Segment {
            offset: self.size,
            target,
            len,
        };
        self.list.push(segment, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?;
        // Does not overflow: the sum is the size of memory.
        self.size += len;
        Ok(())
    }
}

impl CpuPages for BoData {
    fn with_page<R>(&self, index: usize, f: impl FnOnce(&Page) -> R) -> Option<R> {
        self.retention.check().ok()?;
        // Shmem maps its own pages: a buffer in system memory has none here.
        let memory = self.vram.lock();
        memory.as_ref()?.allocation.page(index).map(f)
    }

    fn may_map(&self) -> Result {
        self.retention.check()
    }

    /// A buffer private to a VM cannot be exported, as in xe.
    fn may_export(&self) -> Result {
        match self.vm {
            Some(_) => Err(EPERM),
            None => self.retention.check(),
        }
    }

    fn begin_export(&self) -> Result {
        self.may_export()?;
        self.retention.export()
    }

    /// As in xe, the GPU must snoop the CPU's caches, as it is not known how the CPU maps an import,
    /// and compresses nothing.
    fn import(source: DmaBuf) -> BoArgs {
        BoArgs {
            placement: 1 << region::SYSTEM,
            vm: None,
            cpu_cached: true,
            compressible: false,
            memory: BoMemory::Import(source),
        }
    }

    fn populate(bo: &Bo) -> Result {
        Self::populate(bo)
    }

    fn kind(data: &Data) -> Option<&BoKind> {
        data.bo_kind.as_ref()
    }
}

/// Tells buffers of this driver from other GEM objects in a file.
pub(crate) type BoKind = GemKind<Bo>;

/// Creates the [`BoKind`] of this device from a temporary buffer.
pub(crate) fn kind(dev: &Device) -> Result<BoKind> {
    let args = BoArgs {
        placement: 1 << region::SYSTEM,
        vm: None,
        cpu_cached: true,
        compressible: false,
        memory: allocate_memory(dev, 1 << region::SYSTEM, PAGE_SIZE as u64)?,
    };
    let bo = Bo::new(dev, PAGE_SIZE, shmem::ObjectConfig::default(), args)?;
    GemKind::of(&*bo)
}

/// Looks up the buffer with `handle` in `file`. Fails with `ENOENT`, also for an object of another
/// kind.
pub(crate) fn lookup(dev: &Device, file: &DrmFile, handle: u32) -> Result<ARef<Bo>> {
    let kind = dev.bo_kind.as_ref().ok_or(ENOENT)?;
    kind.lookup(file, handle).inspect_err(|_| {
        vxe_sim::drm_dbg!(dev, "buffer {handle}: none of this driver's");
    })
}

/// Allocates the backing of a buffer in a region of `placement`: in the device's memory if allowed
/// and possible, as in xe. Evicts pages of processes to make room there, only those of the caller's
/// cgroup if that is at its limit. System memory is allocated later. Fails with `ENOMEM`.
fn allocate_memory(dev: &Device, placement: u32, size: u64) -> Result<BoMemory> {
    let memory = &dev.memory;
    let regions = dev.regions.iter().enumerate().rev();
    let mut allowed = regions.filter(|(instance, _)| placement >> instance & 1 != 0);
    allowed
        .find_map(|(_, region)| match region {
            Region::System(system) => {
                (size <= system.total()).then(|| BoMemory::System(system.clone()))
            }
            Region::Vram(vram) => {
                let charge = memory.charge(dev, true, |region| region.try_charge(size));
                let both = charge.and_then(|charge| {
                    let allocation = memory.make_room(dev, true, &charge, || {
                        vram.allocate(size, GFP_KERNEL_ACCOUNT)
                    });
                    let allocation = allocation?;
                    Ok(BoMemory::Vram(VramMemory { allocation, charge }))
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

/// Splits an extent into pieces that are quick to clear.
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

/// Creates a zeroed buffer. Fails with `ENOMEM`, `ENODEV` if the device is gone, and `EINTR` if the
/// caller is killed.
fn create(dev: &Device, size: usize, args: BoArgs) -> Result<ARef<Bo>> {
    let BoMemory::Vram(VramMemory { allocation, .. }) = &args.memory else {
        return GemKind::create(dev, size, args, Pages::Shmem);
    };
    // The memory still holds data of its previous user.
    for piece in allocation.extents().iter().flat_map(pieces) {
        sched::check_killed()?;
        dev.copies.run([CopyRun {
            from: None,
            to: piece.target(),
            len: piece.len,
        }])?;
    }
    GemKind::create(dev, size, args, Pages::Own)
}

/// `DRM_IOCTL_XE_GEM_CREATE`.
///
/// Fails with `EINVAL`, `ENOENT` for an unknown VM, `ENODEV` for protected content, `ENOMEM`, and
/// as [`for_each_property`](uapi::for_each_property) does.
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
        memory: allocate_memory(dev, args.placement, args.size)?,
    };
    let bo = create(dev, size, bo_args)?;
    args.handle = bo.create_handle(file)?;
    Ok(0)
}

/// `DRM_IOCTL_XE_GEM_MMAP_OFFSET`.
///
/// Fails with `EINVAL`, and with `ENOENT` for an unknown handle. A PCI memory barrier page is not
/// available, as on integrated GPUs: `EINVAL`.
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
