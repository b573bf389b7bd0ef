// SPDX-License-Identifier: GPL-2.0

//! The kinds of memory that a program has.

use crate::{skip, Map, HUGE, MIDDLE, PAGE, RO, RW, SZ_2M};
use std::{
    cell::UnsafeCell,
    fs::{File, OpenOptions},
    os::fd::{FromRawFd, OwnedFd},
};

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `malloc(3)` of little: the heap.
    MallocSmall,
    /// `malloc(3)` of much: a mapping of its own.
    MallocLarge,
    /// Private, anonymous memory.
    Anonymous,
    /// Shared, anonymous memory.
    SharedAnonymous,
    /// The stack of the main thread.
    Stack,
    /// The stack of another thread.
    ThreadStack,
    /// A static variable.
    Static,
    /// A file, mapped privately.
    FilePrivate,
    /// A file, mapped shared.
    FileShared,
    /// A memory file.
    Memfd,
    /// System V shared memory.
    SysvShm,
    /// POSIX shared memory, mapped twice.
    PosixShm,
    /// A huge page that was set aside.
    Hugetlb,
    /// A transparent huge page.
    TransparentHuge,
    /// Memory that may not be paged out.
    Locked,
}

/// All kinds.
pub const KINDS: [Kind; 15] = [
    Kind::MallocSmall,
    Kind::MallocLarge,
    Kind::Anonymous,
    Kind::SharedAnonymous,
    Kind::Stack,
    Kind::ThreadStack,
    Kind::Static,
    Kind::FilePrivate,
    Kind::FileShared,
    Kind::Memfd,
    Kind::SysvShm,
    Kind::PosixShm,
    Kind::Hugetlb,
    Kind::TransparentHuge,
    Kind::Locked,
];

impl Kind {
    /// The name in subtests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MallocSmall => "malloc",
            Self::MallocLarge => "malloc-large",
            Self::Anonymous => "mmap",
            Self::SharedAnonymous => "mmap-shared",
            Self::Stack => "stack",
            Self::ThreadStack => "thread-stack",
            Self::Static => "static",
            Self::FilePrivate => "file-private",
            Self::FileShared => "file-shared",
            Self::Memfd => "memfd",
            Self::SysvShm => "sysv-shm",
            Self::PosixShm => "shm",
            Self::Hugetlb => "hugetlb",
            Self::TransparentHuge => "thp",
            Self::Locked => "mlocked",
        }
    }

    /// What it is.
    pub const fn about(self) -> &'static str {
        match self {
            Self::MallocSmall => "the heap",
            Self::MallocLarge => "a large allocation",
            Self::Anonymous => "private anonymous memory",
            Self::SharedAnonymous => "shared anonymous memory",
            Self::Stack => "the main thread's stack",
            Self::ThreadStack => "another thread's stack",
            Self::Static => "a static variable",
            Self::FilePrivate => "a privately mapped file",
            Self::FileShared => "a shared mapping of a file",
            Self::Memfd => "a memory file",
            Self::SysvShm => "System V shared memory",
            Self::PosixShm => "shared memory that is mapped twice",
            Self::Hugetlb => "a hugetlb page",
            Self::TransparentHuge => "a transparent huge page",
            Self::Locked => "locked memory",
        }
    }

    /// How much of it a test usually takes.
    pub const fn length(self) -> usize {
        match self {
            Self::MallocLarge => 4 * MIDDLE,
            Self::Hugetlb | Self::TransparentHuge => SZ_2M,
            Self::Anonymous => 2 * MIDDLE,
            _ => 8 * PAGE,
        }
    }

    /// Calls `body` with page-aligned memory of this kind, and checks afterwards that the memory
    /// behaved as its kind does. Skips the subtest where the system has none.
    pub fn with(self, length: usize, body: &dyn Fn(Map)) {
        match self {
            Self::MallocSmall => with_malloc(length, true, body),
            Self::MallocLarge => with_malloc(length, false, body),
            Self::Anonymous => body(Map::anon(length)),
            Self::SharedAnonymous => body(Map::shared(length)),
            Self::Stack => with_stack(length, body),
            Self::ThreadStack => std::thread::scope(|scope| {
                // The body runs while this thread waits, so it may as well be here.
                let body = Shared(body);
                scope.spawn(move || with_stack(length, { body }.0)).join().expect("the thread");
            }),
            Self::Static => with_static(length, body),
            Self::FilePrivate => with_private_file(length, body),
            Self::FileShared => with_shared_file(&temporary_file(length), length, body),
            Self::Memfd => with_shared_file(&memfd(length, 0), length, body),
            Self::SysvShm => with_sysv_shm(length, body),
            Self::PosixShm => with_two_mappings(length, body),
            Self::Hugetlb => with_hugetlb(length, body),
            Self::TransparentHuge => body(transparent_huge(length)),
            Self::Locked => {
                let map = Map::anon(length);
                // SAFETY: the range is the test's own.
                let result = unsafe { libc::mlock(map.start() as *const _, length) };
                assert_eq!(result, 0, "mlock: {}", std::io::Error::last_os_error());
                body(map);
            }
        }
    }
}

