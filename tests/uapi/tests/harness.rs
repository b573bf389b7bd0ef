// SPDX-License-Identifier: GPL-2.0

//! Tests the harness itself: that what should fail, fails. It forks, so it is a program with one
//! thread.

use std::{sync::mpsc, time::Duration};
use vxe_uapi::{
    harness::{exit, Program},
    skip,
};

fn main() {
    // SAFETY: there is one thread.
    unsafe { std::env::set_var("VXE_TIMEOUT", "1") };
    let mut p = Program::new("harness", "Tests the harness.");
    p.subtest("good", "passes", || ());
    p.subtest("bad", "panics", || panic!("as it should"));
    p.subtest("thread", "panics in a thread", || {
        std::thread::spawn(|| panic!("as it should")).join().unwrap();
    });
    p.subtest("crash", "dies of a signal", || std::process::abort());
    p.subtest("leaves", "exits early", || std::process::exit(3));
    p.subtest("hang", "does not end", || std::thread::sleep(Duration::from_secs(600)));
    p.subtest("skipped", "skips", || skip!("no {}", "reason"));
    p.subtest("orphan", "leaves a process behind", || {
        // SAFETY: the child only sleeps.
        if unsafe { libc::fork() } == 0 {
            std::thread::sleep(Duration::from_secs(600));
        }
    });

    for pattern in ["bad", "thread", "crash", "leaves", "hang", "good,bad"] {
        assert_eq!(p.run(Some(pattern)), exit::FAILURE, "{pattern}");
    }
    assert_eq!(p.run(Some("good")), exit::SUCCESS);
    assert_eq!(p.run(Some("skipped")), exit::SKIP);
    assert_eq!(p.run(Some("good,skipped")), exit::SUCCESS);
    assert_eq!(p.run(Some("orphan")), exit::SUCCESS);
    assert_eq!(p.run(Some("nonesuch")), exit::INVALID);
    assert_eq!(p.run(None), exit::FAILURE);

    let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        p.subtest("good", "a second of that name", || ());
    }));
    assert!(again.is_err(), "names are not unique");

    // Nothing that a subtest started is left: the orphan's parent is gone, so it is not ours.
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut status = 0;
        // SAFETY: the call writes an int.
        while unsafe { libc::waitpid(-1, &mut status, 0) } > 0 {}
        sender.send(()).unwrap();
    });
    receiver.recv_timeout(Duration::from_secs(5)).expect("a child is left");
}
