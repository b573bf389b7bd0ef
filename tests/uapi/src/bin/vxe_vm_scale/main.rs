// SPDX-License-Identifier: GPL-2.0

//! Very many VMAs, binds and buffers: every call takes time in proportion to what it is about, and a
//! process can be killed in the middle of each.

mod killed;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};
use vxe_client::{report::Report, Advice, AtomicAccess, Bind, Bo, Vm};
use vxe_uapi::{
    gpu::device,
    growth::expect_linear,
    map::RW,
    process::fork,
    time::{is_debug_kernel, promptly},
    uffd::Uffd,
    vmas::{vmas, Attributes},
    Map, Program, MIDDLE, PAGE, SZ_2M,
};

/// GPU addresses at which no process has anything.
const NOWHERE: u64 = 1 << 47;

/// The smaller of the sizes that are compared: large enough to tell growth from what a call takes at any
/// rate, which is less beside all that a kernel that checks itself does for each.
fn size() -> usize {
    if is_debug_kernel() {
        500
    } else {
        1500
    }
}

/// How soon a process must be gone that is killed. It takes a part of it, where everything does on an
/// emulated machine.
const DEATH: Duration = Duration::from_secs(2);

/// A page of a VM.
fn page(i: usize) -> u64 {
    NOWHERE + (i * PAGE) as u64
}

/// All of the first pages.
fn span(count: usize) -> (u64, u64) {
    (NOWHERE, (count * PAGE) as u64)
}

/// Mirrors of a page each that are not alike.
fn mirrors(count: usize) -> Vec<Bind> {
    mirrors_of(1, count)
}

/// Mirrors of so many pages each that are not alike.
fn mirrors_of(pages: usize, count: usize) -> Vec<Bind> {
    let piece = |i| {
        let mirror = Bind::mirror(page(i * pages), (pages * PAGE) as u64);
        if i % 2 == 0 {
            mirror
        } else {
            mirror.read_only()
        }
    };
    (0..count).map(piece).collect()
}

/// A VM that has many VMAs, and what they are of.
struct Many {
    vm: Vm,
    bos: Vec<Bo>,
    count: usize,
}

impl Many {
    fn empty(count: usize) -> Self {
        Self { vm: Vm::new(&device()).expect("a VM"), bos: Vec::new(), count }
    }

    fn mirrors(count: usize) -> Self {
        let this = Self::empty(count);
        this.bind(&mirrors(count));
        this
    }

    /// Of `kinds` buffers of a page, one after the other.
    fn buffers(count: usize, kinds: usize) -> Self {
        let mut this = Self::empty(count);
        let device = this.vm.device().clone();
        this.bos = (0..kinds).map(|_| Bo::system(&device, PAGE).expect("a buffer")).collect();
        this.bind(&this.maps());
        this
    }

    fn maps(&self) -> Vec<Bind> {
        let map = |i| Bind::bo(&self.bos[i % self.bos.len()], 0, page(i), PAGE as u64);
        (0..self.count).map(map).collect()
    }

    #[track_caller]
    fn bind(&self, binds: &[Bind]) {
        self.vm.bind(binds).expect("many binds");
    }

    #[track_caller]
    fn advise(&self, advice: Advice) {
        let (start, length) = span(self.count);
        self.vm.madvise(start, length, advice).expect("advice");
    }
}

/// Each call takes time in proportion.
fn growth() {
    expect_linear(
        "many MAPs of a buffer",
        size(),
        |n| Many::buffers(n, 1),
        |many| {
            many.bind(&many.maps());
        },
    );
    expect_linear(
        "an UNMAP of many buffers",
        size(),
        |n| Many::buffers(n, 1),
        |many| {
            let (start, length) = span(many.count);
            many.bind(&[Bind::unmap(start, length)]);
        },
    );
    expect_linear(
        "many UNMAPs",
        size(),
        |n| Many::buffers(n, 1),
        |many| {
            let unmap = |i| Bind::unmap(page(i), PAGE as u64);
            many.bind(&(0..many.count).rev().map(unmap).collect::<Vec<_>>());
        },
    );
    expect_linear("many mirrors", size(), Many::empty, |many| many.bind(&mirrors(many.count)));
}

/// So do UNMAP_ALLs, be it of one buffer that is everywhere, of one again and again, or of many.
fn growth_unmap_all() {
    let all = |many: &Many| many.bos.iter().map(Bind::unmap_all).collect::<Vec<_>>();
    expect_linear(
        "an UNMAP_ALL of many VMAs",
        size(),
        |n| Many::buffers(n, 1),
        |many| {
            many.bind(&all(many));
        },
    );
    expect_linear(
        "UNMAP_ALLs of many buffers",
        size() / 4,
        |n| Many::buffers(n, n),
        |many| {
            many.bind(&all(many));
        },
    );
    let other = |n| {
        let mut many = Many::buffers(n, 1);
        many.bos.push(Bo::system(many.vm.device(), PAGE).expect("a buffer that is nowhere"));
        many
    };
    expect_linear("many UNMAP_ALLs of another buffer", size(), other, |many| {
        let unmap = Bind::unmap_all(many.bos.last().expect("a buffer"));
        many.bind(&vec![unmap; many.count]);
    });
}