/// Lets another thread call what this one waits for.
struct Shared<'a>(&'a dyn Fn(Map));

// SAFETY: the owner of the closure sleeps until the thread has ended.
unsafe impl Send for Shared<'_> {}

fn with_malloc(length: usize, heap: bool, body: &dyn Fn(Map)) {
    if heap {
        // Little, whatever the size of a page: malloc() would map 128 KiB, two pages of 64 KiB.
        // SAFETY: the call changes a setting of this process.
        let set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 16 << 20) };
        assert_eq!(set, 1, "mallopt");
    }
    // SAFETY: the block is not freed before the subtest's process ends; asking where the heap ends
    // does not move it.
    let (block, heap_end) =
        unsafe { (libc::malloc(length + PAGE) as usize, libc::sbrk(0) as usize) };
    assert_ne!(block, 0, "malloc");
    let in_heap = block < heap_end && heap_end - block < 64 << 20;
    assert_eq!(in_heap, heap, "malloc of {length:#x} bytes at {block:#x}");
    body(Map::existing(block.next_multiple_of(PAGE), length));
}

fn with_stack(length: usize, body: &dyn Fn(Map)) {
    /// The most that is asked of a stack.
    const ROOM: usize = 9 * PAGE;
    let room = UnsafeCell::new([0u32; ROOM / 4]);
    let start = (room.get() as usize).next_multiple_of(PAGE);
    assert!(length + PAGE <= ROOM, "{length} bytes of stack");
    body(Map::existing(start, length));
    std::hint::black_box(room.get());
}

fn with_static(length: usize, body: &dyn Fn(Map)) {
    struct Room(UnsafeCell<[u32; 16 * PAGE / 4]>);
    // SAFETY: only reached by volatile accesses of one test.
    unsafe impl Sync for Room {}
    static ROOM: Room = Room(UnsafeCell::new([0; 16 * PAGE / 4]));
    let start = (ROOM.0.get() as usize).next_multiple_of(PAGE);
    assert!(length + PAGE <= size_of_val(&ROOM));
    body(Map::existing(start, length));
}

