// SPDX-License-Identifier: GPL-2.0

//! Errands of a thread: who waits for it to come back from one.

use crate::fixture::thread::sleep_ms;
use core::{
    ffi::c_void,
    ptr::{self, NonNull}, //
};
use kernel::{
    bindings,
    current,
    error::from_err_ptr,
    ffi::c_int,
    module::this_module,
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Acquire, Atomic, Release},
        Arc,
        Mutex, //
    },
    task::Task,
    workqueue::WorkItem, //
};
use kernel_ext::{
    module::ModuleRef,
    task_work::{Notify, TaskWork, TaskWorkItem},
    workqueue::OwnedQueue, //
};

/// How long anything is waited for, in milliseconds.
const PATIENCE_MS: u32 = 5000;

/// What the test, the thread and the worker tell each other.
#[pin_data]
struct Meeting {
    queue: OwnedQueue,
    #[pin]
    worker: Mutex<Option<ARef<Task>>>,
    /// The thread may come back.
    go: Atomic<bool>,
    /// The worker has seen it come back.
    over: Atomic<bool>,
}

impl Meeting {
    fn wait(&self, until: &Atomic<bool>) {
        for _ in 0..PATIENCE_MS {
            if until.load(Acquire) {
                break;
            }
            sleep_ms(1);
        }
    }
}

/// An item from which the thread comes back when it is told to.
struct Late(Arc<Meeting>);

/// The meeting of the item that has been run.
static LAST: Atomic<*mut Meeting> = Atomic::new(ptr::null_mut());

impl TaskWorkItem for Late {
    fn run(&self) {
        LAST.store(Arc::into_raw(self.0.clone()).cast_mut(), Release);
    }

    fn finish(work: Pin<KBox<TaskWork<Self>>>) {
        // SAFETY: `run()` left a reference there, just before.
        let meeting = unsafe { Arc::from_raw(LAST.load(Acquire)) };
        let waiter = meeting.clone();
        let spawned = meeting.queue.try_spawn(GFP_KERNEL, move || {
            let task: &Task = current!();
            *waiter.worker.lock() = Some(task.into());
            TaskWork::run(work);
            waiter.over.store(true, Release);
        });
        if spawned.is_ok() {
            meeting.wait(&meeting.go);
        }
    }
}

/// A thread that ends at once, and runs its errands then.
///
/// # Safety
///
/// To be called by the kernel, as the function of a new thread.
unsafe extern "C" fn end(_data: *mut c_void) -> c_int {
    0
}

fn state(task: &Task) -> u32 {
    // SAFETY: The task is valid; its state is a word.
    unsafe { (&raw const (*task.as_ptr()).__state).read_volatile() }
}

#[kunit_tests(gpusvm_task_work)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_thread_to_come_back_is_idle() -> Result {
        let meeting = Arc::pin_init(
            try_pin_init!(Meeting {
                queue: OwnedQueue::new_unbound(c"gpusvm_kunit")?,
                worker <- new_mutex!(None),
                go: Atomic::new(false),
                over: Atomic::new(false),
            }? Error),
            GFP_KERNEL,
        )?;
        let this = this_module::<crate::GpuSvmTests>();
        // SAFETY: The module is this one.
        let module = unsafe { ModuleRef::try_get(this.as_ptr()) }?;
        let work = TaskWork::new(Late(meeting.clone()), module)?;
        // SAFETY: The function takes no argument; the name is none of a format.
        let thread = from_err_ptr(unsafe {
            bindings::kthread_create_on_node(
                Some(end),
                ptr::null_mut(),
                bindings::NUMA_NO_NODE,
                c"gpusvm_kunit".as_char_ptr(),
            )
        })?;
        let thread = NonNull::new(thread).ok_or(ENOMEM)?;
        // SAFETY: The thread does not run before it is woken.
        let sent = work.send(unsafe { thread.cast().as_ref() }, Notify::Resume);
        // SAFETY: As above.
        unsafe { bindings::wake_up_process(thread.as_ptr()) };
        sent?;
        let mut seen = 0;
        for _ in 0..PATIENCE_MS {
            seen = meeting.worker.lock().as_ref().map_or(0, |task| state(task));
            if seen != 0 {
                break;
            }
            sleep_ms(1);
        }
        // Once more: it may have slept on the way there.
        sleep_ms(10);
        seen = meeting
            .worker
            .lock()
            .as_ref()
            .map_or(seen, |task| state(task));
        meeting.go.store(true, Release);
        meeting.wait(&meeting.over);
        // The queue does not go with the last reference of its own work.
        meeting.queue.flush();
        ensure!(meeting.over.load(Acquire));
        ensure_eq!(seen, bindings::TASK_IDLE);
        Ok(())
    }
}
