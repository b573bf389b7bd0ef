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
//! A buffer that may be in device memory moves between that and system memory
//! ([`eviction`]). Its contents may be [purged](retention).

mod eviction;
mod residence;
mod retention;
mod segments;

use crate::{
    check::ensure,
    driver::{
        Data,
        Device,
        DrmFile,
        RegisteredDevice,
        VxeDriver, //
    },
    gpu::Target,
    ioctl::Ioctl,
    memory::Policy,
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
};
pub(crate) use eviction::{
    Allowed,
    Payer, //
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
    mm::memcg::Memcg,
    sched,
    sync::mutex, //
};
use residence::{
    Located,
    Place,
    Residence, //
};
pub(crate) use retention::Hold;
use retention::Retention;
pub(crate) use segments::Segment;
use segments::Segments;
use vxe_sim::{
    gem::{self, CpuPages, GemKind, Pages, Residency},
    gem_import::{
        DmaBuf,
        DmaBufMapping, //
    },
    gem_list::Room, //
};

/// A buffer object.
pub(crate) type Bo = shmem::Object<BoData>;

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
    /// The memory cgroup of the process that created the buffer, if this may be in device memory.
    memcg: Option<Memcg>,
    /// Where the contents are, if they may be in device memory.
    #[pin]
    residence: Residence,
    /// Whether the contents are needed.
    #[pin]
    retention: Retention,
    /// The location of memory that does not move, set by the first bind.
    segments: SetOnce<Segments>,
    /// The lock is held to allocate the pages and to fill `segments`.
    #[pin]
    filling: Mutex<Filling>,
    _counted: Counted,
}

/// Where the memory of a buffer comes from.
enum Source {
    /// Pages of shmem, counted in this region.
    System(Arc<System>),
    /// Device memory, and system memory of the driver's own.
    Movable,
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
    /// Device memory, or none yet.
    Movable {
        place: Place,
        /// The memory cgroup of the process that creates the buffer.
        memcg: Memcg,
        /// The memory for the buffer's place in the list of those that may be evicted.
        room: Room,
    },
    /// The memory of another device's dma-buf.
    Import(DmaBuf),
}