/// A file of zeroes that has no name any more.
#[track_caller]
pub fn temporary_file(length: usize) -> File {
    let path = std::env::temp_dir().join(format!("vxe-uapi-{}", std::process::id()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    std::fs::remove_file(&path).expect("remove the temporary file");
    file.set_len(length as u64).expect("size the temporary file");
    file
}

/// A memory file of zeroes.
#[track_caller]
pub fn memfd(length: usize, flags: u32) -> File {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"vxe-uapi".as_ptr(), flags | libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and ours.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(length as u64).expect("size the memory file");
    file
}

fn with_shared_file(file: &File, length: usize, body: &dyn Fn(Map)) {
    let map = Map::file(file, length, RW, libc::MAP_SHARED);
    body(map);
    expect_in_file(file, map);
}

fn with_private_file(length: usize, body: &dyn Fn(Map)) {
    let file = temporary_file(length);
    let map = Map::file(&file, length, RW, libc::MAP_PRIVATE);
    body(map);
    let now = Map::file(&file, length, RO, libc::MAP_SHARED);
    now.expect("the file behind a private mapping", |_| 0);
}

/// The file itself must have what its shared mapping shows.
#[track_caller]
pub fn expect_in_file(file: &File, map: Map) {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; map.len()];
    file.read_exact_at(&mut bytes, 0).expect("read the file");
    map.expect("the mapping against its file", |offset| {
        u32::from_ne_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
    });
}

fn with_sysv_shm(length: usize, body: &dyn Fn(Map)) {
    // SAFETY: new shared memory at a free address disturbs nobody; it goes with the process.
    let start = unsafe {
        let id = libc::shmget(libc::IPC_PRIVATE, length, libc::IPC_CREAT | 0o600);
        if id < 0 {
            skip!("shmget: {}", std::io::Error::last_os_error());
        }
        let start = libc::shmat(id, std::ptr::null(), 0) as usize;
        libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut());
        start
    };
    assert_ne!(start, usize::MAX, "shmat: {}", std::io::Error::last_os_error());
    body(Map::existing(start, length));
}

fn with_two_mappings(length: usize, body: &dyn Fn(Map)) {
    let file = memfd(length, 0);
    let (a, b) = (
        Map::file(&file, length, RW, libc::MAP_SHARED),
        Map::file(&file, length, RO, libc::MAP_SHARED),
    );
    body(a);
    b.expect("the second mapping", |offset| a.read(offset));
}

fn with_hugetlb(length: usize, body: &dyn Fn(Map)) {
    let _pool = HugePool::of(4);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
    let map =
        Map::try_mmap(0, length, RW, flags, -1, 0).unwrap_or_else(|e| skip!("MAP_HUGETLB: {e}"));
    body(map);
    map.unmap();
}

/// The system's pool of huge pages of 2 MiB, as large as a test wants it until it is dropped. Where pages have 64 KiB
/// these are not the default huge pages, but 32 pages that are contiguous.
struct HugePool {
    before: String,
}

impl HugePool {
    const FILE: &'static str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

    fn of(pages: u32) -> Self {
        let before =
            std::fs::read_to_string(Self::FILE).unwrap_or_else(|e| skip!("{}: {e}", Self::FILE));
        if let Err(e) = std::fs::write(Self::FILE, pages.to_string()) {
            skip!("{}: {e}", Self::FILE);
        }
        Self { before }
    }
}

impl Drop for HugePool {
    fn drop(&mut self) {
        if let Err(e) = std::fs::write(Self::FILE, &self.before) {
            eprintln!("cannot restore {}: {e}", Self::FILE);
        }
    }
}

/// Swap on the disk in RAM, until this goes.
pub struct Swap(());

impl Swap {
    const DISK: &'static std::ffi::CStr = c"/dev/ram0";