/// So do advice, and questions about it.
fn growth_madvise() {
    let atomics = Advice::Atomic(AtomicAccess::Global);
    expect_linear("advice on many mirrors", size(), Many::mirrors, |many| many.advise(atomics));
    let device_atomics = Advice::Atomic(AtomicAccess::Device);
    expect_linear(
        "advice on many buffers",
        size(),
        |n| Many::buffers(n, 1),
        |many| {
            many.advise(device_atomics);
        },
    );
    expect_linear("the attributes of many", size(), Many::mirrors, |many| {
        let (start, length) = span(many.count);
        assert_eq!(vmas(&many.vm, start..start + length).len(), many.count);
    });
}

/// Mapping at once does, though operations name the same addresses many times.
fn growth_immediate() {
    expect_linear(
        "MAPs of many buffers at once",
        size(),
        |n| Many::buffers(n, 1),
        |many| {
            let maps: Vec<_> = many.maps().into_iter().map(Bind::immediate).collect();
            many.bind(&maps);
        },
    );
    // Each of them replaces all before it; what is left in the end is mapped once.
    let prepare = |n| {
        let mut many = Many::empty(n);
        let size = n * PAGE;
        many.bos.push(Bo::system(many.vm.device(), size).expect("a buffer"));
        many.bos.push(Bo::system(many.vm.device(), PAGE).expect("a buffer"));
        many
    };
    expect_linear("many MAPs at once of the same addresses", size(), prepare, |many| {
        let (start, length) = span(many.count);
        let wide = Bind::bo(&many.bos[0], 0, start, length).immediate();
        let mut maps = vec![wide; many.count];
        maps.extend((0..many.count).map(|i| Bind::bo(&many.bos[1], 0, page(i), PAGE as u64)));
        many.bind(&maps);
    });
}

/// The end of a VM does.
fn growth_destroy() {
    for what in ["mirrors", "buffers"] {
        let prepare = |n| match what {
            "mirrors" => Many::mirrors(n),
            _ => Many::buffers(n, n / 8),
        };
        expect_linear(&format!("the end of many {what}"), size(), prepare, |many| {
            many.vm.destroy().expect("destroyed");
        });
    }
}

/// Very many pages of the zero page, each apart from the others, that a VM of this process mirrors in one VMA.
struct Scattered {
    vm: Vm,
    memory: Map,
    count: usize,
}

impl Scattered {
    fn new(vm: Vm, count: usize) -> Self {
        let memory = Map::reserve(count * 2 * PAGE, SZ_2M);
        memory.unmap();
        for i in 0..count {
            memory.part(i * 2 * PAGE, PAGE).replace_anon(RW);
        }
        Self { vm, memory, count }
    }

    fn span(&self) -> (u64, u64) {
        (self.memory.at(0), self.memory.len() as u64)
    }

    /// Has each of them mapped, in a range of its own.
    #[track_caller]
    fn fetch(&self) {
        self.fetch_in(&self.vm);
        assert_eq!(self.mapped(), self.count, "ranges");
    }

    /// The same in any VM of this process.
    #[track_caller]
    fn fetch_in(&self, vm: &Vm) {
        let (start, length) = self.span();
        vm.bind(&[Bind::prefetch(start, length, 0)]).expect("a prefetch");
    }

    /// How many of them are mapped.
    #[track_caller]
    fn mapped(&self) -> usize {
        let (start, length) = self.span();
        let report = Report::read(self.vm.device()).expect("the ranges");
        report.within(start..start + length).filter(|range| range.is_mapped()).count()
    }

    #[track_caller]
    fn attributes(&self) -> Attributes {
        vmas(&self.vm, self.memory.at(0)..self.memory.at(PAGE)).remove(0).attributes
    }
}