/// A buffer's memory, which stays in its place meanwhile.
pub(crate) enum MemoryGuard<'a> {
    /// Memory that does not move.
    Fixed(&'a BoData),
    /// The place, locked.
    Movable(Guard<'a, Located, MutexBackend>),
}

impl MemoryGuard<'_> {
    /// Returns the segments from the one with the byte at `offset`, and the offset in that segment.
    /// Empty if the segments were never filled in, or end before `offset`.
    pub(crate) fn segments_from(&self, offset: u64) -> (&[Segment], u64) {
        let segments = match self {
            Self::Fixed(bo) => bo.segments.as_ref(),
            Self::Movable(located) => located.place.segments(),
        };
        segments.map_or((&[], 0), |segments| segments.starting_at(offset))
    }
}

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
        let (source, place, memcg, room) = match args.memory {
            BoMemory::System(system) => (Source::System(system), Place::Nowhere, None, None),
            BoMemory::Movable { place, memcg, room } => {
                (Source::Movable, place, Some(memcg), Some(room))
            }
            BoMemory::Import(source) => (Source::Import(source), Place::Nowhere, None, None),
        };
        try_pin_init!(Self {
            placement: args.placement,
            cpu_cached: args.cpu_cached,
            compressible: args.compressible,
            vm: args.vm,
            source,
            memcg,
            residence <- Residence::new(place, room),
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

    /// Returns a number that tells the memory cgroup of the process that created the buffer from
    /// others, as long as the buffer exists; 0 for a buffer that is never in device memory.
    pub(crate) fn memcg_key(&self) -> usize {
        self.memcg.as_ref().map_or(0, Memcg::key)
    }

    /// Returns whether the buffer may be in device memory.
    pub(crate) fn is_movable(&self) -> bool {
        matches!(self.source, Source::Movable)
    }

    /// Returns whether the buffer may be in system memory for good.
    fn may_be_in_system(&self) -> bool {
        self.placement >> region::SYSTEM & 1 != 0
    }

    /// Keeps the buffer's memory in its place until the result is dropped. The caller must not wait
    /// for others meanwhile. Does not wait for a move.
    ///
    /// Fails with `EACCES` if the buffer was purged, and with `EAGAIN` if it has to be brought to a
    /// place that is `allowed` first.
    pub(crate) fn hold_memory(&self, allowed: Allowed) -> Result<MemoryGuard<'_>> {
        if !self.is_movable() {
            return Ok(MemoryGuard::Fixed(self));
        }
        let located = self.residence.lock();
        let is_there = match located.place {
            Place::Nowhere => false,
            Place::Vram(_) => true,
            Place::System(_) => {
                self.may_be_in_system() || located.pins != 0 || allowed == Allowed::Anywhere
            }
        };
        if is_there {
            return Ok(MemoryGuard::Movable(located));
        }
        drop(located);
        match self.retention.check() {
            Err(EINVAL) => Err(EACCES),
            _ => Err(EAGAIN),
        }
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
        if bo.is_movable() {
            // Its segments are those of its place. Whether the contents are needed is checked when
            // the binding is made.
            return match bo.retention.check() {
                Err(EBUSY) => Ok(()),
                checked => checked,
            };
        }
        let mut filling = mutex::lock_killable(&bo.filling)?;
        if bo.segments.as_ref().is_some() {
            return Ok(());
        }
        let mut segments = Segments::new();
        let parent: &platform::Device<Bound> = dev.as_ref();
        match &bo.source {
            Source::Movable => {}
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
        bo.segments.populate(segments);
        Ok(())
    }
}

impl CpuPages for BoData {
    fn with_page<R>(bo: &Bo, index: usize, f: impl FnOnce(&Page) -> R) -> Option<R> {
        // Shmem maps its own pages: another buffer has none here.
        if !bo.is_movable() {
            return None;
        }
        Self::with_movable_page(bo, index, f)
    }

    fn pin(bo: &Bo) -> Result {
        if bo.is_movable() {
            Self::pin_movable(bo)?;
        }
        Ok(())
    }

    fn unpin(bo: &Bo) {
        if bo.is_movable() {
            Self::unpin_movable(bo);
        }
    }

    fn residency(&self) -> Residency {
        self.residence.shown()
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
        memory: allocate_memory(dev, 1 << region::SYSTEM, PAGE_SIZE as u64, false)?,
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
/// and possible, as in xe, unless `defer` says that the first use is early enough. Makes room by
/// eviction. System memory is allocated later. Fails with `ENOMEM`.
fn allocate_memory(dev: &Device, placement: u32, size: u64, defer: bool) -> Result<BoMemory> {
    let may_be_in_vram = placement & !(1 << region::SYSTEM) != 0;
    let system = dev.regions.iter().find_map(|region| match region {
        Region::System(system) if placement >> region::SYSTEM & 1 != 0 => Some(system),
        _ => None,
    });
    if !may_be_in_vram {
        let system = system.filter(|system| size <= system.total());
        return Ok(BoMemory::System(system.ok_or(ENOMEM)?.clone()));
    }
    let task = kernel::current!();
    let memcg = Memcg::of(task.mm().ok_or(EINVAL)?);
    let room = Room::new()?;
    let place = if defer {
        Place::Nowhere
    } else {
        let memory = BoData::allocate_vram(dev, size, Payer::Caller, &Policy::CREATE);
        let memory = memory.inspect_err(|e| {
            vxe_sim::drm_dbg!(
                dev,
                "process {}: no room for a buffer of {} KiB: {e:?}",
                task.group_leader().pid(),
                size / 1024
            );
        });
        match memory {
            Ok(memory) => Place::Vram(memory),
            Err(_) if system.is_some_and(|system| size <= system.total()) => Place::Nowhere,
            Err(_) => return Err(ENOMEM),
        }
    };
    Ok(BoMemory::Movable { place, memcg, room })
}

/// Creates a zeroed buffer. Fails with `ENOMEM`, `ENODEV` if the device is gone, and `EINTR` if the
/// caller is killed.
fn create(dev: &Device, size: usize, args: BoArgs) -> Result<ARef<Bo>> {
    let BoMemory::Movable { place, .. } = &args.memory else {
        return GemKind::create(dev, size, args, Pages::Shmem);
    };
    if let Some(segments) = place.segments() {
        // The memory still holds data of its previous user.
        eviction::copy(dev, None, segments)?;
    }
    let bo: ARef<Bo> = GemKind::create(dev, size, args, Pages::Own)?;
    // From here on it may be evicted.
    bo.residence.lock().update(&bo);
    Ok(bo)
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

    let defer = args.flags & uapi::DRM_XE_GEM_CREATE_FLAG_DEFER_BACKING != 0;
    let bo_args = BoArgs {
        placement: args.placement,
        cpu_cached: caching == WB,
        compressible: args.flags & uapi::DRM_XE_GEM_CREATE_FLAG_NO_COMPRESSION == 0,
        vm,
        memory: allocate_memory(dev, args.placement, args.size, defer)?,
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