    /// Makes swap of all of it, and uses it. Skips the subtest where there is no such disk.
    #[track_caller]
    pub fn on() -> Self {
        use std::os::unix::fs::FileExt;
        let path = Self::DISK.to_str().expect("a name");
        let disk = OpenOptions::new().read(true).write(true).open(path);
        let disk = disk.unwrap_or_else(|e| skip!("{path}: {e}"));
        let mut device = &disk;
        let size = std::io::Seek::seek(&mut device, std::io::SeekFrom::End(0)).expect("its size");
        // The header of mm/swapfile.c: the version and the last page, then the signature.
        let mut header = vec![0; PAGE];
        header[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
        let last = (size / PAGE as u64 - 1) as u32;
        header[1028..1032].copy_from_slice(&last.to_ne_bytes());
        header[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
        disk.write_all_at(&header, 0).expect("the header of swap");
        disk.sync_all().expect("the header on the disk");
        // SAFETY: the name ends with a zero.
        let result = unsafe { libc::swapon(Self::DISK.as_ptr(), 0) };
        assert_eq!(result, 0, "swapon: {}", std::io::Error::last_os_error());
        Self(())
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // SAFETY: the name ends with a zero.
        let result = unsafe { libc::swapoff(Self::DISK.as_ptr()) };
        if result != 0 {
            eprintln!("swapoff: {}", std::io::Error::last_os_error());
        }
    }
}

/// The kernel looks for pages that are alike, and makes one of them where it may, until this goes. Then
/// they come apart again.
pub struct Merging(());

impl Merging {
    const DIRECTORY: &'static str = "/sys/kernel/mm/ksm";

    fn set(file: &str, value: &str) -> std::io::Result<()> {
        std::fs::write(format!("{}/{file}", Self::DIRECTORY), value)
    }

    /// Has it look as often as it can. Skips the subtest on a kernel that does not.
    #[track_caller]
    pub fn on() -> Self {
        for (file, value) in [("pages_to_scan", "2000"), ("sleep_millisecs", "1"), ("run", "1")] {
            Self::set(file, value).unwrap_or_else(|e| skip!("{}/{file}: {e}", Self::DIRECTORY));
        }
        Self(())
    }

    /// How many pages of this process are others' as well.
    #[track_caller]
    pub fn merged(&self) -> u64 {
        number("/proc/self/ksm_merging_pages")
    }

    /// How many more pages of all processes there would be, if none were merged.
    #[track_caller]
    pub fn sharing(&self) -> u64 {
        number(&format!("{}/pages_sharing", Self::DIRECTORY))
    }

    /// All come apart again, and none are merged any more.
    #[track_caller]
    pub fn undo(&self) {
        Self::set("run", "2").expect("pages come apart");
    }
}

#[track_caller]
fn number(path: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    text.trim().parse().expect("a number")
}

impl Drop for Merging {
    fn drop(&mut self) {
        for value in ["2", "0"] {
            if let Err(e) = Self::set("run", value) {
                eprintln!("{}: {e}", Self::DIRECTORY);
            }
        }
    }
}

/// A counter of `/proc/vmstat`.
#[track_caller]
pub fn vmstat(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").expect("vmstat");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("there is no {name} in vmstat"));
    line.trim().parse().expect("a number")
}

/// A size of `/proc/meminfo`, in bytes.
#[track_caller]
pub fn meminfo(name: &str) -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let line = line.unwrap_or_else(|| panic!("there is no {name} in meminfo"));
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// Memory that is a transparent huge page each 2 MiB, or skips the subtest.
pub fn transparent_huge(length: usize) -> Map {
    if HUGE > SZ_2M {
        skip!("huge pages are larger than all chunks");
    }
    let map = Map::aligned(length, SZ_2M);
    if let Err(e) = map.try_madvise(libc::MADV_HUGEPAGE) {
        skip!("MADV_HUGEPAGE: {e}");
    }
    map.fill(|_| 0);
    if huge_kib(map) < length / 1024 {
        skip!("no huge page to be had");
    }
    map
}

/// As much memory as a large chunk: a transparent huge page where that has this size, otherwise pages, which are all
/// there.
pub fn large() -> Map {
    if HUGE == SZ_2M {
        return transparent_huge(SZ_2M);
    }
    let map = Map::aligned(SZ_2M, SZ_2M);
    map.fill(|_| 0);
    map
}

/// How many KiB of the mapping are transparent huge pages.
#[track_caller]
pub fn huge_kib(map: Map) -> usize {
    smaps(map, "AnonHugePages")
}

/// A figure in KiB that `/proc/self/smaps` shows for the mapping that starts where `map` does.
#[track_caller]
pub fn smaps(map: Map, field: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
    let head = format!("{:x}-", map.start());
    text.lines()
        .skip_while(|line| !line.starts_with(&head))
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name == field).then(|| value.trim().trim_end_matches(" kB").parse().ok())?
        })
        .unwrap_or_else(|| panic!("no {field} of {head} in smaps"))
}