/// Closing a file takes no longer with more VMs: only so many ranges are taken out at once, of all of them.
fn closed_together() {
    // To have everything mapped takes most of the time.
    let more = if is_debug_kernel() { 4 } else { 6 };
    let time = |vms: usize| {
        let device = device();
        let mirrored = || Vm::mirrored(&device).expect("a mirrored VM");
        let scattered = Scattered::new(mirrored(), size());
        scattered.fetch();
        let others: Vec<_> = (1..vms).map(|_| mirrored()).collect();
        for vm in &others {
            scattered.fetch_in(vm);
        }
        let start = Instant::now();
        // SAFETY: the descriptor is not used for anything else, and no job touches any memory.
        unsafe { device.close() };
        let took = start.elapsed();
        scattered.memory.unmap();
        took
    };
    // So many that as many ranges are in them as go at once, about.
    let few = 2048 / size();
    let (mut short, mut long) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        short = short.min(time(few));
        long = long.min(time(more * few));
        println!("closed: {few} VMs in {short:?}, {} in {long:?}", more * few);
        // In proportion it would take `more` times as long, or longer as the memory goes, too.
        if long < short * more as u32 * 3 / 4 {
            return;
        }
    }
    panic!("{more} times as many VMs take {:.1} times as long", long.div_duration_f64(short));
}

/// A call prefetches many mirrors very many times: other calls on the VM wait for none of that.
fn beside_prefetches() {
    let child = fork(|link| {
        let many = Many::mirrors(4 * size());
        let (start, length) = span(many.count);
        // To where each of them is advised to be.
        let prefetches = vec![Bind::prefetch(start, length, -1); 20_000];
        std::thread::scope(|scope| {
            // It is killed in the middle of that.
            scope.spawn(|| many.vm.bind(&prefetches));
            std::thread::sleep(Duration::from_millis(500));
            let other = Bind::mirror(start - SZ_2M as u64, PAGE as u64);
            promptly("a bind beside prefetches", DEATH, || many.bind(&[other]));
            link.send(0);
        });
    });
    child.link().receive();
    promptly("death in prefetches", DEATH, || child.kill());
}

/// A VM is destroyed while a prefetch of it waits for a page that does not come: nobody waits for that.
fn destroy_behind_prefetch() {
    let vm = Vm::mirrored(&device()).expect("a mirrored VM");
    let map = Map::aligned(SZ_2M, SZ_2M);
    let uffd = Uffd::new(map);
    std::thread::scope(|scope| {
        let prefetch = scope.spawn(|| {
            // Nothing is promised of a VM that goes meanwhile.
            let _ = vm.bind(&[Bind::prefetch(map.at(0), map.len() as u64, 0)]);
        });
        uffd.next_fault(Duration::from_secs(10)).expect("the prefetch wants the page");
        promptly("VM_DESTROY behind a prefetch", DEATH, || vm.destroy().expect("destroyed"));
        assert!(!prefetch.is_finished(), "it waits still");
        uffd.populate(|_| 7);
        prefetch.join().expect("the prefetch");
    });
    map.expect("given", |_| 7);
    // Whoever waits so can be killed, and does not hold up the end of others.
    let child = fork(|link| {
        let vm = Vm::mirrored(&device()).expect("a mirrored VM");
        let map = Map::aligned(MIDDLE, SZ_2M);
        let uffd = Uffd::new(map);
        std::thread::scope(|scope| {
            scope.spawn(|| vm.bind(&[Bind::prefetch(map.at(0), map.len() as u64, 0)]));
            uffd.next_fault(Duration::from_secs(10)).expect("the prefetch wants the page");
            vm.destroy().expect("destroyed");
            link.send(0);
        });
    });
    child.link().receive();
    promptly("death of who has destroyed", DEATH, || child.kill());
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_vm_scale", "Very many VMAs, binds and buffers.");
    p.subtest("growth", "Binds take time in proportion.", growth);
    p.subtest("growth-unmap-all", "UNMAP_ALL takes time in proportion.", growth_unmap_all);
    p.subtest("growth-madvise", "Advice takes time in proportion.", growth_madvise);
    p.subtest("growth-immediate", "Mapping at once takes time in proportion.", growth_immediate);
    p.subtest("growth-destroy", "The end of a VM takes time in proportion.", growth_destroy);
    p.subtest("killed", "A process is killed in the middle of a long call.", killed::in_long_calls);
    p.subtest("killed-late", "What a process has done is undone after its death.", killed::late);
    p.subtest(
        "killed-among-ranges",
        "A process is killed that lets go of many ranges.",
        killed::among_ranges,
    );
    p.subtest("killed-unmapping", "Who unmaps very many buffers dies soon.", killed::unmapping);
    p.subtest(
        "killed-in-order",
        "Who sorts what he named in no order dies soon.",
        killed::in_order,
    );
    p.subtest(
        "closed-together",
        "A file with many VMs is closed as soon as one with few.",
        closed_together,
    );
    p.subtest("beside-prefetches", "Who prefetches a lot is in nobody's way.", beside_prefetches);
    p.subtest(
        "destroy-behind-prefetch",
        "A VM is destroyed while a prefetch waits.",
        destroy_behind_prefetch,
    );
    p.main()
}
