// SPDX-License-Identifier: GPL-2.0

//! The smallest driver that mirrors a process.
//!
//! Its device has a page table and no engines. A write of an access to
//! `/sys/kernel/debug/gpusvm_mirror/access`, such as `w 0x7f0000000000` (or `r`, to read), makes
//! the device fault on this address of the writing process. A read of the file shows the ranges and
//! the page table.

use gpusvm::{Access, Config, Ctx, DmaDevice, Driver, DrmDevice, Invalidation, Mapped};
use gpusvm::{Retry, Stale, Svm, WouldBlock};
use kernel::str::{parse_int::ParseInt, BStr};
use kernel::sync::{aref::ARef, new_mutex, new_spinlock, Arc, Mutex, SetOnce, SpinLock};
use kernel::{debugfs, device, drm, faux, fmt, page, prelude::*, sizes, uaccess::UserSliceReader};
use kernel_ext::workqueue::OwnedQueue;
use vxe_sim::faux as faux_dma;

/// The device's data: the mirror of the process that wrote to the file last, until that has
/// unmapped all of its ranges.
#[pin_data]
struct Data {
    queue: OwnedQueue,
    dma: SetOnce<Arc<DmaDevice>>,
    #[pin]
    mirror: Mutex<Option<Pin<KBox<Svm<Mirror>>>>>,
}

const CONFIG: Config = Config {
    start: 0,
    size: 1 << 48,
    notifier_size: sizes::SZ_512M,
    chunk_sizes: if page::PAGE_SIZE < sizes::SZ_64K {
        &[sizes::SZ_2M, sizes::SZ_64K, page::PAGE_SIZE]
    } else {
        &[sizes::SZ_2M, page::PAGE_SIZE]
    },
};

/// The driver.
struct Mirror;
/// Its device.
type Device = drm::Device<Mirror>;

/// An entry of the device's page table.
#[derive(Debug)]
#[expect(dead_code, reason = "only shown")]
struct Entry {
    va: usize,
    addr: u64,
    len: usize,
    writable: bool,
}

impl From<Mapped<'_>> for Entry {
    fn from(mapped: Mapped<'_>) -> Self {
        Self {
            va: mapped.va,
            addr: mapped.addr,
            len: mapped.len,
            writable: mapped.writable,
        }
    }
}

#[vtable]
impl Driver for Mirror {
    const NAME: &'static CStr = c"gpusvm_mirror";
    type Vm = ARef<Device>;
    /// The part of the device's page table that maps the range.
    type Range = Pin<KBox<SpinLock<KVVec<Entry>>>>;

    fn new_range(_device: &ARef<Device>) -> Result<Self::Range> {
        KBox::pin_init(new_spinlock!(KVVec::new()), GFP_KERNEL)
    }

    fn invalidate(_device: &ARef<Device>, invalidation: &Invalidation<'_, Self>) {
        for range in invalidation.ranges() {
            range.data().lock().clear();
        }
        // A driver whose device has a TLB flushes `invalidation.span()` here.
    }

    fn try_invalidate(
        device: &ARef<Device>,
        invalidation: &Invalidation<'_, Self>,
    ) -> Result<(), WouldBlock> {
        // `invalidate()` does not sleep.
        Self::invalidate(device, invalidation);
        Ok(())
    }

    fn garbage(device: &ARef<Device>) {
        let this = device.clone();
        let collect = move || {
            let mut mirror = this.mirror.lock();
            let is_empty = mirror.as_ref().is_some_and(|svm| {
                let mut svm = svm.lock();
                svm.collect_garbage();
                !svm.has_mapping(0..CONFIG.size)
            });
            if is_empty {
                // The last range is unmapped at the exit of the process. The module cannot be
                // unloaded while an SVM exists.
                *mirror = None;
            }
        };
        // If the allocation fails, the next fault collects the garbage.
        let _ = device.queue.try_spawn(GFP_ATOMIC, collect);
    }
}

/// Maps the range at `addr`, with the access and the options of `ctx`.
fn fault(svm: &Svm<Mirror>, addr: usize, ctx: &Ctx) -> Result {
    let mut svm = svm.lock();
    let mut retry = Retry::bounded();
    while let Some(mut attempt) = retry.next() {
        svm.collect_garbage();
        let mut range = match svm.find_or_insert(addr, 0..CONFIG.size, ctx, &attempt) {
            Err(EAGAIN) => continue,
            range => range?,
        };
        match range.get(ctx, &attempt) {
            Err(EAGAIN) => continue,
            Err(EFAULT | EPERM) if attempt.narrow(addr, range.span()) => continue,
            done => done?,
        }
        // `commit()` must not allocate memory, so that the array is allocated before.
        let mut entries = KVVec::with_capacity(range.size() / page::PAGE_SIZE, GFP_KERNEL)?;
        let done = range.commit(|view, range| -> Result {
            for mapped in view.segments() {
                entries.push_within_capacity(mapped.into())?;
            }
            core::mem::swap(&mut *range.data().lock(), &mut entries);
            Ok(())
        });
        match done {
            Err(Stale) => continue,
            Ok(result) => return result,
        }
    }
    Err(Retry::spent())
}

