// SPDX-License-Identifier: GPL-2.0

//! Very many VMAs, binds and buffers: every call takes time in proportion to what it is about, and a
//! process can be killed in the middle of each.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};
use vxe_client::{report::Report, Advice, AtomicAccess, Bind, Bo, Device, Vm};
use vxe_uapi::{
    gpu::device,
    growth::expect_linear,
    map::RW,
    process::{fork, Child},
    time::{expect_prompt, is_debug_kernel, promptly},
    uffd::Uffd,
    vmas::{vmas, Attributes},
    Map, Program, PAGE, SZ_2M, SZ_64K,
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

/// Kills a process while it is in a long call, and sees that it is gone soon. `prepare` makes what it works
/// on.
#[track_caller]
fn expect_death<T>(what: &str, prepare: impl Fn(&Device) -> T, call: impl Fn(&T)) {
    let child = fork(|link| {
        let object = prepare(&device());
        link.send(0);
        loop {
            call(&object);
        }
    });
    child.link().receive();
    // At different places of the call.
    std::thread::sleep(Duration::from_millis(700));
    let start = Instant::now();
    child.kill();
    expect_prompt(what, start.elapsed(), DEATH);
}

/// A process dies in the middle of what takes long.
fn killed() {
    const MAPS: usize = 6000;
    const SIZE: usize = 4 << 20;
    let place = |i: usize| NOWHERE + (i * SIZE) as u64;
    expect_death(
        "death in many MAPs at once",
        |device| {
            let bo = Bo::system(device, SIZE).expect("a buffer");
            (Vm::new(device).expect("a VM"), bo)
        },
        |(vm, bo)| {
            let map = |i| Bind::bo(bo, 0, place(i), SIZE as u64).immediate();
            vm.bind(&(0..MAPS).map(map).collect::<Vec<_>>()).expect("many binds");
        },
    );
    expect_death(
        "death in many binds",
        |device| (Vm::new(device).expect("a VM"), mirrors(300_000)),
        |(vm, pieces)| vm.bind(pieces).expect("many binds"),
    );
    expect_death(
        "death in advice",
        |_| Many::mirrors(size() * 40),
        |many| {
            many.advise(Advice::Atomic(AtomicAccess::Global));
            many.advise(Advice::Atomic(AtomicAccess::Device));
        },
    );
    expect_death(
        "death in a bind of a large buffer",
        |device| Vm::new(device).expect("a VM"),
        |vm| {
            // There are up to two of them.
            let regions = vm.device().memory_regions().expect("the regions");
            let all = regions.iter().map(|region| region.total_size as usize).max();
            let size = (all.expect("a region") / 4).next_multiple_of(SZ_2M);
            let bo = Bo::system(vm.device(), size).expect("a buffer");
            vm.bind(&[Bind::bo(&bo, 0, NOWHERE, size as u64)]).expect("bound");
        },
    );
    expect_death("death in the mmap of a large buffer", Device::clone, |device| {
        let regions = device.memory_regions().expect("the regions");
        let all = regions.iter().map(|region| region.total_size as usize).max();
        let size = (all.expect("a region") / 4).next_multiple_of(SZ_2M);
        drop(Bo::system(device, size).expect("a buffer").map().expect("mapped"));
    });
}

/// A process dies near the end of a call that has done most of its work, which is to be undone: it does not
/// do that itself. Who uses the VM next finds it as it was.
fn killed_late() {
    let is_debug = is_debug_kernel();
    let many = Many::mirrors(if is_debug { size() * 4 } else { size() * 20 });
    let (start, length) = span(many.count);
    let spans =
        || vmas(&many.vm, start..start + length).iter().map(|v| v.span.clone()).collect::<Vec<_>>();
    let before = spans();
    let others = mirrors_of(2, many.count / 2);
    let begin = Instant::now();
    many.bind(&others);
    let whole = begin.elapsed();
    let after = spans();
    assert_eq!(after.len(), many.count / 2);
    for part in [0.8, 0.6, 0.4, 0.2] {
        many.bind(&mirrors(many.count));
        assert_eq!(spans(), before);
        let child = fork(|link| {
            link.send(0);
            many.bind(&others);
            link.receive();
        });
        child.link().receive();
        std::thread::sleep(whole.mul_f64(part));
        let begin = Instant::now();
        child.kill();
        let death = begin.elapsed();
        let now = spans();
        if now == before {
            // Undoing takes a quarter as long as doing, but on a kernel that checks itself so does any death.
            let limit = if is_debug { DEATH } else { whole.mul_f64(part / 10.0) };
            expect_prompt("death after most of a call", death, limit);
            many.bind(&others);
            assert_eq!(spans(), after);
            return;
        }
        // It was done before it was killed.
        assert_eq!(now, after);
    }
    panic!("a call of {whole:?} was done each time before who made it was killed");
}

/// A process dies while it unmaps very many buffers.
fn killed_unmapping() {
    let count = if is_debug_kernel() { size() * 4 } else { size() * 20 };
    let apart = || {
        let many = Many::empty(count);
        let bo = Bo::system(many.vm.device(), PAGE).expect("a buffer");
        let maps = (0..count).map(|i| Bind::bo(&bo, 0, page(2 * i), PAGE as u64).immediate());
        many.bind(&maps.collect::<Vec<_>>());
        many
    };
    let all = [Bind::unmap(NOWHERE, (2 * count * PAGE) as u64)];
    let many = apart();
    let begin = Instant::now();
    many.bind(&all);
    let whole = begin.elapsed();
    for percent in (30..100).step_by(10) {
        let many = apart();
        let child = fork(|link| {
            link.send(0);
            many.bind(&all);
            link.receive();
        });
        child.link().receive();
        std::thread::sleep(whole * percent / 100);
        let begin = Instant::now();
        child.kill();
        let limit = if is_debug_kernel() { DEATH } else { whole / 10 };
        expect_prompt(&format!("death after {percent} % of {whole:?}"), begin.elapsed(), limit);
        // Whatever of it was made is whole.
        let left = vmas(&many.vm, NOWHERE..NOWHERE + (2 * count * PAGE) as u64).len();
        assert!(left == 0 || left == count, "{left} of {count} buffers are left");
    }
}

/// A process dies while what it named in no order is sorted.
fn killed_in_order() {
    let count = if is_debug_kernel() { size() * 10 } else { size() * 100 };
    let vm = Vm::mirrored(&device()).expect("a mirrored VM");
    // A prime that divides no such count.
    let at = |i: usize| page(2 * (i * 1_000_003 % count));
    let prefetches: Vec<_> = (0..count).map(|i| Bind::prefetch(at(i), PAGE as u64, -1)).collect();
    let begin = Instant::now();
    vm.bind(&prefetches).expect("nothing to prefetch");
    let whole = begin.elapsed();
    for percent in (30..80).step_by(5) {
        let child = fork(|link| {
            link.send(0);
            let _ = vm.bind(&prefetches);
            link.receive();
        });
        child.link().receive();
        std::thread::sleep(whole * percent / 100);
        let begin = Instant::now();
        child.kill();
        let limit = if is_debug_kernel() { DEATH } else { whole / 12 };
        expect_prompt(&format!("death after {percent} % of {whole:?}"), begin.elapsed(), limit);
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

/// Has another process make a call on a VM of this one, over very many ranges, and kills it in the middle of
/// letting go of them: then nothing has happened but that. `calls` are two of which each changes the
/// attributes, the first after the second.
#[track_caller]
fn expect_nothing_done(what: &str, calls: [fn(&Vm, u64, u64); 2]) {
    const ROUNDS: usize = 16;
    let vm = Vm::mirrored(&device()).expect("a mirrored VM");
    // They come before all that memory, which they have no part in.
    let caller = |round: usize| {
        fork(|link| {
            while !link.has_word() {
                std::thread::sleep(Duration::from_millis(20));
            }
            let (start, length) = (link.receive(), link.receive());
            // It begins.
            link.send(0);
            calls[round % 2](&vm, start, length);
            // In case that it was too late to be killed.
            link.receive();
        })
    };
    let callers: Vec<Child> = (0..ROUNDS).map(caller).collect();
    let many = Scattered::new(vm, size() * 2);
    let (start, length) = many.span();

    many.fetch();
    let begun = Instant::now();
    calls[1](&many.vm, start, length);
    let whole = begun.elapsed();
    assert_eq!(many.mapped(), 0, "{what}: ranges that are mapped as before");
    // Where the middle is shows by whether the kill came too early or too late.
    let mut wait = whole / 4;
    for (round, child) in callers.into_iter().enumerate() {
        many.fetch();
        let before = many.attributes();
        child.link().send(start);
        child.link().send(length);
        child.link().receive();
        std::thread::sleep(wait);
        promptly(&format!("death in {what}, of {whole:?}, after {wait:?}"), DEATH, || child.kill());
        let (is_done, mapped) = (many.attributes() != before, many.mapped());
        println!(
            "{mapped} ranges are left, and the change was {}",
            if is_done { "made" } else { "not made" }
        );
        if is_done {
            assert_eq!(mapped, 0, "{what}: ranges that are mapped as before");
        } else if mapped != 0 && mapped != many.count {
            // It would be in whoever is forked later, whose end would take longer for that.
            many.memory.unmap();
            return;
        }
        wait = if is_done { wait * 2 / 3 } else { wait * 4 / 3 };
        // What was not done the next one would find done already.
        if !is_done {
            calls[round % 2](&many.vm, start, length);
        }
    }
    panic!("{what}: nobody was killed before it had let go of all");
}

/// A process dies while it changes what very many ranges are mapped by. As long as it has not let go of all of
/// them nothing has changed.
fn killed_among_ranges() {
    fn advise(vm: &Vm, start: u64, length: u64, atomics: AtomicAccess) {
        vm.madvise(start, length, Advice::Atomic(atomics)).expect("advice");
    }
    expect_nothing_done(
        "advice on many ranges",
        [
            |vm, start, length| advise(vm, start, length, AtomicAccess::Global),
            |vm, start, length| advise(vm, start, length, AtomicAccess::Device),
        ],
    );
    fn bind(vm: &Vm, start: u64, length: u64, pat: u16) {
        vm.bind(&[Bind::mirror(start, length).pat(pat)]).expect("a bind");
    }
    expect_nothing_done(
        "a bind of many ranges",
        [
            |vm, start, length| bind(vm, start, length, 2),
            |vm, start, length| bind(vm, start, length, 3),
        ],
    );
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
        let map = Map::aligned(SZ_64K, SZ_2M);
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
    p.subtest("killed", "A process is killed in the middle of a long call.", killed);
    p.subtest("killed-late", "What a process has done is undone after its death.", killed_late);
    p.subtest(
        "killed-among-ranges",
        "A process is killed that lets go of many ranges.",
        killed_among_ranges,
    );
    p.subtest("killed-unmapping", "Who unmaps very many buffers dies soon.", killed_unmapping);
    p.subtest("killed-in-order", "Who sorts what he named in no order dies soon.", killed_in_order);
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
