// SPDX-License-Identifier: GPL-2.0

//! Processes that are killed in the middle of long calls.

use crate::{mirrors, mirrors_of, page, size, span, Many, Scattered, DEATH, NOWHERE};
use std::time::{Duration, Instant};
use vxe_client::{Advice, AtomicAccess, Bind, Bo, Device, Vm};
use vxe_uapi::{
    gpu::device,
    process::{fork, Child},
    time::{expect_prompt, is_debug_kernel, promptly},
    vmas::vmas,
    PAGE, SZ_2M,
};

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
pub fn in_long_calls() {
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

/// Kills a process that makes `call`, so long after the call's beginning. Returns how long its death took.
fn death_in<T>(call: impl Fn() -> T, after: Duration) -> Duration {
    let child = fork(|link| {
        link.send(0);
        let _ = call();
        // In case that it was too late to be killed.
        link.receive();
    });
    child.link().receive();
    std::thread::sleep(after);
    let begin = Instant::now();
    child.kill();
    begin.elapsed()
}

/// Requires that one of a few deaths takes no longer than `limit`: what other processes of a busy machine do
/// may delay one, but not each.
#[track_caller]
fn expect_some_prompt(what: &str, limit: Duration, mut death: impl FnMut() -> Duration) {
    let mut shortest = death();
    for _ in 1..4 {
        if shortest <= limit {
            break;
        }
        shortest = shortest.min(death());
    }
    expect_prompt(what, shortest, limit);
}

/// A process dies near the end of a call that has done most of its work, which is to be undone: it does not
/// do that itself. Who uses the VM next finds it as it was.
pub fn late() {
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
    // What other processes of a busy machine do may delay one death, but not each.
    let mut slow = None;
    for part in [0.8, 0.6, 0.4, 0.2].into_iter().cycle().take(12) {
        many.bind(&mirrors(many.count));
        assert_eq!(spans(), before);
        let death = death_in(|| many.bind(&others), whole.mul_f64(part));
        let now = spans();
        if now != before {
            // It was done before it was killed.
            assert_eq!(now, after);
            continue;
        }
        many.bind(&others);
        assert_eq!(spans(), after);
        // Undoing takes a quarter as long as doing, but on a kernel that checks itself so does any death.
        let limit = if is_debug { DEATH } else { whole.mul_f64(part / 10.0) };
        println!("death after {part} of {whole:?}: {death:?}, at most {limit:?}");
        if death <= limit {
            return;
        }
        slow = Some((death, limit));
    }
    let (death, limit) =
        slow.unwrap_or_else(|| panic!("a call of {whole:?} was done each time before its end"));
    expect_prompt("death after most of a call", death, limit);
}

/// A process dies while it unmaps very many buffers.
pub fn unmapping() {
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
        let limit = if is_debug_kernel() { DEATH } else { whole / 10 };
        expect_some_prompt(&format!("death after {percent} % of {whole:?}"), limit, || {
            let many = apart();
            let death = death_in(|| many.bind(&all), whole * percent / 100);
            // Whatever of it was made is whole.
            let left = vmas(&many.vm, NOWHERE..NOWHERE + (2 * count * PAGE) as u64).len();
            assert!(left == 0 || left == count, "{left} of {count} buffers are left");
            death
        });
    }
}

/// A process dies while what it named in no order is sorted.
pub fn in_order() {
    let count = if is_debug_kernel() { size() * 10 } else { size() * 100 };
    let vm = Vm::mirrored(&device()).expect("a mirrored VM");
    // A prime that divides no such count.
    let at = |i: usize| page(2 * (i * 1_000_003 % count));
    let prefetches: Vec<_> = (0..count).map(|i| Bind::prefetch(at(i), PAGE as u64, -1)).collect();
    let begin = Instant::now();
    vm.bind(&prefetches).expect("nothing to prefetch");
    let whole = begin.elapsed();
    for percent in (30..80).step_by(5) {
        let limit = if is_debug_kernel() { DEATH } else { whole / 12 };
        expect_some_prompt(&format!("death after {percent} % of {whole:?}"), limit, || {
            death_in(|| vm.bind(&prefetches), whole * percent / 100)
        });
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
pub fn among_ranges() {
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