/// Makes the device access memory of the calling process. `text` has the kind of access and the
/// address.
fn write(device: &ARef<Device>, text: &mut UserSliceReader) -> Result {
    let mut line = [0; 64];
    let line = line.get_mut(..text.len()).ok_or(EINVAL)?;
    text.read_slice(line)?;
    let mut words = line.trim_ascii().split(u8::is_ascii_whitespace);
    let write = words.next() == Some(b"w");
    let access = if write { Access::Write } else { Access::Read };
    let addr = usize::from_str(BStr::from_bytes(words.next().ok_or(EINVAL)?))?;

    let task = kernel::current!();
    let mm = task.mm().ok_or(EINVAL)?;
    let devices = core::slice::from_ref(device.dma.as_ref().ok_or(ENODEV)?);
    let mut mirror = device.mirror.lock();
    let svm = match mirror.take() {
        Some(svm) if svm.mm().is_some_and(|of| core::ptr::eq(of, &**mm)) => svm,
        _ => KBox::pin_init(Svm::new(mm, CONFIG, devices, device.clone()), GFP_KERNEL)?,
    };
    fault(mirror.insert(svm), addr, &Ctx::new(access))
}

/// Shows the ranges, and the page table entries of each.
fn show(device: &ARef<Device>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if let Some(svm) = &*device.mirror.lock() {
        for range in svm.lock().ranges(0..CONFIG.size) {
            writeln!(f, "{:#x?} mapped={}", range.span(), range.is_mapped())?;
            for entry in range.data().lock().iter() {
                writeln!(f, "  {entry:x?}")?;
            }
        }
    }
    Ok(())
}

#[vtable]
impl drm::Driver for Mirror {
    type Data = Data;
    type RegistrationData<'a> = ();
    type Object = drm::gem::Object<Self>;
    type File = Self;
    type ParentDevice<Ctx: device::DeviceContext> = faux::Device<Ctx>;
    const INFO: drm::DriverInfo = drm::DriverInfo {
        major: 1,
        minor: 0,
        patchlevel: 0,
        name: Self::NAME,
        desc: c"Mirrors a process",
    };
    const IOCTLS: &'static [drm::ioctl::DrmIoctlDescriptor] = &[];
}

// The DRM device is not registered, so that no file is opened and no object is created.
impl drm::file::DriverFile for Mirror {
    type Driver = Self;
    fn open(_: &Device) -> Result<Pin<KBox<Self>>> {
        Err(ENODEV)
    }
}

impl drm::gem::DriverObject for Mirror {
    type Driver = Self;
    type Args = ();
    fn new(_: &Device, _: usize, (): ()) -> impl PinInit<Self, Error> {
        Ok(Self)
    }
}

struct MirrorModule {
    file: Option<Pin<KBox<debugfs::File<ARef<Device>>>>>,
    drm: ARef<Device>,
    _faux: faux_dma::Registration,
}

impl kernel::Module for MirrorModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let _faux = faux_dma::Registration::new(Mirror::NAME, None)?;
        let queue = OwnedQueue::new_unbound(Mirror::NAME)?;
        let data = try_pin_init!(Data {
            queue,
            dma: SetOnce::new(),
            mirror <- new_mutex!(None),
        });
        let parent: &faux::Device<device::Bound> = _faux.as_ref();
        let drm = drm::UnregisteredDevice::<Mirror>::new(parent, data)?;
        let drm: ARef<Device> = ARef::from(&*drm);
        drm.dma
            .populate(DmaDevice::new_devm(parent.as_ref(), DrmDevice::of(&*drm))?);
        let dir = debugfs::Dir::new(Mirror::NAME);
        let file = dir.read_write_callback_file(c"access", drm.clone(), &show, &write);
        let file = Some(KBox::pin_init(file, GFP_KERNEL)?);
        Ok(Self { file, drm, _faux })
    }
}

impl Drop for MirrorModule {
    fn drop(&mut self) {
        self.file = None;
        *self.drm.mirror.lock() = None;
        self.drm.queue.drain();
    }
}

module! {
    type: MirrorModule,
    name: "gpusvm_mirror",
    authors: ["The gpusvm authors"],
    description: "Mirrors a process: gpusvm sample",
    license: "GPL",
}
